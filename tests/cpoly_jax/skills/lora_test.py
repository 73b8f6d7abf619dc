"""Tests of LoRA skills: their start, their scale, and what is refused."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import skills
from cpoly_jax import testing
from tests.cpoly_jax.skills import references
from tests.cpoly_jax.skills import sample_groups as samples

B, L, D, O, S = samples.B, samples.L, samples.D, samples.O, samples.S
X = samples.inputs()
KERNEL, project = samples.KERNEL, samples.project
setUpModule, tearDownModule = testing.quick_compilation()


def _lora(**settings):
  return skills.LoRA(num_skills=S, features=O, **{'rank': 2, **settings})


def _init(groups, **settings):
  return _lora(**settings).init(jax.random.PRNGKey(0), X, groups, project)['params']


class LoRATest(parameterized.TestCase):

  @functools.cached_property
  def params(self):
    return _init(samples.by_task())

  def test_starts_as_the_projection_with_bounded_down(self):
    np.testing.assert_array_equal(_lora().apply({'params': self.params}, X, samples.by_task(), project), project(X))
    self.assertEqual(jax.tree.map(jnp.shape, self.params), {'down': (S, D, 2), 'up': (S, 2, O)})
    largest = float(jnp.abs(self.params['down']).max())
    self.assertBetween(largest, 0.8 * D ** -0.5, D ** -0.5)

  @parameterized.parameters((1., 1), (1., 4), (6., 2))
  def test_scale_is_alpha_over_rank(self, alpha, rank):
    params = {'down': samples.bank(D, rank), 'up': samples.bank(rank, O, seed=4)}
    found = _lora(alpha=alpha, rank=rank).apply({'params': params}, X, samples.by_task(), project)
    delta = references.group_factors(X.astype(np.float64), samples.by_task(), params['down'], params['up'])
    np.testing.assert_allclose(found, X @ KERNEL + alpha / rank * delta, rtol=1e-4, atol=1e-4)

  @parameterized.parameters('by_token', 'by_token_and_id')
  def test_products_by_token(self, kind):
    params = {'down': samples.bank(D, 2), 'up': samples.bank(2, O, seed=4)}
    groups = samples.GROUPS[kind]()
    found = _lora(mixing='products').apply({'params': params}, X, groups, project)
    delta = references.products(X.astype(np.float64), groups, params['down'], params['up'])
    np.testing.assert_allclose(found, X @ KERNEL + delta / 2, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_keeps_the_dtype_of_its_input(self, dtype):
    found = _lora().apply({'params': self.params}, jnp.asarray(X, dtype), samples.by_task(), project)
    self.assertEqual(found.dtype, dtype)

  def test_parameters_have_axes(self):
    variables = _lora(axes=('mlp', 'embed')).init(jax.random.PRNGKey(0), X, samples.by_task(), project)
    self.assertEqual(variables['params_axes']['down_axes'].names, ('skill', 'mlp', 'rank'))
    self.assertEqual(variables['params_axes']['up_axes'].names, ('skill', 'rank', 'embed'))


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      ('by_task', dict(mixing='sum'), "LoRA.mixing = 'sum': write one of factors, group_factors, products"),
      ('by_task', dict(rank=0), 'LoRA.rank = 0: write 1 or more'),
      ('by_token', dict(mixing='factors'), "'factors' makes one pair of factors .* for each token: set MIXING = 'products'"),
      ('by_token_and_id', dict(mixing='group_factors'), "'group_factors' .* for each token: set MIXING = 'products'"),
      ('heads', dict(mixing='products'), "multi-head routing mixes blocks of their factors: set MIXING = 'factors'"))
  def test_is_named(self, kind, settings, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      _init(samples.GROUPS[kind](), **settings)
    self.assertNotIn('\n', str(caught.exception))

  def test_heads_must_divide(self):
    with self.assertRaisesRegex(ValueError, '4 heads do not divide an axis of 6'):
      _init(samples.by_task(heads=4))


if __name__ == '__main__':
  absltest.main()
