"""Cosines between skills: without kernels the same as with them."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import skills
from cpoly_jax.analysis import diversity

RNG = np.random.default_rng(0)


def _dense(kernels):
  flat = np.asarray(kernels).reshape(len(kernels), -1)
  return flat @ flat.T


class GramTest(parameterized.TestCase):

  @parameterized.parameters(1 << 24, 1)
  def test_low_rank(self, block):
    down, up = RNG.normal(size=(5, 7, 3)), RNG.normal(size=(5, 3, 6))
    with mock.patch.object(diversity, '_BLOCK', block):
      found = diversity.gram({'down': down, 'up': up})
    np.testing.assert_allclose(found, _dense(down @ up), rtol=1e-10)

  def test_sparse(self):
    from cpoly_jax.skills import kernels
    values, indices = RNG.normal(size=(4, 5, 3)), RNG.integers(0, 2, (4, 5, 3))
    written = kernels.scatter(jnp.asarray(values), jnp.asarray(indices), 2, 6)
    np.testing.assert_allclose(diversity.gram({'values': values, 'indices': indices}), _dense(written), rtol=1e-5)

  @parameterized.parameters(('kernel', (3, 4, 5)), ('scale', (3, 4)))
  def test_dense(self, name, shape):
    deltas = RNG.normal(size=shape)
    np.testing.assert_allclose(diversity.gram({name: deltas}), _dense(deltas))

  def test_unknown_inventory(self):
    with self.assertRaisesRegex(ValueError, 'parameters core, shift'):
      diversity.gram({'core': np.ones(1), 'shift': np.ones(1)})


class OverlapTest(absltest.TestCase):

  def test_cosines(self):
    found = diversity.cosines(np.array([[4., 3., 0.], [3., 9., 0.], [0., 0., 0.]]))
    np.testing.assert_allclose(found[:2, :2], [[1, .5], [.5, 1]])
    self.assertTrue(np.isnan(found[2]).all() and np.isnan(found[:, 2]).all())

  def test_kinds_of_pairs(self):
    nan = np.nan
    cosine = np.array([[1., -.2, .4, nan], [-.2, 1., .6, nan], [.4, .6, 1., nan], [nan, nan, nan, nan]])
    found = diversity.overlap(cosine, np.array([-1, -1, 0, 1]))
    self.assertAlmostEqual(found.pairs, 1.2 / 3)
    self.assertAlmostEqual(found.common, .2)
    self.assertAlmostEqual(found.across, .5)
    self.assertTrue(np.isnan(found.specific))


class InventoriesTest(parameterized.TestCase):

  @parameterized.parameters(skills.LoRA, skills.SFT, skills.Dense, skills.IA3)
  def test_parameters_of_every_inventory(self, inventory):
    groups = [skills.SkillGroup(jnp.ones((1, 1, 3)))]
    init = lambda key: inventory(num_skills=3, features=4).init(key, jnp.ones((1, 1, 5)), groups, lambda x: x[..., :4])
    shapes = jax.eval_shape(init, jax.random.PRNGKey(0))['params']
    found = diversity.gram({name: np.ones(like.shape) for name, like in shapes.items()})
    self.assertEqual(found.shape, (3, 3))
    self.assertGreater(found.min(), 0)


if __name__ == '__main__':
  absltest.main()
