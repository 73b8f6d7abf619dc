"""Several tasks' evaluation examples as one dataset: batches are filled across tasks, and what was read is kept.

SeqIO's evaluator asks for one task after the other. Small tasks would be run in batches that are mostly padding, and opening
a TensorFlow dataset for each, at every evaluation, takes longer than reading its examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
  import tensorflow as tf


# What is kept takes no more than this, in bytes; tasks that find no room are read at each evaluation.
_MOST_KEPT = 256 << 20


class JoinedTasks:
  """Examples of tasks that have the same features of the same shapes, one task after the other."""

  def __init__(self, datasets: Mapping[str, tf.data.Dataset], keep: bool):
    """Opens nothing yet.

    Args:
      datasets: {task: (index, {feature: [...]})}, of one element spec.
      keep: whether to hold examples in memory after the first reading, as far as there is room for a whole task.
    """
    self._datasets = dict(datasets)
    self._keep = keep
    self._kept: dict[str, list[Any]] = {}
    self._kept_bytes = 0
    self._sizes: dict[str, int] = {}

  def as_numpy_iterator(self) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index over all tasks, example)."""
    index = 0
    for name, dataset in self._datasets.items():
      start = index
      for example in self._kept.get(name) or self._read(name, dataset):
        yield index, example
        index += 1
      self._sizes[name] = index - start

  def _read(self, name: str, dataset: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    kept, size = [] if self._keep else None, 0
    for _, example in dataset.as_numpy_iterator():
      if kept is not None:
        kept.append(example)
        size += sum(np.asarray(value).nbytes for value in example.values())
        if self._kept_bytes + size > _MOST_KEPT:
          kept = None
      yield example
    if kept:
      self._kept[name] = kept
      self._kept_bytes += size

  def split(self, outputs: Any) -> dict[str, Any]:
    """Gives each task its own.

    Args:
      outputs: what a function of `inference.get_infer_fn` returned for this dataset: [(index, output)] in order, or that and
        a pytree of lists.

    Returns:
      {task: the same for its examples, counted from 0}.
    """
    values, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    found, start = {}, 0
    for name, size in self._sizes.items():
      own = slice(start, start + size)
      found[name] = [(index - start, value) for index, value in values[own]]
      if auxiliary:
        found[name] = found[name], jax.tree.map(lambda x, own=own: x[own], auxiliary[0], is_leaf=lambda x: isinstance(x, list))
      start += size
    return found


def join(datasets: Mapping[str, tf.data.Dataset], keep: bool) -> list[JoinedTasks]:
  """Joins the tasks that can be joined: those of one element spec.

  Args:
    datasets: {task: enumerated examples}.
    keep: see `JoinedTasks`.
  """
  groups: dict[str, dict[str, Any]] = {}
  for name, dataset in datasets.items():
    groups.setdefault(repr(dataset.element_spec), {})[name] = dataset
  return [JoinedTasks(group, keep) for group in groups.values()]


def run(joined: list[JoinedTasks], infer_fn: Callable[[Any], Any]) -> dict[str, Any]:
  """Returns {task: outputs} of `infer_fn(dataset)` over all."""
  return {name: outputs for tasks in joined for name, outputs in tasks.split(infer_fn(tasks)).items()}
