"""Tests of what every router promises: sizes, and unknown tasks."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing

setUpModule, tearDownModule = testing.quick_compilation()
T, D = 3, 4
TASKS = np.array([2, 0], np.int32)
X = np.random.default_rng(0).normal(size=(2, 3, D)).astype(np.float32)
EXPERT = ((1., 0., 1., 0.), (0., 1., 0., 0.), (0., 1., 1., 1.))

_counts = functools.partial(routing.CPolyRouter, num_common=2, num_specific=(0, 3, 1))
ROUTED = dict(
    poly=functools.partial(routing.PolyRouter, num_skills=4),
    mhr=functools.partial(routing.PolyRouter, num_skills=4, num_heads=2),
    cpoly_learned=_counts,
    cpoly_gumbel=functools.partial(_counts, specific='gumbel'),
    cpoly_fixed=functools.partial(_counts, specific='fixed'),
    private=functools.partial(routing.CPolyRouter, num_common=0, specific='fixed'),
    expert=functools.partial(routing.ExpertRouter, matrix=EXPERT),
    hyper=functools.partial(routing.HyperRouter, num_skills=4, embedding_size=5, hidden_size=6),
    task_moe=functools.partial(routing.TaskMoERouter, num_skills=4, embedding_size=5),
    mmoe=functools.partial(routing.TokenRouter, num_common=4, per_task=True),
    cgc=functools.partial(routing.TokenRouter, num_common=2, num_specific=2, per_task=True))
# What these do is the same for all tasks, also for one that is not known.
SAME_FOR_ALL = dict(shared=routing.SharedRouter, uniform=routing.UniformRouter,
                    moe_lora=functools.partial(routing.TokenRouter, num_common=4))


def _variables(router):
  variables = router.init(jax.random.PRNGKey(0), TASKS, X, deterministic=True)
  return {'params': testing.randomized({'routing': variables.get('params', {})})['routing']}


def _dense(router, variables, tasks):
  """All weights, [B, H or L, S]."""
  groups = router.apply(variables, np.asarray(tasks, np.int32), X, deterministic=True)
  total = np.zeros((*groups[0].weights.shape[:2], router.num_skills))
  for group in groups:
    weights = np.asarray(group.weights)
    k = weights.shape[-1]
    for b in range(weights.shape[0]):
      for i in range(k):
        total[b, :, group.start + i if group.ids is None else group.ids[b, i]] += weights[b, :, i]
  return total


def _with_mean_in_row_0(router, variables):
  """Each table by task with its mean in row 0."""
  axes = router.init(jax.random.PRNGKey(0), TASKS, X, deterministic=True).get('params_axes', {})
  flat = flax.traverse_util.flatten_dict(variables['params'])
  flat = {path: leaf.at[0].set(jnp.mean(leaf, axis=0)) if axes[f'{path[-1]}_axes'].names[0] == 'task' else leaf
          for path, leaf in flat.items()}
  return {'params': flax.traverse_util.unflatten_dict(flat)}


class SizesTest(parameterized.TestCase):

  @parameterized.parameters(*ROUTED, *SAME_FOR_ALL)
  def test_skills_and_active_skills(self, name):
    router = (ROUTED | SAME_FOR_ALL)[name](num_tasks=T)
    weights = np.concatenate([_dense(router, _variables(router), [t, t]) for t in range(T)])
    self.assertTrue(np.isfinite(weights).all())
    self.assertEqual(np.count_nonzero(weights, axis=-1).max(), router.active_skills)
    self.assertFalse(router.needs_step)

  @parameterized.parameters(*ROUTED, *SAME_FOR_ALL)
  def test_sizes_are_known_without_a_network(self, name):
    router = (ROUTED | SAME_FOR_ALL)[name](num_tasks=T, parent=None)
    self.assertGreaterEqual(router.num_skills, router.active_skills)
    self.assertEqual(router.reads_inputs, name in ('mmoe', 'cgc', 'moe_lora'))


class UnknownTaskTest(parameterized.TestCase):

  @parameterized.product(name=list(ROUTED), deterministic=(True, False))
  def test_by_default_its_weights_are_nan_and_its_neighbours_are_untouched(self, name, deterministic):
    router = ROUTED[name](num_tasks=T)
    variables = _variables(router)
    apply = lambda tasks: router.apply(variables, np.asarray(tasks, np.int32), X, deterministic=deterministic,
                                       rngs={'routing': jax.random.PRNGKey(1)})
    for group, known in zip(apply([routing.UNKNOWN, 2]), apply([1, 2])):
      self.assertTrue(np.isnan(group.weights[0]).all())
      np.testing.assert_array_equal(group.weights[1], known.weights[1])

  @parameterized.parameters(*(name for name in ROUTED if name != 'cgc'))
  def test_average_is_that_of_all_rows(self, name):
    router = ROUTED[name](num_tasks=T, unknown_task='average')
    variables = _variables(router)
    found = _dense(router, variables, [routing.UNKNOWN, 2])
    expected = _dense(router, _with_mean_in_row_0(router, variables), [0, 2])
    if name == 'expert':
      rows = np.asarray(EXPERT)
      expected[0] = np.mean(rows / rows.sum(1, keepdims=True), axis=0)
    elif name in ('cpoly_fixed', 'private'):
      # The specific part has no parameter: the average over the tasks of their own skills.
      counts = router.counts
      expected[0, :, router.num_common:] = np.mean(routing.block_diagonal(counts), axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    self.assertTrue(np.isfinite(found).all())
    known = ROUTED[name](num_tasks=T)
    np.testing.assert_allclose(found[1], _dense(known, variables, [1, 2])[1], rtol=1e-6)

  def test_average_has_finite_gradients_in_every_row(self):
    router = ROUTED['poly'](num_tasks=T, unknown_task='average')
    slopes = np.random.default_rng(0).normal(size=4)
    tasks = jnp.asarray([routing.UNKNOWN, 2])
    loss = lambda params: jnp.sum(slopes * router.apply({'params': params}, tasks, deterministic=True)[0].weights)
    grad = np.asarray(jax.grad(loss)(_variables(router)['params'])['common'])
    self.assertTrue(np.isfinite(grad).all())
    self.assertTrue(grad.any(axis=1).all())

  @parameterized.product(name=list(SAME_FOR_ALL), unknown_task=('error', 'average'))
  def test_what_all_tasks_share_an_unknown_one_shares_too(self, name, unknown_task):
    router = SAME_FOR_ALL[name](num_tasks=T, unknown_task=unknown_task)
    variables = _variables(router)
    np.testing.assert_array_equal(_dense(router, variables, [routing.UNKNOWN, 2]), _dense(router, variables, [1, 0]))

  def test_wrong_setting(self):
    with self.assertRaisesRegex(ValueError, "PolyRouter.unknown_task = 'mean': write error or average"):
      routing.PolyRouter(num_tasks=T, unknown_task='mean').init(jax.random.PRNGKey(0), TASKS, deterministic=True)


if __name__ == '__main__':
  absltest.main()
