"""Tests of the frozen-base optimizer: groups, two speeds, schedule."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax.training import optimizers


def _params():
  leaf = lambda: jnp.ones((2, 3))
  return {'encoder': {'layers_0': {'attention': {'query': {
      'kernel': leaf(), 'skills': {'down': leaf(), 'up': leaf()}, 'routing': {'common': leaf()}}}}},
          'token_embedder': {'embedding': leaf()}}


def _apply(optimizer, params, grads, steps=1):
  state = optimizer.init_state(params)
  for _ in range(steps):
    params, state = optimizer.apply_gradient(optimizer.hyper_params, params, state, grads)
  return params


def _query(params):
  return params['encoder']['layers_0']['attention']['query']


class GroupsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('encoder/layers_0/attention/query/skills/down', 'skills'),
      ('decoder/layers_1/mlp/wo/routing/specific', 'routing'),
      ('encoder/layers_0/attention/query/kernel', 'frozen'),
      ('skills/shared/down', 'skills'),
      ('encoder/myskills/down', 'frozen'))
  def test_group_of(self, path, group):
    self.assertEqual(optimizers.group_of(path), group)

  def test_mask(self):
    mask = optimizers.FrozenBaseOptimizer().trainable_mask(_params())
    self.assertEqual(_query(mask), {'kernel': False, 'skills': {'down': True, 'up': True}, 'routing': {'common': True}})
    self.assertFalse(mask['token_embedder']['embedding'])

  def test_nothing_to_train(self):
    with self.assertRaisesRegex(ValueError, 'nothing would train'):
      optimizers.FrozenBaseOptimizer().trainable_mask({'kernel': jnp.ones(2)})


class UpdateTest(parameterized.TestCase):

  def test_two_speeds_and_a_frozen_base(self):
    params = _params()
    optimizer = optimizers.FrozenBaseOptimizer(1e-3, 1e-1)
    after = _apply(optimizer, params, jax.tree.map(jnp.ones_like, params))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, params)
    self.assertEqual(_query(moved)['kernel'], 0.)
    self.assertEqual(moved['token_embedder']['embedding'], 0.)
    # Adam's first step is the learning rate, whatever the gradient's size.
    self.assertAlmostEqual(_query(moved)['skills']['down'], 1e-3, places=6)
    self.assertAlmostEqual(_query(moved)['routing']['common'], 1e-1, places=5)

  def test_state_has_no_frozen_leaf(self):
    params = _params()
    optimizer = optimizers.FrozenBaseOptimizer()
    sizes = [leaf.size for leaf in jax.tree.leaves(optimizer.init_state(params).param_states)]
    # Two moments of three trainable leaves of 6 values, and counters.
    self.assertEqual(sum(size for size in sizes if size > 1), 2 * 3 * 6)

  def test_clipping_ignores_the_gradients_of_the_base(self):
    params = _params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    grads['token_embedder']['embedding'] = jnp.full((2, 3), 1e6)
    # With eps far above the gradient an update is proportional to it, so clipping by the base's would show.
    make = lambda bound: optimizers.FrozenBaseOptimizer(1., 1., max_grad_norm=bound, eps=1.)
    np.testing.assert_allclose(_query(_apply(make(1.), params, grads))['skills']['down'],
                               _query(_apply(make(None), params, grads))['skills']['down'], rtol=1e-6)

  def test_gradient_norm_is_bounded(self):
    params = _params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, 10.), params)
    optimizer = optimizers.FrozenBaseOptimizer(1., 1., max_grad_norm=.1, eps=1.)
    step = 1. - _query(_apply(optimizer, params, grads))['skills']['down']
    clipped = .1 / np.sqrt(18)  # 18 equal trainable values.
    np.testing.assert_allclose(step, clipped / (clipped + 1), rtol=1e-4)

  @parameterized.parameters(('skills', 'down', dict(weight_decay=.1)), ('routing', 'common', dict(routing_weight_decay=.1)))
  def test_weight_decay_is_that_of_the_group(self, group, leaf, settings):
    params = _params()
    grads = jax.tree.map(jnp.zeros_like, params)
    after = _query(_apply(optimizers.FrozenBaseOptimizer(1e-2, 1e-2, **settings), params, grads))
    np.testing.assert_allclose(after[group][leaf], 1 - 1e-3, rtol=1e-6)
    untouched = after['skills' if group == 'routing' else 'routing']
    np.testing.assert_array_equal(jax.tree.leaves(untouched)[0], np.ones((2, 3)))


class ScheduleTest(parameterized.TestCase):

  def test_warm_up_and_decay(self):
    rate = optimizers.linear_warmup_decay(2., 100, 0.1)
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10), rate(55), rate(100), rate(200)],
                               [.2, 1., 2., 2., 1., 0., 0.], rtol=1e-6)

  @parameterized.parameters((0, .1), (10, 1.), (10, -.1))
  def test_wrong_settings(self, steps, ratio):
    with self.assertRaisesRegex(ValueError, 'write 1 step or more'):
      optimizers.linear_warmup_decay(1., steps, ratio)

  def test_counts_from_the_runs_first_step(self):
    params = _params()
    schedule = optimizers.linear_warmup_decay(1e-2, 4, 0.25)
    optimizer = optimizers.FrozenBaseOptimizer(schedule, schedule, max_grad_norm=None)
    after = _apply(optimizer, params, jax.tree.map(jnp.ones_like, params), steps=4)
    np.testing.assert_allclose(_query(after)['skills']['down'], 1 - 1e-2 * (1 + 1 + 2 / 3 + 1 / 3), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
