"""Tests of the TaskIndex: keys, rows, files and the errors that keep rows and tasks together."""

import pathlib
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest
import seqio

from cpoly_jax import task_index
from cpoly_jax.task_index import TaskIndex
import tasks  # noqa: F401  Registers them.


class TaskIndexTest(absltest.TestCase):

  def test_keys_depend_on_names_alone(self):
    self.assertEqual(task_index.task_key('rte'), zlib.crc32(b'rte') & 0x7fffffff)
    self.assertEqual(list(TaskIndex(('b', 'a')).keys), [task_index.task_key('b'), task_index.task_key('a')])

  def test_rows(self):
    index = TaskIndex(('boolq', 'cb', 'rte'))
    self.assertEqual([index.row(n) for n in index.names], [0, 1, 2])
    self.assertLen(index, 3)
    with self.assertRaisesRegex(ValueError, "'rta' has no routing row; did you mean 'rte'"):
      index.row('rta')

  def test_repeated_or_missing_names(self):
    with self.assertRaisesRegex(ValueError, "'a' is listed twice"):
      TaskIndex(('a', 'b', 'a'))
    with self.assertRaisesRegex(ValueError, 'at least one'):
      TaskIndex(())

  def test_saved_and_loaded(self):
    folder = pathlib.Path(tempfile.mkdtemp(), 'run')
    index = TaskIndex(('ä "quoted"', 'b'))
    self.assertIsNone(TaskIndex.load(folder))
    index.save(folder)
    index.save(folder)  # A run that resumes writes it again.
    self.assertEqual(TaskIndex.load(folder), index)
    self.assertEqual([p.name for p in folder.iterdir()], ['task_index.json'])

  def test_damaged_file_is_named(self):
    folder = pathlib.Path(tempfile.mkdtemp())
    for text in ('{"tasks": [1]}', '{"tasks"', '[]'):
      (folder / 'task_index.json').write_text(text)
      with self.assertRaisesRegex(ValueError, 'task_index.json is damaged'):
        TaskIndex.load(folder)

  def test_difference_is_listed(self):
    with self.assertRaisesRegex(ValueError, 'runs/1 .*only there: c; only in this run: b.*Use another MODEL_DIR'):
      TaskIndex(('a', 'b')).check_same(TaskIndex(('a', 'c')), 'runs/1')
    with self.assertRaisesRegex(ValueError, 'the same tasks in another order'):
      TaskIndex(('a', 'b')).check_same(TaskIndex(('b', 'a')), 'runs/1')
    TaskIndex(('a', 'b')).check_same(TaskIndex(('a', 'b')), 'runs/1')

  def test_coverage(self):
    TaskIndex(('a', 'b')).check_covers(['b'])
    with self.assertRaisesRegex(ValueError, '1 of 2 tasks have no routing row: x'):
      TaskIndex(('a', 'b')).check_covers(['a', 'x'])

  def test_routed_as_another(self):
    with mock.patch.dict(task_index._routed_as):
      task_index.route_as('probe', 'b')
      task_index.route_as('probe', 'b')  # A module that registers twice.
      task_index.route_as('probe_rank', 'probe')
      self.assertEqual([task_index.routed_as(n) for n in ('a', 'b', 'probe', 'probe_rank')], ['a', 'b', 'b', 'b'])
      self.assertEqual(task_index.task_key('probe'), zlib.crc32(b'probe') & 0x7fffffff)
      TaskIndex(('a', 'b')).check_covers(['a', 'probe', 'probe_rank'])
      with self.assertRaisesRegex(ValueError, '1 of 2 tasks have no routing row: probe'):
        TaskIndex(('a', 'c')).check_covers(['a', 'probe'])
      with self.assertRaisesRegex(ValueError, "'probe' is routed as 'b' already, not as 'c'"):
        task_index.route_as('probe', 'c')
      for name, other in (('b', 'probe_rank'), ('x', 'x')):
        with self.assertRaisesRegex(ValueError, f"'{name}' cannot be routed as '{other}'"):
          task_index.route_as(name, other)

  def test_grown_and_without(self):
    index = TaskIndex(('a', 'b')).grown(['d', 'c'])
    self.assertEqual(index.names, ('a', 'b', 'd', 'c'))
    self.assertEqual(index.without(['b', 'c']).names, ('a', 'd'))
    self.assertEqual(index.grown([]), index)
    with self.assertRaisesRegex(ValueError, r'b, d have a routing row already \(row 1\): name new tasks only'):
      index.grown(['b', 'e', 'd'])
    with self.assertRaisesRegex(ValueError, "'e' is listed twice"):
      index.grown(['e', 'e'])
    with self.assertRaisesRegex(ValueError, 'nothing is left without a, b, c, d: keep at least one task'):
      index.without(['a', 'b', 'c', 'd'])
    with self.assertRaisesRegex(ValueError, "'e' has no routing row"):
      index.without(['e'])

  def test_from_mixture_holds_a_routed_task_once(self):
    first, second = sorted(task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task('latent_skills')))[:2]
    with mock.patch.dict(task_index._routed_as):
      task_index.route_as(second, first)
      index = task_index.from_mixture('latent_skills')
    self.assertLen(index, 15)
    self.assertIn(first, index.names)
    self.assertNotIn(second, index.names)

  def test_from_mixture(self):
    index = task_index.from_mixture('latent_skills', 'tasks')
    self.assertLen(index, 16)
    self.assertEqual(list(index.names), sorted(index.names))
    self.assertEqual(task_index.num_tasks(index), 16)
    with self.assertRaisesRegex(ValueError, "'latent_skill'; did you mean latent_skills"):
      task_index.from_mixture('latent_skill', 'tasks')


if __name__ == '__main__':
  absltest.main()
