"""Updates of stacked layers equal those of each array by itself, and keep the state's form."""

from __future__ import annotations

import re

from absl.testing import absltest
import flax
import jax
import numpy as np
import optax

from cpoly_jax.training import optimizers
from cpoly_jax.training import stacked_updates


def _array(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _params():
  """Twelve layers, of which layer 5 has another shape; layers that are no neighbours; things that are no layers."""
  layer = lambda i: {'query': {'kernel': _array(i, 4, 4), 'skills': {'up': _array(i, 3 if i == 5 else 2, 4)},
                               'routing': {'common': _array(i, 2)}}}
  return {'encoder': {**{f'layers_{i}': layer(i) for i in (10, 11, *range(10))}, 'norm': {'scale': _array(0, 3)}},
          'decoder': {'layers_0': layer(0), 'layers_2': layer(2)}}


class StackTest(absltest.TestCase):

  def test_stack_by_hand(self):
    params = _params()
    found = stacked_updates.stack(params, params)
    self.assertCountEqual(found['encoder'], ['layers_0', 'layers_5', 'layers_6', 'norm'])
    np.testing.assert_array_equal(found['encoder']['layers_6']['query']['routing']['common'],
                                  [_array(i, 2) for i in range(6, 12)])
    self.assertEqual(found['encoder']['layers_5']['query']['skills']['up'].shape, (3, 4))
    self.assertEqual(jax.tree.map(np.shape, found['decoder']), jax.tree.map(np.shape, params['decoder']))

  def test_unstack_is_the_inverse(self):
    for params in (_params(), flax.core.freeze(_params())):
      again = stacked_updates.unstack(stacked_updates.stack(params, params), params, params)
      self.assertEqual(jax.tree.structure(again), jax.tree.structure(params))
      jax.tree.map(np.testing.assert_array_equal, again, params)


class UpdateTest(absltest.TestCase):

  def test_same_updates_and_state(self):
    settings = dict(skills_learning_rate=1e-2, routing_learning_rate=optax.linear_schedule(1., 0., 5), weight_decay=0.1,
                    max_grad_norm=0.5)
    plain, stacked = (optimizers.GroupedAdamW(**settings, stack_layers=on).optax_optimizer for on in (False, True))
    params = _params()
    states = [plain.init(params), stacked.init(params)]
    for step in range(3):
      gradients = jax.tree.map(lambda x, step=step: x * (step + 1) + 0.1, params)
      (expected, states[0]), (found, states[1]) = (
          t.update(gradients, state, params) for t, state in zip((plain, stacked), states))
      self.assertEqual(*map(jax.tree.structure, states))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), (found, states[1]), (expected, states[0]))
    self.assertGreater(float(np.abs(expected['encoder']['layers_3']['query']['skills']['up']).max()), 0.)

  def test_one_array_for_a_stack(self):
    roots = lambda on: len(re.findall(r' sqrt ', str(jax.make_jaxpr(
        optimizers.GroupedAdamW(max_grad_norm=None, stack_layers=on).optax_optimizer.update)(
            _params(), optimizers.GroupedAdamW(max_grad_norm=None).optax_optimizer.init(_params()), _params()))))
    self.assertEqual(roots(False), 2 * 14)  # Skills and routing of 12 and 2 layers.
    self.assertEqual(roots(True), 2 * (3 + 2))  # Runs 0-4, 5 and 6-11, and the decoder's two.

  def test_a_base_that_trains_is_not_copied(self):
    update = optimizers.GroupedAdamW(base_learning_rate=1e-3, stack_layers=True).optax_optimizer
    state = update.init(_params())
    self.assertNotIn('concatenate', str(jax.make_jaxpr(update.update)(_params(), state, _params())))


if __name__ == '__main__':
  absltest.main()
