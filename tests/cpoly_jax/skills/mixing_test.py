"""Tests of the mathematics of mixing, against explicit loops."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.skills import SkillGroup
from cpoly_jax.skills import mixing
from tests.cpoly_jax.skills import references
from tests.cpoly_jax.skills import sample_groups as samples

B, L, D, O, R, S, A = samples.B, samples.L, samples.D, samples.O, samples.R, samples.S, samples.A
X, DOWN, UP, KERNELS = samples.inputs(), samples.bank(D, R), samples.bank(R, O, seed=4), samples.bank(D, O, seed=5)
setUpModule, tearDownModule = testing.quick_compilation()


def _f64(*arrays):
  return [np.asarray(a, np.float64) for a in arrays]


class LowRankTest(parameterized.TestCase):

  @parameterized.product(
      [dict(name=m, kind=k) for m in (skills.FACTORS, skills.GROUP_FACTORS) for k in ('by_task', 'heads', 'by_id')]
      + [dict(name=skills.PRODUCTS, kind=k) for k in ('by_task', 'by_id', 'by_token', 'by_token_and_id')])
  def test_equals_loops(self, name, kind):
    groups = samples.GROUPS[kind]()
    x, down, up = _f64(X, DOWN, UP)
    np.testing.assert_allclose(mixing.MIX[name](X, groups, DOWN, UP), references.MIX[name](x, groups, down, up),
                               rtol=1e-4, atol=1e-4)

  def test_names(self):
    self.assertEqual(set(mixing.MIX), set(skills.MIXINGS))

  def test_all_agree_for_one_skill_of_weight_one(self):
    weights = np.zeros((B, 1, S), np.float32)
    weights[np.arange(B), 0, [0, 4, 6]] = 1.
    groups = [SkillGroup(jnp.asarray(weights[..., :A])), SkillGroup(jnp.asarray(weights[..., A:]), start=A)]
    expected = np.stack([X[b] @ DOWN[s] @ UP[s] for b, s in enumerate([0, 4, 6])])
    for name in skills.MIXINGS:
      np.testing.assert_allclose(mixing.MIX[name](X, groups, DOWN, UP), expected, rtol=1e-5, atol=1e-5, err_msg=name)

  def test_they_differ_for_soft_weights(self):
    factors, groups, products = (np.asarray(mixing.MIX[m](X, samples.by_task(), DOWN, UP)) for m in skills.MIXINGS)
    for a, b in ((factors, groups), (groups, products), (factors, products)):
      self.assertGreater(np.abs(a - b).max(), 0.1)

  @parameterized.parameters((skills.FACTORS, 4), (skills.GROUP_FACTORS, 4), (skills.PRODUCTS, 2))
  def test_factors_grow_with_the_square_of_the_weights_and_products_linearly(self, name, growth):
    once = samples.by_task()
    twice = [g.replace(weights=2 * g.weights) for g in once]
    np.testing.assert_allclose(mixing.MIX[name](X, twice, DOWN, UP), growth * mixing.MIX[name](X, once, DOWN, UP),
                               rtol=1e-4, atol=1e-4)

  def test_equal_heads_are_one_head(self):
    one = samples.by_task()
    two = [g.replace(weights=jnp.repeat(g.weights, 2, axis=1)) for g in one]
    np.testing.assert_allclose(mixing.mix_factors(X, two, DOWN, UP), mixing.mix_factors(X, one, DOWN, UP), rtol=1e-4, atol=1e-4)


class KernelsTest(parameterized.TestCase):

  @parameterized.parameters(*samples.GROUPS)
  def test_equals_loops(self, kind):
    groups = samples.GROUPS[kind]()
    np.testing.assert_allclose(mixing.mix_kernels(X, groups, KERNELS), references.kernels(*_f64(X)[:1], groups, *_f64(KERNELS)),
                               rtol=1e-4, atol=1e-4)


class DtypeTest(parameterized.TestCase):

  @parameterized.parameters(*skills.MIXINGS)
  def test_low_rank_has_the_dtype_of_x(self, name):
    self.assertEqual(mixing.MIX[name](jnp.asarray(X, jnp.bfloat16), samples.by_task(), DOWN, UP).dtype, jnp.bfloat16)

  @parameterized.parameters('by_task', 'by_token')
  def test_kernels_have_the_dtype_of_x(self, kind):
    self.assertEqual(mixing.mix_kernels(jnp.asarray(X, jnp.bfloat16), samples.GROUPS[kind](), KERNELS).dtype, jnp.bfloat16)


if __name__ == '__main__':
  absltest.main()
