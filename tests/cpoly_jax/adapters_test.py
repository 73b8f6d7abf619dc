"""Tests of adapters: which projections they choose, and where their routers lie."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.t5 import layers
from cpoly_jax.t5 import network

CONFIG = testing.small_config()
setUpModule, tearDownModule = testing.quick_compilation()


class TargetsTest(absltest.TestCase):

  def test_a_target_is_a_whole_path(self):
    adapter = testing.cpoly_adapter(2, targets='.*attention/(query|value)')
    self.assertTrue(adapter.is_target('decoder/layers_0/encoder_decoder_attention/value'))
    self.assertFalse(adapter.is_target('encoder/layers_0/attention/key'))
    self.assertFalse(adapter.is_target('encoder/layers_0/attention/query/kernel'))

  def test_no_match_is_an_error_that_shows_paths(self):
    with self.assertRaisesRegex(ValueError, "'encoder/atention.*' matches no projection: .*encoder/layers_0/attention/.*query"):
      testing.cpoly_adapter(2, targets='encoder/atention.*').check_matches(network.projection_paths(CONFIG))

  def test_a_broken_expression_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'is no regular expression'):
      testing.cpoly_adapter(2, targets='(query')

  def test_paths_of_both_families(self):
    gated = network.projection_paths(CONFIG)
    self.assertIn('encoder/layers_0/mlp/wi_1', gated)
    self.assertLen(gated, 7 + 11)
    plain = network.projection_paths(testing.small_config(mlp_activations=('relu',)))
    self.assertIn('decoder/layers_0/mlp/wi', plain)
    self.assertLen(plain, 6 + 10)


class RouterTest(parameterized.TestCase):

  def test_a_description_belongs_to_no_network(self):
    adapter = testing.cpoly_adapter(4, router=dict(num_common=2, num_specific=(0, 3, 1, 1)))
    self.assertEqual(adapter.describe().num_skills, 7)
    self.assertFalse(adapter.describe().needs_step)

  @parameterized.parameters(*adapters.GRANULARITIES)
  def test_the_router_is_made_at_its_granularity_only(self, granularity):
    adapter = testing.cpoly_adapter(2, granularity=granularity)
    for other in adapters.GRANULARITIES:
      self.assertEqual(adapter.router_of(other) is not None, other == granularity)

  def test_unknown_granularity(self):
    with self.assertRaisesRegex(ValueError, "Adapter.granularity = 'block': write one of projection, layer, stack, model"):
      testing.cpoly_adapter(2, granularity='block')

  def test_shared_weights_are_made_once_and_used_as_they_are(self):
    adapter = testing.cpoly_adapter(2)
    routed = adapters.Routed(jnp.asarray([1, 0]), True, adapter)
    self.assertIs(routed.by(None), routed)
    router = routing.ExpertRouter(num_tasks=2, matrix=((1., 0.), (1., 1.)))
    (group,) = routed.by(router).groups
    np.testing.assert_allclose(group.weights[:, 0], [[.5, .5], [1., 0.]])

  def test_a_description_may_hold_no_array(self):
    """A jitted function takes Routed with its adapter as a static part."""
    routed = adapters.Routed(jnp.asarray([1, 0]), True, testing.cpoly_adapter(2))
    self.assertLen(jax.tree.leaves(routed), 1)


class ProjectTest(parameterized.TestCase):

  def _layer(self, targets, **shared):
    adapter = adapters.Adapter(functools.partial(routing.PolyRouter, num_tasks=2, num_skills=3), skills.LoRA, targets=targets)
    routed = adapters.Routed(jnp.asarray([1, 0]), True, adapter, **shared)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    return layers.Projection(5, ('embed', 'mlp')), x, routed

  def test_parameters_lie_beside_the_kernel(self):
    layer, x, routed = self._layer('.*')
    params = layer.init(jax.random.PRNGKey(0), x, routed)['params']
    self.assertEqual(jax.tree.map(jnp.shape, params), {
        'kernel': (4, 5), 'skills': {'down': (3, 4, 4), 'up': (3, 4, 5)}, 'routing': {'common': (2, 3)}})

  def test_what_is_no_target_is_plain(self):
    layer, x, routed = self._layer('elsewhere')
    found, variables = layer.init_with_output(jax.random.PRNGKey(0), x, routed)
    self.assertEqual(set(variables['params']), {'kernel'})
    np.testing.assert_array_equal(found, x @ variables['params']['kernel'])

  def test_shared_groups_replace_the_router(self):
    layer, x, routed = self._layer('.*', groups=(skills.SkillGroup(jnp.ones((2, 1, 3))),))
    params = testing.randomized(layer.init(jax.random.PRNGKey(0), x, routed)['params'])
    self.assertNotIn('routing', params)
    delta = x @ np.asarray(params['skills']['down']).sum(0) @ np.asarray(params['skills']['up']).sum(0) / 4
    np.testing.assert_allclose(layer.apply({'params': params}, x, routed), x @ params['kernel'] + delta, rtol=1e-4, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
