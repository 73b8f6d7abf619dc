"""Tests of few-shot subsets: which rows, whole groups, labels, and the same choice everywhere."""

from __future__ import annotations

import hashlib

from absl.testing import absltest
from absl.testing import parameterized

from tasks import few_shot


class FewShotTest(parameterized.TestCase):

  def test_lowest_hashes_in_the_order_of_the_rows(self):
    rows = [f'row {i}' for i in range(50)]
    ranks = {i: hashlib.sha256(b'3:%d' % i).hexdigest() for i in range(50)}
    expected = [rows[i] for i in sorted(sorted(ranks, key=ranks.get)[:8])]
    self.assertEqual(few_shot.sample(rows, 8, 3), expected)

  def test_the_choice_never_changes(self):
    # Runs are compared across years: these numbers may not move.
    self.assertEqual(few_shot.sample(range(100), 5, 0), [15, 44, 46, 87, 99])

  def test_seeds_differ_and_smaller_subsets_lie_within_larger_ones(self):
    subsets = [set(few_shot.sample(range(1000), 32, seed)) for seed in range(5)]
    self.assertLen(set(map(frozenset, subsets)), 5)
    self.assertLess(set(few_shot.sample(range(1000), 16, 0)), subsets[0])

  def test_groups_stay_whole_and_count_once(self):
    rows = [(question, answer) for answer in range(3) for question in range(20)]
    chosen = few_shot.sample(rows, 4, 1, group=lambda row: row[0])
    self.assertLen(chosen, 12)
    questions = {question for question, _ in chosen}
    self.assertLen(questions, 4)
    self.assertEqual(chosen, [row for row in rows if row[0] in questions])

  def test_named_rows_are_chosen_in_any_order(self):
    rows = [{'idx': i} for i in range(40)]
    name = lambda row: row['idx']
    there = few_shot.sample(rows, 6, 2, group=name)
    back = few_shot.sample(rows[::-1], 6, 2, group=name)
    self.assertEqual(there, back[::-1])

  def test_k_of_each_label(self):
    rows = [(i, i % 3) for i in range(30)] + [(30, 9)]
    chosen = few_shot.sample(rows, 4, 0, label=lambda row: row[1])
    counts = {label: sum(row[1] == label for row in chosen) for label in (0, 1, 2, 9)}
    self.assertEqual(counts, {0: 4, 1: 4, 2: 4, 9: 1})  # There is one row of 9 only.

  def test_k_groups_of_each_label(self):
    # Groups 0..9 of two rows; the first row's label is the group's.
    rows = [(g, part, g % 2 if part == 0 else 7) for g in range(10) for part in range(2)]
    chosen = few_shot.sample(rows, 3, 0, group=lambda row: row[0], label=lambda row: row[2])
    self.assertLen(chosen, 12)
    self.assertLen({row[0] for row in chosen if row[2] == 0}, 3)
    self.assertLen({row[0] for row in chosen if row[2] == 1}, 3)

  def test_too_few_rows_are_all_taken(self):
    self.assertEqual(few_shot.sample('abc', 5, 0), ['a', 'b', 'c'])
    self.assertEqual(few_shot.sample([], 5, 0), [])

  @parameterized.parameters(0, -1)
  def test_k_must_be_positive(self, k):
    with self.assertRaisesRegex(ValueError, f'k is {k}; wanted a positive number'):
      few_shot.sample('abc', k, 0)


if __name__ == '__main__':
  absltest.main()
