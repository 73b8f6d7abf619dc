"""Mixtures of some Super-NI tasks, chosen by a seed, for experiments in the manner of C-Poly (arXiv 2312.03248).

Which tasks there are is known when tasks.superni is imported, how many a run wants only when its gin files have been read. So
a run names its mixture by a call:

    MIXTURE_OR_TASK_NAME = @superni_selection.mixture()
    superni_selection.mixture.num_tasks = 100

gin_configs/runs/superni.gin has these lines. The choice depends on the seed and the names of the tasks alone; a larger one of
the same seed has all tasks of a smaller one.
"""

from __future__ import annotations

import hashlib

import seqio

from tasks import superni
from tasks import superni_files
from tasks import superni_source


def mixture(num_tasks: int = 100, seed: int = 0, of: str = 'superni') -> str:
  """Chooses tasks, registers their mixture and returns its name, `<of>_<num_tasks>_tasks_seed_<seed>`.

  How many instances each task has for training and validation is set by `superni_splits.sizes`.

  Args:
    num_tasks: how many.
    seed: of the choice.
    of: the mixture to choose from: `superni`, `superni_test` or `superni_all`.

  Raises:
    FileNotFoundError: there are no tasks: neither SUPERNI_DIR nor SUPERNI_SPLITS is set.
    ValueError: there is no such mixture, or it has fewer tasks.
  """
  if of not in superni.MIXTURES:
    raise ValueError(f'superni_selection.mixture.of is {of!r}; set it to {", ".join(superni.MIXTURES)}')
  tasks = [task.name for task in seqio.MixtureRegistry.get(of).tasks]
  if tasks == [superni_files.task_name(superni_source.UNSET_TASK)]:
    raise superni_source.unset_error()
  if not 1 <= num_tasks <= len(tasks):
    raise ValueError(f'superni_selection.mixture.num_tasks is {num_tasks} and {of} has {len(tasks)} tasks; set it to 1 to '
                     f'{len(tasks)}, or choose of another mixture ({", ".join(superni.MIXTURES)})')
  order = sorted(tasks, key=lambda task: hashlib.sha256(f'{seed}:{task}'.encode()).digest())
  members = sorted(order[:num_tasks])
  name = f'{of}_{num_tasks}_tasks_seed_{seed}'
  # Gin calls this wherever a run names its mixture; only other tasks, of another SUPERNI_DIR, need another one.
  if (name not in seqio.MixtureRegistry.names()
      or seqio.MixtureRegistry.get(name).tasks != [seqio.TaskRegistry.get(task) for task in members]):
    superni.add_mixture(name, members)
  return name
