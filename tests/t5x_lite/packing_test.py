"""Tests of packing: which examples share a row, and that rows are what SeqIO's packing would make of the same examples."""

from __future__ import annotations

import os
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import seqio
import tensorflow as tf

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import input_testing as inputs  # pylint: disable=g-import-not-at-top
from t5x import datasets
from t5x import packing


class FirstFitDecreasingTest(parameterized.TestCase):

  def test_by_hand(self):
    # In the order 7, 6, 4, 3, 2, 2 with room for 10: 7+3, 6+4, 2+2.
    rows = packing.first_fit_decreasing(np.array([[2], [7], [4], [6], [2], [3]]), [10])
    self.assertEqual([row.tolist() for row in rows], [[0, 4], [1, 5], [2, 3]])

  def test_every_resource_counts(self):
    # By the first resource all four fit into one row; by the second two do, by the third three.
    sizes = np.array([[1, 5, 1], [1, 5, 1], [1, 5, 1], [1, 5, 1]])
    self.assertLen(packing.first_fit_decreasing(sizes, [10, 10, 3]), 2)
    self.assertLen(packing.first_fit_decreasing(sizes, [10, 20, 3]), 2)
    self.assertLen(packing.first_fit_decreasing(sizes, [10, 20, 4]), 1)

  def test_what_is_larger_than_a_row_gets_one_alone(self):
    self.assertEqual([r.tolist() for r in packing.first_fit_decreasing(np.array([[1], [25], [3]]), [10])], [[0, 2], [1]])

  @parameterized.parameters(range(5))
  def test_nothing_is_lost_and_no_row_is_too_full(self, seed):
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.integers(0, 30, 300), rng.integers(1, 12, 300), np.ones(300, int)], axis=1)
    capacity = [40, 20, 6]
    rows = packing.first_fit_decreasing(sizes, capacity)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(300))
    for row in rows:
      self.assertTrue((sizes[row].sum(0) <= capacity).all())
    # First-fit decreasing in one dimension needs at most 11/9 of the best and one more; here the bound is on each resource.
    self.assertLess(len(rows), 1.7 * (sizes.sum(0) / capacity).max())


class _MarkedConverter(seqio.EncDecFeatureConverter):
  """Adds `task_id` [1], which is the length of the target less one: 0 is a value like any other."""

  MODEL_FEATURES = {**seqio.EncDecFeatureConverter.MODEL_FEATURES,
                    'task_id': seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}

  def _convert_example(self, features):
    count = tf.math.count_nonzero(features['targets'], dtype=tf.int32)
    return {**super()._convert_example(features), 'task_id': count[None] - 2}

  def get_model_feature_lengths(self, task_feature_lengths):
    return {**super().get_model_feature_lengths(task_feature_lengths), 'task_id': 1}


def _packed_by_seqio(rows):
  """What SeqIO makes of the examples of one row, {feature: [length]}."""
  ds = tf.data.Dataset.from_generator(
      lambda: iter([{'inputs': i, 'targets': t} for i, t in rows]),
      output_signature={k: tf.TensorSpec([None], tf.int32) for k in ('inputs', 'targets')})
  converted = seqio.EncDecFeatureConverter(pack=True)(ds, inputs.LENGTHS)
  found = list(converted.as_numpy_iterator())
  assert len(found) == 1, len(found)
  return found[0]


