"""Tests of the T5 network: golden logits, the parameter tree of public checkpoints, decoding."""

from __future__ import annotations

import json

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from t5x.examples.t5 import network

MODELS = ('t5_1_1', 't5_1_0')
# Where `encoded` and `decoder_norm` of the golden files stand in the network.
_NAMES = {'encoded': 'encoder/encoder_norm', 'decoder_norm': 'decoder/decoder_norm'}
_HIDDEN = (
  'encoded',
  'decoder_norm',
  *(f'{stack}/{name}' for stack in ('encoder', 'decoder') for name in ('layers_0', 'layers_1')),
  'encoder/relpos_bias',
  'decoder/relpos_bias',
)


def _golden(name):
  path = testing.shared_data('golden/network') / name
  return json.loads(path.read_text()) if path.suffix == '.json' else np.load(path)


def _transformer(model, **overrides):
  config = {**_golden('tree.json')[model]['config'], **overrides}
  config['mlp_activations'] = tuple(config['mlp_activations'])
  return network.Transformer(network.T5Config(**config))


def _params(model):
  return {'params': traverse_util.unflatten_dict(dict(_golden(f'params_{model}.npz')), sep='/')}


def _tokens(inputs):
  names = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
  return tuple(inputs[name] for name in names)


def _forward(model, inputs, packed=False, **overrides):
  """Returns logits and a dict of hidden states."""
  module = _transformer(model, **overrides)
  names = [f'{s}_{n}' for s in ('encoder', 'decoder') for n in ('segment_ids', 'positions')]
  kwargs = {name: inputs[name] for name in names} if packed else {}

  @jax.jit
  def apply(params, args, kwargs):
    return module.apply(
      params,
      *args,
      **kwargs,
      enable_dropout=False,
      capture_intermediates=True,
      mutable=['intermediates'],
    )

  logits, state = apply(_params(model), _tokens(inputs), kwargs)
  hidden = traverse_util.flatten_dict(state['intermediates'], sep='/')
  return logits, {name: hidden[f'{_NAMES.get(name, name)}/__call__'][0] for name in _HIDDEN}


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(*MODELS)
  def test_logits_and_hidden_states(self, model):
    golden = _golden(f'logits_{model}.npz')
    logits, hidden = _forward(model, _golden('inputs.npz'))
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, golden['logits'], atol=2e-5)
    for name, values in hidden.items():
      np.testing.assert_allclose(values, golden[name], atol=2e-5, err_msg=name)

  @parameterized.parameters(*MODELS)
  def test_bfloat16(self, model):
    golden = _golden(f'logits_{model}.npz')['logits_bfloat16_activations']
    logits, hidden = _forward(model, _golden('inputs.npz'), dtype='bfloat16')
    self.assertEqual(hidden['encoded'].dtype, jnp.bfloat16)
    np.testing.assert_allclose(logits, golden, atol=0.25)

  def test_packed(self):
    golden = _golden('packed_logits_t5_1_1.npz')
    logits, hidden = _forward('t5_1_1', _golden('packed_inputs.npz'), packed=True)
    np.testing.assert_allclose(logits, golden['logits'], atol=2e-5)
    for name, values in hidden.items():
      np.testing.assert_allclose(values, golden[name], atol=2e-5, err_msg=name)

  def test_packed_equals_unpacked(self):
    packed_inputs, inputs = _golden('packed_inputs.npz'), _golden('packed_inputs_as_unpacked.npz')
    packed, _ = _forward('t5_1_1', packed_inputs, packed=True)
    unpacked, _ = _forward('t5_1_1', inputs)
    golden = _golden('packed_inputs_as_unpacked_logits_t5_1_1.npz')['logits']
    np.testing.assert_allclose(unpacked, golden, atol=2e-5)
    triples = _golden('tree.json')['packing']['packed_row_segment_to_example']
    self.assertLen(triples, len(inputs['encoder_input_tokens']))
    for row, segment, example in triples:
      there = packed_inputs['decoder_segment_ids'][row] == segment
      here = inputs['decoder_target_tokens'][example] > 0
      np.testing.assert_allclose(packed[row][there], unpacked[example][here], atol=2e-5)

  @parameterized.parameters(*MODELS)
  def test_long(self, model):
    inputs, golden = _golden('long_inputs.npz'), _golden(f'long_logits_{model}.npz')
    logits, hidden = _forward(model, inputs)
    positions = golden['positions'] if 'positions' in golden.files else inputs['positions']
    np.testing.assert_allclose(logits[:, positions], golden['logits_at_positions'], atol=2e-5)
    encoded = hidden['encoded'][:, positions]
    np.testing.assert_allclose(encoded, golden['encoded_at_positions'], atol=2e-5)
    np.testing.assert_allclose(logits.mean(-1), golden['logits_mean'], atol=2e-5)
    np.testing.assert_allclose(logits.std(-1), golden['logits_std'], atol=2e-5)

  @parameterized.parameters(*MODELS)
  def test_tree(self, model):
    golden = _golden('tree.json')[model]
    tokens = _tokens(_golden('inputs.npz'))
    variables = _transformer(model).init(jax.random.PRNGKey(0), *tokens, enable_dropout=False)
    params = traverse_util.flatten_dict(variables['params'], sep='/')
    axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
    self.assertEqual(set(params), set(golden['params']))
    self.assertEqual(sum(p.size for p in params.values()), golden['num_parameters'])
    for name, expected in golden['params'].items():
      value = params[name]
      with self.subTest(name):
        self.assertEqual((list(value.shape), value.dtype), (expected['shape'], expected['dtype']))
        self.assertEqual(list(axes[f'{name}_axes'].names), expected['logical_axes'])
        for statistic in ('mean', 'std', 'min', 'max'):
          actual = getattr(np.asarray(value), statistic)()
          # A different way to draw from the same distribution would pass a coarser tolerance.
          self.assertAlmostEqual(actual, expected[f't5x_init_{statistic}'], delta=1e-5)


