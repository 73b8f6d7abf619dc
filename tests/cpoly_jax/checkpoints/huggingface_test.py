"""Tests of Hugging Face folders: what is written is read again, and what does not fit is told (values: tests/parity)."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from cpoly_jax import testing
from cpoly_jax.checkpoints import converting
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import sizes

T5_1_0 = dict(mlp_activations=('relu',), logits_via_embedding=True)


def _params(config, dtype=np.float32):
  settings = {name: getattr(config, name) for name in (
      'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers',
      'mlp_activations', 'logits_via_embedding')}
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in sizes.parameters(settings).items()}


class _FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'model')

  def write(self, dtype=np.float32, max_shard_bytes=2**30, **overrides):
    config = testing.small_config(num_decoder_layers=2, **overrides)
    params = _params(config, dtype)
    huggingface.write_folder(self.folder, params, config, max_shard_bytes=max_shard_bytes)
    return config, params

  def edit_config(self, **fields):
    path = pathlib.Path(self.folder) / 'config.json'
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != 'absent'}))

  def edit_tensors(self, function):
    path = os.path.join(self.folder, 'model.safetensors')
    tensors = safetensors_numpy.load_file(path)
    function(tensors)
    safetensors_numpy.save_file(tensors, path)


class RoundTripTest(_FolderTest):

  @parameterized.product(family=({}, T5_1_0), dtype=(np.float32, np.float16, ml_dtypes.bfloat16), max_shard_bytes=(2**30, 2000))
  def test_parameters_and_settings(self, family, dtype, max_shard_bytes):
    config, params = self.write(dtype, max_shard_bytes, **family)
    self.assertEqual(any(name.startswith('model-00002-of-') for name in os.listdir(self.folder)), max_shard_bytes == 2000)
    self.assertTrue(huggingface.is_folder(self.folder))
    found = huggingface.open_folder(self.folder)
    self.assertEqual(found.keys(), params.keys())
    for name, value in params.items():
      self.assertEqual((found[name].name, found[name].shape, found[name].dtype), (name, value.shape, np.dtype(dtype)))
      np.testing.assert_array_equal(found[name].read(), value, err_msg=name)
    settings = huggingface.network_settings(self.folder)
    self.assertEqual(settings, {name: getattr(config, name) for name in settings})
    self.assertLen(settings, 10)

  def test_files_stay_below_their_size(self):
    self.write(max_shard_bytes=3000)
    for file in pathlib.Path(self.folder).glob('*.safetensors'):
      header = int.from_bytes(file.read_bytes()[:8], 'little')
      self.assertLessEqual(file.stat().st_size - 8 - header, 3000)

  @parameterized.parameters('decoder/layers_1/mlp/wo/kernel', 'token_embedder/embedding', 'encoder/relpos_bias/rel_embedding')
  def test_parts(self, name):
    _, params = self.write(ml_dtypes.bfloat16)
    index = (slice(1, 9), slice(3, 7))
    read = huggingface.open_folder(self.folder)[name].read(index, np.float32)
    np.testing.assert_array_equal(read, params[name][index].astype(np.float32))
    self.assertTrue(read.flags.c_contiguous)

  def test_a_folder_is_not_overwritten(self):
    config, params = self.write()
    with self.assertRaisesRegex(FileExistsError, 'exists and is not overwritten'):
      huggingface.write_folder(self.folder, params, config)

  def test_nothing_is_left_where_writing_fails(self):
    config = testing.small_config()
    params = _params(config)

    class Broken:
      shape, dtype = params['token_embedder/embedding'].shape, np.dtype(np.float32)

      def read(self):
        raise OSError('no')

    with self.assertRaisesRegex(OSError, 'no'):
      huggingface.write_folder(self.folder, {**params, 'token_embedder/embedding': Broken()}, config)
    self.assertEmpty(os.listdir(os.path.dirname(self.folder)))

  def test_parameters_that_are_not_those_of_the_network(self):
    config = testing.small_config()
    params = _params(config)
    params['decoder/layers_0/mlp/wo/skills/down'] = params.pop('decoder/layers_0/mlp/wo/kernel')
    with self.assertRaisesRegex(ValueError, 'lacks decoder/layers_0/mlp/wo/kernel and has .*/wo/skills/down besides'):
      huggingface.write_folder(self.folder, params, config)

  def test_a_block_that_transformers_lacks(self):
    config = testing.small_config(mlp_activations=('linear', 'gelu'))
    with self.assertRaisesRegex(ValueError, "no feed-forward block of \\('linear', 'gelu'\\)"):
      huggingface.write_folder(self.folder, _params(config), config)


class OldFilesTest(_FolderTest):
  """What the files of older transformers look like."""

  @parameterized.parameters('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight')
  def test_other_names_of_the_embedding(self, name):
    _, params = self.write(**T5_1_0)
    self.edit_tensors(lambda tensors: tensors.update({name: tensors.pop('shared.weight')}))
    np.testing.assert_array_equal(
        huggingface.open_folder(self.folder)['token_embedder/embedding'].read(), params['token_embedder/embedding'])

  def test_copies_of_the_embedding_and_the_unused_bias_are_ignored(self):
    _, params = self.write()
    self.edit_tensors(lambda tensors: tensors.update({
        'encoder.embed_tokens.weight': tensors['shared.weight'].copy(),
        'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight': np.zeros((32, 2), np.float32)}))
    self.assertEqual(huggingface.open_folder(self.folder).keys(), params.keys())

  def test_logits_that_are_not_tied_are_never_the_embedding(self):
    self.write()
    self.edit_tensors(lambda tensors: tensors.pop('shared.weight'))
    with self.assertRaisesRegex(ValueError, 'it lacks shared.weight'):
      huggingface.open_folder(self.folder)

  def test_what_a_config_may_leave_out(self):
    self.write(**T5_1_0)
    self.edit_config(feed_forward_proj='absent', tie_word_embeddings='absent', num_layers=2, num_decoder_layers='absent',
                     relative_attention_max_distance='absent')
    settings = huggingface.network_settings(self.folder)
    self.assertEqual(settings['num_decoder_layers'], 2)
    self.assertEqual((settings['mlp_activations'], settings['logits_via_embedding']), (('relu',), True))
    self.edit_config(model_type='mt5')
    settings = huggingface.network_settings(self.folder)
    self.assertEqual((settings['mlp_activations'], settings['logits_via_embedding']), (('gelu', 'linear'), False))


class ErrorTest(_FolderTest):

  def assert_refused(self, message, error=ValueError):
    with self.assertRaisesRegex(error, message) as caught:
      huggingface.open_folder(self.folder)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      (dict(model_type='bart'), "model_type 'bart'"), (dict(model_type=['t5']), 'model_type'),
      (dict(feed_forward_proj='gated-tanh'), "feed_forward_proj='gated-tanh', which is none of relu, gated-gelu"),
      (dict(feed_forward_proj='gelu'), "feed_forward_proj='gelu'"), (dict(d_model='absent'), 'd_model=None'),
      (dict(num_heads=-1), 'num_heads=-1'), (dict(d_ff='3'), "d_ff='3'"), (dict(layer_norm_epsilon=1e-5), 'only 1e-06'),
      (dict(relative_attention_num_buckets=64), 'relative_attention_num_buckets=64; only 32'),
      (dict(tie_word_embeddings=1), 'tie_word_embeddings=1'))
  def test_configs(self, fields, message):
    self.write()
    self.edit_config(**fields)
    self.assert_refused(message)

  def test_a_config_that_is_not_json(self):
    self.write()
    (pathlib.Path(self.folder) / 'config.json').write_text('{')
    self.assert_refused('config.json is not a JSON object')

  def test_names_of_the_file_are_told(self):
    self.write()
    self.edit_tensors(lambda tensors: tensors.pop('decoder.block.1.layer.2.DenseReluDense.wo.weight'))
    self.assert_refused(
        'model.safetensors .* it lacks decoder.block.1.layer.2.DenseReluDense.wo.weight; compare its config.json$')
    self.edit_tensors(lambda tensors: tensors.update({'encoder.extra.weight': np.zeros(2)}))
    self.assert_refused('model.safetensors has encoder.extra.weight, which T5 does not have')

  def test_sizes_of_config_and_file_that_differ(self):
    self.write()
    self.edit_config(d_model=32)
    self.assert_refused(r'shared.weight is \[32, 16\] .* and not \[32, 32\], .* and \d+ more')

  def test_quantized_weights(self):
    self.write()
    self.edit_tensors(lambda tensors: tensors.update({'shared.weight': tensors['shared.weight'].astype(np.int8)}))
    self.assert_refused('shared.weight in int8: weights in float32, bfloat16 or float16 are read')

  def test_pickles_are_refused_with_the_command_that_converts_them(self):
    self.write()
    os.rename(f'{self.folder}/model.safetensors', f'{self.folder}/pytorch_model.bin')
    self.assert_refused(r'pickles only \(pytorch_model.bin\).*python -c "import transformers .*save_pretrained.*-safetensors')

  @parameterized.parameters('model.safetensors', 'config.json')
  def test_an_absent_file(self, name):
    self.write()
    os.remove(os.path.join(self.folder, name))
    self.assert_refused(f'{name}.*: copy the whole folder', FileNotFoundError)

  def test_an_index_that_leaves_the_folder(self):
    self.write(max_shard_bytes=2000)
    path = pathlib.Path(self.folder) / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    index['weight_map'][names.to_huggingface('token_embedder/embedding')[0]] = '../x'
    path.write_text(json.dumps(index))
    self.assert_refused("names the file '../x': only a .safetensors file beside the index is read")

  def test_other_folders(self):
    os.mkdir(self.folder)
    self.assertFalse(huggingface.is_folder(self.folder))
    self.assertIsNone(huggingface.open_checkpoint_folder(self.folder))


_RESTORE = """
import sys
import jax, numpy as np
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.t5 import network
from t5x import partitioning, restore

