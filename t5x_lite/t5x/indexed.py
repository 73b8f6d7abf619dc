"""A data set whose batches are looked up by their number: it starts anywhere without reading what comes before.

The rows of the stream are numbered; global batch k is rows kB to (k+1)B, of which each of the N hosts makes B/N consecutive
ones. So the global batches are the same for every number of hosts. The place in the stream is a small dictionary of integers,
which goes into checkpoints.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from t5x import example_order
from t5x import example_store


class PaddedStream:
  """One example a row; a place in the stream is {'example': n}.

  Args:
    store: the examples.
    order: fn() -> their order, called once the examples are counted.
  """

  start = {'example': 0}

  def __init__(self, store: example_store.ExampleStore, order: Callable[[], example_order.ExampleOrder]):
    self._store, self._order = store, order
    self.spec = store.spec

  def accepts(self, place: Mapping[str, int]) -> bool:
    """Whether a place was written by a stream like this."""
    return set(place) == set(self.start)

  def skip(self, place: Mapping[str, int], rows: int) -> dict[str, int]:
    """Returns the place that lies some rows after another."""
    return {'example': place['example'] + rows}

  def read(self, place: Mapping[str, int], first: int, last: int) -> dict[str, np.ndarray]:
    """Returns rows `first` to `last` after a place, {feature: [n, ...]}."""
    ids = self._store.ids(*self._order().lookup(place['example'] + first, last - first))
    return {name: self._store.get(name, ids) for name in self.spec}


class IndexedDataset:
  """Batches of one host, with the methods of a tf.data.Dataset that a training loop uses.

  Args:
    stream: a `PaddedStream` or a `packing.PackedStream`.
    batch_size: rows of the global batch.
    shard_id: this host.
    num_shards: hosts; divides `batch_size`.
  """

  def __init__(self, stream: Any, batch_size: int, shard_id: int = 0, num_shards: int = 1):
    self.stream, self.batch_size = stream, batch_size
    self._rows = batch_size // num_shards
    self._first = shard_id * self._rows
    self._skipped, self._number = 0, None

  @property
  def element_spec(self) -> dict[str, Any]:
    """{feature: tf.TensorSpec} of one batch of this host."""
    import tensorflow as tf
    return {name: tf.TensorSpec((self._rows, *shape), tf.as_dtype(dtype)) for name, (shape, dtype) in self.stream.spec.items()}

  def skip(self, number: int) -> IndexedDataset:
    """Returns the batches without the first ones."""
    out = copy.copy(self)
    out._skipped += number
    if out._number is not None:
      out._number = max(out._number - number, 0)
    return out

  def take(self, number: int) -> IndexedDataset:
    """Returns the first batches only."""
    out = copy.copy(self)
    out._number = number if self._number is None else min(number, self._number)
    return out

  def __iter__(self) -> IndexedIterator:
    return IndexedIterator(self)

  def as_numpy_iterator(self) -> IndexedIterator:
    """As `iter`: batches are numpy arrays anyway."""
    return iter(self)

  def first_place(self) -> dict[str, int]:
    """Returns the place of the first batch."""
    return self.stream.skip(self.stream.start, self._skipped * self.batch_size)

  def batch_numbers(self) -> Iterator[int]:
    """Counts the batches."""
    return itertools.count() if self._number is None else iter(range(self._number))

  def read(self, place: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns the batch at a place, and the place after it."""
    batch = self.stream.read(place, self._first, self._first + self._rows)
    return batch, self.stream.skip(place, self.batch_size)


class IndexedIterator(Iterator):
  """Iterates over batches and knows its place.

  Attributes:
    place: where the next batch begins; may be set before the first batch is read.
  """

  def __init__(self, dataset: IndexedDataset):
    self._dataset = dataset
    self._numbers = dataset.batch_numbers()
    self.place: dict[str, int] | None = None

  def __next__(self) -> dict[str, np.ndarray]:
    next(self._numbers)
    if self.place is None:
      self.place = self._dataset.first_place()
    batch, self.place = self._dataset.read(self.place)
    return batch
