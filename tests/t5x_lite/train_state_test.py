"""Tests for train_state."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import flax
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from t5x import adafactor
from t5x import optimizers
from t5x import train_state


def _axes(*names):
  return flax_partitioning.AxisMetadata(names)


def _variables(mutables=False):
  variables = {
      'params': {'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}},
      'params_axes': {'dense': {'kernel_axes': _axes('embed', 'mlp'), 'bias_axes': _axes('mlp')}},
  }
  if mutables:
    variables |= {
        'counts': {'seen': jnp.zeros(3)}, 'counts_axes': {'seen_axes': _axes('mlp')},
        'plain': {'x': jnp.ones(2)}}
  return flax.core.freeze(variables)


class FlaxOptimTrainStateTest(parameterized.TestCase):

  def _create(self, definition=None, **kwargs):
    return train_state.FlaxOptimTrainState.create(
        definition or optimizers.adamw(1e-3), _variables(**kwargs))

  def test_initial_state(self):
    state = self._create()
    self.assertEqual((int(state.step), state.step.dtype), (0, jnp.int32))
    self.assertEqual(set(state.state_dict()), {'target', 'state'})
    self.assertEqual(set(state.state_dict()['state']), {'step', 'param_states'})
    self.assertEqual(jax.tree.leaves(state.trainable_mask), [True, True])

  def test_update(self):
    state = self._create(adafactor.Adafactor(multiply_by_parameter_scale=False))
    new = jax.jit(lambda s, g: s.apply_gradient(g, learning_rate=0.5))(state, state.params)
    np.testing.assert_allclose(new.params['dense']['kernel'], 0.5 * np.ones((2, 3)), rtol=1e-6)
    self.assertEqual(int(new.step), 1)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))

  @parameterized.parameters(False, True)
  def test_saved_and_restored(self, mutables):
    state = self._create(mutables=mutables)
    trained = state.apply_gradient(state.params, learning_rate=0.1)
    if mutables:
      trained = trained.replace_flax_mutables(jax.tree.map(lambda x: x + 1, trained.flax_mutables))
    restored = state.restore_state(trained.state_dict())
    self.assertEqual(jax.tree.structure(restored), jax.tree.structure(trained))
    jax.tree.map(np.testing.assert_array_equal, restored, trained)

  def test_replacing(self):
    state = self._create().replace_step(jnp.int32(7))
    state = state.replace_params(jax.tree.map(lambda x: x * 0 + 5, state.params))
    self.assertEqual(int(state.step), 7)
    self.assertEqual(float(state.params['dense']['bias'][0]), 5.0)

  def test_logical_axes(self):
    axes = self._create(mutables=True).as_logical_axes()
    self.assertEqual(axes.params, {'dense': {'kernel': P('embed', 'mlp'), 'bias': P('mlp')}})
    self.assertIsNone(axes.step)
    self.assertEqual(axes.param_states[0].mu, axes.params)
    self.assertEqual(axes.flax_mutables, {'counts': {'seen': P('mlp')}, 'plain': {'x': None}})

  def test_works_on_shapes(self):
    shapes = jax.eval_shape(lambda: self._create())
    self.assertEqual(shapes.as_logical_axes().params['dense']['bias'], P('mlp'))

  def test_new_mutables_come_with_the_update(self):
    state = self._create(mutables=True)
    kept = state.apply_gradient(state.params, learning_rate=0.1)
    self.assertEqual(jax.tree.structure(kept), jax.tree.structure(state))
    mutables = jax.tree.map(lambda x: x + 1, state.flax_mutables)
    new = state.apply_gradient(state.params, learning_rate=0.1, flax_mutables=mutables)
    np.testing.assert_array_equal(new.flax_mutables['counts']['seen'], np.ones(3))

  def test_parameters_need_axis_names(self):
    variables = flax.core.unfreeze(_variables())
    del variables['params_axes']['dense']['bias_axes']
    with self.assertRaisesRegex(ValueError, 'Missing axis names.*dense/bias'):
      train_state.FlaxOptimTrainState.create(optimizers.sgd(0.1), variables)
    del variables['params_axes']
    state = train_state.FlaxOptimTrainState.create(optimizers.sgd(0.1), variables)
    with self.assertRaisesRegex(ValueError, 'Missing axis names.*dense/bias.*dense/kernel'):
      state.as_logical_axes()

  def test_one_axis_name_for_each_dimension(self):
    variables = flax.core.unfreeze(_variables())
    variables['params_axes']['dense']['bias_axes'] = _axes('embed', 'mlp')
    with self.assertRaisesRegex(ValueError, r'dense/bias has 1 dimensions \(3,\) but 2 axis'):
      train_state.FlaxOptimTrainState.create(optimizers.sgd(0.1), variables)

  def test_factor_rules_come_from_the_axes(self):
    definition = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    self._create(definition)
    self.assertEqual(set(definition.hyper_params.factor_map), {'dense/kernel', 'dense/bias'})

  def test_frozen_parameters_stay_the_same_arrays(self):
    class BiasOnly(optimizers.OptaxWrapper):
      def trainable_mask(self, params):
        return {'dense': {'kernel': False, 'bias': True}}

    state = self._create(BiasOnly(optax.adam(0.1)))
    new = state.apply_gradient({'dense': {'bias': jnp.ones(3)}}, learning_rate=0.0)
    self.assertIs(new.params['dense']['kernel'], state.params['dense']['kernel'])
    np.testing.assert_allclose(new.params['dense']['bias'], -0.1 * np.ones(3), rtol=1e-5)
    self.assertEqual(new.trainable_mask, {'dense': {'kernel': False, 'bias': True}})


class InferenceStateTest(absltest.TestCase):

  def test_there_and_back(self):
    state = train_state.InferenceState.create(_variables(mutables=True))
    saved = state.state_dict()
    self.assertEqual(set(saved['state']), {'step'})
    saved['state']['step'] = jnp.int32(3)
    saved['target'] = jax.tree.map(lambda x: x + 2, saved['target'])
    restored = state.restore_state(saved)
    self.assertEqual(int(restored.step), 3)
    self.assertEqual(float(restored.params['dense']['bias'][0]), 2.0)

  def test_logical_axes(self):
    axes = train_state.InferenceState.create(_variables()).as_logical_axes()
    self.assertIsNone(axes.step)
    self.assertEqual(axes.params['dense']['kernel'], P('embed', 'mlp'))

  def test_cannot_be_trained(self):
    with self.assertRaisesRegex(TypeError, 'FlaxOptimTrainState'):
      train_state.InferenceState.create(_variables()).apply_gradient({}, learning_rate=0.1)


if __name__ == '__main__':
  absltest.main()
