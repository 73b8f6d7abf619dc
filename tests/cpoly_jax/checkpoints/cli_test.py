"""Tests of the command line: describing and converting."""

import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import flax
import numpy as np

from cpoly_jax import pretrained
from cpoly_jax import testing
from cpoly_jax.checkpoints import __main__ as command
from cpoly_jax.checkpoints import converting
from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import t5x_files
from t5x import checkpoints


def _run(*arguments):
  """Returns exit code, stdout and stderr of a command."""
  out, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    code = command.main(arguments)
  return code, out.getvalue(), errors.getvalue()


def _params(path):
  return flax.traverse_util.flatten_dict(checkpoints.load_t5x_checkpoint(path)['target'], sep='/')


class _CommandTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.base = pretrained.tiny_base()
    cls.shared = tempfile.mkdtemp()
    cls.hf = os.path.join(cls.shared, 'hf')
    cls.wrote = _run('convert', cls.base, cls.hf)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.shared)
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    # No line on progress, however slow the machine is.
    self.enterContext(mock.patch.object(converting, '_SECONDS_BETWEEN_LINES', 1e6))

  def run_ok(self, *arguments):
    code, out, errors = _run(*arguments)
    self.assertEqual((code, errors), (0, ''))
    return out

  def assert_error(self, message, *arguments):
    code, out, errors = _run(*arguments)
    self.assertEqual((code, out), (1, ''))
    self.assertRegex(errors, f'^error: .*{message}')
    self.assertEqual(errors.count('\n'), 1)


class ConvertTest(_CommandTest):

  def test_both_ways(self):
    self.assertEqual(self.wrote[0], 0)
    self.assertIn(f'wrote {self.hf} (huggingface): 52 arrays, 855,808 parameters, 1.7 MB, from {self.base} (t5x)\n',
                  self.wrote[1])
    back = os.path.join(self.folder, 'checkpoint_3')
    self.run_ok('convert', self.hf, back)
    self.assertEqual(int(checkpoints.load_t5x_checkpoint(back)['state']['step']), 3)
    before, after = _params(self.base), _params(back)
    self.assertEqual(before.keys(), after.keys())
    for name, value in before.items():
      self.assertEqual(after[name].dtype, value.dtype)
      np.testing.assert_array_equal(after[name], value, err_msg=name)

  def test_dtype_and_the_same_format(self):
    out = self.run_ok('convert', self.hf, os.path.join(self.folder, 'float32'), '--to=huggingface', '--dtype=float32')
    self.assertIn('3.4 MB', out)
    before, after = huggingface.open_folder(self.hf), huggingface.open_folder(os.path.join(self.folder, 'float32'))
    for name, tensor in before.items():
      self.assertEqual(after[name].dtype, np.float32)
      np.testing.assert_array_equal(after[name].read(), tensor.read().astype(np.float32))
    self.assertEqual(huggingface.network_settings(self.hf), huggingface.network_settings(os.path.join(self.folder, 'float32')))

  def test_chunks(self):
    self.enterContext(mock.patch.object(t5x_files, '_CHUNK_BYTES', 5000))
    self.enterContext(mock.patch.object(t5x_files, '_BLOCK_BYTES', 12000))
    value = np.random.default_rng(0).normal(size=(101, 67)).astype(np.float32)
    path = os.path.join(self.folder, 'checkpoint_0')
    t5x_files.write_checkpoint(path, {'a/kernel': value, 'scale': value[0]})
    self.assertGreater(len(os.listdir(os.path.join(path, 'target.a.kernel'))), 3)
    np.testing.assert_array_equal(_params(path)['a/kernel'], value)
    np.testing.assert_array_equal(_params(path)['scale'], value[0])

  def test_dry_run_writes_nothing(self):
    path = os.path.join(self.folder, 'checkpoint_0')
    lines = self.run_ok('convert', self.hf, path, '--dry_run', '--dtype=float32').splitlines()
    self.assertLen(lines, 53)
    self.assertIn('lm_head.weight bfloat16[264, 128] -> target/decoder/logits_dense/kernel float32[128, 264]', lines)
    self.assertStartsWith(lines[-1], f'would write {path} (t5x): 52 arrays, 855,808 parameters, 3.4 MB, from')
    lines = self.run_ok('convert', self.base, os.path.join(self.folder, 'x'), '--dry_run').splitlines()
    self.assertIn('target/token_embedder/embedding bfloat16[264, 128] -> '
                  'model.safetensors: shared.weight bfloat16[264, 128]', lines)
    self.assertEmpty(os.listdir(self.folder))

  def test_nothing_is_overwritten(self):
    os.mkdir(os.path.join(self.folder, 'checkpoint_0'))
    pathlib.Path(self.folder, 'checkpoint_0', 'file').touch()
    self.assert_error('exists and is not overwritten', 'convert', self.hf, os.path.join(self.folder, 'checkpoint_0'))
    self.assert_error('exists and is not overwritten', 'convert', self.hf, self.hf, '--to=huggingface')

  def test_mistakes(self):
    there = os.path.join(self.folder, 'new')
    self.assert_error('name a T5X checkpoint .*/new/checkpoint_0', 'convert', self.hf, there)
    self.assert_error('there is nothing at', 'convert', os.path.join(self.folder, 'absent'), there)
    self.assert_error('is neither a Hugging Face folder', 'convert', self.folder, there)
    self.assert_error("invalid choice: 'numpy'", 'convert', self.hf, there, '--to=numpy')
    self.assert_error('required: DESTINATION', 'convert', self.hf)
    self.assert_error('required: COMMAND')

  def test_a_bucket_that_does_not_answer(self):
    self.enterContext(mock.patch.dict(sys.modules, tensorflow=mock.Mock()))
    for answer in ({'side_effect': RuntimeError('HTTP request')}, {'side_effect': lambda: time.sleep(3)}):
      with mock.patch.object(folders, '_ANSWER_SECONDS', .05), mock.patch.object(folders, 'epath') as epath:
        epath.Path.return_value.exists.configure_mock(**answer)
        for command_name in ('describe', 'convert'):
          self.assert_error('cannot reach gs://bucket/x: check the network and credentials',
                            *((command_name, 'gs://bucket/x') + (('y',) if command_name == 'convert' else ())))

  def test_only_plain_models(self):
    params = _params(self.base)
    params['encoder/layers_0/mlp/wo/skills/down'] = np.zeros((1, 2, 3), np.float32)
    path = os.path.join(self.folder, 'checkpoint_0')
    t5x_files.write_checkpoint(path, params)
    self.assert_error('it has encoder/layers_0/mlp/wo/skills/down besides', 'convert', path, os.path.join(self.folder, 'x'))

  def test_progress(self):
    stream = io.StringIO()
    self.enterContext(mock.patch.object(converting, '_SECONDS_BETWEEN_LINES', 0.))
    converting.convert(self.hf, os.path.join(self.folder, 'checkpoint_0'), stream=stream)
    lines = stream.getvalue().splitlines()
    self.assertLen(lines, 52)
    self.assertEqual(lines[-1], '52/52 arrays, 2 of 2 MB')


