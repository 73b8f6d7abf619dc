"""Tests for t5x.losses."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from t5x import losses

_AVERAGE = 'AVERAGE_PER_SEQUENCE'


def _random_batch(vocab_size=7):
  rng = np.random.RandomState(0)
  logits = rng.normal(size=(2, 4, vocab_size)).astype(np.float32) * 3
  targets = rng.randint(vocab_size, size=(2, 4)).astype(np.int32)
  return logits, targets


def _numpy_loss(logits, soft_targets, z_loss):
  """Cross entropy in float64, straight from the definition."""
  logits = logits.astype(np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  total_z_loss = z_loss * log_z**2
  return (soft_targets * (log_z[..., None] - logits)).sum(-1) + total_z_loss, total_z_loss


def _smooth(targets, vocab_size, smoothing):
  one_hot = np.eye(vocab_size)[targets]
  return one_hot * (1 - smoothing) + (1 - one_hot) * smoothing / (vocab_size - 1)


class CrossEntropyTest(parameterized.TestCase):

  @parameterized.product(smoothing=(0.0, 0.2), z_loss=(0.0, 0.1))
  def test_integer_and_dense_agree_with_the_definition(self, smoothing, z_loss):
    logits, targets = _random_batch()
    soft = _smooth(targets, 7, smoothing)
    expected = _numpy_loss(logits, soft, z_loss)
    of_integers = jax.jit(losses.integer_cross_entropy, static_argnums=(2, 3))(
        logits, targets, smoothing, z_loss)
    of_distributions = losses.cross_entropy_with_logits(
        logits, soft.astype(np.float32), z_loss)
    for i in range(2):
      np.testing.assert_allclose(of_integers[i], expected[i], rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(of_distributions[i], expected[i], rtol=1e-5, atol=1e-6)

  @parameterized.product(smoothing=(0.0, 0.2), z_loss=(0.0, 0.1))
  def test_gradients_are_those_of_the_definition(self, smoothing, z_loss):
    logits, targets = _random_batch()
    soft = jnp.asarray(_smooth(targets, 7, smoothing), jnp.float32)
    weights = jnp.arange(8.0).reshape(2, 4)

    def plain(logits):
      log_z = jax.nn.logsumexp(logits, axis=-1)
      total_z_loss = z_loss * log_z**2
      loss = jnp.sum(soft * (log_z[..., None] - logits), axis=-1) + total_z_loss
      return jnp.sum(loss * weights) + jnp.sum(total_z_loss) * 3

    def weighted(fn):
      def total(logits):
        loss, total_z_loss = fn(logits)
        return jnp.sum(loss * weights) + jnp.sum(total_z_loss) * 3
      return total

    expected = jax.grad(plain)(logits)
    of_integers = jax.grad(weighted(
        lambda x: losses.integer_cross_entropy(x, targets, smoothing, z_loss)))(logits)
    of_distributions = jax.grad(weighted(
        lambda x: losses.cross_entropy_with_logits(x, soft, z_loss)))(logits)
    np.testing.assert_allclose(of_integers, expected, atol=2e-5)
    np.testing.assert_allclose(of_distributions, expected, atol=2e-5)

  def test_gradient_of_the_targets(self):
    logits, targets = _random_batch()
    soft = jnp.asarray(_smooth(targets, 7, 0.1), jnp.float32)
    grads = jax.grad(
        lambda t: jnp.sum(losses.cross_entropy_with_logits(logits, t, 0.0)[0]))(soft)
    np.testing.assert_allclose(grads, -jax.nn.log_softmax(logits), rtol=1e-5)

  def test_large_logits_stay_finite(self):
    logits = jnp.array([[1e4, -1e4, 0.0]])
    loss, _ = losses.integer_cross_entropy(logits, jnp.array([0]), 0.1, 0.0)
    grads = jax.grad(
        lambda x: losses.integer_cross_entropy(x, jnp.array([1]), 0.1, 0.0)[0].sum())(logits)
    np.testing.assert_allclose(loss, [0.05 * 2e4 + 0.05 * 1e4], rtol=1e-5)
    np.testing.assert_allclose(grads, [[0.95, -0.9, -0.05]], atol=1e-6)

  def test_bfloat16_logits_are_summed_in_float32(self):
    logits, targets = _random_batch(vocab_size=1000)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    loss, _ = losses.integer_cross_entropy(rounded, targets, 0.0, 0.0)
    expected, _ = _numpy_loss(np.asarray(rounded.astype(jnp.float32)), np.eye(1000)[targets], 0.0)
    self.assertEqual(loss.dtype, jnp.float32)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    grads = jax.grad(
        lambda x: losses.integer_cross_entropy(x, targets, 0.0, 0.0)[0].sum())(rounded)
    self.assertEqual(grads.dtype, jnp.bfloat16)


class WeightedCrossEntropyTest(parameterized.TestCase):

  def test_is_zero_for_a_perfect_smoothed_prediction(self):
    targets = np.array([[1, 3]])
    logits = jnp.log(jnp.asarray(_smooth(targets, 5, 0.3), jnp.float32))
    loss, z_loss, weight_sum = losses.compute_weighted_cross_entropy(
        logits, targets, label_smoothing=0.3, z_loss=1.0)
    self.assertAlmostEqual(float(loss), 0.0, places=5)
    self.assertAlmostEqual(float(z_loss), 0.0, places=5)
    self.assertEqual(float(weight_sum), 2.0)

  def test_weights_and_factor(self):
    logits, targets = _random_batch()
    weights = np.array([[1, 0, 0.5, 0], [0, 0, 0, 2]], np.float32)
    loss, z_loss, weight_sum = losses.compute_weighted_cross_entropy(
        logits, targets, weights, z_loss=0.1, loss_normalizing_factor=4.0)
    token_loss, token_z_loss = _numpy_loss(logits, np.eye(7)[targets], 0.1)
    np.testing.assert_allclose(loss, (token_loss * weights).sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(z_loss, (token_z_loss * weights).sum() / 4, rtol=1e-5)
    self.assertEqual(float(weight_sum), 3.5)

  @parameterized.parameters(((2, 4), (2, 4)), ((2, 4, 7), (2, 3)))
  def test_shapes_that_do_not_fit(self, logits_shape, targets_shape):
    with self.assertRaisesRegex(ValueError, 'do not fit targets'):
      losses.compute_weighted_cross_entropy(
          jnp.zeros(logits_shape), jnp.zeros(targets_shape, jnp.int32))

  def test_golden(self):
    data = np.load(testing.shared_data('golden/scoring_decoding') / 'cross_entropy_function.npz')
    self.assertLen(data['table'], 36)
    for smoothing, z_loss, weighted, factor, *expected in data['table']:
      got = losses.compute_weighted_cross_entropy(
          data['logits'], data['targets'], data['weights'] if weighted else None,
          label_smoothing=float(smoothing), z_loss=float(z_loss),
          loss_normalizing_factor=float(factor) or None)
      np.testing.assert_allclose(got, expected, rtol=1e-5)


class NormalizingFactorTest(parameterized.TestCase):

  def _batch(self, **arrays):
    return {f'decoder_{k}': jnp.asarray(v) for k, v in arrays.items()}

  @parameterized.parameters(None, 3, 0.5)
  def test_numbers_leave_the_weights_alone(self, factor):
    batch = self._batch(target_tokens=[[3, 4, 0]], loss_weights=[[1.0, 2.0, 0.0]])
    got, weights = losses.get_loss_normalizing_factor_and_weights(factor, batch)
    self.assertEqual(got, factor)
    self.assertIs(weights, batch['decoder_loss_weights'])

  @parameterized.parameters(
      ('NUM_REAL_TARGET_TOKENS', 3),
      ('num_real_target_tokens', 3),
      (losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS, 3),
      ('NUM_TOTAL_TARGET_TOKENS', 6))
  def test_token_counts(self, factor, expected):
    batch = self._batch(target_tokens=[[3, 4, 0], [5, 0, 0]])
    got, weights = losses.get_loss_normalizing_factor_and_weights(factor, batch)
    self.assertEqual(float(got), expected)
    np.testing.assert_array_equal(weights, [[1, 1, 0], [1, 0, 0]])

  def test_average_per_sequence_unpacked(self):
    batch = self._batch(
        target_tokens=[[3, 4, 5], [5, 0, 0], [0, 0, 0]],
        loss_weights=[[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    got, weights = losses.get_loss_normalizing_factor_and_weights(_AVERAGE, batch)
    self.assertEqual(float(got), 2)
    np.testing.assert_allclose(weights, [[0, 0.5, 0.5], [1, 0, 0], [0, 0, 0]])

  def test_average_per_sequence_packed(self):
    batch = self._batch(
        target_tokens=[[3, 4, 5, 6, 7, 0], [3, 4, 5, 6, 7, 8]],
        loss_weights=[[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
        segment_ids=[[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 4, 4]])
    got, weights = jax.jit(
        lambda b: losses.get_loss_normalizing_factor_and_weights(_AVERAGE, b))(batch)
    self.assertEqual(float(got), 6)
    np.testing.assert_allclose(
        weights, [[0, 1, 1 / 3, 1 / 3, 1 / 3, 0], [1, 1, 0.5, 0.5, 0.5, 0.5]], rtol=1e-6)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, 'MEAN.*NUM_REAL_TARGET_TOKENS'):
      losses.get_loss_normalizing_factor_and_weights('MEAN', self._batch(target_tokens=[[1]]))


if __name__ == '__main__':
  absltest.main()
