"""Checkpoints: bytes and seconds of what trains beside the whole model, and what saving costs the steps meanwhile.

    python -m benchmarks.checkpoint
    python -m benchmarks.checkpoint --system=poly --rank=1 --json=checkpoint.json

A state is saved as a whole, as T5X does, and then without the frozen base, which that first checkpoint holds. For the cost to
the steps, rounds of some steps alternate with rounds whose first step is followed by a save that goes on beside them.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
from t5x import base_checkpoint
from t5x import checkpoint_state
from t5x import checkpoints
from t5x import partitioning

from benchmarks import steady_memory
from benchmarks import train_step
from cpoly_jax.training import partitioning as rules

_SYSTEM = flags.DEFINE_string('system', 'cpoly', 'A file of gin_configs/systems, without .gin.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/small', 'A file of gin_configs/models, without .gin.')
_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_RANK = flags.DEFINE_integer('rank', 4, 'Rank of each skill.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps of a round, with and without a save.', lower_bound=1)
_PERIOD = flags.DEFINE_integer('period', 1000, 'Steps between checkpoints, for the share of the step time.', lower_bound=1)


def size_of(folder: str) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*') if path.is_file())


def _manager(state: Any, folder: str) -> Any:
  partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules.logical_axis_rules())
  return checkpoints.OrbaxCheckpointManagerInterface(folder, state, partitioner, keep=1)


def _base_in(folder: str, state: Any) -> Any:
  """The frozen parameters of a state that is saved in a folder."""
  flat = checkpoint_state.flatten(state.state_dict())
  trained = checkpoint_state.trainable_names(state)
  frozen = {name: leaf for name, leaf in flat.items() if name.startswith('target/') and name not in trained}
  return base_checkpoint.BaseReference(folder, base_checkpoint.digest(frozen), {name: name for name in frozen})


def _timed(call: Any) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def save(state: Any, folder: str, base: Any = None) -> tuple[Any, dict[str, float]]:
  """Saves a state; returns the manager, and bytes, seconds until `save` returned and until all was written."""
  manager = _manager(state, folder)
  manager.base_reference = base
  start = time.perf_counter()
  blocked = _timed(lambda: manager.save(state))
  manager.wait_until_finished()
  return manager, {'blocked': blocked, 'written': time.perf_counter() - start, 'bytes': size_of(folder)}


def while_saving(step: Any, folder: str, base: Any) -> dict[str, float]:
  """Medians of the seconds of a round of steps without and with a save."""
  manager = _manager(step.state, folder)
  manager.base_reference = base
  rounds: dict[bool, list[float]] = {False: [], True: []}
  for _ in range(train_step.ROUNDS.value):
    for saves, seconds in rounds.items():
      start = time.perf_counter()
      step.run(1)
      if saves:
        manager.save(step.state)
      step.run(_STEPS.value - 1)
      seconds.append(time.perf_counter() - start)
      manager.wait_until_finished()
  without, with_save = (statistics.median(seconds) for seconds in rounds.values())
  a_step = without / _STEPS.value
  return {'step': a_step, 'extra': with_save - without, 'share': (with_save - without) / (_PERIOD.value * a_step)}


def main(argv) -> None:
  del argv
  steady_memory.keep()
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every file.
  parts = train_step.configured([f'gin_configs/models/{_MODEL.value}.gin', f'gin_configs/systems/{_SYSTEM.value}.gin'],
                                [f'NUM_TASKS = {_TASKS.value}', f'RANK = {_RANK.value}'])
  step = train_step.compiled(_SYSTEM.value, parts, train_step.batch_of(*train_step.shape(), _TASKS.value), _TASKS.value)
  step.run(1)
  with tempfile.TemporaryDirectory() as folder:
    figures: dict[str, Any] = {}
    whole, figures['whole model'] = save(step.state, f'{folder}/whole')
    base = _base_in(f'{folder}/whole/checkpoint_{int(step.state.step)}', step.state)
    ours, figures['what trains'] = save(step.state, f'{folder}/ours', base)
    for name, manager in (('whole model', whole), ('what trains', ours)):
      figures[name]['restored'] = _timed(manager.restore)
    figures['beside steps'] = while_saving(step, f'{folder}/while', base)
  print(f'{"checkpoint":12} {"MB":>8} {"blocked s":>9} {"written s":>9} {"restored s":>10}')
  for name in ('whole model', 'what trains'):
    row = figures[name]
    print(f'{name:12} {row["bytes"] / 1e6:8.1f} {row["blocked"]:9.2f} {row["written"]:9.2f} {row["restored"]:10.2f}')
  ratio = figures['what trains']['bytes'] / figures['whole model']['bytes']
  figures['bytes_ratio'] = ratio
  beside = figures['beside steps']
  print(f'bytes ratio {ratio:.4f} with optimizer state of what trains; a save costs the steps beside it '
        f'{beside["extra"]:.2f} s, {beside["share"]:.2%} of {_PERIOD.value:,} steps of {beside["step"]:.2f} s')
  train_step.write_json(figures)


if __name__ == '__main__':
  app.run(main)
