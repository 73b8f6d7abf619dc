"""Tests for optimizers."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import gin
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from t5x import adafactor
from t5x import optimizers
from t5x import state_utils

AXES = {'lora': {'a': P('embed', 'rank')}, 'mlp': {'kernel': P('embed', 'mlp'), 'bias': P('mlp')}}


def _params(seed=0):
  rng = np.random.default_rng(seed)
  return {
      'lora': {'a': jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)},
      'mlp': {'kernel': jnp.asarray(rng.normal(size=(4, 4)), jnp.float32),
              'bias': jnp.asarray(rng.normal(size=(4,)), jnp.float32)},
  }


def _is_lora(path, _):
  return path.startswith('/lora/')


class LoraOnly(optimizers.OptaxWrapper):
  """Trains the parameters below `lora`."""

  def trainable_mask(self, params):
    return {k: jax.tree.map(lambda _, k=k: k == 'lora', v) for k, v in params.items()}


def _labels():
  return {'lora': {'a': 'train'}, 'mlp': {'kernel': 'freeze', 'bias': 'freeze'}}


class OptaxWrapperTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('adam', lambda: optax.adam(0.1)),
      ('adamw', lambda: optax.adamw(optax.linear_schedule(0.1, 0.0, 5))),
      ('sgd_momentum', lambda: optax.sgd(0.1, momentum=0.9)),
      ('sgd', lambda: optax.sgd(0.1)),
      ('lion', lambda: optax.lion(0.1)),
      ('lamb', lambda: optax.lamb(0.1)),
      ('rmsprop', lambda: optax.rmsprop(0.1)),
      ('adafactor', lambda: optax.adafactor(0.1)),
      ('clipped', lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))),
      ('masked', lambda: optax.masked(optax.adam(0.1), _labels_mask())),
      ('multi_transform', lambda: optax.multi_transform(
          {'train': optax.adam(0.1), 'freeze': optax.set_to_zero()}, _labels())),
      ('multi_steps', lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
      ('injected', lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
  )
  def test_equals_optax_and_survives_saving(self, make):
    tx, params = make(), _params()
    optimizer = optimizers.OptaxWrapper(tx).create(params)
    expected, state = params, tx.init(params)
    apply = jax.jit(lambda o, g: o.apply_gradient(g, learning_rate=123.0))
    for seed in (1, 2, 3):
      grads = _params(seed)
      updates, state = tx.update(grads, state, expected)
      expected = optax.apply_updates(expected, updates)
      # Between the steps: through a state dict, as a checkpoint would.
      fresh = optimizers.OptaxWrapper(tx).create(jax.tree.map(jnp.zeros_like, params))
      saved = optimizer.state_dict()
      restored = fresh.restore_state(saved)
      optimizer = apply(optimizer.replace(target=restored.target, state=restored.state), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 optimizer.target, expected)
    self.assertEqual(int(optimizer.state.step), 3)
    for name, leaf in state_utils.flatten_state_dict(optimizer.state_dict()).items():
      self.assertTrue(hasattr(leaf, 'shape'), f'{name} is {leaf!r}')

  def test_empty_states_are_left_out_of_the_state_dict(self):
    optimizer = optimizers.adamw(1e-3).create(_params())
    states = optimizer.state_dict()['state']['param_states']
    self.assertEqual(set(states), {'0'})
    self.assertEqual(set(states['0']), {'count', 'mu', 'nu'})

  def test_only_optax_transformations_are_wrapped(self):
    with self.assertRaisesRegex(ValueError, 'wrapped already'):
      optimizers.OptaxWrapper(optimizers.adam(1e-3))

  def test_missing_gradients_are_named(self):
    with self.assertRaisesRegex(ValueError, 'mlp/bias'):
      optimizers.sgd(0.1).create(_params()).apply_gradient({'lora': _params()['lora']})

  def test_trainable_subtree(self):
    params = _params()
    definition = LoraOnly(optax.adam(0.1))
    optimizer = definition.create(params)
    self.assertEqual(
        set(state_utils.flatten_state_dict(optimizer.state_dict()['state'])),
        {'step', 'param_states/0/count', 'param_states/0/mu/lora/a', 'param_states/0/nu/lora/a'})
    for grads in (_params(1), {'lora': _params(1)['lora']}):
      new = optimizer.apply_gradient(grads)
      self.assertIs(new.target['mlp']['kernel'], params['mlp']['kernel'])
      self.assertGreater(float(jnp.abs(new.target['lora']['a'] - params['lora']['a']).min()), 0.05)
    axes = definition.derive_logical_axes(optimizer, AXES).state.param_states
    self.assertEqual(axes[0].mu, {'lora': {'a': P('embed', 'rank')}})

  @parameterized.named_parameters(
      ('adamw', lambda: optax.adamw(0.1)),
      ('momentum', lambda: optax.sgd(0.1, momentum=0.9)),
      ('multi_steps', lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
  )
  def test_state_mirrors_the_axes_of_parameters(self, make):
    definition = optimizers.OptaxWrapper(make())
    optimizer = jax.eval_shape(definition.create, _params())
    derived = definition.derive_logical_axes(optimizer, AXES)
    self.assertEqual(derived.target, AXES)
    flat_axes = state_utils.flatten_state_dict(derived.state_dict()['state'])
    flat = state_utils.flatten_state_dict(optimizer.state_dict()['state'])
    self.assertEqual(set(flat), set(flat_axes))
    mirrored = 0
    for name, axes in flat_axes.items():
      owner = [k for k in ('lora/a', 'mlp/kernel', 'mlp/bias') if name.endswith('/' + k)]
      mirrored += len(owner)
      self.assertEqual(axes, state_utils.flatten_state_dict(AXES)[owner[0]] if owner else None)
    self.assertGreaterEqual(mirrored, 3)

  def test_axes_of_factored_moments_are_none(self):
    definition = optimizers.OptaxWrapper(optax.adafactor(0.1, min_dim_size_to_factor=2))
    optimizer = jax.eval_shape(definition.create, _params())
    derived = state_utils.flatten_state_dict(
        definition.derive_logical_axes(optimizer, AXES).state_dict()['state']['param_states'])
    self.assertIsNone(next(v for k, v in derived.items() if k.endswith('v_row/mlp/kernel')))
    self.assertEqual(next(v for k, v in derived.items() if k.endswith('v/mlp/bias')), P('mlp'))


def _labels_mask():
  return {'lora': {'a': True}, 'mlp': {'kernel': False, 'bias': False}}


class ConstructorsTest(parameterized.TestCase):

  @parameterized.parameters(
      'adabelief', 'adagrad', 'adam', 'adamw', 'lamb', 'lion', 'rmsprop', 'sgd')
  def test_each_name_trains(self, name):
    kwargs = {'learning_rate': 0.1}
    if name == 'noisy_sgd':
      kwargs['key'] = 0
    optimizer = getattr(optimizers, name)(**kwargs).create(_params())
    self.assertIsInstance(optimizer.optimizer_def, optimizers.OptaxWrapper)
    new = optimizer.apply_gradient(_params(1), learning_rate=1e-3)
    moved = jnp.abs(new.target['mlp']['kernel'] - _params()['mlp']['kernel'])
    self.assertGreater(float(moved.max()), 0)

  def test_gin(self):
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    gin.parse_config('''
        from __gin__ import dynamic_registration
        import optax
        from t5x import optimizers
        optimizers.chain.transformations = [@optax.clip(), @optax.sgd()]
        optax.clip.max_delta = 0.5
        optax.sgd.learning_rate = 1.0
        optimizers.adamw.learning_rate = 0.25
        optimizers.MultiOptimizer.traversals_and_optimizers = ()
    ''')
    new = gin.get_configurable(optimizers.chain)().create({'w': jnp.zeros(2)}).apply_gradient(
        {'w': jnp.array([3.0, -0.1])})
    np.testing.assert_allclose(new.target['w'], [-0.5, 0.1])
    adamw = gin.get_configurable(optimizers.adamw)()
    self.assertIsInstance(adamw, optimizers.OptaxWrapper)


class MultiOptimizerTest(absltest.TestCase):

  def _definition(self):
    return optimizers.MultiOptimizer((
        (traverse_util.ModelParamTraversal(_is_lora), adafactor.Adafactor()),
        (traverse_util.ModelParamTraversal(lambda path, _: path == '/mlp/bias'),
         adafactor.Adafactor(multiply_by_parameter_scale=False, beta1=0.9)),
    ))

  def test_each_part_has_its_own_optimizer(self):
    definition, params, grads = self._definition(), _params(), _params(1)
    self.assertEqual(
        definition.trainable_mask(params),
        {'lora': {'a': True}, 'mlp': {'kernel': False, 'bias': True}})
    new = definition.create(params).apply_gradient(grads, learning_rate=0.1)
    for part, alone in ((('lora', 'a'), definition.sub_optimizers[0]),
                        (('mlp', 'bias'), definition.sub_optimizers[1])):
      before, grad = params[part[0]][part[1]], grads[part[0]][part[1]]
      expected = alone.create({'w': before}).apply_gradient({'w': grad}, learning_rate=0.1)
      np.testing.assert_allclose(new.target[part[0]][part[1]], expected.target['w'], rtol=1e-6)
    self.assertIs(new.target['mlp']['kernel'], params['mlp']['kernel'])
    self.assertEqual(int(new.state.step), 1)

  def test_untrained_parameters_have_no_state(self):
    optimizer = self._definition().create(_params())
    saved = optimizer.state_dict()
    self.assertIsNone(saved['state']['param_states']['mlp']['kernel'])
    self.assertEqual(saved['state']['param_states']['mlp']['bias']['m'].shape, (4,))
    # Storage formats that cannot keep None leave the name out.
    del saved['state']['param_states']['mlp']['kernel']
    restored = optimizer.restore_state(saved)
    self.assertEqual(jax.tree.structure(restored), jax.tree.structure(optimizer))

  def test_gradients_of_the_trained_part_are_enough(self):
    mask = self._definition().trainable_mask(_params())
    grads, _ = state_utils.partition_params(_params(1), mask)
    optimizer = self._definition().create(_params())
    jax.tree.map(np.testing.assert_array_equal,
                 optimizer.apply_gradient(grads, learning_rate=0.1).target,
                 optimizer.apply_gradient(_params(1), learning_rate=0.1).target)

  def test_axes(self):
    definition = self._definition()
    definition.set_param_axes(AXES)
    derived = definition.derive_logical_axes(jax.eval_shape(definition.create, _params()), AXES)
    self.assertIsNone(derived.state.param_states['mlp']['kernel'])
    self.assertEqual(derived.state.param_states['mlp']['bias'].m, P('mlp'))
    self.assertEqual(derived.state.param_states['lora']['a'].v, P('embed', 'rank'))

  def test_factor_rules_are_asked_for_the_trained_part_only(self):
    rules = adafactor.standard_logical_factor_rules()
    for pattern, fails in (('/lora/', True), ('/mlp/', False)):
      definition = optimizers.MultiOptimizer(((
          traverse_util.ModelParamTraversal(lambda path, _, p=pattern: path.startswith(p)),
          adafactor.Adafactor(logical_factor_rules=rules)),))
      if fails:
        with self.assertRaisesRegex(ValueError, 'rank'):
          definition.set_param_axes(AXES)
      else:
        definition.set_param_axes(AXES)
        self.assertEqual(set(definition.hyper_params[0].factor_map), {'mlp/kernel', 'mlp/bias'})

  def test_overlaps_and_optax_are_refused(self):
    everything = traverse_util.ModelParamTraversal(lambda path, _: True)
    lora = traverse_util.ModelParamTraversal(_is_lora)
    with self.assertRaisesRegex(ValueError, 'more than one traversal.*lora/a'):
      optimizers.MultiOptimizer(
          ((everything, adafactor.Adafactor()), (lora, adafactor.Adafactor()))).create(_params())
    with self.assertRaisesRegex(ValueError, 'multi_transform'):
      optimizers.MultiOptimizer(((lora, optimizers.adam(0.1)),))


if __name__ == '__main__':
  absltest.main()
