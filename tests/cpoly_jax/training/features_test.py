"""Tests of the feature converter: task names become routing rows."""

from absl.testing import absltest
import numpy as np
import tensorflow as tf

from cpoly_jax import routing
from cpoly_jax.task_index import TaskIndex, task_key
from cpoly_jax.training import features

INDEX = TaskIndex(('a', 'b', 'c'))
LENGTHS = {'inputs': 5, 'targets': 4}


def _examples(*names):
  rows = [{'inputs': [7, 8, 1], 'targets': [9, 1], 'task_id': [task_key(name)]} for name in names]
  signature = {key: tf.TensorSpec([None] if key != 'task_id' else [1], tf.int32) for key in rows[0]}
  return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


class TaskFeatureConverterTest(absltest.TestCase):

  def test_batch_has_rows(self):
    converter = features.converter_for(INDEX)(pack=False)
    examples = list(converter(_examples('c', 'a'), LENGTHS).as_numpy_iterator())
    self.assertEqual([example['task_id'].tolist() for example in examples], [[2], [0]])
    self.assertEqual(examples[0]['task_id'].dtype, np.int32)
    np.testing.assert_array_equal(examples[0]['encoder_input_tokens'], [7, 8, 1, 0, 0])
    np.testing.assert_array_equal(examples[0]['decoder_input_tokens'], [0, 9, 1, 0])
    self.assertEqual(converter.get_model_feature_lengths({**LENGTHS, 'task_id': 1})['task_id'], 1)

  def test_unknown_task_fails_and_its_key_is_named(self):
    converter = features.converter_for(INDEX)(pack=False)
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, f'(?s)no routing row.*{task_key("x")}'):
      list(converter(_examples('a', 'x'), LENGTHS))

  def test_unknown_task_has_a_row_of_its_own_if_it_is_to_have_the_average(self):
    converter = features.converter_for(INDEX, 'average')(pack=False)
    examples = list(converter(_examples('c', 'x', 'a', 'y'), LENGTHS).as_numpy_iterator())
    self.assertEqual([example['task_id'].tolist() for example in examples], [[2], [routing.UNKNOWN], [0], [routing.UNKNOWN]])
    self.assertEqual(examples[1]['task_id'].dtype, np.int32)

  def test_examples_without_task_fail(self):
    converter = features.converter_for(INDEX)(pack=False)
    bare = _examples('a').map(lambda e: {k: e[k] for k in LENGTHS})
    with self.assertRaisesRegex(ValueError, "no 'task_id'"):
      converter(bare, LENGTHS)

  def test_packed_rows_have_the_tasks_of_their_segments(self):
    converter = features.converter_for(INDEX, 'average')(pack=True)
    rows = list(converter(_examples('c', 'a', 'x', 'b', 'a'), {'inputs': 10, 'targets': 9}).as_numpy_iterator())
    self.assertLen(rows, 2)
    self.assertEqual(rows[0]['task_id'].tolist(), [2, 0, routing.UNKNOWN] + [0] * 5)
    self.assertEqual(rows[1]['task_id'].tolist(), [1, 0] + [0] * 6)
    self.assertEqual(rows[0]['encoder_segment_ids'].tolist(), [1, 1, 1, 2, 2, 2, 3, 3, 3, 0])
    self.assertEqual(rows[0]['decoder_segment_ids'].tolist(), [1, 1, 2, 2, 3, 3, 0, 0, 0])
    self.assertEqual(rows[0]['decoder_input_tokens'].tolist(), [0, 9, 0, 9, 0, 9, 0, 0, 0])

  def test_a_length_of_the_task_id_limits_the_examples_of_a_row(self):
    converter = features.converter_for(INDEX)(pack=True)
    lengths = {'inputs': 10, 'targets': 9, 'task_id': 2}
    rows = list(converter(_examples('c', 'a', 'b'), lengths).as_numpy_iterator())
    self.assertEqual([row['task_id'].tolist() for row in rows], [[2, 0], [1, 0]])


if __name__ == '__main__':
  absltest.main()
