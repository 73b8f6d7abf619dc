"""Tests of (IA)^3 skills: which side of a projection they scale, against loops."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.t5 import layers
from tests.cpoly_jax.skills import references
from tests.cpoly_jax.skills import sample_groups as samples

B, L, D, O, S = samples.B, samples.L, samples.D, samples.O, samples.S
X = samples.inputs()
KERNEL, project = samples.KERNEL, samples.project
setUpModule, tearDownModule = testing.quick_compilation()


class Block(nn.Module):
  """Something around a feed-forward block, so that its projections are at mlp/wi_0 and the like."""

  adapter: adapters.Adapter

  @nn.compact
  def __call__(self, x, routed):
    return layers.MlpBlock(D, O, ('gelu', 'linear'), name='mlp')(x, routed)


class IA3Test(parameterized.TestCase):

  @parameterized.parameters(*samples.GROUPS)
  def test_outputs_are_scaled(self, kind):
    groups = samples.GROUPS[kind]()
    bank = samples.bank(O)
    found = skills.IA3(num_skills=S, features=O).apply({'params': {'scale': bank}}, X, groups, project)
    scale = 1 + references.vectors(groups, bank.astype(np.float64), L)
    np.testing.assert_allclose(found, (X @ KERNEL) * scale, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*samples.GROUPS)
  def test_inputs_are_scaled_where_the_path_says_so(self, kind):
    groups = samples.GROUPS[kind]()
    bank = samples.bank(D)
    found = skills.IA3(num_skills=S, features=O, input_targets='.*').apply({'params': {'scale': bank}}, X, groups, project)
    scale = 1 + references.vectors(groups, bank.astype(np.float64), L)
    np.testing.assert_allclose(found, (X * scale) @ KERNEL, rtol=1e-4, atol=1e-4)

  def test_by_default_the_inputs_of_wo_and_the_outputs_of_all_else(self):
    adapter = adapters.Adapter(functools.partial(routing.PolyRouter, num_tasks=2, num_skills=3), skills.IA3, targets='.*')
    routed = adapters.Routed(jnp.asarray([0, 1, 1]), True, adapter)
    variables = Block(adapter).init(jax.random.PRNGKey(0), X, routed)
    params, axes = variables['params']['mlp'], variables['params_axes']['mlp']
    self.assertEqual({name: leaf['skills']['scale'].shape for name, leaf in params.items()},
                     {'wi_0': (3, O), 'wi_1': (3, O), 'wo': (3, O)})
    self.assertEqual({name: leaf['skills']['scale_axes'].names for name, leaf in axes.items()},
                     dict.fromkeys(('wi_0', 'wi_1', 'wo'), ('skill', 'mlp')))
    # wo: scaling its 8 inputs is not scaling its 6 outputs.
    moved = testing.randomized(params)
    found = Block(adapter).apply({'params': {'mlp': moved}}, X, routed)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), moved)

    def scale(name):
      z = 1 / (1 + np.exp(-p[name]['routing']['common'][[0, 1, 1]]))
      return 1 + (z / z.sum(1, keepdims=True) @ p[name]['skills']['scale'])[:, None]

    hidden = np.asarray(nn.gelu(jnp.asarray((X @ p['wi_0']['kernel']) * scale('wi_0'), jnp.float32)))
    hidden = hidden * (X @ p['wi_1']['kernel']) * scale('wi_1')
    np.testing.assert_allclose(found, (hidden * scale('wo')) @ p['wo']['kernel'], rtol=1e-3, atol=1e-4)

  @parameterized.parameters((jnp.float32, '.*'), (jnp.bfloat16, '.*'), (jnp.float32, 'none'), (jnp.bfloat16, 'none'))
  def test_starts_as_the_projection_in_its_dtype(self, dtype, inputs):
    x = jnp.asarray(X, dtype)
    found, _ = skills.IA3(num_skills=S, features=O, input_targets=inputs).init_with_output(
        jax.random.PRNGKey(0), x, samples.by_task(), project)
    self.assertEqual(found.dtype, dtype)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(project(x), np.float32))

  def test_heads_must_divide(self):
    with self.assertRaisesRegex(ValueError, '4 heads do not divide an axis of 6'):
      skills.IA3(num_skills=S, features=O, input_targets='.*').init(jax.random.PRNGKey(0), X, samples.by_task(4), project)


if __name__ == '__main__':
  absltest.main()
