"""Tests of the blocks of the T5 network: shapes, masks, relative positions, the decoding cache."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from t5x.examples.t5 import layers


def _normal(*shape, seed=0):
  return jax.random.normal(jax.random.PRNGKey(seed), shape)


class MaskTest(parameterized.TestCase):
  def test_attention_mask(self):
    mask = layers.make_attention_mask(jnp.array([[1, 1, 0]]), jnp.array([[1, 0]]))
    np.testing.assert_array_equal(mask, [[[[1, 0], [1, 0], [0, 0]]]])

  def test_attention_mask_of_segments(self):
    segments = jnp.array([[1, 1, 2]])
    mask = layers.make_attention_mask(segments, segments, jnp.equal)
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])

  def test_extra_batch_dims_come_first(self):
    mask = layers.make_attention_mask(jnp.ones((2, 3)), jnp.ones((2, 4)), extra_batch_dims=2)
    self.assertEqual(mask.shape, (1, 1, 2, 1, 3, 4))

  def test_causal_mask(self):
    mask = layers.make_causal_mask(jnp.zeros((2, 3)), dtype=jnp.bfloat16)
    self.assertEqual((mask.shape, mask.dtype), ((2, 1, 3, 3), jnp.bfloat16))
    np.testing.assert_array_equal(mask[1, 0], np.tril(np.ones((3, 3))))

  def test_decoder_mask_is_causal_unpadded_and_inside_segments(self):
    tokens = jnp.array([[6, 7, 3, 4, 0]])
    segments = jnp.array([[1, 1, 2, 2, 0]])
    mask = layers.make_decoder_mask(tokens, jnp.float32, decoder_segment_ids=segments)
    expected = np.zeros((5, 5))
    expected[[0, 1, 1, 2, 3, 3], [0, 0, 1, 2, 2, 3]] = 1
    np.testing.assert_array_equal(mask[0, 0], expected)

  def test_combine(self):
    a, b = jnp.array([[1, 0, 1]]), jnp.array([[1, 1, 0]])
    np.testing.assert_array_equal(layers.combine_masks(a, None, b), [[1, 0, 0]])
    np.testing.assert_array_equal(layers.combine_biases(a, None, b), [[2, 1, 1]])
    self.assertIsNone(layers.combine_masks(None, None))
    self.assertIsNone(layers.combine_biases(None))
    with self.assertRaisesRegex(ValueError, 'must have one rank'):
      layers.combine_masks(a, b[0])


class RelativePositionBiasesTest(parameterized.TestCase):
  @parameterized.parameters(('bucket_bidirectional', True), ('bucket_causal', False))
  def test_golden_buckets(self, name, bidirectional):
    golden = np.load(testing.shared_data('golden/network/relpos_buckets.npz'))
    buckets = layers.RelativePositionBiases._relative_position_bucket(
      jnp.asarray(golden['relative_position']), bidirectional
    )
    np.testing.assert_array_equal(buckets, golden[name])

  def test_small_distances_and_far_ones(self):
    bucket = layers.RelativePositionBiases._relative_position_bucket
    np.testing.assert_array_equal(bucket(jnp.array([0, -1, -7, 1, 7])), [0, 1, 7, 17, 23])
    np.testing.assert_array_equal(bucket(jnp.array([-128, -4000, 128, 4000])), [15, 15, 31, 31])
    np.testing.assert_array_equal(bucket(jnp.array([5, 0, -15, -128]), False), [0, 0, 15, 31])

  def test_bias_depends_on_the_distance_only(self):
    module = layers.RelativePositionBiases(
      num_buckets=32, max_distance=128, num_heads=3, dtype=jnp.float32
    )
    bias, variables = module.init_with_output(jax.random.PRNGKey(0), 5, 7)
    self.assertEqual(bias.shape, (1, 3, 5, 7))
    table = variables['params']['rel_embedding']
    self.assertEqual(table.shape, (3, 32))
    np.testing.assert_array_equal(bias[0, :, 2, 2], table[:, 0])
    np.testing.assert_array_equal(bias[0, :, 1, 3], table[:, 16 + 2])
    np.testing.assert_array_equal(bias[0, :, 3, 5], bias[0, :, 1, 3])


class ProjectionTest(parameterized.TestCase):
  @parameterized.parameters(
    (6, -1, (2, 3, 4), (2, 3, 6), (4, 6)),
    ((5, 6), -1, (2, 3, 4), (2, 3, 5, 6), (4, 30)),
    (6, (-2, -1), (2, 3, 4), (2, 6), (12, 6)),
  )
  def test_dense_general(self, features, axis, input_shape, output_shape, kernel_shape):
    module = layers.DenseGeneral(features, axis=axis, kernel_axes=('embed', 'mlp'))
    x = _normal(*input_shape)
    y, variables = module.init_with_output(jax.random.PRNGKey(0), x)
    kernel = variables['params']['kernel']
    self.assertEqual((y.shape, kernel.shape), (output_shape, kernel_shape))
    self.assertEqual(variables['params_axes']['kernel_axes'].names, ('embed', 'mlp'))
    flat = x.reshape(-1, kernel_shape[0]) @ kernel
    np.testing.assert_allclose(y, flat.reshape(output_shape), atol=1e-5)

  def test_parameters_stay_float32(self):
    module = layers.DenseGeneral(4, dtype=jnp.bfloat16, kernel_axes=('embed', 'mlp'))
    y, variables = module.init_with_output(jax.random.PRNGKey(0), _normal(2, 3))
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertEqual(variables['params']['kernel'].dtype, jnp.float32)

  def test_gated_mlp(self):
    module = layers.MlpBlock(intermediate_dim=8, activations=('gelu', 'linear'))
    x = _normal(2, 3, 4)
    y, variables = module.init_with_output(jax.random.PRNGKey(0), x, deterministic=True)
    kernels = {name: p['kernel'] for name, p in variables['params'].items()}
    self.assertEqual(set(kernels), {'wi_0', 'wi_1', 'wo'})
    expected = (jax.nn.gelu(x @ kernels['wi_0']) * (x @ kernels['wi_1'])) @ kernels['wo']
    np.testing.assert_allclose(y, expected, atol=1e-5)

  def test_plain_mlp_and_activation_functions(self):
    module = layers.MlpBlock(intermediate_dim=8, activations=(jnp.tanh,))
    x = _normal(2, 3, 4)
    y, variables = module.init_with_output(jax.random.PRNGKey(0), x, deterministic=True)
    wi, wo = (variables['params'][name]['kernel'] for name in ('wi', 'wo'))
    np.testing.assert_allclose(y, jnp.tanh(x @ wi) @ wo, atol=1e-5)

  def test_unknown_activation(self):
    with self.assertRaisesRegex(ValueError, "unknown activation 'gleu'"):
      layers.MlpBlock(activations=('gleu',)).init(jax.random.PRNGKey(0), _normal(1, 2, 4))

  def test_dropout_is_the_same_at_all_positions(self):
    module = layers.MlpBlock(intermediate_dim=64, intermediate_dropout_rate=0.5)
    x = jnp.broadcast_to(_normal(1, 1, 4), (1, 5, 4))
    variables = module.init(jax.random.PRNGKey(0), x, deterministic=True)
    y = module.apply(variables, x, rngs={'dropout': jax.random.PRNGKey(1)})
    np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), rtol=1e-6)
    self.assertGreater(jnp.abs(y - module.apply(variables, x, deterministic=True)).max(), 1e-3)


class EmbedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tokens = jnp.array([[3, 0, 9], [9, 1, 2]])
    self.variables = layers.Embed(10, 4).init(jax.random.PRNGKey(0), self.tokens)
    self.table = self.variables['params']['embedding']

  def test_values_and_gradient(self):
    embed = layers.Embed(10, 4)

    def total(variables):
      return jnp.sum(embed.apply(variables, self.tokens) ** 2)

    np.testing.assert_allclose(embed.apply(self.variables, self.tokens), self.table[self.tokens])
    gradient = jax.grad(total)(self.variables)['params']['embedding']
    counts = np.bincount(np.ravel(self.tokens), minlength=10)[:, None]
    np.testing.assert_allclose(gradient, 2 * counts * self.table, rtol=1e-5)

  def test_attend(self):
    query = _normal(2, 3, 4)
    embed = layers.Embed(10, 4, dtype=jnp.bfloat16, attend_dtype=jnp.float32)
    logits = embed.apply(self.variables, query, method=embed.attend)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, query @ self.table.T, atol=1e-5)

  def test_ids_must_be_integers(self):
    with self.assertRaisesRegex(ValueError, 'token ids must be integers, got float32'):
      layers.Embed(10, 4).apply(self.variables, self.tokens.astype(jnp.float32))


class LayerNormTest(absltest.TestCase):
  def test_divides_by_the_root_mean_square(self):
    x = 3.0 + _normal(2, 5)
    module = layers.LayerNorm(scale_init=nn.initializers.constant(2.0))
    y = module.init_with_output(jax.random.PRNGKey(0), x)[0]
    np.testing.assert_allclose(y, 2 * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)), rtol=1e-5)

  def test_statistics_are_float32(self):
    x = jnp.full((1, 4096), 300.0, jnp.bfloat16)
    y = layers.LayerNorm(dtype=jnp.bfloat16).init_with_output(jax.random.PRNGKey(0), x)[0]
    self.assertEqual(y.dtype, jnp.bfloat16)
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-2)


class AttentionTest(parameterized.TestCase):
  def _attention(self, **kwargs):
    return layers.MultiHeadDotProductAttention(num_heads=2, head_dim=4, **kwargs)

  def test_dot_product_attention(self):
    query, key, value = _normal(1, 3, 2, 4), _normal(1, 5, 2, 4, seed=1), _normal(1, 5, 2, 4)
    bias = _normal(1, 2, 3, 5, seed=2)
    result = layers.dot_product_attention(query, key, value, bias)
    for head in range(2):
      weights = jax.nn.softmax(query[0, :, head] @ key[0, :, head].T + bias[0, head])
      np.testing.assert_allclose(result[0, :, head], weights @ value[0, :, head], atol=1e-5)

  @parameterized.parameters(
    ((1, 3, 2, 4), (2, 5, 2, 4)),
    ((1, 3, 2, 4), (1, 5, 3, 4)),
    ((1, 3, 2, 4), (1, 5, 2, 6)),
    ((1, 3, 2, 4), (5, 2, 4)),
  )
  def test_shapes_must_match(self, query_shape, key_shape):
    key = jnp.zeros(key_shape)
    with self.assertRaisesRegex(ValueError, 'must have one batch size and number of heads'):
      layers.dot_product_attention(jnp.zeros(query_shape), key, key)

  def test_float32_logits(self):
    query, key = (_normal(1, 8, 1, 64, seed=i).astype(jnp.bfloat16) for i in range(2))
    value = _normal(1, 8, 1, 64, seed=2).astype(jnp.bfloat16)
    exact = layers.dot_product_attention(*(x.astype(jnp.float32) for x in (query, key, value)))

    def error(**kwargs):
      result = layers.dot_product_attention(query, key, value, dtype=jnp.bfloat16, **kwargs)
      self.assertEqual(result.dtype, jnp.bfloat16)
      return jnp.abs(result.astype(jnp.float32) - exact).max()

    self.assertLess(error(float32_logits=True), 0.05)
    self.assertLess(error(float32_logits=True), error())

  def test_query_initializer_holds_the_scale(self):
    variables = self._attention().init(
      jax.random.PRNGKey(0), _normal(1, 2, 256), _normal(1, 2, 256)
    )
    std = {name: float(p['kernel'].std()) for name, p in variables['params'].items()}
    self.assertAlmostEqual(std['key'], 1 / 16, delta=0.006)
    self.assertAlmostEqual(std['query'], 1 / 32, delta=0.003)

  def test_masked_keys_do_not_count(self):
    module = self._attention()
    x, kv = _normal(1, 3, 8), _normal(1, 5, 8, seed=1)
    mask = layers.make_attention_mask(jnp.ones((1, 3)), jnp.array([[1, 1, 1, 0, 0]]))
    variables = module.init(jax.random.PRNGKey(0), x, kv)
    masked = module.apply(variables, x, kv, mask)
    np.testing.assert_allclose(masked, module.apply(variables, x, kv[:, :3]), atol=1e-6)

  def test_attention_dropout(self):
    module = self._attention(dropout_rate=0.5)
    x = _normal(1, 6, 8)
    variables = module.init(jax.random.PRNGKey(0), x, x, deterministic=True)

    def apply(seed, **kwargs):
      return module.apply(variables, x, x, rngs={'dropout': jax.random.PRNGKey(seed)}, **kwargs)

    np.testing.assert_array_equal(apply(1), apply(1))
    self.assertGreater(jnp.abs(apply(1) - apply(2)).max(), 1e-3)
    np.testing.assert_array_equal(apply(1, deterministic=True), apply(2, deterministic=True))

  def test_decoding_step_by_step_equals_causal_attention(self):
    module = self._attention()
    batch, length = 2, 5
    x, bias = _normal(batch, length, 8), _normal(1, 2, length, length, seed=1)
    params = {'params': module.init(jax.random.PRNGKey(0), x, x)['params']}
    causal = layers.make_causal_mask(jnp.ones((batch, length)))
    expected = module.apply(params, x, x, causal, bias)

    _, state = module.apply(params, x, x, bias=bias, decode=True, mutable=['cache'])
    cache = state['cache']
    self.assertEqual(
      {k: (v.shape, v.dtype) for k, v in cache.items()},
      {
        'cached_key': ((2, 2, 4, 5), jnp.float32),
        'cached_value': ((2, 2, 4, 5), jnp.float32),
        'cache_index': ((), jnp.int32),
      },
    )
    self.assertFalse(any(np.any(v) for v in cache.values()))
    for i in range(length):
      token = x[:, i : i + 1]
      y, state = module.apply(
        {**params, 'cache': cache}, token, token, bias=bias, decode=True, mutable=['cache']
      )
      cache = state['cache']
      np.testing.assert_allclose(y[:, 0], expected[:, i], atol=1e-5)
    self.assertEqual(cache['cache_index'], length)

  def test_a_decoding_step_is_one_position(self):
    module = self._attention()
    x = _normal(2, 5, 8)
    variables = module.init(jax.random.PRNGKey(0), x, x, decode=True)
    with self.assertRaisesRegex(ValueError, r'query of shape \(2, 1, 2, 4\), got \(2, 5, 2, 4\)'):
      module.apply(variables, x, x, decode=True, mutable=['cache'])


if __name__ == '__main__':
  absltest.main()
