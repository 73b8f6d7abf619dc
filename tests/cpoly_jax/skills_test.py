"""Tests of skill inventories, against loops in NumPy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import skills
from cpoly_jax.skills import SkillGroup

B, L, D, O, R, S, A = 3, 4, 6, 5, 2, 7, 3


def _banks(seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(B, L, D)).astype(np.float32), rng.normal(size=(S, D, R)).astype(np.float32),
          rng.normal(size=(S, R, O)).astype(np.float32), rng.uniform(size=(B, S)).astype(np.float32))


def _groups(weights):
  return [SkillGroup(jnp.asarray(weights[:, :A])), SkillGroup(jnp.asarray(weights[:, A:]), start=A)]


def _loop(mixing, x, down, up, weights):
  """Reference: example by example and skill by skill."""
  out = np.zeros((B, L, O), np.float64)
  spans = {'factors': [range(S)], 'group_factors': [range(A), range(A, S)], 'products': [[s] for s in range(S)]}[mixing]
  for b in range(B):
    for span in spans:
      if mixing == 'products':
        (s,) = span
        out[b] += weights[b, s] * (x[b] @ down[s] @ up[s])
      else:
        d = sum(weights[b, s] * down[s].astype(np.float64) for s in span)
        u = sum(weights[b, s] * up[s].astype(np.float64) for s in span)
        out[b] += x[b] @ d @ u
  return out


class MixingTest(parameterized.TestCase):

  @parameterized.parameters(*skills.MIXINGS)
  def test_equals_loop(self, mixing):
    x, down, up, weights = _banks()
    mixed = skills._MIX[mixing](x, _groups(weights), down, up)
    np.testing.assert_allclose(mixed, _loop(mixing, x, down, up, weights), rtol=2e-5, atol=2e-5)

  @parameterized.parameters(*skills.MIXINGS)
  def test_chosen_ids_equal_dense_weights(self, mixing):
    x, down, up, _ = _banks()
    ids = np.array([[3, 4], [5, 6], [3, 6]], np.int32)
    chosen = SkillGroup(jnp.asarray([[1., .5], [2., 1.], [.3, .7]]), ids=jnp.asarray(ids))
    dense = np.zeros((B, S), np.float32)
    np.put_along_axis(dense, ids, np.asarray(chosen.weights), axis=1)
    np.testing.assert_allclose(skills._MIX[mixing](x, [chosen], down, up),
                               skills._MIX[mixing](x, [SkillGroup(jnp.asarray(dense))], down, up), rtol=1e-4, atol=1e-5)

  def test_all_agree_for_one_skill_of_weight_one(self):
    x, down, up, _ = _banks()
    weights = np.zeros((B, S), np.float32)
    weights[np.arange(B), [0, 4, 6]] = 1.
    outputs = [skills._MIX[m](x, _groups(weights), down, up) for m in skills.MIXINGS]
    for other in outputs[1:]:
      np.testing.assert_allclose(outputs[0], other, rtol=1e-5, atol=1e-5)

  def test_they_differ_for_soft_weights(self):
    x, down, up, weights = _banks()
    factors, groups, products = (np.asarray(skills._MIX[m](x, _groups(weights), down, up)) for m in skills.MIXINGS)
    for a, b in ((factors, groups), (groups, products), (factors, products)):
      self.assertGreater(np.abs(a - b).max(), 0.1)

  def test_factors_grow_with_the_square_of_the_weights_and_products_linearly(self):
    x, down, up, weights = _banks()
    twice = lambda m: skills._MIX[m](x, _groups(2 * weights), down, up)
    once = lambda m: skills._MIX[m](x, _groups(weights), down, up)
    np.testing.assert_allclose(twice('factors'), 4 * once('factors'), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(twice('products'), 2 * once('products'), rtol=1e-4, atol=1e-4)


class LoRATest(parameterized.TestCase):

  def _init(self, **settings):
    x, _, _, weights = _banks()
    module = skills.LoRA(num_skills=S, features=O, rank=R, **settings)
    return module, module.init(jax.random.PRNGKey(0), x, _groups(weights))['params'], x, weights

  def test_starts_at_zero_with_bounded_down(self):
    module, params, x, weights = self._init()
    np.testing.assert_array_equal(module.apply({'params': params}, x, _groups(weights)), np.zeros((B, L, O)))
    self.assertEqual(params['down'].shape, (S, D, R))
    self.assertEqual(params['up'].shape, (S, R, O))
    self.assertLessEqual(float(jnp.abs(params['down']).max()), D ** -0.5)
    self.assertGreater(float(jnp.abs(params['down']).max()), 0.8 * D ** -0.5)

  def test_scale_is_alpha_over_rank(self):
    _, params, x, weights = self._init()
    params = {**params, 'up': jnp.ones_like(params['up'])}
    output = lambda alpha: skills.LoRA(num_skills=S, features=O, rank=R, alpha=alpha).apply(
        {'params': params}, x, _groups(weights))
    expected = _loop('group_factors', x, np.asarray(params['down']), np.asarray(params['up']), weights) / R
    np.testing.assert_allclose(output(1.), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output(6.), 6 * np.asarray(output(1.)), rtol=1e-5)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_keeps_the_dtype_of_its_input(self, dtype):
    module, params, x, weights = self._init()
    self.assertEqual(module.apply({'params': params}, jnp.asarray(x, dtype), _groups(weights)).dtype, dtype)

  def test_wrong_settings_are_named(self):
    with self.assertRaisesRegex(ValueError, "mixing = 'sum': write one of factors"):
      self._init(mixing='sum')
    with self.assertRaisesRegex(ValueError, 'rank = 0'):
      skills.LoRA(num_skills=S, features=O, rank=0).init(jax.random.PRNGKey(0), _banks()[0], _groups(_banks()[3]))


if __name__ == '__main__':
  absltest.main()
