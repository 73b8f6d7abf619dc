"""Tests of penalties on the routing, against formulas written out in exact arithmetic."""

import fractions
import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.routing import priors

setUpModule, tearDownModule = testing.quick_compilation()
MATRICES = dict(
    one=[[1]],
    unused=[[1, 0], [1, 0], [0, 0]],
    all_unused=[[0, 0], [0, 0]],
    identity=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    repeated=[[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]],
    three_kinds=[[1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0]],
    full=[[1, 1], [1, 1], [1, 1]])


def _exact_log_probability(z, alpha):
  """Griffiths & Ghahramani 2011, equation 14, with fractions; only e and the last logarithm are floats."""
  tasks, alpha = len(z), fractions.Fraction(alpha)
  columns = [c for c in zip(*z) if any(c)]
  probability = alpha ** len(columns)
  for kind in set(columns):
    probability /= math.factorial(columns.count(kind))
  for column in columns:
    m = sum(column)
    probability *= fractions.Fraction(math.factorial(tasks - m) * math.factorial(m - 1), math.factorial(tasks))
  harmonic = sum(fractions.Fraction(1, n) for n in range(1, tasks + 1))
  return math.log(probability) - float(alpha * harmonic)


class IBPTest(parameterized.TestCase):

  @parameterized.product(name=list(MATRICES), alpha=(.5, 1, 5))
  def test_equals_the_formula_in_exact_arithmetic(self, name, alpha):
    z = MATRICES[name]
    found = priors.ibp_log_probability(jnp.asarray(z, jnp.float32), alpha)
    np.testing.assert_allclose(found, _exact_log_probability(z, alpha), rtol=1e-5, atol=1e-5)

  def test_the_classes_of_two_tasks_have_probability_one(self):
    """A class of matrices is given by how often each kind of column, (1, 0), (0, 1) and (1, 1), is there."""
    most = 7  # Of a kind; more have a probability below 1e-6.
    kinds = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    matrices = []
    for counts in itertools.product(range(most + 1), repeat=3):
      columns = np.repeat(kinds, counts, axis=0)
      matrices.append(np.pad(columns, ((0, 3 * most - len(columns)), (0, 0))).T)
    log_probability = jax.jit(jax.vmap(lambda z: priors.ibp_log_probability(z, 1.)))(np.stack(matrices))
    self.assertAlmostEqual(float(np.exp(np.asarray(log_probability, np.float64)).sum()), 1., places=5)

  def test_the_order_of_skills_and_of_tasks_does_not_matter(self):
    z = np.array(MATRICES['three_kinds'], np.float32)
    rng = np.random.default_rng(0)
    other = z[rng.permutation(4)][:, rng.permutation(6)]
    np.testing.assert_allclose(priors.ibp_log_probability(other, 2.), priors.ibp_log_probability(z, 2.), rtol=1e-5)

  def test_penalty_is_that_of_the_rounded_routing(self):
    z = np.array(MATRICES['repeated'], np.float32)
    logits = (2 * z - 1) * np.random.default_rng(0).uniform(.1, 3, size=z.shape)
    expected = -_exact_log_probability(z.astype(int).tolist(), 3)
    np.testing.assert_allclose(priors.IBP(3.)(jnp.asarray(logits, jnp.float32)), expected, rtol=1e-5)

  def test_gradient_reaches_the_logits(self):
    logits = jnp.asarray([[2., -1., .5], [1., -3., -.2], [-.5, -1., 1.], [-2., -.1, .3]])
    grad = np.asarray(jax.grad(priors.IBP())(logits))
    self.assertTrue(np.isfinite(grad).all())
    # d(-log P)/dm is digamma(T - m + 1) - digamma(m), through the slope of the sigmoid; nothing for the unused skill.
    digamma = lambda n: -np.euler_gamma + sum(1 / i for i in range(1, n))
    slope = np.asarray(jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits))
    for skill, m in ((0, 2), (2, 3)):
      np.testing.assert_allclose(grad[:, skill], (digamma(4 - m + 1) - digamma(m)) * slope[:, skill], rtol=1e-4)
    np.testing.assert_array_equal(grad[:, 1], np.zeros(4))


class EntropyAndSparsityTest(absltest.TestCase):

  def test_entropy(self):
    logits = jnp.asarray([[0., 1., -30., 200.]])
    p = 1 / (1 + math.exp(-1))
    one = -p * math.log(p) - (1 - p) * math.log(1 - p)
    self.assertAlmostEqual(float(priors.Entropy()(logits)), (math.log(2) + one) / 4, places=6)

  def test_entropy_is_from_zero_to_log_2(self):
    entropy = priors.Entropy()
    self.assertAlmostEqual(float(entropy(jnp.zeros((3, 2)))), math.log(2), places=6)
    self.assertAlmostEqual(float(entropy(jnp.asarray([[80., -80.]]))), 0., places=6)
    for seed in range(3):
      value = float(entropy(3 * jax.random.normal(jax.random.PRNGKey(seed), (4, 5))))
      self.assertBetween(value, 0., math.log(2))
    self.assertTrue(np.isfinite(jax.grad(entropy)(jnp.asarray([[1000., -1000., 0.]]))).all())

  def test_sparsity(self):
    logits = jnp.asarray([[0., 0.], [50., -50.]])
    self.assertAlmostEqual(float(priors.Sparsity()(logits)), .5, places=6)
    self.assertTrue((np.asarray(jax.grad(priors.Sparsity())(jnp.zeros((2, 2)))) > 0).all())


class TotalTest(absltest.TestCase):

  def test_sums_over_tables_and_heads(self):
    rng = np.random.default_rng(0)
    table, heads, other = rng.normal(size=(3, 4)), rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 3))
    params = {'encoder': {'a': {'kernel': np.ones((3, 4)), 'skills': {'down': np.ones((2, 3, 4))},
                                'routing': {'common': table, 'specific': other}},
                          'b': {'routing': {'common': heads}}},
              'routing': {'common': other}}
    seen = []

    def prior(t):
      seen.append(t)
      return jnp.sum(t)

    total = priors.total(jax.tree.map(jnp.asarray, params), prior)
    self.assertAlmostEqual(float(total), table.sum() + heads.sum() + other.sum(), places=4)
    self.assertEqual(sorted(t.shape for t in seen), [(3, 3), (3, 4), (3, 4), (3, 4)])
    np.testing.assert_allclose(sorted(float(t.sum()) for t in seen),
                               sorted([table.sum(), heads[:, 0].sum(), heads[:, 1].sum(), other.sum()]), rtol=1e-5)

  def test_other_tables_on_request(self):
    params = {'a': {'routing': {'common': jnp.ones((2, 2)), 'specific': jnp.ones((2, 3))}}}
    self.assertEqual(float(priors.total(params, jnp.sum, r'(.*/)?routing/(common|specific)')), 10.)

  def test_no_table(self):
    with self.assertRaisesRegex(ValueError, 'PRIOR is set, but this system has no table of logits .*: set PRIOR = None'):
      priors.total({'a': {'routing': {'embedding': jnp.ones((2, 2))}, 'kernel': jnp.ones((2, 2))}}, priors.Entropy())


if __name__ == '__main__':
  absltest.main()
