"""Statistics of a routing, by values worked out by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax.analysis import statistics


class DiscretenessTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('binary', [[0., 1.], [1., 1.]], 1.),
      ('undecided', [[.5, .5], [.5, .5]], 0.),
      # H(1/4) = 1/4 * 2 + 3/4 * log2(4/3) = 0.811278 bits.
      ('quarters', [[.25, .75]], 1 - 0.8112781245),
      ('half of it', [[.5, 0.], [1., .5]], .5))
  def test_values(self, p, expected):
    self.assertAlmostEqual(statistics.discreteness(np.array(p)), expected, places=9)


class UsageTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('alike', [[1., 1.], [0., 0.]], 1.),
      ('one has all', [[1., 0.], [1., 0.]], 0.),
      # Shares 3/4 and 1/4: 0.811278 of 1 bit.
      ('three to one', [[1., 0.], [2., 1.]], 0.8112781245),
      # Shares 1/2, 1/4, 1/4: 1.5 bits of log2 3 = 1.584963.
      ('of three', [[2., 1., -1.]], 1.5 / 1.5849625007))
  def test_values(self, values, expected):
    self.assertAlmostEqual(statistics.usage(np.array(values)), expected, places=9)

  @parameterized.parameters([np.ones((3, 1))], [np.zeros((2, 2))])
  def test_undefined(self, values):
    self.assertTrue(np.isnan(statistics.usage(values)))


class PartitionTest(absltest.TestCase):

  ACTIVE = np.array([[0, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]], bool)

  def test_sparsity(self):
    self.assertAlmostEqual(statistics.sparsity(self.ACTIVE), 8 / 18)

  def test_groups_by_size(self):
    self.assertEqual(list(statistics.partition(self.ACTIVE).items()), [((1, 2), [0, 2, 5]), ((0,), [1, 4]), ((), [3])])

  def test_means(self):
    self.assertEqual(statistics.mean([1., float('nan'), None, 3.]), 2.)
    self.assertTrue(np.isnan(statistics.mean([])))
    self.assertEqual(statistics.means_by(['b', 'a', 'b'], [1., 5., 3.]), {'b': 2., 'a': 5.})


if __name__ == '__main__':
  absltest.main()