class DescribeTest(_CommandTest):

  def describe(self, path):
    return dict(line.split(maxsplit=1) for line in self.run_ok('describe', str(path)).splitlines())

  def test_the_shipped_base(self):
    found = self.describe(os.path.dirname(self.base))
    self.assertEqual(found.pop('path'), self.base)
    self.assertIn('emb_dim=128', found.pop('network'))
    self.assertEqual(found, {'format': 'T5X checkpoint, T5X-native', 'step': '5000', 'arrays': '52', 'parameters': '855,808',
                             'dtype': 'bfloat16', 'size': '1.7 MB'})

  def test_a_hugging_face_folder_and_its_file(self):
    found = self.describe(self.hf)
    self.assertEqual((found['format'], found['parameters'], found['dtype']),
                     ('Hugging Face T5, 1 file of safetensors', '855,808', 'bfloat16'))
    found = self.describe(os.path.join(self.hf, 'model.safetensors'))
    self.assertEqual((found['format'], found['arrays']), ('a file of safetensors', '52'))

  def test_arrays(self):
    lines = self.run_ok('describe', self.hf, '--arrays').splitlines()
    self.assertIn('decoder/logits_dense/kernel bfloat16[128, 264]', lines)

  def test_samples_of_t5x(self):
    samples = testing.shared_data('t5x_checkpoints')
    found = self.describe(samples / 'test_t5_tiny.checkpoint_0')
    self.assertEqual((found['arrays'], found['parameters'], found['optimizer'], found['step']),
                     ('52', '518,240', '208 arrays, 518,396 values', '-'))
    self.assertIn('vocab_size=32128', found['network'])
    found = self.describe(samples / 'tiny_t5')
    self.assertEqual((found['step'], found['arrays'], found['optimizer']), ('1', '0', '3 arrays, 56 values'))
    self.assert_error('.zarray.* does not exist', 'describe', str(samples / 'tiny_orbax/1'))

  def test_orbax(self):
    found = self.describe(testing.shared_data('golden/checkpoints/orbax'))
    self.assertEqual((found['format'], found['step'], found['parameters']), ('T5X checkpoint, Orbax', '7', '74,368'))

  def test_mistakes(self):
    self.assert_error('there is nothing at', 'describe', os.path.join(self.folder, 'absent'))
    self.assert_error('is no checkpoint of T5X, no Hugging Face folder and no adapter', 'describe', self.folder)
    pathlib.Path(self.folder, 'adapter_config.json').write_text('{}')
    self.assert_error('there is no file .*adapter_model.safetensors', 'describe', self.folder)


if __name__ == '__main__':
  absltest.main()
