"""Tests of the splits of Super-NI's tasks: which positions are in which, by position and by seed."""

from __future__ import annotations

import hashlib

from absl.testing import absltest
from absl.testing import parameterized
import gin

from tasks import superni_splits
from tasks.superni_splits import Sizes


def _lowest(positions, number, seed):
  """The positions whose rank in the list has the lowest hashes, in their order."""
  ranks = sorted(range(len(positions)), key=lambda rank: hashlib.sha256(f'{seed}:{rank}'.encode()).digest())[:number]
  return [positions[rank] for rank in sorted(ranks)]


class SplitsTest(parameterized.TestCase):

  @parameterized.parameters(
      (220, False, (0, 44), (44, 144)), (400, False, (0, 50), (50, 150)),
      (10, False, (0, 2), (2, 10)), (3, False, (0, 1), (1, 3)),
      (220, True, (100, 124), (124, 220)), (500, True, (100, 150), (150, 250)),
      (100, True, (100, 100), (100, 100)), (30, True, (30, 30), (30, 30)))
  def test_positions(self, number, is_test, validation, train):
    found = superni_splits.split(range(number), is_test, superni_splits.sizes())
    expected = {'validation': list(range(*validation)), 'train': list(range(*train))}
    if is_test:
      expected['test'] = list(range(min(number, 100)))
    self.assertEqual(found, expected)

  def test_sizes(self):
    gin.parse_config('superni_splits.sizes.train = 1000\nsuperni_splits.sizes.validation = 200')
    self.addCleanup(gin.clear_config)
    most = superni_splits.sizes()
    found = superni_splits.split(range(3000), False, most)
    self.assertEqual(found, {'validation': list(range(200)), 'train': list(range(200, 1200))})
    # 20 % of what follows the test instances are 200.
    self.assertEqual(most.needed, 1300)
    self.assertEqual(superni_splits.split(range(most.needed), True, most)['train'], list(range(300, 1300)))

  def test_seed(self):
    found = superni_splits.split(range(400), True, Sizes(40, 30, seed=5))
    rest = list(range(100, 400))
    validation = _lowest(rest, 30, 5)
    self.assertEqual(found['test'], list(range(100)))
    self.assertEqual(found['validation'], validation)
    self.assertEqual(found['train'], _lowest([i for i in rest if i not in validation], 40, 5))
    self.assertNotEqual(superni_splits.split(range(400), True, Sizes(40, 30, seed=6))['validation'], validation)

  def test_an_absent_instance_gives_its_place_to_no_other(self):
    instances = [None if i in (7, 103, 130) else i for i in range(300)]
    found = superni_splits.split(instances, True, Sizes(20, 10, None))
    self.assertEqual(found['test'], [i for i in range(100) if i != 7])
    self.assertEqual(found['validation'], [i for i in range(100, 110) if i != 103])
    self.assertEqual(found['train'], list(range(110, 130)))

  @parameterized.parameters({'train': 0}, {'validation': -1})
  def test_bad_sizes(self, **sizes):
    with self.assertRaisesRegex(ValueError, 'superni_splits.sizes: train=.*; set both to 1 or more'):
      superni_splits.sizes(**sizes)


if __name__ == '__main__':
  absltest.main()
