"""Tests of the latent-skill suite: its strings, its ground truth, its splits, its tasks."""

import pathlib
import random

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import seqio

from cpoly_jax import routing
from cpoly_jax.task_index import TaskIndex
from tasks import latent_skills
from tasks import latent_strings
from tasks.latent_strings import HELD_OUT, SKILLS, TASKS

ROOT = pathlib.Path(__file__).resolve().parents[2]


class StringsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('reverse', 'zu ba1 ce', 'ce ba1 zu'), ('drop_last', 'zu ba1', 'z ba'), ('shift', 'zu ba1', 'bu ca1'),
      ('double', 'zu ba1', 'zuu baa1'), ('digits', 'z2 ba1', 'z# ba#'), ('dashes', 'zu ba ce', 'zu-ba-ce'),
      ('upper', 'zu ba1', 'ZU BA1'), ('bracket', 'zu ba', '[zu ba]'))
  def test_skill(self, skill, string, expected):
    self.assertEqual(SKILLS[skill](string), expected)

  def test_composition_follows_the_tables_order(self):
    self.assertEqual(latent_strings.compose(('upper', 'double', 'reverse'), 'zu ba'), 'BAA ZUU')
    self.assertEqual(latent_strings.find('kesta').transform('zu ba1'), 'zuu-baa#~yi')
    self.assertIs(latent_strings.find('latent_kesta'), latent_strings.find('kesta'))

  def test_tasks_are_different_and_held_out_ones_are_recombinations(self):
    self.assertGreaterEqual(len(TASKS), 16)
    self.assertLen(HELD_OUT, 8)
    compositions = [frozenset(task.skills) for task in (*TASKS, *HELD_OUT)]
    self.assertLen(set(compositions), len(compositions))
    tails = [task.own for task in (*TASKS, *HELD_OUT) if task.own]
    self.assertLen(set(tails), len(tails))
    used = {skill for task in TASKS for skill in task.skills}
    self.assertEqual(used, set(SKILLS))

  def test_skill_matrix(self):
    matrix = latent_strings.skill_matrix()
    self.assertEqual(matrix.shape, (len(TASKS), len(SKILLS)))
    self.assertEqual(matrix.sum(), sum(len(task.skills) for task in TASKS))
    self.assertTrue((matrix.sum(axis=0) >= 4).all())
    first = min(TASKS, key=lambda task: task.name)
    self.assertEqual({s for s, on in zip(SKILLS, matrix[0]) if on}, set(first.skills))

  def test_splits_are_disjoint_fixed_and_shared_by_tasks(self):
    by_split = {split: {e['string'] for task in TASKS[:3] for e in latent_strings.examples(task, split)}
                for split in latent_strings.SPLIT_SIZES}
    self.assertEmpty(by_split['train'] & by_split['validation'])
    self.assertEmpty(by_split['train'] & by_split['test'])
    self.assertEmpty(by_split['validation'] & by_split['test'])
    # A snapshot: published numbers depend on these strings.
    self.assertEqual(latent_strings.examples(TASKS[0], 'validation')[0],
                     {'inputs': 'bodu: ke0i 6eve 2u', 'targets': '2U 6EVE KE0I~k1', 'string': 'ke0i 6eve 2u'})

  def test_targets_differ_from_copies(self):
    for task in (*TASKS, *HELD_OUT):
      rows = latent_strings.examples(task, 'validation')
      self.assertLess(np.mean([row['string'] == row['targets'] for row in rows]), 0.1, task.name)

  def test_pretraining_knows_neither_codes_nor_tails(self):
    rng = random.Random(0)
    for _ in range(300):
      row = latent_strings.pretraining_example(rng)
      self.assertNotIn('~', row['targets'])
      self.assertNotIn(row['inputs'].split(':')[0], {task.code for task in TASKS})


class TasksTest(parameterized.TestCase):

  def test_registered(self):
    mixture = seqio.MixtureRegistry.get('latent_skills')
    self.assertEqual({t.name for t in seqio.get_subtasks(mixture)}, {task.name for task in TASKS})
    for count in (4, 8):
      first = seqio.MixtureRegistry.get(f'latent_skills_{count}')
      self.assertEqual([t.name for t in seqio.get_subtasks(first)], [task.name for task in TASKS[:count]])
    held_out = seqio.MixtureRegistry.get('latent_skills_held_out')
    self.assertEqual({t.name for t in seqio.get_subtasks(held_out)}, {task.name for task in HELD_OUT})

  @parameterized.parameters(*latent_strings.SPLIT_SIZES.items())
  def test_examples(self, split, size):
    rows = list(seqio.TaskRegistry.get('latent_bodu').get_dataset(split=split, shuffle=False).as_numpy_iterator())
    self.assertLen(rows, size)
    vocabulary = seqio.ByteVocabulary()
    self.assertEqual(vocabulary.decode(rows[0]['inputs']), latent_strings.examples(TASKS[0], split)[0]['inputs'])
    self.assertEqual(rows[0]['inputs'][-1], vocabulary.eos_id)

  def test_metrics(self):
    targets = [('B A', 'a b'), ('c', 'c')]
    self.assertEqual(latent_skills.exact_match(targets, ['B A', 'd']), {'exact_match': .5, 'baseline_copy_exact_match': .5})
    example = {'string': b'a b'}
    self.assertEqual(latent_skills.with_copy('x', example=example, is_target=True), ('x', 'a b'))
    self.assertEqual(latent_skills.with_copy('x', example=example, is_target=False), 'x')


class ExpertMatrixTest(absltest.TestCase):

  def test_the_file_tells_the_truth(self):
    names = tuple(sorted(task.name for task in TASKS))
    matrix = np.array(routing.expert_matrix(str(ROOT / 'tasks/assets/latent_skills.csv'), TaskIndex(names)))
    np.testing.assert_array_equal(matrix[:, :len(SKILLS)], latent_strings.skill_matrix())
    tails = matrix[:, len(SKILLS):]  # One skill for each idiosyncrasy.
    own = [bool(latent_strings.find(name).own) for name in names]
    np.testing.assert_array_equal(tails.sum(axis=1), own)
    np.testing.assert_array_equal(tails.sum(axis=0), 1)


if __name__ == '__main__':
  absltest.main()
