"""Which instances of a Super-NI task are for training, for validation and for the test.

Splits are made by position in the file, so that nobody can train on what is reported:

*   `test`, test tasks only: the first 100 instances, as in the benchmark, whose authors put a balanced choice there. What
    follows them is there for adaptation to the task.
*   `validation`: of the rest (of all, for the other tasks) the first `validation`, or 20 % where that is less; at least one.
*   `train`: the next `train` at most.

With a `seed` the last two are drawn from the rest (`few_shot.sample`), the same on every machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Mapping, Sequence

import gin

from tasks import few_shot

NUM_TEST = 100
SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Most instances of each task.

  Attributes:
    train: for training.
    validation: for validation.
    seed: of the draw; None: by position.
  """
  train: int
  validation: int
  seed: int | None

  def __post_init__(self):
    if self.train < 1 or self.validation < 1:
      raise ValueError(f'superni_splits.sizes: train={self.train}, validation={self.validation}; set both to 1 or more')

  @property
  def needed(self) -> int:
    """Instances from the start of a task that fill all splits, where so many exist."""
    return NUM_TEST + max(5 * self.validation, self.validation + self.train)


@gin.configurable(module='tasks.superni_splits')
def sizes(train: int = 100, validation: int = 50, seed: int | None = None) -> Sizes:
  """The run's `Sizes`, which gin can set; asked for whenever instances are read."""
  return Sizes(train, validation, seed)


def split(instances: Sequence[Any], is_test: bool, most: Sizes) -> Mapping[str, Sequence[Any]]:
  """Returns the instances of each split, as the module's docstring says.

  Args:
    instances: all of a task, by position; those that are None are in no split.
    is_test: whether it is a test task.
    most: the sizes.

  Returns:
    Split name -> instances; `test` only for a test task.
  """
  rest = range(NUM_TEST if is_test else 0, len(instances))
  num_validation = min(most.validation, max(1, len(rest) // 5))
  chosen = {'validation': _take(rest, num_validation, most.seed)}
  chosen['train'] = _take(sorted(set(rest).difference(chosen['validation'])), most.train, most.seed)
  if is_test:
    chosen['test'] = range(min(NUM_TEST, len(instances)))
  return {name: [instances[i] for i in positions if instances[i] is not None] for name, positions in chosen.items()}


def _take(positions: Sequence[int], number: int, seed: int | None) -> Sequence[int]:
  return positions[:number] if seed is None else few_shot.sample(positions, number, seed)
