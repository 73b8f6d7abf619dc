"""The converted examples of a run's tasks, in memory, while they are still being read.

A thread reads tasks one after the other; a task with many examples is used from its first ones on. Whoever asks for an example
that is not there yet waits for it. Features are kept without their trailing zeros, which batches and rows get back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x import example_order
from t5x import task_pipelines

# A task whose pipeline does not tell how many examples it makes is read whole before the first batch: at most so many.
READ_WHOLE = 50_000


class _Column:
  """One feature of all examples: the values of each, without trailing zeros, in one array.

  Args:
    shape: of one example.
    dtype: of its values.
  """

  def __init__(self, shape: tuple[int, ...], dtype: np.dtype):
    self._rank0 = not shape
    self.shape = shape or (1,)
    self._starts = np.zeros(0, np.int64)
    self.lengths = np.zeros(0, np.int32)
    self._values = np.zeros((0, *self.shape[1:]), dtype)
    self._used = 0

  def reserve(self, number: int) -> None:
    """Makes room for the lengths of `number` examples in all."""
    self._starts, self.lengths = _grown(self._starts, number), _grown(self.lengths, number)

  def put(self, ids: np.ndarray, values: np.ndarray) -> None:
    """Stores examples [n, *shape] under their ids [n]."""
    values = values.reshape(len(ids), *self.shape)
    filled = (values != 0).reshape(*values.shape[:2], -1).any(-1)
    lengths = np.where(filled.any(1), values.shape[1] - np.argmax(filled[:, ::-1], axis=1), 0)
    flat = values[np.arange(values.shape[1]) < lengths[:, None]]
    end = self._used + len(flat)
    if end > len(self._values):
      self._values = _grown(self._values, 2 * end)
    self._values[self._used:end] = flat
    self._starts[ids] = self._used + np.cumsum(lengths) - lengths
    self.lengths[ids] = lengths
    self._used = end

  def get(self, ids: np.ndarray) -> np.ndarray:
    """Returns examples [n, *shape], padded with zeros."""
    lengths = self.lengths[ids]
    out = np.zeros((len(ids), *self.shape), self._values.dtype)
    out[np.arange(self.shape[0]) < lengths[:, None]] = self.flat(ids)
    return out[:, 0] if self._rank0 else out

  def flat(self, ids: np.ndarray, most: np.ndarray | None = None) -> np.ndarray:
    """Returns the values of examples one after the other, without padding, `most` of each."""
    lengths = self.lengths[ids].astype(np.int64)
    lengths = lengths if most is None else np.minimum(lengths, most)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return self._values[np.repeat(self._starts[ids], lengths) + within]


def _grown(array: np.ndarray, number: int) -> np.ndarray:
  """Returns a copy with room for `number`; readers may still use the one before."""
  out = np.zeros((number, *array.shape[1:]), array.dtype)
  out[:len(array)] = array[:number]
  return out


class ExampleStore:
  """Examples by id: those of the first task in their stored order, and so on, in the order in which tasks are read.

  Args:
    names: of the tasks [T].
    pipelines: hold each task once.
  """

  def __init__(self, names: Sequence[str], pipelines: Sequence[task_pipelines.Pipeline]):
    self._names, self._pipelines = names, pipelines
    self.spec = pipelines[0].spec
    self._columns = {name: _Column(*spec) for name, spec in self.spec.items()}
    # Both are set once the number of examples of each task is known.
    self._sizes = np.zeros(len(names), np.int64)
    self._first_ids = np.zeros(len(names), np.int64)
    self._has = np.zeros(0, bool)
    self._number = 0
    self._sizes_known = self._finished = False
    self._error: Exception | None = None
    self._changed = threading.Condition()
    self._thread: threading.Thread | None = None

  def start(self) -> None:
    """Begins to read, once."""
    with self._changed:
      if self._thread is None:
        # Not a daemon: it would be stopped inside TensorFlow. It ends by itself when the process does.
        self._thread = threading.Thread(target=self._read, name='read_examples', daemon=False)
        self._thread.start()

  @property
  def sizes(self) -> np.ndarray:
    """Number of examples of each task [T]; waits until all are known."""
    self._wait(lambda: self._sizes_known)
    return self._sizes

  def ids(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns the ids of examples, given as the number of their task and their place in it."""
    self._wait(lambda: self._sizes_known)
    return self._first_ids[tasks] + indices

  def get(self, name: str, ids: np.ndarray) -> np.ndarray:
    """Returns a feature of examples, [n, ...], padded; waits for those that are still to be read."""
    self._wait_for(ids)
    return self._columns[name].get(ids)

  def flat(self, name: str, ids: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Returns the first `most` [n] values of a feature of each example, one after the other, without their padding."""
    self._wait_for(ids)
    return self._columns[name].flat(ids, most)

  def lengths(self, names: Sequence[str], ids: np.ndarray) -> np.ndarray:
    """Returns the greatest length of the named features without their padding, [n] int64."""
    self._wait_for(ids)
    return np.max([self._columns[name].lengths[ids] for name in names], axis=0).astype(np.int64)

  def _wait_for(self, ids: np.ndarray) -> None:
    if not self._finished:
      self._wait(lambda: self._sizes_known and self._has[ids].all())

  def _wait(self, condition: Any) -> None:
    """Waits for a condition, and raises what went wrong in reading."""
    self.start()
    with self._changed:
      self._changed.wait_for(lambda: self._error is not None or condition())
      if self._error is not None:
        raise self._error

  def _read(self) -> None:
    """The thread: reads what must be known before the first batch, then the rest."""
    try:
      later = [p for p in self._pipelines if p.size is not None and p.size > example_order.LARGE]
      for pipeline in self._pipelines:
        if pipeline not in later:
          self._read_first(pipeline)
      self._make_room(later)
      # In turns, so that each of them has its first examples soon.
      readers = [self._read_rest(pipeline) for pipeline in later]
      while readers:
        readers = [reader for reader in readers if next(reader, None)]
      with self._changed:
        self._finished = True
        self._pipelines = ()
        self._changed.notify_all()
    except Exception as error:  # Raised again where examples are asked for.
      with self._changed:
        self._error = error
        self._changed.notify_all()

  def _read_first(self, pipeline: task_pipelines.Pipeline) -> None:
    """Reads all of a pipeline; its tasks come one after the other."""
    for features, tasks in _slabs(pipeline):
      for task, first, number in zip(*np.unique(tasks, return_index=True, return_counts=True)):
        if not self._sizes[task]:
          self._first_ids[task] = self._number + first
        self._sizes[task] += number
      ids = np.arange(self._number, self._number + len(tasks))
      self._number += len(tasks)
      if self._number > len(self._has):
        self._reserve(2 * self._number)
      self._put(ids, features)

  def _make_room(self, later: Sequence[task_pipelines.Pipeline]) -> None:
    """Gives ids to the examples of the tasks that are still to be read; from here on all sizes are known."""
    for pipeline in later:
      (task,) = pipeline.tasks
      self._first_ids[task], self._sizes[task] = self._number, pipeline.size
      self._number += pipeline.size
    self._reserve(self._number)
    empty = [name for name, size in zip(self._names, self._sizes) if not size]
    if empty:
      raise ValueError(f"Task '{empty[0]}' has no examples once its preprocessors have run: check its data, or what its "
                       'preprocessors leave out.')
    with self._changed:
      self._sizes_known = True
      self._changed.notify_all()

  def _read_rest(self, pipeline: task_pipelines.Pipeline) -> Iterator[bool]:
    """Reads a task whose size is known, a slab each time."""
    first = at = self._first_ids[pipeline.tasks[0]]
    for features, tasks in _slabs(pipeline):
      self._put(np.arange(at, at + len(tasks)), features)
      at += len(tasks)
      yield True
    if at - first != pipeline.size:
      raise ValueError(f"Task '{self._names[pipeline.tasks[0]]}' has {at - first} examples, but its source promised "
                       f'{pipeline.size}: correct the number that it gives.')

  def _reserve(self, number: int) -> None:
    for column in self._columns.values():
      column.reserve(number)
    self._has = _grown(self._has, number)

  def _put(self, ids: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
    for name, column in self._columns.items():
      column.put(ids, features[name])
    with self._changed:
      self._has[ids] = True
      self._changed.notify_all()


def _slabs(pipeline: task_pipelines.Pipeline) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
  """Yields the slabs of a pipeline until the main thread has ended."""
  for slab in pipeline.slabs():
    yield slab
    if not threading.main_thread().is_alive():
      return
