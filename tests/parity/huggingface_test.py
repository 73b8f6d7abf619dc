"""Weights read from and written for Hugging Face's transformers, and the logits of its T5 and ours."""

import functools
import os
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import numpy as np

from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import names
from cpoly_jax.t5 import network

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers

TOLERANCE = 1e-4
FAMILIES = {
    't5_1_0': dict(feed_forward_proj='relu', tie_word_embeddings=True),
    't5_1_1': dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    'silu': dict(feed_forward_proj='gated-silu', tie_word_embeddings=False)}


def setUpModule():
  peers.require()


@functools.cache
def _theirs(family):
  """transformers' T5, small, with everything moved off its start."""
  config = peers.transformers.T5Config(
      vocab_size=40, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2, dropout_rate=0.,
      decoder_start_token_id=0, **FAMILIES[family])
  with peers.torch.random.fork_rng():
    peers.torch.manual_seed(0)
    model = peers.transformers.T5ForConditionalGeneration(config)
  peers.randomize(model, scale=0.2)
  return model.eval()


def _batch():
  """Inputs and targets [3, L] with padding; longer than the 32 buckets of relative positions."""
  rng = np.random.default_rng(3)
  inputs, targets = (rng.integers(2, 40, size=(3, length), dtype=np.int32) for length in (45, 9))
  inputs[1, 20:], targets[0, 4:], targets[2, 7:] = 0, 0, 0
  return inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets


def _their_logits(model):
  inputs, shifted, targets = (peers.torch.tensor(x).long() for x in _batch())
  with peers.torch.no_grad():
    return model(input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=shifted,
                 decoder_attention_mask=(targets > 0).long()).logits.numpy()


def _our_logits(folder, dtype=None):
  net = network.Transformer(network.T5Config(**huggingface.network_settings(folder)))
  params = {name: tensor.read(dtype=dtype) for name, tensor in huggingface.open_folder(folder).items()}
  run = jax.jit(lambda params: net.apply({'params': params}, *_batch(), enable_dropout=False),
                compiler_options={'xla_backend_optimization_level': 0})
  return run(flax.traverse_util.unflatten_dict(params, sep='/'))


class HuggingFaceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def assert_logits(self, ours, theirs):
    real = _batch()[2] > 0
    self.assertGreater(theirs[real].std(), 0.1)
    np.testing.assert_allclose(ours[real], theirs[real], rtol=TOLERANCE, atol=TOLERANCE)

  @parameterized.product(family=list(FAMILIES), max_shard_size=('10KB', '1GB'))
  def test_parameters_are_those_of_transformers(self, family, max_shard_size):
    model = _theirs(family)
    model.save_pretrained(self.folder, safe_serialization=True, max_shard_size=max_shard_size)
    self.assertEqual(os.path.exists(os.path.join(self.folder, huggingface.INDEX_FILE)), max_shard_size == '10KB')
    found = huggingface.open_folder(self.folder)
    # `parameters` has what is tied once.
    self.assertLen(found, len(list(model.parameters())))
    for theirs, parameter in model.named_parameters():
      name, transposed = names.from_huggingface(theirs)
      expected = peers.array(parameter)
      np.testing.assert_array_equal(found[name].read(), expected.T if transposed else expected, err_msg=name)

  @parameterized.parameters(*FAMILIES)
  def test_logits(self, family):
    model = _theirs(family)
    model.save_pretrained(self.folder, safe_serialization=True, max_shard_size='10KB')
    self.assert_logits(_our_logits(self.folder), _their_logits(model))

  def test_bfloat16(self):
    # A deep copy in half precision; compared in float32, so that only the stored values are rounded.
    model = _theirs('t5_1_1')
    torch = peers.torch
    half = peers.transformers.T5ForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    half.save_pretrained(self.folder, safe_serialization=True)
    self.assertEqual({tensor.dtype.name for tensor in huggingface.open_folder(self.folder).values()}, {'bfloat16'})
    self.assert_logits(_our_logits(self.folder, np.float32), _their_logits(half.float().eval()))

  @parameterized.parameters(*FAMILIES)
  def test_transformers_loads_what_is_written(self, family):
    model = _theirs(family)
    model.save_pretrained(self.folder, safe_serialization=True)
    settings = huggingface.network_settings(self.folder)
    written = os.path.join(self.folder, 'written')
    huggingface.write_folder(
        written, huggingface.open_folder(self.folder), network.T5Config(**settings), max_shard_bytes=10_000)
    loaded, told = peers.transformers.T5ForConditionalGeneration.from_pretrained(written, output_loading_info=True)
    self.assertEqual([list(told[key]) for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')], [[], [], []])
    theirs = model.state_dict()
    self.assertEqual(loaded.state_dict().keys(), theirs.keys())
    for name, value in loaded.state_dict().items():
      np.testing.assert_array_equal(peers.array(value), peers.array(theirs[name]), err_msg=name)
    self.assertEqual({k: v for k, v in loaded.config.to_dict().items() if k not in ('_name_or_path', 'dtype')},
                     {k: v for k, v in model.config.to_dict().items() if k not in ('_name_or_path', 'dtype')})
    np.testing.assert_array_equal(_their_logits(loaded.eval()), _their_logits(model))


if __name__ == '__main__':
  absltest.main()
