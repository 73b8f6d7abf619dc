"""Experiments without gin and without training: configurations are texts, runs are what a test writes into their folders."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from unittest import mock

from cpoly_jax.experiments import configuring
from cpoly_jax.experiments import plans
from cpoly_jax.experiments import spec as spec_lib
from cpoly_jax.systems import counts

TWO = """
title = 'Two systems'
gin_files = ['gin_configs/cpoly_tiny.gin']
[bindings]
TRAIN_STEPS = 4
[grid]
system = ['cpoly', 'poly']
seed = [0, 1]
"""


def read_spec(text: str) -> spec_lib.Spec:
  """Returns the experiment of a file with this text, named `some.toml`."""
  path = pathlib.Path(tempfile.mkdtemp(), 'some.toml')
  path.write_text(text)
  return spec_lib.read(str(path))


def _read(files, bindings):
  text, macros = repr((files, sorted(bindings.items()))), frozenset(bindings) | {'RATE'}
  return configuring.Config(text, macros, int(bindings.get('TRAIN_STEPS', 4)), 8)


def _count(files, bindings):
  """A skill for each letter of the system's file, and RANK parameters each; one task uses half of them."""
  size = len(pathlib.Path(files[-1]).stem) * int(bindings.get('RANK', 4))
  return counts.Counts(1, 1, 1000, {'skills': 2 * size, 'routing': 0, 'base': 0}, size)


@contextlib.contextmanager
def without_gin():
  """Within it a configuration is its files and bindings, which are all used."""
  with mock.patch.object(configuring, 'read', _read), mock.patch.object(configuring, 'Counter', lambda: _count):
    yield


def make_plan(text: str, out: str | None = None) -> plans.Plan:
  """Returns a plan; call it within `without_gin`."""
  return plans.make(read_spec(text), out or tempfile.mkdtemp())


def write_run(folder, scores, *, step=None, mixture=None, examples=None):
  """Writes what a run writes: for each task {step: {metric: value}}."""
  folder = pathlib.Path(folder)
  (folder / 'inference_eval').mkdir(parents=True, exist_ok=True)
  for task, steps in scores.items():
    lines = [json.dumps({'step': at, **metrics}) for at, metrics in steps.items()]
    (folder / 'inference_eval' / f'{task}-metrics.jsonl').write_text('\n'.join(lines) + '\n')
  if examples:
    (folder / 'train').mkdir(exist_ok=True)
    lines = [json.dumps({'step': at, 'loss': 1 / at, 'examples': number}) for at, number in examples.items()]
    (folder / 'train' / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  if step is not None:
    summary = {'summary': {mixture: {'score': 1.}}} if mixture else {}
    (folder / 'results.json').write_text(json.dumps({'step': step, 'metrics': {}, **summary}))


def end_run(run, scores):
  """Marks a run as done, with an exact match for each task at each step."""
  metrics = {task: {at: {'exact_match': value} for at, value in steps.items()} for task, steps in scores.items()}
  write_run(run.folder.path, metrics, step=run.steps)
  run.folder.note('done', name=run.name, seconds=6., jobs=1)
