"""Bootstrap intervals against all resamples, counted one by one."""

from __future__ import annotations

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax.experiments import bootstrap

SLACK = 0.01  # Of a probability, for 10,000 draws: more than six standard deviations of a 2.5 % tail.


class BootstrapTest(parameterized.TestCase):

  def _check_tails(self, found, means):
    """The share of all resamples below `low`, and above `high`, is 2.5 %, as far as there are values in between."""
    means = np.array(means)
    self.assertLessEqual((means < found.low - 1e-12).mean(), 0.025 + SLACK)
    self.assertGreaterEqual((means <= found.low + 1e-12).mean(), 0.025 - SLACK)
    self.assertLessEqual((means > found.high + 1e-12).mean(), 0.025 + SLACK)
    self.assertGreaterEqual((means >= found.high - 1e-12).mean(), 0.025 - SLACK)

  @parameterized.parameters(([0.1, 0.5, 0.6, 0.9],), ([3., -1., 0.5, 2., 7.],))
  def test_mean_against_all_resamples(self, values):
    found = bootstrap.mean(values)
    self.assertAlmostEqual(found.mean, sum(values) / len(values))
    self._check_tails(found, [sum(drawn) / len(drawn) for drawn in itertools.product(values, repeat=len(values))])

  def test_paired_against_all_resamples_of_rows_and_columns(self):
    table = np.array([[0.1, -0.2, 0.4], [0.3, 0.0, 0.2], [-0.1, 0.25, 0.6]])
    found = bootstrap.paired(table)
    self.assertAlmostEqual(found.mean, table.sum() / 9)
    draws = list(itertools.product(range(3), repeat=3))
    self._check_tails(found, [table[np.ix_(rows, columns)].mean() for rows in draws for columns in draws])

  def test_two_values(self):
    # The resamples' means are 0, 1/2, 1/2 and 1: a quarter lies at either end.
    self.assertEqual(bootstrap.mean([0., 1.]), bootstrap.Estimate(0.5, 0., 1.))

  def test_rows_that_agree_leave_only_the_tasks(self):
    column = np.array([0., 1.])
    self.assertEqual(bootstrap.paired(np.stack([column] * 4)), bootstrap.Estimate(0.5, 0., 1.))

  def test_one_seed_draws_tasks_only(self):
    self.assertEqual(bootstrap.paired(np.array([[0., 1.]])), bootstrap.Estimate(0.5, 0., 1.))

  def test_one_value_has_no_interval(self):
    self.assertEqual(bootstrap.mean([0.7]), bootstrap.Estimate(0.7, None, None))
    self.assertEqual(bootstrap.paired(np.array([[0.7]])), bootstrap.Estimate(0.7, None, None))

  def test_same_seed_same_interval(self):
    values = [0.1, 0.5, 0.61, 0.9]
    self.assertEqual(bootstrap.mean(values), bootstrap.mean(values))
    self.assertNotEqual(bootstrap.mean(values, draws=50), bootstrap.mean(values, draws=50, seed=1))


if __name__ == '__main__':
  absltest.main()
