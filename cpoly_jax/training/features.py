"""Feature converter that carries each example's task to the model as a routing row.

Tasks mark their examples with `task_id` [1], the key of the task's name; here the run's `TaskIndex` turns it into the
row of the routing. The model's batch has one feature more than T5X's encoder-decoder batch: `task_id` [B, 1] int32, or, in
packed rows, [B, G]: the n-th is that of segment n, and a row holds at most G examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from cpoly_jax import routing
from cpoly_jax.task_index import TaskIndex

TASK_ID = 'task_id'
# The rows of a batch whose `task_id` counts within the batch (`task_rows`); only messages need them.
ROUTED_TASK_ID = 'routed_task_id'
# G, unless TASK_FEATURE_LENGTHS has a length for `task_id`.
PACKED_EXAMPLES = 8


class TaskFeatureConverter(seqio.EncDecFeatureConverter):
  """`seqio.EncDecFeatureConverter` plus `task_id`.

  Args:
    task_index: the run's tasks.
    unknown_task: what an example of another task gets: `error`, or with `average` the row `routing.UNKNOWN`.
    **kwargs: as of `seqio.FeatureConverter`; with `pack`, SeqIO packs the rows one after another.
  """

  TASK_FEATURES = {**seqio.EncDecFeatureConverter.TASK_FEATURES,
                   TASK_ID: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}
  MODEL_FEATURES = {**seqio.EncDecFeatureConverter.MODEL_FEATURES,
                    TASK_ID: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}

  def __init__(self, *, task_index: TaskIndex, unknown_task: str = routing.ERROR, **kwargs):
    super().__init__(**kwargs)
    self._task_index = task_index
    self._unknown_task = unknown_task

  def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
    """As SeqIO's; the length of `task_id` need not be given: it is 1, or G with packing."""
    if TASK_ID not in ds.element_spec:
      raise ValueError(f'the examples have no {TASK_ID!r}: end the pipeline of each task with tasks.features.pipeline')
    examples = task_feature_lengths.get(TASK_ID, PACKED_EXAMPLES) if self.pack else 1
    return super().__call__(ds, {**task_feature_lengths, TASK_ID: examples})

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
    rows = _row_lookup(self._task_index, self._unknown_task)
    # SeqIO's packing takes zeros for padding, so rows are counted from 2 until it is done: `routing.UNKNOWN` becomes 1.
    first = 1 - routing.UNKNOWN if self.pack else 0
    marked = ds.map(lambda example: {**example, TASK_ID: rows(example[TASK_ID]) + first}, num_parallel_calls=tf.data.AUTOTUNE)
    return super()._convert_features(marked, task_feature_lengths)

  def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    packed = features[TASK_ID]
    rows = tf.where(packed > 0, packed - (1 - routing.UNKNOWN), 0) if self.pack else packed
    return {**super()._convert_example(features), TASK_ID: rows}

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Lengths of the model's features: T5X's, and that of `task_id`."""
    return {**super().get_model_feature_lengths(task_feature_lengths), TASK_ID: task_feature_lengths[TASK_ID]}


def _row_lookup(task_index: TaskIndex, unknown_task: str) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns a function from keys [1] to rows [1] int32; a key that the index does not have fails, or is `routing.UNKNOWN`."""
  keys = tf.constant(task_index.keys)

  def rows(key: tf.Tensor) -> tf.Tensor:
    hits = tf.equal(keys, key[0])
    row = tf.argmax(tf.cast(hits, tf.int32), output_type=tf.int32)[None]
    if unknown_task == routing.AVERAGE:
      return tf.where(tf.reduce_any(hits), row, routing.UNKNOWN)
    with tf.control_dependencies([tf.debugging.Assert(
        tf.reduce_any(hits), ['an example is of a task that has no routing row; its key is', key])]):
      return tf.identity(row)

  return rows


def converter_for(task_index: TaskIndex, unknown_task: str = routing.ERROR) -> Callable[..., TaskFeatureConverter]:
  """Returns what T5X calls as a feature converter class: it takes `pack` and the like."""
  return functools.partial(TaskFeatureConverter, task_index=task_index, unknown_task=unknown_task)
