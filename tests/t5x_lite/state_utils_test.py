"""Tests for state_utils."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized

from t5x import state_utils

CKPT = {'target': {'a': 11, 'c': 3}, 'state': {'step': 5, 'x': 7}}
MODEL = {'target': {'a': 1, 'b': 2}, 'state': {'step': 0}}


class TreesTest(absltest.TestCase):

  def test_flatten_keeps_none_and_on_request_empty_nodes(self):
    tree = {'a': {'b': 1, 'c': {}}, 'd': None}
    self.assertEqual(state_utils.flatten_state_dict(tree), {'a/b': 1, 'd': None})
    self.assertIn('a/c', state_utils.flatten_state_dict(tree, keep_empty_nodes=True))
    self.assertEqual(
        state_utils.unflatten_state_dict({'a/b': 1, 'd': None}), {'a': {'b': 1}, 'd': None})

  def test_name_tree(self):
    self.assertEqual(
        state_utils.get_name_tree({'a': {'b': 1}, 'd': None}), {'a': {'b': 'a/b'}, 'd': 'd'})

  def test_intersect(self):
    self.assertEqual(
        state_utils.intersect_state(CKPT, MODEL), {'target': {'a': 11}, 'state': {'step': 5}})

  def test_merge(self):
    self.assertEqual(
        state_utils.merge_state(CKPT, MODEL),
        {'target': {'a': 11, 'b': 2, 'c': 3}, 'state': {'step': 5, 'x': 7}})
    self.assertEqual(
        state_utils.merge_state(CKPT, MODEL, overwrite=True),
        {'target': {'a': 1, 'b': 2, 'c': 3}, 'state': {'step': 0, 'x': 7}})


class AssignmentMapTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('nothing', [], {'a': 11, 'c': 3}),
      ('renamed', [('target/b', 'target/c')], {'a': 11, 'b': 3}),
      ('shared_source', [('target/(a|b)', 'target/c')], {'a': 3, 'b': 3}),
      ('group', [(r'(\w+)/b', r'\1/a')], {'b': 11, 'c': 3}),
      ('left_out', [('target/a', None)], {'c': 3}),
      ('first_match_wins', [('target/b', None), ('target/.*', 'target/c')], {'a': 3}),
  )
  def test_target(self, rules, expected):
    mapped = state_utils.apply_assignment_map(CKPT, MODEL, rules)
    self.assertEqual(mapped['target'], expected)
    self.assertEqual(mapped['state'], {'step': 5, 'x': 7})

  def test_a_pattern_must_match_the_whole_name(self):
    with self.assertRaisesRegex(ValueError, r"unused patterns \['target/'\]"):
      state_utils.apply_assignment_map(CKPT, MODEL, [('target/', 'target/c')])

  def test_unused_patterns_may_be_allowed(self):
    mapped = state_utils.apply_assignment_map(
        CKPT, MODEL, [('target/zz', None)], require_all_rules_match=False)
    self.assertEqual(mapped, CKPT)

  def test_a_missing_source_names_both_sides(self):
    with self.assertRaisesRegex(ValueError, "no 'target/zz'.*'target/b'"):
      state_utils.apply_assignment_map(CKPT, MODEL, [('target/b', 'target/zz')])

  def test_resuming_does_nothing(self):
    mapped = state_utils.apply_assignment_map(
        CKPT, MODEL, [('target/b', 'target/zz')], is_resuming=True)
    self.assertEqual(mapped, CKPT)


class PartitionTest(absltest.TestCase):

  def test_there_and_back(self):
    params = {'base': {'w': 1}, 'mixed': {'w': 2, 'lora': 3}}
    mask = {'base': {'w': False}, 'mixed': {'w': False, 'lora': True}}
    trainable, frozen = state_utils.partition_params(params, mask)
    self.assertEqual(trainable, {'mixed': {'lora': 3}})
    self.assertEqual(frozen, {'base': {'w': 1}, 'mixed': {'w': 2}})
    self.assertEqual(state_utils.merge_params(trainable, frozen), params)

  def test_masks_with_other_names_are_refused(self):
    with self.assertRaisesRegex(ValueError, r"only one: \['b'\]"):
      state_utils.partition_params({'a': 1}, {'a': True, 'b': True})


if __name__ == '__main__':
  absltest.main()
