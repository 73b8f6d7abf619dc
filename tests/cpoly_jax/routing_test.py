"""Tests of routing: the mathematics, the routers' starts, their limits and their noise."""

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from cpoly_jax import routing

T = 5
TASKS = jnp.asarray([0, 3, 3, 1])


def _weights(groups):
  return np.concatenate([np.asarray(g.weights) for g in groups], axis=1)


def _init(router, seed=0):
  return router.init(jax.random.PRNGKey(seed), TASKS, deterministic=True)


class FunctionsTest(parameterized.TestCase):

  def test_gumbel_sigmoid_is_a_relaxed_bernoulli(self):
    """P(value < v) of a relaxed Bernoulli is sigmoid(tau * logit(v) - logit z) (Maddison et al. 2017)."""
    for logit, temperature in ((0., 1.), (1.5, 0.5), (-1., 2.)):
      noise = jax.random.logistic(jax.random.PRNGKey(1), (20_000,))
      values = np.asarray(routing.gumbel_sigmoid(jnp.full((20_000,), logit), noise, temperature), np.float64)
      cdf = lambda v, logit=logit, temperature=temperature: 1 / (
          1 + np.exp(-(temperature * np.log(v / (1 - v)) - logit)))
      self.assertGreater(stats.kstest(np.clip(values, 1e-9, 1 - 1e-9), cdf).pvalue, 1e-3)

  def test_without_noise_it_is_the_sigmoid(self):
    z = jnp.asarray([-2., 0., 3.])
    np.testing.assert_allclose(routing.gumbel_sigmoid(z, None, 0.1), 1 / (1 + np.exp(-np.asarray(z))), rtol=1e-6)

  def test_low_temperature_rounds(self):
    noise = jax.random.logistic(jax.random.PRNGKey(0), (1000,))
    values = routing.gumbel_sigmoid(jnp.zeros(1000), noise, 1e-3)
    self.assertGreater(float(jnp.mean((values < 1e-3) | (values > 1 - 1e-3))), 0.95)

  def test_normalise(self):
    rows = routing.normalise(jnp.asarray([[1., 3.], [0., 0.]]))
    np.testing.assert_allclose(rows, [[.25, .75], [0., 0.]], atol=1e-6)

  def test_block_diagonal(self):
    np.testing.assert_array_equal(routing.block_diagonal(2, 2), [[1, 1, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(routing.block_diagonal(3, 1), np.eye(3))


class PolyRouterTest(parameterized.TestCase):

  def test_evaluation_is_the_normalised_sigmoid_of_the_tasks_rows(self):
    router = routing.PolyRouter(num_tasks=T, num_skills=4)
    logits = np.random.default_rng(0).normal(size=(T, 4)).astype(np.float32)
    groups = router.apply({'params': {'common': logits}}, TASKS, deterministic=True)
    p = 1 / (1 + np.exp(-logits[np.asarray(TASKS)]))
    np.testing.assert_allclose(_weights(groups), p / p.sum(1, keepdims=True), rtol=1e-5)

  def test_starts_near_uniform_with_ties_broken(self):
    logits = np.asarray(_init(routing.PolyRouter(num_tasks=T))['params']['common'])
    self.assertEqual(logits.shape, (T, 8))
    self.assertLessEqual(np.abs(logits).max(), 1e-3)
    self.assertLen(np.unique(logits), logits.size)

  def test_training_draws_for_each_example(self):
    router = routing.PolyRouter(num_tasks=T, num_skills=4)
    variables = _init(router)
    draw = lambda key: _weights(router.apply(variables, TASKS, deterministic=False, rngs={'routing': key}))
    first = draw(jax.random.PRNGKey(0))
    np.testing.assert_allclose(first.sum(1), 1., rtol=1e-5)
    self.assertGreater(np.abs(first[1] - first[2]).max(), 1e-2)  # The same task, two draws.
    self.assertGreater(np.abs(first - draw(jax.random.PRNGKey(1))).max(), 1e-2)
    np.testing.assert_array_equal(first, draw(jax.random.PRNGKey(0)))

  def test_training_without_rng_fails(self):
    router = routing.PolyRouter(num_tasks=T)
    with self.assertRaises(flax.errors.InvalidRngError):
      router.apply(_init(router), TASKS, deterministic=False)

  def test_temperature_must_be_positive(self):
    router = routing.PolyRouter(num_tasks=T, temperature=0.)
    with self.assertRaisesRegex(ValueError, 'temperature = 0.0'):
      router.apply(_init(router), TASKS, deterministic=False, rngs={'routing': jax.random.PRNGKey(0)})


class CPolyRouterTest(parameterized.TestCase):

  def test_learned_starts_with_own_skills_at_weight_one(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=3, num_specific=2)
    variables = _init(router)
    self.assertEqual({k: v.shape for k, v in variables['params'].items()}, {'common': (T, 3), 'specific': (T, 10)})
    self.assertEqual(router.num_skills, 13)
    common, specific = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_allclose(common.weights, np.full((4, 3), 1 / 3), atol=1e-3)
    np.testing.assert_array_equal(specific.weights, np.asarray(routing.block_diagonal(T, 2))[np.asarray(TASKS)])
    self.assertEqual(specific.start, 3)

  def test_learned_weights_are_raw_also_in_training(self):
    router = routing.CPolyRouter(num_tasks=T)
    table = np.random.default_rng(0).normal(size=(T, T)).astype(np.float32)
    params = {'common': np.zeros((T, 3), np.float32), 'specific': table}
    groups = router.apply({'params': params}, TASKS, deterministic=False, rngs={'routing': jax.random.PRNGKey(0)})
    np.testing.assert_array_equal(groups[1].weights, table[np.asarray(TASKS)])

  def test_fixed_reads_own_skills_and_has_no_parameter(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=3, num_specific=2, specific='fixed')
    variables = _init(router)
    self.assertEqual(set(variables['params']), {'common'})
    _, specific = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_array_equal(specific.ids, [[3, 4], [9, 10], [9, 10], [5, 6]])
    np.testing.assert_array_equal(specific.weights, np.ones((4, 2)))

  def test_gumbel_rows_are_normalised_and_start_at_own_skills(self):
    router = routing.CPolyRouter(num_tasks=T, specific='gumbel')
    _, specific = router.apply(_init(router), TASKS, deterministic=True)
    np.testing.assert_allclose(np.asarray(specific.weights).sum(1), 1., rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(specific.weights, axis=1), TASKS)

  @parameterized.parameters(True, False)
  def test_without_specific_skills_it_is_poly(self, deterministic):
    rngs = {} if deterministic else {'rngs': {'routing': jax.random.PRNGKey(2)}}
    poly = routing.PolyRouter(num_tasks=T, num_skills=3)
    cpoly = routing.CPolyRouter(num_tasks=T, num_common=3, num_specific=0)
    variables = _init(poly)
    self.assertEqual(poly.num_skills, cpoly.num_skills)
    np.testing.assert_array_equal(_weights(poly.apply(variables, TASKS, deterministic=deterministic, **rngs)),
                                  _weights(cpoly.apply(variables, TASKS, deterministic=deterministic, **rngs)))

  def test_without_common_skills_and_fixed_it_is_private(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=0, specific='fixed')
    variables = _init(router)
    self.assertEqual(jax.tree.leaves(variables), [])
    (own,) = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_array_equal(own.ids[:, 0], TASKS)
    self.assertEqual(router.num_skills, T)

  @parameterized.parameters(
      (dict(specific='raw'), "specific = 'raw': write one of learned"),
      (dict(num_common=0, num_specific=0), 'one must be above 0'),
      (dict(num_tasks=0), 'num_tasks = 0'))
  def test_wrong_settings_are_named(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      _init(routing.CPolyRouter(**{'num_tasks': T, **settings}))


if __name__ == '__main__':
  absltest.main()