def memory(field):
  return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(field))

def read(folder, settings):
  net = network.Transformer(network.T5Config(**huggingface.network_settings(settings)))
  tokens = np.zeros((1, 4), np.int32)
  init = lambda rng, input_shapes, input_types: net.init(rng, tokens, tokens, tokens, enable_dropout=False)
  partitioner = partitioning.PjitPartitioner(num_partitions=jax.device_count())
  initializer = restore.TrainStateInitializer(None, init, {}, partitioner)
  cfg = restore.RestoreCheckpointConfig(path=folder, mode='specific', dtype='float32')
  return restore.create_checkpoint_manager_and_restore(initializer, partitioner, cfg, folder, None)[0]

read(sys.argv[1], sys.argv[1])  # So that all is imported and compiled.
before = memory('VmRSS')
state = read(*sys.argv[2:])
leaves = [leaf.nbytes for leaf in jax.tree.leaves(state.params)]
print('figures', memory('VmHWM') - before, sum(leaves), max(leaves))
"""


@pytest.mark.slow
class MemoryTest(_FolderTest):

  @parameterized.parameters((np.float32, 1), (ml_dtypes.bfloat16, 1), (ml_dtypes.bfloat16, 2), (np.float32, 1, True))
  def test_restoring_takes_little_more_than_the_model_and_its_largest_tensor(self, dtype, devices, native=False):
    if not os.path.exists('/proc/self/status'):
      self.skipTest('the system does not tell the memory of a process in /proc')
    small = os.path.join(os.path.dirname(self.folder), 'small')
    config = testing.small_config()
    huggingface.write_folder(small, _params(config), config)
    # 120 million parameters: 480 MB in float32, of which each of embedding and logits, the largest, is 131 MB.
    big = testing.small_config(vocab_size=32000, emb_dim=1024, num_heads=16, head_dim=64, mlp_dim=2816, num_encoder_layers=2,
                               num_decoder_layers=2)
    huggingface.write_folder(self.folder, _params(big, dtype), big, max_shard_bytes=2**27)
    path = self.folder
    if native:
      path = os.path.join(os.path.dirname(self.folder), 'checkpoint_0')
      converting.convert(self.folder, path)
    script = os.path.join(os.path.dirname(self.folder), 'restore.py')
    pathlib.Path(script).write_text(textwrap.dedent(_RESTORE))
    # The device's memory is the host's here, so the model itself counts once.
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
                   'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script, small, path, self.folder], capture_output=True, text=True, check=False,
                          env=environment)
    self.assertEqual(done.returncode, 0, done.stderr)
    peak, model, largest = map(int, done.stdout.split('figures ')[1].split())
    self.assertGreater(model, 450e6)
    self.assertLess(peak, model + 1.2 * largest)


if __name__ == '__main__':
  absltest.main()
