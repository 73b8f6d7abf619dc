"""Tests of C-Poly's router: its three specific parts, and tasks with different numbers of skills."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.task_index import TaskIndex

setUpModule, tearDownModule = testing.quick_compilation()
T = 5
TASKS = np.array([0, 3, 3, 1], np.int32)
COUNTS = (0, 3, 1, 2, 0)
KEY = jax.random.PRNGKey(2)


def _init(router):
  return router.init(jax.random.PRNGKey(0), TASKS, deterministic=True)


def _normalised_sigmoid(logits):
  p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
  return p / p.sum(-1, keepdims=True)


class OwnSkillsTest(absltest.TestCase):

  def test_block_diagonal(self):
    np.testing.assert_array_equal(routing.block_diagonal((2, 2)), [[1, 1, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(routing.block_diagonal((1, 1, 1)), np.eye(3))
    np.testing.assert_array_equal(routing.block_diagonal((0, 3, 1), 4., -4.),
                                  [[-4, -4, -4, -4], [4, 4, 4, -4], [-4, -4, -4, 4]])

  def test_own_skills(self):
    ids, weights = routing.own_skills(TASKS, (2,) * T, 3)
    np.testing.assert_array_equal(ids, [[3, 4], [9, 10], [9, 10], [5, 6]])
    np.testing.assert_array_equal(weights, np.ones((4, 2)))

  def test_own_skills_of_different_numbers(self):
    ids, weights = routing.own_skills(TASKS, COUNTS, 10)
    np.testing.assert_array_equal(ids, [[10, 10, 10], [14, 15, 10], [14, 15, 10], [10, 11, 12]])
    np.testing.assert_array_equal(weights, [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]])

  def test_own_skills_are_the_block_diagonal(self):
    tasks = np.arange(T, dtype=np.int32)
    ids, weights = (np.asarray(a) for a in routing.own_skills(tasks, COUNTS, 0))
    dense = np.zeros((T, sum(COUNTS)), np.float32)
    for row in range(T):
      np.add.at(dense[row], ids[row], weights[row])
    np.testing.assert_array_equal(dense, routing.block_diagonal(COUNTS))

  def test_specific_counts(self):
    index = TaskIndex(('a', 'b', 'c'))
    self.assertEqual(routing.specific_counts(index, {'c': 0, 'a': 3}), (3, 1, 0))
    self.assertEqual(routing.specific_counts(index, {'b': 2}, default=0), (0, 2, 0))
    with self.assertRaisesRegex(ValueError, 'specific_counts.counts names x, z, which this run does not have'):
      routing.specific_counts(index, {'z': 1, 'a': 1, 'x': 2})


class LearnedTest(absltest.TestCase):

  def test_starts_with_own_skills_at_weight_one(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=3, num_specific=2)
    variables = _init(router)
    self.assertEqual({k: v.shape for k, v in variables['params'].items()}, {'common': (T, 3), 'specific': (T, 10)})
    self.assertEqual((router.num_skills, router.active_skills), (13, 13))
    common, specific = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_allclose(common.weights, np.full((4, 1, 3), 1 / 3), atol=1e-3)
    np.testing.assert_array_equal(specific.weights[:, 0], np.asarray(routing.block_diagonal((2,) * T))[TASKS])
    self.assertEqual((common.start, specific.start), (0, 3))

  def test_weights_are_raw_also_in_training(self):
    router = routing.CPolyRouter(num_tasks=T)
    table = np.random.default_rng(0).normal(size=(T, T)).astype(np.float32)
    params = {'common': np.zeros((T, 3), np.float32), 'specific': table}
    common, specific = router.apply({'params': params}, TASKS, deterministic=False, rngs={'routing': KEY})
    np.testing.assert_array_equal(specific.weights[:, 0], table[TASKS])
    self.assertGreater(float(np.ptp(common.weights)), .05)

  def test_different_numbers(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=2, num_specific=COUNTS)
    variables = _init(router)
    self.assertEqual(router.num_skills, 8)
    np.testing.assert_array_equal(variables['params']['specific'], routing.block_diagonal(COUNTS))


class FixedTest(absltest.TestCase):

  def test_reads_own_skills_and_has_no_parameter(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=3, num_specific=2, specific='fixed')
    variables = _init(router)
    self.assertEqual(set(variables['params']), {'common'})
    self.assertEqual((router.num_skills, router.active_skills), (13, 5))
    _, specific = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_array_equal(specific.ids, [[3, 4], [9, 10], [9, 10], [5, 6]])
    np.testing.assert_array_equal(specific.weights, np.ones((4, 1, 2)))

  def test_different_numbers(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=2, num_specific=COUNTS, specific='fixed')
    self.assertEqual((router.num_skills, router.active_skills), (8, 5))
    _, specific = router.apply(_init(router), TASKS, deterministic=True)
    np.testing.assert_array_equal(specific.weights[:, 0], [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(specific.ids[3], [2, 3, 4])


class GumbelTest(absltest.TestCase):

  def test_rows_are_normalised_and_start_at_own_skills(self):
    router = routing.CPolyRouter(num_tasks=T, num_specific=COUNTS, specific='gumbel')
    variables = _init(router)
    table = routing.block_diagonal(COUNTS, 4., -4.)
    np.testing.assert_array_equal(variables['params']['specific'], table)
    _, specific = router.apply(variables, TASKS, deterministic=True)
    np.testing.assert_allclose(specific.weights[:, 0], _normalised_sigmoid(table)[TASKS], rtol=1e-5)
    # Task 1 has three skills of its own, and nearly all of its weight is theirs.
    self.assertGreater(float(specific.weights[3, 0, :3].sum()), .9)

  def test_training_samples_both_parts(self):
    router = routing.CPolyRouter(num_tasks=T, specific='gumbel', own_logit=1.)
    common, specific = router.apply(_init(router), TASKS, deterministic=False, rngs={'routing': KEY})
    for group in (common, specific):
      np.testing.assert_allclose(np.sum(group.weights, -1), 1., rtol=1e-5)
      self.assertGreater(np.abs(group.weights[1] - group.weights[2]).max(), 1e-2)
    # Two draws, not one for both parts.
    shared = np.minimum(common.weights.shape[-1], specific.weights.shape[-1])
    self.assertGreater(np.abs(common.weights[..., :shared] - specific.weights[..., :shared]).max(), 1e-2)


class SettingsTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(specific='raw'), "specific = 'raw': write one of learned, fixed, gumbel"),
      (dict(num_common=0, num_specific=0), 'one must be above 0'),
      (dict(num_common=0, num_specific=(0,) * T), 'one must be above 0'),
      (dict(num_common=-1), 'A = -1 common .* neither may be negative'),
      (dict(num_specific=-1), 'b = -1 specific .* neither may be negative'),
      (dict(num_specific=(2, -1, 1, 1, 1)), 'neither may be negative'),
      (dict(num_specific=(1, 2)), 'num_specific has 2 numbers for 5 tasks: write one number for all, or one for each'),
      (dict(num_tasks=0), 'num_tasks = 0'))
  def test_wrong_settings_are_named(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      _init(routing.CPolyRouter(**{'num_tasks': T, **settings}))


if __name__ == '__main__':
  absltest.main()
