"""Tests of the mathematics of routing."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from cpoly_jax.routing import functions


class GumbelSigmoidTest(parameterized.TestCase):

  @parameterized.parameters((0., 1.), (1.5, 0.5), (-1., 2.))
  def test_is_a_relaxed_bernoulli(self, logit, temperature):
    """P(value < v) of a relaxed Bernoulli is sigmoid(tau * logit(v) - logit z) (Maddison et al. 2017)."""
    noise = jax.random.logistic(jax.random.PRNGKey(1), (20_000,))
    values = np.asarray(functions.gumbel_sigmoid(jnp.full((20_000,), logit), noise, temperature), np.float64)
    cdf = lambda v: 1 / (1 + np.exp(-(temperature * np.log(v / (1 - v)) - logit)))
    self.assertGreater(stats.kstest(np.clip(values, 1e-9, 1 - 1e-9), cdf).pvalue, 1e-3)

  def test_without_noise_it_is_the_sigmoid(self):
    z = np.array([-2., 0., 3.], np.float32)
    np.testing.assert_allclose(functions.gumbel_sigmoid(z, None, 0.1), 1 / (1 + np.exp(-z)), rtol=1e-6)

  def test_low_temperature_rounds(self):
    noise = jax.random.logistic(jax.random.PRNGKey(0), (1000,))
    values = functions.gumbel_sigmoid(jnp.zeros(1000), noise, 1e-3)
    self.assertGreater(float(jnp.mean((values < 1e-3) | (values > 1 - 1e-3))), 0.95)


class StraightThroughTest(absltest.TestCase):

  def test_values_are_rounded_from_above_one_half(self):
    soft = jnp.asarray([0., .1, .499999, .5, .500001, .7, .99, 1.])
    np.testing.assert_array_equal(functions.straight_through(soft), [0, 0, 0, 0, 1, 1, 1, 1])

  def test_gradient_is_that_of_the_soft_values(self):
    slopes = jnp.asarray([3., -2., 5.])
    grad = jax.grad(lambda z: jnp.sum(slopes * functions.straight_through(jax.nn.sigmoid(z))))(jnp.asarray([-1., 0., 2.]))
    p = 1 / (1 + np.exp([1., 0., -2.]))
    np.testing.assert_allclose(grad, slopes * p * (1 - p), rtol=1e-5)


class NormaliseTest(absltest.TestCase):

  def test_rows_sum_to_one_or_are_zero(self):
    rows = functions.normalise(jnp.asarray([[[1., 3.]], [[0., 0.]], [[.5, .5]]]))
    np.testing.assert_allclose(rows, [[[.25, .75]], [[0., 0.]], [[.5, .5]]], atol=1e-6)


class TopKTest(parameterized.TestCase):

  @parameterized.parameters(2, 3, 5)
  def test_keeps_the_k_largest_and_divides_over_the_skills(self, k):
    p = np.asarray(jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)))
    kept = np.where(p >= np.sort(p, -1)[..., -k:][..., :1], p, 0)
    found = functions.top_k(p, k)
    np.testing.assert_allclose(found, kept / kept.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(np.sum(found, -1), 1., rtol=1e-5)
    np.testing.assert_array_equal(np.count_nonzero(found, -1), k)

  def test_ties_keep_exactly_k(self):
    found = np.asarray(functions.top_k(jnp.asarray([[.25] * 4, [.1, .4, .4, .1], [.3, .3, .3, .1]]), 2))
    np.testing.assert_array_equal(np.count_nonzero(found, -1), [2, 2, 2])
    np.testing.assert_allclose(found.sum(-1), 1., rtol=1e-6)
    np.testing.assert_allclose(found[1], [0., .5, .5, 0.], rtol=1e-6)

  def test_none_keeps_all(self):
    p = jnp.asarray([[.2, .3, .5]])
    np.testing.assert_array_equal(functions.top_k(p, None), p)

  def test_the_router_gets_a_gradient(self):
    """Dividing over the wrong axis, as a known implementation does, makes every kept weight 1 and the gradient 0."""
    logits = jnp.asarray([[.1, .5, -.2, .3]])
    grad = np.asarray(jax.grad(lambda z: functions.top_k(jax.nn.softmax(z), 2)[0, 1])(logits))
    q = 1 / (1 + np.exp(.3 - .5))  # Of two kept skills the share is the sigmoid of the difference.
    np.testing.assert_allclose(grad, [[0., q * (1 - q), 0., -q * (1 - q)]], atol=1e-6)


class TowardsUniformTest(parameterized.TestCase):

  @parameterized.parameters((0., [.2, .8]), (.5, [.35, .65]), (1., [.5, .5]))
  def test_share(self, share, expected):
    np.testing.assert_allclose(functions.towards_uniform(jnp.asarray([.2, .8]), share), expected, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
