"""Tokenised samples of many tasks, quickly: tasks of one format go through one pipeline together.

Building a pipeline takes longer than reading a few hundred examples through it, so 1,600 tasks are read in a minute only where
there are few pipelines. Tasks with the very same preprocessors (see `features`) can share one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from tasks import sources

_TASK = 'sample/task'  # Position of an example's task among those of its pipeline.


@dataclasses.dataclass(frozen=True)
class Example:
  """What a model gets of an example: ids with the end of sequence [L] int32 each, and the target's text."""
  inputs: np.ndarray
  targets: np.ndarray
  target_text: str


def read(tasks: Sequence[seqio.Task], split: str, most: int,
         lengths: Mapping[str, int] | None = None) -> dict[str, list[Example]]:
  """Reads up to `most` rows of each task, spread evenly over the split and in its order.

  Args:
    tasks: the tasks; those without the split have no examples.
    split: e.g. `train`.
    most: rows of a task. Of a task whose source is no `sources.RowSource` these are the first ones.
    lengths: longest `inputs` and `targets`; longer ones are cut as in a run. None: nothing is cut, except by the task itself.

  Returns:
    Name of each task -> examples.

  Raises:
    FileNotFoundError, ValueError: the data are not there or faulty.
  """
  found: dict[str, list[Example]] = {task.name: [] for task in tasks}
  for group in _groups([task for task in tasks if split in task.splits], split, most):
    for name, example in _read_group(group, split, most, lengths):
      found[name].append(example)
  return found


def _groups(tasks: Sequence[seqio.Task], split: str, most: int) -> list[list[seqio.Task]]:
  """Sets of tasks that can share a pipeline: the same preprocessors, and examples of the same features."""
  groups: dict[Any, list[seqio.Task]] = {}
  for task in tasks:
    key: Any = task.name
    if isinstance(task.source, sources.RowSource):
      example = task.source.to_example(task.source.rows(split)[0], split, 0)
      key = (tuple(map(id, task.preprocessors)), tuple(sorted(example)))
    groups.setdefault(key, []).append(task)
  return list(groups.values())


class _Rows(sources.RowSource):
  """Some rows of each of several sources, marked with the position of the task."""

  def __init__(self, tasks: Sequence[seqio.Task], split: str, most: int):
    super().__init__(tasks[0].name)
    self._tasks = tasks
    self._split = split
    self._most = most

  def origin(self) -> str:
    return self._tasks[0].source.origin()

  @property
  def splits(self) -> Sequence[str]:
    return (self._split,)

  def read(self, split: str) -> Sequence[Any]:
    picked = []
    for position, task in enumerate(self._tasks):
      rows = task.source.rows(split)
      indices = range(len(rows)) if len(rows) <= self._most else np.linspace(0, len(rows) - 1, self._most).astype(int)
      picked += [(position, rows[index]) for index in indices]
    return picked

  def to_example(self, row: Any, split: str, seed: int) -> dict[str, Any]:
    position, inner = row
    return {**self._tasks[position].source.to_example(inner, split, seed), _TASK: position}


def _read_group(tasks: Sequence[seqio.Task], split: str, most: int,
                lengths: Mapping[str, int] | None) -> Iterator[tuple[str, Example]]:
  task = first = tasks[0]
  if isinstance(first.source, sources.RowSource):
    # Not registered: it is for this reading only.
    task = seqio.Task(first.name, source=_Rows(tasks, split, most), preprocessors=first.preprocessors,
                      output_features=first.output_features)
  dataset = task.get_dataset(lengths, split, shuffle=False, num_epochs=1, seed=0, try_in_mem_cache=False)
  if task is first:
    dataset = dataset.take(most)
  for example in dataset.as_numpy_iterator():
    text = example.get('targets_pretokenized', b'')
    text = text.decode('utf-8', 'replace') if isinstance(text, bytes) else str(text)
    yield tasks[example.get(_TASK, 0)].name, Example(example['inputs'], example['targets'], text)
