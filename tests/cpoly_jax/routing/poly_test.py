"""Tests of the routers over one common inventory: Polytropon, multi-head routing, one skill, the average."""

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.routing import schedules

setUpModule, tearDownModule = testing.quick_compilation()
T = 5
TASKS = np.array([0, 3, 3, 1], np.int32)


def _init(router):
  return router.init(jax.random.PRNGKey(0), TASKS, deterministic=True)


def _table(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _normalised_sigmoid(logits):
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return p / p.sum(-1, keepdims=True)


class PolyRouterTest(parameterized.TestCase):

  def test_evaluation_is_the_normalised_sigmoid_of_the_tasks_rows(self):
    table = _table(T, 4)
    (group,) = routing.PolyRouter(num_tasks=T, num_skills=4).apply({'params': {'common': table}}, TASKS, deterministic=True)
    np.testing.assert_allclose(group.weights, _normalised_sigmoid(table[TASKS])[:, None], rtol=1e-5)
    self.assertIsNone(group.ids)
    self.assertFalse(group.per_token)

  def test_starts_near_uniform_with_ties_broken(self):
    logits = np.asarray(_init(routing.PolyRouter(num_tasks=T))['params']['common'])
    self.assertEqual(logits.shape, (T, 8))
    self.assertLessEqual(np.abs(logits).max(), 1e-3)
    self.assertGreater(np.abs(logits).max(), 5e-4)
    self.assertLen(np.unique(logits), logits.size)

  def test_training_draws_for_each_example(self):
    router = routing.PolyRouter(num_tasks=T, num_skills=4)
    variables = _init(router)
    draw = lambda key: np.asarray(router.apply(variables, TASKS, deterministic=False, rngs={'routing': key})[0].weights)
    first = draw(jax.random.PRNGKey(0))
    np.testing.assert_allclose(first.sum(-1), 1., rtol=1e-5)
    self.assertGreater(np.abs(first[1] - first[2]).max(), 1e-2)  # The same task, two draws.
    self.assertGreater(np.abs(first - draw(jax.random.PRNGKey(1))).max(), 1e-2)
    np.testing.assert_array_equal(first, draw(jax.random.PRNGKey(0)))

  def test_training_needs_its_rng_only_if_there_is_noise(self):
    router = routing.PolyRouter(num_tasks=T)
    with self.assertRaises(flax.errors.InvalidRngError):
      router.apply(_init(router), TASKS, deterministic=False)
    quiet = routing.PolyRouter(num_tasks=T, sampling=routing.Sampling(noise='none'))
    (group,) = quiet.apply(_init(quiet), TASKS, deterministic=False)
    np.testing.assert_allclose(group.weights, 1 / 8, atol=1e-3)

  def test_a_schedule_is_read_at_the_step(self):
    make = lambda share: routing.PolyRouter(num_tasks=T, num_skills=4, sampling=routing.Sampling(uniform=share))
    router = make(schedules.Linear(0., 1., 4))
    self.assertTrue(router.needs_step)
    self.assertFalse(make(.25).needs_step)
    variables = {'params': {'common': _table(T, 4)}}
    np.testing.assert_allclose(router.apply(variables, TASKS, deterministic=True, step=jnp.float32(1))[0].weights,
                               make(.25).apply(variables, TASKS, deterministic=True)[0].weights, rtol=1e-6)

  @parameterized.parameters((dict(num_skills=0), 'S = 0 skills and H = 1 heads'), (dict(num_heads=0), 'H = 0 heads'),
                            (dict(num_tasks=0), 'PolyRouter.num_tasks = 0: a router needs a row for each task'))
  def test_wrong_settings_are_named(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      _init(routing.PolyRouter(**{'num_tasks': T, **settings}))


class MultiHeadTest(absltest.TestCase):

  def test_each_head_has_logits_and_weights_of_its_own(self):
    router = routing.PolyRouter(num_tasks=T, num_skills=4, num_heads=3)
    variables = _init(router)
    self.assertEqual(variables['params']['common'].shape, (T, 3, 4))
    self.assertEqual(variables['params_axes']['common_axes'].names, ('task', 'head', 'skill'))
    table = _table(T, 3, 4)
    (group,) = router.apply({'params': {'common': table}}, TASKS, deterministic=True)
    self.assertEqual(group.heads, 3)
    np.testing.assert_allclose(group.weights, _normalised_sigmoid(table[TASKS]), rtol=1e-5)

  def test_heads_draw_on_their_own(self):
    router = routing.PolyRouter(num_tasks=T, num_skills=4, num_heads=3)
    (group,) = router.apply({'params': {'common': np.zeros((T, 3, 4), np.float32)}}, TASKS, deterministic=False,
                            rngs={'routing': jax.random.PRNGKey(0)})
    self.assertLen(np.unique(np.asarray(group.weights)), group.weights.size)


class WithoutRoutingTest(absltest.TestCase):

  def test_uniform(self):
    router = routing.UniformRouter(num_tasks=T, num_skills=4)
    self.assertEqual(jax.tree.leaves(_init(router)), [])
    for deterministic in (True, False):
      (group,) = router.apply({}, TASKS, deterministic=deterministic)
      np.testing.assert_array_equal(group.weights, np.full((4, 1, 4), .25))

  def test_shared(self):
    router = routing.SharedRouter(num_tasks=T)
    self.assertEqual(jax.tree.leaves(_init(router)), [])
    np.testing.assert_array_equal(router.apply({}, TASKS, deterministic=True)[0].weights, np.ones((4, 1, 1)))

  def test_single_task(self):
    _init(routing.SharedRouter(num_tasks=1, single_task=True))
    with self.assertRaisesRegex(ValueError, 'this system trains one task and the run has 5: .*shared.gin'):
      _init(routing.SharedRouter(num_tasks=T, single_task=True))


if __name__ == '__main__':
  absltest.main()
