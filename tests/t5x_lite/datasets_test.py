"""Tests of the data side: order, resuming, shards, plain errors."""

from __future__ import annotations

import os
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import seqio

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from t5x import adafactor
from t5x import batches
from t5x import datasets
from t5x import models
from t5x import utils


def _cfg(**overrides) -> datasets.DatasetConfig:
  values = dict(mixture_or_task_name='rev', task_feature_lengths=reversal.LENGTHS, split='train', batch_size=8,
                shuffle=True, seed=3)
  return datasets.DatasetConfig(**{**values, **overrides})


def _read(ds, number: int) -> list[dict[str, np.ndarray]]:
  return list(ds.take(number).as_numpy_iterator())


def _get(cfg, shard_id=0, num_shards=1):
  return datasets.get_dataset(cfg, shard_id, num_shards, seqio.EncDecFeatureConverter)


class GetDatasetTest(parameterized.TestCase):

  def assertBatchesEqual(self, first, second):
    self.assertEqual(len(first), len(second))
    for a, b in zip(first, second):
      self.assertEqual(set(a), set(b))
      for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)

  @parameterized.parameters(False, True)
  def test_order_is_a_function_of_the_seed(self, pack):
    first, again = _read(_get(_cfg(pack=pack)), 12), _read(_get(_cfg(pack=pack)), 12)
    other = _read(_get(_cfg(pack=pack, seed=4)), 12)
    self.assertBatchesEqual(first, again)
    name = 'encoder_input_tokens'
    self.assertTrue(any((a[name] != b[name]).any() for a, b in zip(first, other)))

  @parameterized.parameters('rev', 'rev_mix')
  def test_skipped_batches_are_those_that_a_first_part_used(self, name):
    cfg = _cfg(mixture_or_task_name=name)
    self.assertBatchesEqual(_read(_get(cfg), 20)[13:], _read(_get(cfg).skip(13), 7))

  def test_shards_divide_the_batch_and_the_examples(self):
    cfg = _cfg(shuffle=False)

    def read(shard_id, num_shards):
      return _read(datasets.get_dataset(cfg, shard_id, num_shards, seqio.EncDecFeatureConverter, num_epochs=1), 99)

    parts = [read(0, 2), read(1, 2)]
    self.assertEqual(parts[0][0]['encoder_input_tokens'].shape, (4, 12))
    rows = [tuple(row) for part in parts for batch in part for row in batch['encoder_input_tokens']]
    whole = [tuple(row) for batch in read(0, 1) for row in batch['encoder_input_tokens']]
    self.assertCountEqual(rows, whole)

  def test_with_seed_keeps_a_given_seed_and_the_original(self):
    cfg = _cfg(seed=None)
    self.assertEqual(datasets.with_seed(cfg, 5).seed, 5)
    self.assertIsNone(cfg.seed)
    self.assertEqual(datasets.with_seed(_cfg(seed=3), 5).seed, 3)
    self.assertEqual(datasets.with_seed(cfg, 5).batch_size, 8)

  def test_features_of_the_converter_pass_through(self):
    spec = batches.BatchIterator(_get(_cfg(pack=True))).element_spec
    self.assertEqual(spec['encoder_segment_ids'].shape, (8, 12))
    self.assertEqual(spec['encoder_segment_ids'].dtype, np.int32)


class TrainingEvalDatasetsTest(absltest.TestCase):

  def test_a_task_gives_eval_steps_batches_however_small_its_split(self):
    cfg = _cfg(split='validation', shuffle=False)
    found = datasets.get_training_eval_datasets(cfg, 0, 1, 3, seqio.EncDecFeatureConverter)
    self.assertEqual(list(found), ['rev'])
    read = _read(found['rev'], 99)
    self.assertLen(read, 3)
    np.testing.assert_array_equal(read[0]['encoder_input_tokens'], read[1]['encoder_input_tokens'])

  def test_a_mixture_adds_its_own(self):
    cfg = _cfg(mixture_or_task_name='rev_mix')
    found = datasets.get_training_eval_datasets(cfg, 0, 1, 1, seqio.EncDecFeatureConverter)
    self.assertCountEqual(found, ['rev', 'rev_train_only', 'rev_mix'])

  def test_tasks_without_the_split_are_named_and_left_out(self):
    cfg = _cfg(mixture_or_task_name='rev_mix', split='validation')
    with self.assertLogs(level='WARNING') as logs:
      found = datasets.tasks_with_split(cfg)
    self.assertEqual([t.name for t in found], ['rev'])
    self.assertIn('rev_train_only', logs.output[0])


