"""Agreement with known skills: against scikit-learn, against all matchings, and files."""

import itertools
import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from sklearn import metrics

from cpoly_jax.analysis import truth
from cpoly_jax.task_index import TaskIndex

INDEX = TaskIndex(('a', 'b', 'c'))
CSV = 'task,x, y,z\na,1,0,0\nb,0,1,0\nother,0,0,1\nc,1,1,0\n'
LATENT = pathlib.Path(__file__).resolve().parents[3] / 'tasks' / 'assets' / 'latent_skills.csv'


class AdjustedRandTest(parameterized.TestCase):

  def test_by_hand(self):
    # Of 6 pairs of tasks the one has 2 together, the other 1, both 1; by chance 2 * 1 / 6: (1 - 1/3) / (1.5 - 1/3) = 4/7.
    self.assertAlmostEqual(truth.adjusted_rand(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])), 4 / 7)

  @parameterized.parameters(range(6))
  def test_as_scikit_learn(self, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 4, 15), rng.integers(3, 3 + seed + 1, 15)
    self.assertAlmostEqual(truth.adjusted_rand(left, right), metrics.adjusted_rand_score(left, right))

  def test_one_cluster_each(self):
    self.assertEqual(truth.adjusted_rand(np.zeros(4), np.ones(4)), 1.)


class MatchTest(parameterized.TestCase):

  def test_permuted_columns_are_found(self):
    true = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    found = truth.match(true[:, [2, 0, 1]], true)
    self.assertEqual((found.pairs, found.precision, found.recall, found.f1), (((0, 1), (1, 2), (2, 0)), 1., 1., 1.))

  def test_by_hand(self):
    # One column for two true ones: it hits 2 of its 3 entries, of 4 true ones.
    found = truth.match(np.array([[1], [1], [0], [1]], bool), np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool))
    self.assertEqual(found.pairs, ((0, 0),))
    self.assertAlmostEqual(found.precision, 2 / 3)
    self.assertAlmostEqual(found.recall, 1 / 2)
    self.assertAlmostEqual(found.f1, 4 / 7)

  def test_nothing_is_active(self):
    self.assertEqual(truth.match(np.zeros((2, 2), bool), np.eye(2, dtype=bool)).f1, 0.)

  @parameterized.parameters(range(4))
  def test_no_matching_is_better(self, seed):
    rng = np.random.default_rng(seed)
    active, true = rng.random((6, 4)) < .5, rng.random((6, 4)) < .5
    best = max(metrics.f1_score(true.ravel(), active[:, order].ravel()) for order in itertools.permutations(range(4)))
    self.assertAlmostEqual(truth.match(active, true).f1, best)


class CorrelationTest(absltest.TestCase):

  def test_over_pairs(self):
    left = np.array([[1., .1, .2], [.1, 1., .6], [.2, .6, 1.]])
    self.assertAlmostEqual(truth.correlation(left, left * 2 - 1), 1.)
    self.assertAlmostEqual(truth.correlation(left, -left), -1.)
    self.assertTrue(np.isnan(truth.correlation(left, np.ones((3, 3)))))


class ReadTest(parameterized.TestCase):

  def _write(self, name, text):
    path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), name)
    pathlib.Path(path).write_text(text, encoding='utf-8')
    return path

  @parameterized.parameters(('truth.csv', CSV), ('truth.csv', '\ufeff' + CSV),
                            ('truth.json', json.dumps({'a': ['x'], 'b': ['y'], 'c': ['y', 'x'], 'other': ['z']})))
  def test_formats(self, name, text):
    found = truth.read(self._write(name, text), INDEX)
    self.assertEqual(found.skills, ('x', 'y'))
    np.testing.assert_array_equal(found.matrix, [[1, 0], [0, 1], [1, 1]])

  def test_latent_skills(self):
    found = truth.read(str(LATENT), TaskIndex(('latent_agip', 'latent_cifa')))
    self.assertEqual(found.skills, ('reverse', 'drop_last', 'shift', 'dashes', 'tail_agip', 'tail_cifa'))
    np.testing.assert_array_equal(found.matrix, [[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]])

  @parameterized.parameters(('truth.csv', 'task,x\na,1\nb,1\n', 'no row for c'), ('truth.csv', 'task,x\na,2\n', ':2: write'),
                            ('truth.json', '{', 'truth.json:1'), ('truth.txt', '', r'\.csv or a \.json'))
  def test_mistakes(self, name, text, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      truth.read(self._write(name, text), INDEX)
    self.assertNotIn('\n', str(caught.exception))

  def test_absent(self):
    with self.assertRaisesRegex(FileNotFoundError, '--truth'):
      truth.read('/nowhere/truth.csv', INDEX)


if __name__ == '__main__':
  absltest.main()
