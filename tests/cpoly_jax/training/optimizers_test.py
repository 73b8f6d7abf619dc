"""Tests of the optimizer: groups with rates of their own, what never moves, the clock, schedules."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.training import optimizers

setUpModule, tearDownModule = testing.quick_compilation()


def _params():
  leaf = lambda: jnp.ones((2, 3))
  return {'encoder': {'layers_0': {'attention': {'query': {
      'kernel': leaf(), 'skills': {'down': leaf(), 'up': leaf(), 'indices': jnp.full((2, 3), 7, jnp.bfloat16)},
      'routing': {'common': leaf()}}}}},
          'token_embedder': {'embedding': leaf()}, 'clock': jnp.zeros(())}


def _apply(optimizer, params, grads, steps=1):
  state = optimizer.init_state(params)
  for _ in range(steps):
    params, state = optimizer.apply_gradient(optimizer.hyper_params, params, state, grads)
  return params


def _ones(params):
  return jax.tree.map(jnp.ones_like, params)


def _query(params):
  return params['encoder']['layers_0']['attention']['query']


def _moved(optimizer, steps=1):
  """How far the groups move for gradients of ones."""
  params = _params()
  after = _apply(optimizer, params, _ones(params), steps)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, params)
  query = _query(moved)
  return dict(skills=query['skills']['down'], up=query['skills']['up'], indices=query['skills']['indices'],
              routing=query['routing']['common'], base=query['kernel'], embedding=moved['token_embedder']['embedding'],
              clock=moved['clock'])


class GroupsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('encoder/layers_0/attention/query/skills/down', 'skills'),
      ('encoder/layers_0/mlp/wo/skills/scale', 'skills'),
      ('encoder/layers_0/attention/query/skills/indices', 'frozen'),
      ('skills/indices', 'frozen'),
      ('decoder/layers_1/mlp/wo/routing/specific', 'routing'),
      ('encoder/layers_0/routing/common', 'routing'),
      ('routing/common', 'routing'),
      ('clock', 'clock'),
      ('encoder/clock', 'base'),
      ('encoder/layers_0/attention/query/kernel', 'base'),
      ('encoder/indices', 'base'),
      ('skills/shared/down', 'skills'),
      ('encoder/myskills/down', 'base'))
  def test_group_of(self, path, group):
    self.assertEqual(optimizers.group_of(path), group)

  @parameterized.parameters(
      (dict(), {'skills', 'routing'}),
      (dict(skills_learning_rate=None), {'routing'}),
      (dict(routing_learning_rate=None), {'skills'}),
      (dict(base_learning_rate=1e-3), {'skills', 'routing', 'base'}),
      (dict(skills_learning_rate=None, routing_learning_rate=None, base_learning_rate=1e-3), {'base'}))
  def test_mask(self, rates, trained):
    mask = optimizers.GroupedAdamW(**rates).trainable_mask(_params())
    self.assertEqual(_query(mask), {
        'kernel': 'base' in trained, 'skills': {'down': 'skills' in trained, 'up': 'skills' in trained, 'indices': False},
        'routing': {'common': 'routing' in trained}})
    self.assertEqual(mask['token_embedder']['embedding'], 'base' in trained)
    self.assertTrue(mask['clock'])

  @parameterized.parameters(
      (dict(), {'kernel': 1}, 'no parameters of routing or skills, so nothing would train: .* a base_learning_rate'),
      (dict(skills_learning_rate=None), {'skills': {'down': 1}}, 'no parameters of routing, so nothing would train'),
      (dict(routing_learning_rate=None), {'routing': {'common': 1}}, 'no parameters of skills, so nothing would train'),
      # The clock and fixed positions alone are nothing that trains.
      (dict(), {'clock': 1, 'skills': {'indices': 1}}, 'nothing would train'))
  def test_nothing_to_train_in_the_network(self, rates, tree, message):
    with self.assertRaisesRegex(ValueError, message):
      optimizers.GroupedAdamW(**rates).trainable_mask(jax.tree.map(jnp.ones, tree))

  def test_no_rate_at_all(self):
    with self.assertRaisesRegex(ValueError, 'nothing would train: give GroupedAdamW a learning rate'):
      optimizers.GroupedAdamW(None, None)


class UpdateTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('two_speeds', dict(skills=1e-3, routing=1e-1)), ('only_routing', dict(routing=1e-1)), ('only_skills', dict(skills=1e-3)),
      ('only_base', dict(base=1e-2)), ('all', dict(skills=1e-3, routing=1e-1, base=1e-2)))
  def test_each_group_has_its_rate_and_without_one_it_is_frozen(self, rates):
    names = ('skills', 'routing', 'base')
    moved = _moved(optimizers.GroupedAdamW(**{f'{name}_learning_rate': rates.get(name) for name in names}))
    # Adam's first step is the learning rate, whatever the gradient's size.
    for name in names:
      np.testing.assert_allclose(moved[name], rates.get(name, 0.), rtol=1e-4)
    np.testing.assert_allclose((moved['up'], moved['embedding']), (moved['skills'], moved['base']), rtol=1e-6)
    self.assertEqual((moved['clock'], moved['indices']), (1., 0.))

  def test_frozen_groups_keep_every_bit(self):
    params = _params()
    params['token_embedder']['embedding'] = jnp.asarray([[1e-40, -0., jnp.pi]])
    after = _apply(optimizers.GroupedAdamW(weight_decay=.1, base_weight_decay=.1), params, _ones(params), 2)
    frozen = lambda p: [p['token_embedder']['embedding'], _query(p)['kernel'], _query(p)['skills']['indices']]
    for new, old in zip(frozen(after), frozen(params)):
      self.assertEqual(np.asarray(new).tobytes(), np.asarray(old).tobytes())

  def test_state_has_no_frozen_leaf(self):
    params = _params()
    sizes = [leaf.size for leaf in jax.tree.leaves(optimizers.GroupedAdamW().init_state(params).param_states)]
    # Two moments of three trainable leaves of 6 values, and counters.
    self.assertEqual(sum(size for size in sizes if size > 1), 2 * 3 * 6)

  def test_clipping_ignores_the_gradients_of_what_does_not_train(self):
    params = _params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
    grads['token_embedder']['embedding'] = jnp.full((2, 3), 1e6)
    grads['clock'] = jnp.float32(1e6)
    _query(grads)['skills']['indices'] = jnp.full((2, 3), 1e6, jnp.bfloat16)
    # With eps far above the gradient an update is proportional to it, so clipping by the others' would show.
    make = lambda bound: optimizers.GroupedAdamW(1., 1., max_grad_norm=bound, eps=1.)
    np.testing.assert_allclose(_query(_apply(make(1.), params, grads))['skills']['down'],
                               _query(_apply(make(None), params, grads))['skills']['down'], rtol=1e-6)

  @parameterized.parameters((None, 18), (1., 30))
  def test_gradient_norm_is_bounded_over_all_that_trains(self, base_rate, trainable_values):
    params = _params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, 10.), params)
    optimizer = optimizers.GroupedAdamW(1., 1., base_rate, max_grad_norm=.1, eps=1.)
    step = 1. - _query(_apply(optimizer, params, grads))['skills']['down']
    clipped = .1 / np.sqrt(trainable_values)
    np.testing.assert_allclose(step, clipped / (clipped + 1), rtol=1e-4)

  @parameterized.parameters('skills', 'routing', 'base')
  def test_weight_decay_is_that_of_the_group(self, group):
    params = _params()
    grads = jax.tree.map(jnp.zeros_like, params)
    setting = {'skills': 'weight_decay'}.get(group, f'{group}_weight_decay')
    after = _apply(optimizers.GroupedAdamW(1e-2, 1e-2, 1e-2, **{setting: .1}), params, grads)
    query = _query(after)
    found = dict(skills=query['skills']['down'], routing=query['routing']['common'], base=query['kernel'])
    for name, leaf in found.items():
      np.testing.assert_allclose(leaf, 1 - 1e-3 if name == group else 1., rtol=1e-6)
    self.assertEqual(float(after['clock']), 1.)


class ClockTest(parameterized.TestCase):

  @parameterized.parameters((0., 1.), (1e6, 1e-9), (-3., None), (np.nan, None))
  def test_counts_one_a_step_whatever_the_gradient(self, gradient, bound):
    params = _params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), params)
    if np.isnan(gradient):  # Of the clock alone.
      grads = {**_ones(params), 'clock': jnp.float32(gradient)}
    after = _apply(optimizers.GroupedAdamW(max_grad_norm=bound), params, grads, steps=5)
    self.assertEqual(float(after['clock']), 5.)
    self.assertTrue(np.isfinite(_query(after)['skills']['down']).all())

  @parameterized.parameters(dict(skills_learning_rate=None), dict(routing_learning_rate=None),
                            dict(skills_learning_rate=0., routing_learning_rate=0.))
  def test_counts_whatever_trains(self, **rates):
    self.assertEqual(_moved(optimizers.GroupedAdamW(**rates), steps=3)['clock'], 3.)


class RowsTest(parameterized.TestCase):
  """Skills whose rows 0 and 2 train, routing whose row 1 does, and a base of which nothing does."""

  def _params(self):
    rng = np.random.default_rng(0)
    params = {'query': {'kernel': rng.normal(size=(2, 3)),
                        'skills': {'down': rng.normal(size=(4, 3)), 'up': rng.normal(size=(4, 2))},
                        'routing': {'common': rng.normal(size=(3, 2)), 'hidden': rng.normal(size=(2, 2))}}}
    params['query']['skills']['down'][1] = [-0., 1e-40, np.nan]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

  def _rows(self, path):
    return {'query/skills/down': (0, 2), 'query/skills/up': None, 'query/routing/common': (1,)}.get(path, ())

  def _optimizer(self, **settings):
    return optimizers.GroupedAdamW(1e-2, 1e-1, weight_decay=.1, routing_weight_decay=.1, **settings)

  def test_a_row_moves_as_in_a_run_with_these_rows_alone(self):
    params = self._params()
    grads = jax.tree.map(lambda leaf: jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) - 1, params)
    after = _apply(self._optimizer(rows=self._rows), params, grads, 3)
    alone = lambda tree: {'query': {'skills': {'down': tree['query']['skills']['down'][jnp.array([0, 2])],
                                               'up': tree['query']['skills']['up']},
                                    'routing': {'common': tree['query']['routing']['common'][1:2]}}}
    # Gradients are bounded by their norm over what trains, and decay is that of what trains.
    wanted = _apply(self._optimizer(), alone(params), alone(grads), 3)
    jax.tree.map(np.testing.assert_array_equal, alone(after), wanted)

  def test_other_rows_keep_every_bit(self):
    params = self._params()
    after = _apply(self._optimizer(rows=self._rows), params, _ones(params), 3)
    for path, still in ((('skills', 'down'), [1, 3]), (('routing', 'common'), [0, 2]), (('routing', 'hidden'), [0, 1])):
      new, old = (np.asarray(tree['query'][path[0]][path[1]]) for tree in (after, params))
      moved = [i for i in range(len(old)) if new[i].tobytes() != old[i].tobytes()]
      self.assertEqual(moved, sorted(set(range(len(old))) - set(still)))
    self.assertEqual(np.asarray(after['query']['kernel']).tobytes(), np.asarray(params['query']['kernel']).tobytes())

  def test_state_is_that_of_the_rows(self):
    state = self._optimizer(rows=self._rows).init_state(self._params())
    shapes = sorted({leaf.shape for leaf in jax.tree.leaves(state.param_states) if leaf.ndim})
    self.assertEqual(shapes, [(1, 2), (2, 3), (4, 2)])

  def test_skills_and_routing_are_no_part_of_the_base(self):
    mask = self._optimizer(rows=self._rows).trainable_mask(self._params())
    self.assertEqual(mask, {'query': {'kernel': False, 'skills': {'down': True, 'up': True},
                                      'routing': {'common': True, 'hidden': True}}})

  def test_no_rows_at_all(self):
    with self.assertRaisesRegex(ValueError, 'nothing would train'):
      self._optimizer(rows=lambda path: ()).trainable_mask(self._params())


class ScheduleTest(parameterized.TestCase):

  def test_warm_up_and_decay(self):
    rate = optimizers.linear_warmup_decay(2., 100, 0.1)
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10), rate(55), rate(100), rate(200)],
                               [.2, 1., 2., 2., 1., 0., 0.], rtol=1e-6)

  @parameterized.parameters((0, .1), (10, 1.), (10, -.1))
  def test_wrong_settings(self, steps, ratio):
    with self.assertRaisesRegex(ValueError, 'write 1 step or more'):
      optimizers.linear_warmup_decay(1., steps, ratio)

  @parameterized.parameters('skills', 'routing', 'base')
  def test_each_group_may_have_one_and_counts_from_the_runs_first_step(self, group):
    schedule = functools.partial(optimizers.linear_warmup_decay, total_steps=4, warmup_ratio=0.25)
    rates = {f'{name}_learning_rate': None for name in ('skills', 'routing')} | {f'{group}_learning_rate': schedule(1e-2)}
    moved = _moved(optimizers.GroupedAdamW(**rates, max_grad_norm=None), steps=4)
    np.testing.assert_allclose(moved[group], 1e-2 * (1 + 1 + 2 / 3 + 1 / 3), rtol=1e-4)


if __name__ == '__main__':
  absltest.main()
