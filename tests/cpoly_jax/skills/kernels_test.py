"""Tests of skills that are kernels: dense ones, and sparse ones with a fixed mask."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.skills import kernels
from cpoly_jax.t5 import layers
from cpoly_jax.training import optimizers
from tests.cpoly_jax.skills import references
from tests.cpoly_jax.skills import sample_groups as samples

B, L, D, O, S = samples.B, samples.L, samples.D, samples.O, samples.S
X = samples.inputs()
KERNEL, project = samples.KERNEL, samples.project
setUpModule, tearDownModule = testing.quick_compilation()


def _written_out(values, indices, run, features):
  """Sparse deltas as kernels, entry by entry."""
  out = np.zeros((*values.shape[:2], features))
  for s, i, j in np.ndindex(*values.shape):
    out[s, i, j * run + int(indices[s, i, j])] += values[s, i, j]
  return out


class DenseTest(parameterized.TestCase):

  @parameterized.parameters(*samples.GROUPS)
  def test_equals_loops(self, kind):
    groups = samples.GROUPS[kind]()
    bank = samples.bank(D, O)
    found = skills.Dense(num_skills=S, features=O).apply({'params': {'kernel': bank}}, X, groups, project)
    np.testing.assert_allclose(found, X @ KERNEL + references.kernels(X.astype(np.float64), groups, bank), rtol=1e-4, atol=1e-4)

  def test_starts_as_the_projection(self):
    found, variables = skills.Dense(num_skills=S, features=O).init_with_output(
        jax.random.PRNGKey(0), X, samples.by_task(), project)
    np.testing.assert_array_equal(found, project(X))
    self.assertEqual(variables['params']['kernel'].shape, (S, D, O))
    self.assertEqual(variables['params_axes']['kernel_axes'].names, ('skill', 'embed', 'joined_kv'))


class MaskTest(parameterized.TestCase):

  @parameterized.parameters((10, 40), (10, 33), (4, 8), (1, 5), (256, 300), (256, 256))
  def test_one_whole_number_in_each_run_and_the_last_may_be_shorter(self, run, features):
    runs = -(-features // run)
    indices = np.asarray(kernels.random_indices(jax.random.PRNGKey(0), (6, 50, runs), run, features))
    self.assertEqual(indices.dtype, jnp.bfloat16)
    indices = indices.astype(np.float64)
    np.testing.assert_array_equal(indices, np.floor(indices))
    self.assertEqual(indices.min(), 0)
    last = features - run * (runs - 1)
    self.assertLess(indices.max(), run)
    self.assertLess(indices[..., -1].max(), last)
    if run <= 10:  # Enough draws to see every position of every run.
      for j in range(runs):
        self.assertEqual(set(indices[..., j].ravel()), set(range(run if j < runs - 1 else last)))

  @parameterized.parameters((10, 40, .1), (4, 8, .25), (1, 5, 1.))
  def test_density_is_exact(self, run, features, density):
    shape = (3, 7, features // run)
    indices = kernels.random_indices(jax.random.PRNGKey(1), shape, run, features)
    mask = np.asarray(kernels.scatter(jnp.ones(shape), indices, run, features))
    self.assertEqual(mask.shape, (3, 7, features))
    self.assertEqual(mask.mean(), np.float32(density))
    np.testing.assert_array_equal(mask.reshape(3, 7, -1, run).sum(-1), 1)

  @parameterized.parameters((10, 40), (10, 33), (5, 5))
  def test_scatter_equals_loops(self, run, features):
    shape = (2, 3, -(-features // run))
    indices = kernels.random_indices(jax.random.PRNGKey(2), shape, run, features)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(kernels.scatter(jnp.asarray(values), indices, run, features),
                               _written_out(values, np.asarray(indices, np.float64), run, features), rtol=1e-6)

  def test_skills_and_rows_have_masks_of_their_own(self):
    indices = np.asarray(kernels.random_indices(jax.random.PRNGKey(0), (4, 6, 8), 10, 80), np.float64)
    self.assertLen(np.unique(indices.reshape(24, 8), axis=0), 24)


class SFTTest(parameterized.TestCase):

  def _init(self, groups=None, **settings):
    sft = skills.SFT(num_skills=S, features=O, **settings)
    return sft.init_with_output(jax.random.PRNGKey(0), X, groups or samples.by_task(), project)

  @parameterized.parameters(*samples.GROUPS)
  def test_equals_loops(self, kind):
    groups = samples.GROUPS[kind]()
    _, variables = self._init(groups, density=1 / 3)
    indices = variables['params']['indices']
    values = samples.bank(*indices.shape[1:])
    found = skills.SFT(num_skills=S, features=O, density=1 / 3).apply(
        {'params': {'values': values, 'indices': indices}}, X, groups, project)
    bank = _written_out(values, np.asarray(indices, np.float64), 3, O)
    np.testing.assert_allclose(found, X @ KERNEL + references.kernels(X.astype(np.float64), groups, bank), rtol=1e-4, atol=1e-4)

  @parameterized.parameters((.1, 1), (.25, 2), (1 / 3, 3), (1., O))
  def test_stores_values_and_two_byte_indices_only(self, density, runs):
    found, variables = self._init(density=density)
    np.testing.assert_array_equal(found, project(X))
    params = variables['params']
    self.assertEqual({k: (v.shape, str(v.dtype)) for k, v in params.items()},
                     {'values': ((S, D, runs), 'float32'), 'indices': ((S, D, runs), 'bfloat16')})
    self.assertFalse(params['values'].any())

  def test_default_density_is_a_tenth(self):
    sft = skills.SFT(num_skills=2, features=40)
    params = sft.init(jax.random.PRNGKey(0), X, [samples.SkillGroup(jnp.ones((B, 1, 2)))],
                      lambda x: jnp.zeros((*x.shape[:-1], 40)))['params']
    self.assertEqual(params['values'].size, 2 * D * 40 // 10)
    self.assertEqual(sum(leaf.nbytes for leaf in params.values()), 6 * 2 * D * 4)

  def test_training_moves_values_and_never_the_mask(self):
    adapter = adapters.Adapter(lambda **kw: routing.PolyRouter(num_tasks=2, num_skills=2, **kw), skills.SFT, targets='.*')
    layer = layers.Projection(20, ('embed', 'joined_kv'))
    routed = adapters.Routed(jnp.asarray([0, 1, 1]), True, adapter)
    params = layer.init(jax.random.PRNGKey(0), X, routed)['params']
    before = jax.tree.map(np.asarray, params)
    optimizer = optimizers.GroupedAdamW(1e-1, 1e-1, base_learning_rate=1e-2, weight_decay=.1)
    state = optimizer.init_state(params)
    target = np.random.default_rng(0).normal(size=(B, L, 20))

    @jax.jit
    def step(params, state):
      grads = jax.grad(lambda p: jnp.mean((layer.apply({'params': p}, X, routed) - target) ** 2))(params)
      return *optimizer.apply_gradient(optimizer.hyper_params, params, state, grads), grads

    for _ in range(4):
      params, state, grads = step(params, state)
      self.assertFalse(np.asarray(grads['skills']['indices'], np.float32).any())
    np.testing.assert_array_equal(np.asarray(params['skills']['indices']).view(np.uint16),
                                  before['skills']['indices'].view(np.uint16))
    self.assertTrue(np.asarray(params['skills']['values']).all())
    self.assertGreater(np.abs(params['kernel'] - before['kernel']).max(), 1e-3)

  @parameterized.parameters(0., -.1, 1.5, .001)
  def test_density_out_of_bounds(self, density):
    with self.assertRaisesRegex(ValueError, f'SFT.density = {density}: write a number from 1/256 to 1'):
      self._init(density=density)


if __name__ == '__main__':
  absltest.main()
