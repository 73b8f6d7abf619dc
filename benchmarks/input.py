"""The input pipeline: batches a second beside what the train step of the smallest model takes, and the time to the first batch.

    python -m benchmarks.input
    SUPERNI_DIR=/data/superni python -m benchmarks.input --mixtures=latent_skills,superni --json=FILE

Training and reading take turns, each alone on the machine: some steps of cpoly with the tiny T5 on one batch, then some batches
are read, and so on. The first batch is read in new processes, with examples indexed in memory and
streamed through SeqIO's own pipeline.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any
from collections.abc import Mapping

from absl import app
from absl import flags

from benchmarks import first_batch
from benchmarks import train_step

_MIXTURES = flags.DEFINE_list('mixtures', ['latent_skills'], 'SeqIO names of the mixtures.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Train steps of a round.', lower_bound=1)
_BATCHES = flags.DEFINE_integer('batches', 200, 'Batches read in a round.', lower_bound=1)
_STARTS = flags.DEFINE_integer('starts', 1, 'Processes that read the first batch in each way; 0: none.', lower_bound=0)


def read(iterator: Any, number: int) -> dict[str, float]:
  """Reads batches and returns rows and examples a second, and the share of the encoder's places that hold a token."""
  rows = examples = tokens = places = 0
  start = time.perf_counter()
  for _ in range(number):
    batch = next(iterator)
    encoder = batch['encoder_input_tokens']
    rows += len(encoder)
    segments = batch.get('encoder_segment_ids')
    examples += len(encoder) if segments is None else int(segments.max(axis=1).sum())
    tokens += int((encoder > 0).sum())
    places += encoder.size
  seconds = time.perf_counter() - start
  return {'rows_per_second': rows / seconds, 'examples_per_second': examples / seconds, 'fill': tokens / places}


def measure(mixture: str) -> dict[str, Any]:
  """Measures reading, padded and packed, and training on one mixture; returns the medians of the rounds."""
  batch, inputs, targets = train_step.shape()
  iterators, steps = {}, {}
  for name, pack in (('padded', False), ('packed', True)):
    iterators[name], num_tasks = first_batch.open_data(mixture, batch, inputs, targets, pack)
    read(iterators[name], _BATCHES.value)  # Until all examples are in memory.
    parts = train_step.configured(['gin_configs/models/t5_1_1/tiny.gin', 'gin_configs/systems/cpoly.gin'],
                                  [f'NUM_TASKS = {num_tasks}'])
    steps[name] = train_step.compiled(name, parts, next(iterators[name]), num_tasks)
    steps[name].run(1)
    steps[name].seconds.clear()
  rounds = {name: [] for name in iterators}
  for _ in range(train_step.ROUNDS.value):
    for name, iterator in iterators.items():
      steps[name].run(_STEPS.value)
      rounds[name].append(read(iterator, _BATCHES.value))
  figures: dict[str, Any] = {'tasks': num_tasks}
  for name, values in rounds.items():
    of_name = {key: statistics.median(value[key] for value in values) for key in values[0]}
    of_name['train_rows_per_second'] = batch / steps[name].median
    of_name['times_the_train_step'] = of_name['rows_per_second'] / of_name['train_rows_per_second']
    figures[name] = of_name
  return figures


def first_batch_seconds(mixture: str, kind: str, number: int) -> float:
  """Returns the median seconds to the first batch of new processes, for the kind `indexed` or `streamed`.

  Raises:
    RuntimeError: a process failed; with the end of what it printed.
  """
  command = [sys.executable, '-m', 'benchmarks.first_batch', mixture, kind, *map(str, train_step.shape())]
  seconds = []
  for _ in range(number):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise RuntimeError(f'{" ".join(command)} failed: {done.stderr[-2000:]}')
    seconds.append(json.loads(done.stdout.splitlines()[-1])['seconds'])
  return statistics.median(seconds)


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the figures as lines of text."""
  lines = []
  for mixture, of_mixture in figures.items():
    lines.append(f'{mixture}: {of_mixture["tasks"]} tasks')
    for name in ('padded', 'packed'):
      value = of_mixture[name]
      lines.append(f'  {name}: {value["rows_per_second"]:,.0f} rows/s, {value["examples_per_second"]:,.0f} examples/s, '
                   f'{value["fill"]:.0%} filled; {value["times_the_train_step"]:,.0f} times the train step, which takes '
                   f'{value["train_rows_per_second"]:,.0f} rows/s')
    for kind, seconds in of_mixture.get('first_batch_seconds', {}).items():
      lines.append(f'  first batch, {kind}: {seconds:.1f} s')
  return '\n'.join(lines)


def main(argv) -> None:
  del argv
  figures = {}
  for mixture in _MIXTURES.value:
    figures[mixture] = measure(mixture)
    if _STARTS.value:
      figures[mixture]['first_batch_seconds'] = {
          kind: first_batch_seconds(mixture, kind, _STARTS.value) for kind in ('indexed', 'streamed')}
  print(table(figures))
  train_step.write_json(figures)


if __name__ == '__main__':
  app.run(main)
