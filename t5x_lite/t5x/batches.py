"""Batches as numpy arrays, from an iterator that can be peeked at.

The first batch is slow (shuffle buffers fill, files open), so it can be read by a thread while the step
compiles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  import tensorflow as tf


class BatchIterator(Iterator):
  """Numpy batches of a dataset, the first of which may be read while something else is going on.

  Attributes:
    dataset: the tf.data.Dataset.
    iterator: its tf.data iterator, which a checkpoint can save and restore.
  """

  def __init__(self, dataset: tf.data.Dataset, description: str = 'the dataset'):
    self.dataset = dataset
    self.iterator = iter(dataset)
    self._description = description
    self._peeked = None

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
    return self._read() if batch is None else batch

  def save(self, path: Any) -> None:
    """Writes the position to a TensorFlow checkpoint at `path`."""
    import tensorflow as tf
    tf.train.Checkpoint(ds=self.iterator).write(str(path))

  def restore(self, path: Any) -> None:
    """Goes on from a position written by `save`."""
    import tensorflow as tf
    tf.train.Checkpoint(ds=self.iterator).read(str(path)).assert_consumed()
    self._peeked = None


def prepare_train_iter(train_iter: Any, *, partitioner: Any, checkpoint_cfg: Any, data_layout: Any) -> Iterator:
  """Makes the iterator that the trainer reads; the trainer lays batches out over the mesh itself.

  Args:
    train_iter: a tf.data.Dataset, or an iterator of numpy batches.
    partitioner: accepted for compatibility.
    checkpoint_cfg: accepted for compatibility.
    data_layout: accepted for compatibility.

  Returns:
    Iterator of {feature: [B / num_shards, ...]}.
  """
  del partitioner, checkpoint_cfg, data_layout
  return train_iter if hasattr(train_iter, '__next__') else BatchIterator(train_iter)