class PackedRowsTest(parameterized.TestCase):

  def _batches(self, number=6, **overrides):
    return inputs.read(inputs.get(inputs.mixture(), pack=True, **overrides), number)

  def test_rows_are_those_of_seqio(self):
    """Each row has the features, types and values that SeqIO gives to the same examples in the same order."""
    several = 0
    for batch in self._batches(2):
      for row in range(8):
        examples = []
        for n in range(1, batch['encoder_segment_ids'][row].max() + 1):
          examples.append((batch['encoder_input_tokens'][row][batch['encoder_segment_ids'][row] == n],
                           batch['decoder_target_tokens'][row][batch['decoder_segment_ids'][row] == n]))
        several += len(examples) > 1
        wanted = _packed_by_seqio(examples)
        self.assertEqual(set(batch), set(wanted))
        for name, value in wanted.items():
          self.assertEqual(batch[name].dtype, value.dtype, name)
          np.testing.assert_array_equal(batch[name][row], value, err_msg=name)
    self.assertGreater(several, 8)

  @parameterized.parameters(True, False)
  def test_each_example_once_in_an_epoch_and_whole(self, shuffle):
    # 30 examples: every 30 of the stream are an epoch, and a window holds 68 of them and 8 of the next.
    task = inputs.task('a', 30)
    ds = inputs.get(task, pack=True, shuffle=shuffle, batch_size=1)
    plan = ds.stream._plan(0)
    number = sum(map(len, plan))
    self.assertEqual(number, packing.WINDOW)
    found = inputs.segments(inputs.read(ds, len(plan)))
    self.assertLen(found, number)
    counts = {text: [i for i, _ in found].count(text) for text in {i for i, _ in found}}
    self.assertEqual(sorted(counts.values()), [68] * 22 + [69] * 8)
    texts = {inputs.text('a', j): inputs.text('a', j)[:j % 6 + 1] for j in range(30)}
    for text, target in found:
      self.assertEqual(target, texts[text])

  def test_rows_are_shuffled_by_the_seed(self):
    first, again, other = (inputs.segments(self._batches(seed=seed)) for seed in (1, 1, 2))
    self.assertEqual(first, again)
    self.assertNotEqual(first, other)

  def test_rows_are_fuller_than_without_packing(self):
    lengths = {'inputs': 48, 'targets': 48}
    packed = self._batches(20, task_feature_lengths=lengths)
    padded = inputs.read(inputs.get(inputs.mixture(), task_feature_lengths=lengths), 20)
    fill = lambda batches: np.mean([batch['encoder_input_tokens'] > 0 for batch in batches])
    self.assertGreater(fill(packed), 0.9)
    self.assertLess(fill(padded), 0.3)

  @parameterized.parameters((None, 8), (2, 2))
  def test_other_features_follow_the_segments(self, given, room):
    cfg = inputs.config(inputs.mixture(), pack=True, task_feature_lengths={**inputs.LENGTHS, 'inputs': 90, 'targets': 40})
    converter = _MarkedConverter
    if given:
      converter = type('_Lengths', (_MarkedConverter,), {'__call__': lambda self, ds, task_feature_lengths: (
          _MarkedConverter.__call__(self, ds, {k: v for k, v in task_feature_lengths.items() if k != 'task_id'}))})
      cfg.task_feature_lengths['task_id'] = given
    ds = datasets.get_dataset(cfg, 0, 1, converter)
    self.assertEqual(tuple(ds.element_spec['task_id'].shape), (8, room))
    most = 0
    for batch in inputs.read(ds, 5):
      for row in range(8):
        segments = batch['encoder_segment_ids'][row].max()
        most = max(most, segments)
        lengths = [(batch['decoder_segment_ids'][row] == n).sum() for n in range(1, segments + 1)]
        np.testing.assert_array_equal(batch['task_id'][row], np.pad(np.array(lengths) - 2, (0, room - segments)))
    self.assertEqual(most, 2) if given else self.assertGreater(most, 4)

  def test_a_training_evaluation_packs_an_epoch_at_a_time(self):
    cfg = inputs.config(inputs.task('a', 10), pack=True, shuffle=False, batch_size=1)
    ds = datasets.get_training_eval_datasets(cfg, 0, 1, 20, seqio.EncDecFeatureConverter)['a']
    found = inputs.segments(list(ds.as_numpy_iterator()))
    for start in range(0, len(found) - 10, 10):
      self.assertCountEqual([text for text, _ in found[start:start + 10]], [inputs.text('a', j) for j in range(10)])
    self.assertGreater(len(found), 20)


class LayoutTest(absltest.TestCase):

  def test_features_that_cannot_be_packed_are_told(self):
    int32 = np.dtype(np.int32)
    with self.assertRaisesRegex(ValueError, 'decoder_a, decoder_b have the lengths .4, 5.*pack = False'):
      packing.RowLayout.of({'decoder_a': ((4,), int32), 'decoder_b': ((5,), int32)}, {})
    with self.assertRaisesRegex(ValueError, 'none begins with encoder_ or decoder_'):
      packing.RowLayout.of({'tokens': ((4,), int32)}, {})
    with self.assertRaisesRegex(ValueError, 'room for 0 examples: give task_id'):
      packing.RowLayout.of({'decoder_a': ((4,), int32), 'task_id': ((1,), int32)}, {'task_id': 0})

  def test_a_decoder_alone_is_packed_too(self):
    layout = packing.RowLayout.of({'decoder_a': ((4,), np.dtype(np.int32))}, {})
    self.assertEqual(set(layout.row_spec({'decoder_a': ((4,), np.dtype(np.int32))})),
                     {'decoder_a', 'decoder_segment_ids', 'decoder_positions'})
    self.assertEqual(layout.examples, 4)


if __name__ == '__main__':
  absltest.main()
