"""Batches as numpy arrays, read ahead, from an iterator that can be peeked at and knows its place.

The first batch is slow (examples are converted, files open), so it can be read by a thread while the step compiles.
"""

from __future__ import annotations

import collections
import functools
import json
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x import indexed

if TYPE_CHECKING:
  import tensorflow as tf

# Batches that are made before they are asked for.
_AHEAD = 4
# Batches whose places are known after they were handed out.
_PLACES = 16
# How soon a thread that waits to hand over a batch sees that nobody wants it any more.
_POLL_SECONDS = 0.2


class ReadAhead(Iterator):
  """Reads an `IndexedIterator` in a thread that stops when nothing refers to this object, or the main thread ends.

  Attributes:
    place: where the batch begins that the caller gets next, None before the first.
  """

  def __init__(self, iterator: indexed.IndexedIterator):
    self.place = iterator.place
    self._queue: queue.Queue = queue.Queue(_AHEAD)
    self._stop = threading.Event()
    weakref.finalize(self, self._stop.set)
    self._thread = threading.Thread(target=_fill, args=(iterator, self._queue, self._stop), name='read_batches',
                                    daemon=False)
    self._started = False

  def __next__(self) -> dict[str, np.ndarray]:
    if not self._started:
      self._started = True
      self._thread.start()
    batch, place = self._queue.get()
    if isinstance(batch, Exception):
      self._queue.put((batch, place))  # For the next call: the thread has ended.
      raise batch
    self.place = place
    return batch


def _fill(iterator: indexed.IndexedIterator, batches: queue.Queue, stop: threading.Event) -> None:
  """Puts (batch, place after it) into a queue; at the end the exception that ended it."""
  while True:
    try:
      item = (next(iterator), iterator.place)
    except Exception as error:  # StopIteration too: it is raised again in the thread that asks.
      item = (error, None)
    while True:
      if stop.is_set() or not threading.main_thread().is_alive():
        return
      try:
        batches.put(item, timeout=_POLL_SECONDS)
        break
      except queue.Full:
        pass
    if isinstance(item[0], Exception):
      return


class BatchIterator(Iterator):
  """Numpy batches of a data set, the first of which may be read while something else is going on.

  Args:
    dataset: a tf.data.Dataset or an `IndexedDataset`.
    description: of the data, for messages.
    skip: batches to leave out at the start.
    place: where to begin instead, if the data set is indexed and the place fits it.

  Attributes:
    dataset: the data set.
    iterator: its iterator; that of a tf.data.Dataset can be saved to a TensorFlow checkpoint.
  """

  def __init__(self, dataset: tf.data.Dataset | indexed.IndexedDataset, description: str = 'the dataset', skip: int = 0,
               place: Mapping[str, int] | None = None):
    self.dataset = dataset
    self._description = description
    self._peeked = None
    self._indexed = isinstance(dataset, indexed.IndexedDataset)
    fits = self._indexed and place is not None and dataset.stream.accepts(place)
    if not fits and skip:
      dataset = dataset.skip(skip)
    if self._indexed:
      self._start(dataset, dict(place) if fits else None)
    else:
      self.iterator = iter(dataset)

  def _start(self, dataset: indexed.IndexedDataset, place: dict[str, int] | None) -> None:
    """Begins to read an indexed data set, at a place if one is given."""
    iterator = iter(dataset)
    iterator.place = place
    self._first_place = functools.cache(lambda: place or dataset.first_place())
    self.iterator = ReadAhead(iterator)
    # (batches handed out, place after them) of the last few.
    self._places = collections.deque([(0, None)], maxlen=_PLACES)
    self._peeked = None

  def place_after(self, number: int) -> dict[str, int] | None:
    """Returns where the batch begins that follows the first `number`, as a dictionary for JSON.

    None for a tf.data.Dataset, and for any but the last few batches. A run that is interrupted between a batch and its step
    asks for the place before that batch.
    """
    place = dict(self._places).get(number, {}) if self._indexed else {}
    return (self._first_place() if place is None else place) or None

  @functools.cached_property
  def element_spec(self) -> dict[str, Any]:
    """{feature: shape and dtype} of one batch of this shard."""
    import jax
    return {k: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype.as_numpy_dtype)
            for k, v in self.dataset.element_spec.items()}

  def _read(self) -> dict[str, np.ndarray]:
    try:
      return {k: np.asarray(v) for k, v in next(self.iterator).items()}
    except StopIteration:
      raise ValueError(f'{self._description} yields no further batch: its split is empty, or smaller than one '
                       'batch.') from None

  def peek(self) -> dict[str, np.ndarray]:
    """Returns the next batch without using it up."""
    if self._peeked is None:
      self._peeked = self._read()
    return self._peeked

  def __next__(self) -> dict[str, np.ndarray]:
    batch, self._peeked = self._peeked, None
    if batch is None:
      batch = self._read()
    if self._indexed:
      self._places.append((self._places[-1][0] + 1, self.iterator.place))
    return batch

  def save(self, path: Any) -> None:
    """Writes the position to a TensorFlow checkpoint at `path`."""
    import tensorflow as tf
    if self._indexed:
      tf.train.Checkpoint(place=tf.Variable(json.dumps(self.place_after(self._places[-1][0])))).write(str(path))
    else:
      tf.train.Checkpoint(ds=self.iterator).write(str(path))

  def restore(self, path: Any) -> None:
    """Goes on from a position written by `save`.

    Raises:
      ValueError: another kind of data set wrote it.
    """
    import tensorflow as tf
    place = tf.Variable('')
    try:
      tf.train.Checkpoint(**({'place': place} if self._indexed else {'ds': self.iterator})).read(str(path)).assert_consumed()
      if self._indexed:
        found = json.loads(place.numpy())
        if not self.dataset.stream.accepts(found):
          raise AssertionError(f'{found} is no place in the present stream')
        self._start(self.dataset, found)
    except AssertionError as error:
      raise ValueError(f'{path} is not a position in {self._description} as it is read now: set utils.DatasetConfig.pack and '
                       'datasets.in_memory_limit as they were, or RestoreCheckpointConfig.restore_dataset = False.') from error
    self._peeked = None


def prepare_train_iter(train_iter: Any, *, partitioner: Any, checkpoint_cfg: Any, data_layout: Any) -> Iterator:
  """Makes the iterator that the trainer reads; the trainer lays batches out over the mesh itself.

  Args:
    train_iter: a data set, or an iterator of numpy batches.
    partitioner: accepted for compatibility.
    checkpoint_cfg: accepted for compatibility.
    data_layout: accepted for compatibility.

  Returns:
    Iterator of {feature: [B / num_shards, ...]}.
  """
  del partitioner, checkpoint_cfg, data_layout
  return train_iter if hasattr(train_iter, '__next__') else BatchIterator(train_iter)
