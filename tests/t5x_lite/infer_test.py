"""Tests of inference: files and lines as T5X writes them, chunks, going on after a stop."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import seqio
import tensorflow as tf

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from t5x import gin_utils
from t5x import infer as infer_lib
from t5x import infer_chunks
from t5x import infer_progress
from t5x import utils


def _infer(path: str, mode: str, output_dir: str, **overrides) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    infer_lib.infer(**{**dict(
        mode=mode, model=reversal.model(), dataset_cfg=reversal.config('validation', batch_size=2),
        restore_checkpoint_cfg=utils.RestoreCheckpointConfig(path=path, mode='specific', dtype='bfloat16'),
        partitioner=reversal.partitioner(), output_dir=output_dir, checkpoint_period=2,
        summarize_config_fn=gin_utils.summarize_gin_config), **overrides})
  return out.getvalue()


def _lines(path) -> list[dict]:
  return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


class InferTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model_dir = tempfile.mkdtemp()
    reversal.train_without_evaluation(model_dir, 3)
    cls.checkpoint = os.path.join(model_dir, 'checkpoint_3')

  def setUp(self):
    super().setUp()
    self.output_dir = os.path.join(tempfile.mkdtemp(), 'out')

  @parameterized.parameters('predict', 'predict_with_aux', 'score')
  def test_files_and_lines_are_those_of_t5x(self, mode):
    _infer(self.checkpoint, mode, self.output_dir)
    golden = json.loads(testing.shared_data('golden/cli/listing.json').read_text())[f'infer_{mode}']['files']
    self.assertCountEqual(os.listdir(self.output_dir), golden)
    name = f'rev-{mode}.jsonl-00000-of-00001'
    mine = _lines(os.path.join(self.output_dir, name))
    theirs = _lines(testing.shared_data(f'golden/cli/samples/infer_{mode}') / name)
    self.assertLen(mine, reversal.VALIDATION_SIZE)
    for a, b in zip(mine, theirs):
      self.assertEqual(list(a), list(b))
      self.assertEqual(list(a['inputs']), list(b['inputs']))
      types = [{k: type(v) for k, v in line.get('aux', {}).items()} for line in (a, b)]
      self.assertEqual(types[0], types[1])

  def test_goes_on_after_the_last_finished_chunk(self):
    written = []

    def write_fn(path, *args):
      if len(written) == 1:
        raise OSError('killed')
      written.append(path)
      infer_lib.write_inferences_to_file(path, *args)

    with self.assertRaisesRegex(OSError, 'killed'):
      _infer(self.checkpoint, 'score', self.output_dir, write_fn=write_fn)
    tmp = os.path.join(self.output_dir, 'tmp-rev-00000-of-00001')
    name = 'rev-score.jsonl-00000-of-00001'
    self.assertCountEqual(os.listdir(tmp), [f'{name}-chunk00000', f'{name}-chunk00000.COMPLETED'])
    with self.assertRaisesRegex(ValueError, r'chunk00000 is of another run \(chunk = 4 there and 2 now\): remove it '):
      _infer(self.checkpoint, 'score', self.output_dir, checkpoint_period=1)
    text = _infer(self.checkpoint, 'score', self.output_dir)
    self.assertIn('rev: 4/8 examples are done already', text)
    self.assertRegex(text, r'rev: 8/8 examples, [\d.]+ examples/s, ETA 0:00:00')
    self.assertFalse(os.path.exists(tmp))
    whole = tempfile.mkdtemp()
    _infer(self.checkpoint, 'score', whole)
    self.assertEqual(_lines(os.path.join(self.output_dir, name)), _lines(os.path.join(whole, name)))
    self.assertIn('complete already', _infer(self.checkpoint, 'score', self.output_dir, checkpoint_period=1))
    pathlib.Path(self.output_dir, name + '.COMPLETED').write_text('')  # As other providers leave it.
    self.assertIn('complete already', _infer(self.checkpoint, 'score', self.output_dir))

  def test_shards_share_the_examples(self):
    for shard in (0, 1):
      _infer(self.checkpoint, 'score', self.output_dir, shard_id=shard, num_shards=2)
    parts = [_lines(os.path.join(self.output_dir, f'rev-score.jsonl-0000{i}-of-00002')) for i in (0, 1)]
    self.assertLen(parts[0], 4)
    words = [x['inputs']['inputs_pretokenized'] for part in parts for x in part]
    self.assertCountEqual(words, reversal._words('validation'))

  def test_chunks_may_stay(self):
    _infer(self.checkpoint, 'score', self.output_dir, merge_chunked_results=False)
    chunks = os.listdir(os.path.join(self.output_dir, 'tmp-rev-00000-of-00001'))
    self.assertLen([c for c in chunks if not c.endswith('.COMPLETED')], 2)

  @parameterized.parameters(
      (dict(mode='guess'), 'predict, predict_with_aux, score'),
      (dict(shard_id=2, num_shards=2), 'shard_id=2'),
      (dict(dataset_cfg=reversal.config('validation', task_feature_lengths=None)), 'TASK_FEATURE_LENGTHS'),
      (dict(dataset_cfg=reversal.config('test')), "'test'"))
  def test_errors_are_one_line(self, overrides, part):
    with self.assertRaises(ValueError) as error:
      _infer(self.checkpoint, overrides.pop('mode', 'score'), self.output_dir, **overrides)
    self.assertIn(part, str(error.exception))
    self.assertNotIn('\n', str(error.exception))


class ChunksTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def _files(self, **facts):
    task = seqio.get_mixture_or_task('rev')
    return infer_chunks.TaskFiles(task, reversal.config('validation'), 'score', self.folder, (0, 1), 'jsonl', facts)

  def _write(self, files, number):
    pathlib.Path(files.chunk_path(number)).write_text(f'{number}\n')
    files.mark_chunk(number)

  def test_a_marker_without_its_chunk_does_not_count(self):
    files = self._files()
    files.prepare(keep=False)
    for number in range(3):
      self._write(files, number)
    self.assertEqual(files.num_chunks_done(), 3)
    os.remove(files.chunk_path(1))  # As a process leaves it that was killed while it removed the chunks.
    self.assertEqual(files.num_chunks_done(), 1)
    os.remove(files.chunk_path(0))
    self.assertEqual(files.num_chunks_done(), 0)
    files.prepare(keep=False)
    self.assertEmpty(os.listdir(files.tmp_dir))

  def test_chunks_are_joined_in_order(self):
    files = self._files()
    files.prepare(keep=False)
    for number in (10, 2, 0):
      self._write(files, number)
    infer_lib.merge_chunks_to_file(self.folder, files.file_name, files.tmp_dir)
    self.assertEqual(pathlib.Path(files.path).read_text(), '0\n2\n10\n')
    self.assertFalse(files.is_done())
    files.mark_result()
    self.assertTrue(files.is_done())
    with self.assertRaisesRegex(ValueError, "is of another run .input = 'a' there and 'b' now"):
      files = self._files(input='a')
      files.mark_result()
      self._files(input='b').is_done()


class ProgressTest(absltest.TestCase):

  def _lines(self, total, batches, done=0):
    stream, now = io.StringIO(), [0.0]
    progress = infer_progress.InferProgress('qa', total, done, stream, clock=lambda: now[0])
    for seconds, number in batches:
      now[0] += seconds
      progress(number)
    progress.show()
    return stream.getvalue().splitlines()

  def test_the_first_batch_compiles_and_tells_no_rate(self):
    self.assertEqual(self._lines(1000, [(60, 10), (2, 20), (2, 20), (2, 20)]), [
        'qa: 10/1000 examples, 0.167 examples/s, ETA 1:39:00',
        'qa: 70/1000 examples, 10 examples/s, ETA 0:01:33', 'qa: 70/1000 examples, 10 examples/s, ETA 0:01:33'])

  def test_what_was_done_before_is_no_rate_of_now(self):
    self.assertEqual(self._lines(100, [(1, 10), (1, 10)], done=50), [
        'qa: 50/100 examples are done already', 'qa: 70/100 examples, 10 examples/s, ETA 0:00:03'])
    self.assertEqual(self._lines(100, [], done=100)[-1], 'qa: 100/100 examples')

  def test_without_a_total(self):
    self.assertEqual(self._lines(None, [(1, 10), (1, 10)]), ['qa: 20 examples, 10 examples/s'])


class WriteTest(parameterized.TestCase):

  def _write(self, outputs, aux, mode, **kwargs) -> list[dict]:
    ds = tf.data.Dataset.from_tensor_slices({'inputs': [[1, 2], [3, 4]], 'inputs_pretokenized': ['ab', 'cd']})
    path = os.path.join(tempfile.mkdtemp(), 'lines')
    infer_lib.write_inferences_to_file(path, (outputs, aux), ds, mode, seqio.ByteVocabulary(), **kwargs)
    return _lines(path)

  def test_token_ids_and_all_inputs_on_demand(self):
    first, second = self._write([[100, 101, 1, 0], [102, 1, 0, 0]], {'scores': [0.5, 1.5]}, 'predict_with_aux',
                                include_all_inputs=True, output_ids=True)
    self.assertEqual(first, {'inputs': {'inputs': [1, 2], 'inputs_pretokenized': 'ab'}, 'prediction': 'ab',
                             'prediction_tokens': [100, 101, 1, 0], 'aux': {'scores': 0.5}})
    self.assertEqual(second['aux'], {'scores': 1.5})

  def test_chosen_inputs_and_several_decodes(self):
    decodes = [[[100, 1], [101, 1]], [[100, 1], [102, 1]]]
    first, _ = self._write(decodes, {}, 'predict', input_fields_to_include=['inputs'])
    self.assertEqual(first, {'inputs': {'inputs': [1, 2]}, 'prediction': ['a', 'b']})

  def test_scores_need_no_vocabulary_but_predictions_do(self):
    with self.assertRaisesRegex(ValueError, 'vocabulary'):
      infer_lib.write_inferences_to_file('unused', ([], {}), None, 'predict')


class TfExampleTaskTest(absltest.TestCase):

  def test_task_reads_the_named_features(self):
    path = os.path.join(tempfile.mkdtemp(), 'data.tfrecord')
    with tf.io.TFRecordWriter(path) as writer:
      for word in (b'ab', b'cd'):
        feature = {'question': tf.train.Feature(bytes_list=tf.train.BytesList(value=[word]))}
        writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    features = {k: seqio.Feature(seqio.ByteVocabulary()) for k in ('inputs', 'targets')}
    name = infer_lib.create_task_from_tfexample_file(path, 'tfrecord', 'question', None, features, task_id='words')
    self.assertEqual(name, 'infer_words')
    examples = list(seqio.get_mixture_or_task(name).get_dataset(None, 'infer', shuffle=False).as_numpy_iterator())
    self.assertEqual([e['inputs'].tolist() for e in examples], [[100, 101, 1], [102, 103, 1]])
    self.assertEqual(examples[0]['targets'].tolist(), [1])
    with self.assertRaisesRegex(ValueError, "use 'tfrecord'"):
      infer_lib.create_task_from_tfexample_file(path, 'sstable', 'question', None, features)


if __name__ == '__main__':
  absltest.main()