class DecodingTest(parameterized.TestCase):
  @parameterized.parameters(*MODELS)
  def test_step_by_step_equals_teacher_forcing(self, model):
    module, params = _transformer(model), _params(model)
    encoder_tokens, decoder_tokens, _ = _tokens(_golden('inputs.npz'))
    length = decoder_tokens.shape[1]
    # No padding in the targets: decoding sees every position up to its own.
    ones = jnp.ones_like(decoder_tokens)
    expected = module.apply(params, encoder_tokens, decoder_tokens, ones, enable_dropout=False)

    _, state = module.apply(
      params, encoder_tokens, ones, ones, enable_dropout=False, decode=True, mutable=['cache']
    )
    cache = state['cache']
    flat = traverse_util.flatten_dict(cache, sep='/')
    leaves = ('cached_key', 'cached_value', 'cache_index')
    self.assertEqual(
      set(flat), {f'decoder/layers_{i}/self_attention/{leaf}' for i in range(2) for leaf in leaves}
    )
    encoded = module.apply(params, encoder_tokens, enable_dropout=False, method=module.encode)

    @jax.jit
    def step(cache, token):
      return module.apply(
        {**params, 'cache': cache},
        encoded,
        encoder_tokens,
        token,
        token,
        enable_dropout=False,
        decode=True,
        max_decode_length=length,
        mutable=['cache'],
        method=module.decode,
      )

    for i in range(length):
      logits, state = step(cache, decoder_tokens[:, i : i + 1])
      cache = state['cache']
      np.testing.assert_allclose(logits[:, 0], expected[:, i], atol=2e-5)

  def test_packed_examples_cannot_be_decoded(self):
    module, params = _transformer('t5_1_1'), _params('t5_1_1')
    inputs = _golden('packed_inputs.npz')
    with self.assertRaisesRegex(ValueError, 'decoding needs unpacked examples'):
      module.apply(
        params,
        *_tokens(inputs),
        encoder_segment_ids=inputs['encoder_segment_ids'],
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
      )


class TransformerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tokens = jnp.array([[5, 6, 1, 0]]), jnp.array([[0, 7, 8]]), jnp.array([[7, 8, 1]])

  def _module(self, **kwargs):
    sizes = dict(vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8)
    layers = dict(num_encoder_layers=2, num_decoder_layers=1)
    return network.Transformer(network.T5Config(**sizes, **layers, **kwargs))

  def test_dropout_needs_and_uses_its_key(self):
    module = self._module(dropout_rate=0.5)
    variables = module.init(jax.random.PRNGKey(0), *self.tokens, enable_dropout=False)

    def apply(seed):
      return module.apply(variables, *self.tokens, rngs={'dropout': jax.random.PRNGKey(seed)})

    np.testing.assert_array_equal(apply(0), apply(0))
    self.assertGreater(jnp.abs(apply(0) - apply(1)).max(), 1e-3)
    with self.assertRaisesRegex(Exception, 'dropout'):
      module.apply(variables, *self.tokens)

  def test_padding_of_the_inputs_changes_nothing(self):
    module = self._module()
    variables = module.init(jax.random.PRNGKey(0), *self.tokens, enable_dropout=False)
    encoder_tokens, *decoder_tokens = self.tokens
    short = module.apply(variables, encoder_tokens[:, :3], *decoder_tokens, enable_dropout=False)
    longer = module.apply(variables, *self.tokens, enable_dropout=False)
    np.testing.assert_allclose(short, longer, atol=1e-5)

  def test_a_position_does_not_see_later_ones(self):
    module = self._module()
    variables = module.init(jax.random.PRNGKey(0), *self.tokens, enable_dropout=False)
    encoder_tokens, decoder_tokens, targets = self.tokens
    changed = decoder_tokens.at[0, 2].set(3)
    before = module.apply(variables, *self.tokens, enable_dropout=False)
    after = module.apply(variables, encoder_tokens, changed, targets, enable_dropout=False)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    self.assertGreater(jnp.abs(before[:, 2] - after[:, 2]).max(), 1e-4)

  def test_float32_attention_logits_reach_every_attention(self):
    wide, narrow = (
      self._module(dtype='bfloat16', float32_attention_logits=on) for on in (True, False)
    )
    variables = wide.init(jax.random.PRNGKey(0), *self.tokens, enable_dropout=False)

    def num_float32_products(module):
      def apply(variables):
        return module.apply(variables, *self.tokens, enable_dropout=False)

      return str(jax.make_jaxpr(apply)(variables)).count('preferred_element_type=float32')

    # Two encoder layers and one decoder layer with two attentions: one product of logits in each.
    self.assertEqual(num_float32_products(wide) - num_float32_products(narrow), 4)


if __name__ == '__main__':
  absltest.main()
