"""Similarity and tree of tasks, by hand and against SciPy's own cuts."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.cluster import hierarchy as scipy_hierarchy
from sklearn import metrics

from cpoly_jax.analysis import hierarchy

# Two pairs and a task between them.
ALIKE = np.array([[1., .9, .5, .1, .1], [.9, 1., .5, .1, .1], [.5, .5, 1., .3, .2], [.1, .1, .3, 1., .8], [.1, .1, .2, .8, 1.]])


class SimilarityTest(absltest.TestCase):

  def test_cosines(self):
    found = hierarchy.cosines([[3., 4.], [4., 3.], [-3., -4.], [0., 0.]])
    np.testing.assert_allclose(found, [[1, .96, -1, 0], [.96, 1, -.96, 0], [-1, -.96, 1, 0], [0, 0, 0, 1]], atol=1e-12)

  def test_a_mean_over_tables_of_different_width(self):
    found = hierarchy.similarity([np.array([[1., 0.], [0., 1.]]), np.array([[2., 0., 0.], [5., 0., 0.]])])
    np.testing.assert_allclose(found, [[1, .5], [.5, 1]])

  def test_no_table(self):
    with self.assertRaisesRegex(ValueError, 'no rows'):
      hierarchy.similarity([])


class TreeTest(parameterized.TestCase):

  def test_joins(self):
    # Distances .1 and .2 of the pairs; task 2 joins {0, 1} at .5; then the mean of .9, .9, .9, .9, .7, .8.
    found = hierarchy.tree(ALIKE)
    np.testing.assert_allclose(found[:, 2], [.1, .2, .5, 5.1 / 6])
    self.assertEqual(found[:, 3].tolist(), [2, 2, 3, 5])

  def test_order_keeps_pairs_together(self):
    order = hierarchy.order(hierarchy.tree(ALIKE))
    self.assertEqual(sorted(order), [0, 1, 2, 3, 4])
    self.assertEqual(abs(order.index(0) - order.index(1)), 1)
    self.assertEqual(abs(order.index(3) - order.index(4)), 1)

  @parameterized.parameters((1, [0] * 5), (2, [0, 0, 0, 1, 1]), (3, [0, 0, 1, 2, 2]), (4, [0, 0, 1, 2, 3]),
                            (5, [0, 1, 2, 3, 4]))
  def test_clusters(self, count, expected):
    self.assertEqual(hierarchy.clusters(hierarchy.tree(ALIKE), count).tolist(), expected)

  def test_clusters_as_scipy_cuts(self):
    rows = np.random.default_rng(0).normal(size=(12, 4))
    tree = hierarchy.tree(hierarchy.cosines(rows))
    for count in range(1, 13):
      cut = scipy_hierarchy.fcluster(tree, count, 'maxclust')
      self.assertEqual(metrics.adjusted_rand_score(cut, hierarchy.clusters(tree, count)), 1.)

  def test_ties_give_as_many_clusters_as_asked(self):
    self.assertLen(set(hierarchy.clusters(hierarchy.tree(np.eye(6)), 3)), 3)


if __name__ == '__main__':
  absltest.main()