class ErrorsTest(parameterized.TestCase):

  def assertOneLine(self, error, *parts):
    text = str(error.exception)
    self.assertNotIn('\n', text)
    for part in parts:
      self.assertIn(part, text)

  def test_unknown_task_names_near_ones(self):
    with self.assertRaises(ValueError) as error:
      datasets.get_mixture_or_task(_cfg(mixture_or_task_name='rev_mic'))
    self.assertOneLine(error, "'rev_mic'", 'rev_mix')

  def test_absent_split_names_task_and_split(self):
    with self.assertRaises(ValueError) as error:
      datasets.tasks_with_split(_cfg(split='test'))
    self.assertOneLine(error, "'rev'", "'test'", 'validation')

  def test_module_that_is_not_there(self):
    with self.assertRaises(ValueError) as error:
      datasets.get_mixture_or_task(_cfg(module='no_such_module_here.tasks'))
    self.assertOneLine(error, 'no_such_module_here', 'PYTHONPATH')

  def test_batch_size_that_does_not_divide(self):
    with self.assertRaises(ValueError) as error:
      _get(_cfg(batch_size=7), 0, 2)
    self.assertOneLine(error, 'BATCH_SIZE=7', '2')

  def test_vocabularies_of_data_and_model_are_named(self):
    model = reversal.model()
    datasets.verify_matching_vocabs(_cfg(), model)
    other = seqio.ByteVocabulary(extra_ids=7)
    model = models.EncoderDecoderModel(reversal.transformer(), seqio.ByteVocabulary(), other, adafactor.Adafactor())
    with self.assertRaises(ValueError) as error:
      datasets.verify_matching_vocabs(_cfg(), model)
    self.assertOneLine(error, 'output vocabulary', "'rev'", 'ByteVocabulary')

  def test_a_split_smaller_than_one_batch_is_told(self):
    ds = datasets.get_dataset(_cfg(split='validation', batch_size=16), 0, 1, seqio.EncDecFeatureConverter, num_epochs=1)
    with self.assertRaises(ValueError) as error:
      batches.BatchIterator(ds, "'rev' (validation)").peek()
    self.assertOneLine(error, "'rev' (validation)", 'smaller than one batch')

  def test_continue_from_last_checkpoint_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'continue_from_last_checkpoint'):
      datasets.get_dataset(_cfg(), 0, 1, seqio.EncDecFeatureConverter, continue_from_last_checkpoint=True)


class UtilsTest(absltest.TestCase):

  def test_every_name_is_where_it_is_said_to_be(self):
    for name in dir(utils):
      self.assertIsNotNone(getattr(utils, name), name)
    with self.assertRaisesRegex(AttributeError, "'t5x.utils' has no attribute 'nothing'"):
      _ = utils.nothing

  def test_vocabulary_size_is_rounded_up(self):
    self.assertEqual(utils.round_vocab_size_to_multiple(seqio.ByteVocabulary(), 128), 384)
    self.assertEqual(utils.round_vocab_size_to_multiple(seqio.ByteVocabulary(), 100), 300)


class IteratorTest(absltest.TestCase):

  def test_peek_does_not_use_up(self):
    iterator, plain = batches.BatchIterator(_get(_cfg())), _read(_get(_cfg()), 2)
    np.testing.assert_array_equal(iterator.peek()['encoder_input_tokens'], plain[0]['encoder_input_tokens'])
    for expected in plain:
      np.testing.assert_array_equal(next(iterator)['encoder_input_tokens'], expected['encoder_input_tokens'])

  def test_position_is_saved_and_restored(self):
    iterator, plain = batches.BatchIterator(_get(_cfg())), _read(_get(_cfg()), 5)
    next(iterator), next(iterator)
    path = os.path.join(tempfile.mkdtemp(), 'position')
    iterator.save(path)
    other = batches.BatchIterator(_get(_cfg()))
    other.restore(path)
    np.testing.assert_array_equal(next(other)['encoder_input_tokens'], plain[2]['encoder_input_tokens'])

  def test_zeros_have_the_shapes_of_the_data(self):
    zeros = utils.get_zeros_batch_like_dataset(_get(_cfg()), batch_size=2)
    self.assertEqual(zeros['encoder_input_tokens'].shape, (2, 12))
    self.assertEqual(zeros['encoder_input_tokens'].dtype, np.int32)
    self.assertFalse(zeros['encoder_input_tokens'].any())
    same = utils.get_zeros_batch_like_spec(batches.BatchIterator(_get(_cfg())).element_spec)
    self.assertEqual(same['decoder_loss_weights'].shape, (8, 12))


if __name__ == '__main__':
  absltest.main()
