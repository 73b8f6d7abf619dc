"""Borrowing of specific skills, by hand."""

from absl.testing import absltest
import numpy as np

from cpoly_jax.analysis import borrowing

# Task 0 has two skills of its own, task 1 none, task 2 one.
OWNERS = np.array([0, 0, 2])
WEIGHTS = np.array([[1., .5, -.5], [0., 0., 0.], [.25, -.5, .25]])


class BorrowingTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.taken = borrowing.by_owner(WEIGHTS, OWNERS)

  def test_sums_by_owner(self):
    np.testing.assert_array_equal(self.taken, [[1.5, 0, .5], [0, 0, 0], [.75, 0, .25]])

  def test_shares(self):
    np.testing.assert_array_equal(borrowing.shares(self.taken), [[.75, 0, .25], [0, 0, 0], [.75, 0, .25]])

  def test_mass_off_the_diagonal(self):
    self.assertAlmostEqual(borrowing.borrowed(self.taken), 1.25 / 3)
    self.assertEqual(borrowing.borrowed(np.eye(3)), 0.)
    self.assertTrue(np.isnan(borrowing.borrowed(np.zeros((2, 2)))))

  def test_loans(self):
    signed = WEIGHTS @ (OWNERS[:, None] == np.arange(3))
    self.assertEqual(borrowing.loans(self.taken, signed, 5),
                     [borrowing.Loan(2, 0, .75, -.25), borrowing.Loan(0, 2, .25, -.5)])
    self.assertLen(borrowing.loans(self.taken, signed, 1), 1)


if __name__ == '__main__':
  absltest.main()
