"""Tests of Super-NI's lists and task files: layouts, faults and what is skipped."""

from __future__ import annotations

import json
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin

from tasks import superni
from tasks import superni_files
from tests.tasks import superni_case

_INSTANCES = superni_case.task(4)['Instances']


class ListsTest(superni_case.SuperNiTestCase):

  def setUp(self):
    super().setUp()
    self.tasks = {name: superni_case.task() for name in ('task1_a', 'task2_b', 'task3_c')}

  def test_excluded_tasks_are_in_no_mixture(self):
    self.register(['task1_a'], ['task2_b'], tasks=self.tasks, excluded=['task3_c', 'task4_of_a_larger_copy'])
    self.assertEqual(superni_files.read_lists(),
                     superni_files.Lists(['task1_a'], ['task2_b'], ['task1_a', 'task2_b', 'task3_c']))
    self.assertEqual([self.members(name) for name in superni.MIXTURES],
                     [['superni_task1_a'], ['superni_task2_b'], ['superni_task1_a', 'superni_task2_b']])

  @parameterized.parameters(
      (dict(train=[], test=['task2_b']), 'train_tasks.txt: no task in the list'),
      (dict(train=['task1_a'], test=['task1_a']), 'train_tasks.txt and test_tasks.txt both list task1_a; keep it in one'),
      (dict(train=['task1_a'], test=['task2_b'], excluded=['task2_b']), 'test_tasks.txt and excluded.* both list task2_b'),
      (dict(train=['task1_a'], test=['task2_b'], excluded=['task1_a']), 'train_tasks.txt and excluded.* both list task1_a'),
      (dict(train=['task1_a', 'task8_y'], test=['task9_z']), 'lists 2 tasks without a file in .*task8_y.json; add the files'))
  def test_faulty_lists(self, lists, message):
    with self.assertRaisesRegex((ValueError, FileNotFoundError), message):
      self.register(**lists, tasks=self.tasks)

  def test_names_that_become_the_same(self):
    with self.assertRaisesRegex(ValueError, '2 task files become superni_task4_x_y'):
      self.register(['task1_a'], ['task4_x-y'], tasks={**self.tasks, 'task4_x-y': '', 'task4_x_y': ''})

  def test_absent_files(self):
    self.register(['task1_a'], ['task2_b'], tasks=self.tasks)
    (self.folder / 'splits' / 'default' / 'test_tasks.txt').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*test_tasks.txt; SUPERNI_DIR must'):
      superni.register()
    with mock.patch.dict(os.environ, {superni.VARIABLE: str(self.folder / 'absent')}):
      with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR=.*absent is not a folder'):
        superni.register()

  def test_lists_as_other_systems_write_them(self):
    path = self.folder / 'list.txt'
    path.write_bytes('\ufefftask1_a.json\r\n\r\n task2_b\r\ntask1_a\r\n'.encode())
    self.assertEqual(superni_files.task_list(path), ['task1_a', 'task2_b'])
    path.write_bytes(b'task1\xff\n')
    with self.assertRaisesRegex(ValueError, 'list.txt: not UTF-8'):
      superni_files.task_list(path)


class TaskFileTest(superni_case.SuperNiTestCase):

  def read(self, content):
    path = self.folder / 'task1_a.json'
    path.write_text(content if isinstance(content, str) else json.dumps({**superni_case.task(), **content}))
    return superni_files.read_task(path)

  @parameterized.parameters(
      ('{"Definition":\n ["x"],,}', r'task1_a.json:2: not valid JSON'),
      ({'Definition': []}, r"task1_a.json: field 'Definition' has no text"),
      ({'Instances': [{'id': 'i', 'input': 'x'}]}, r"json: Instances 1: field 'output' is missing"),
      ({'Instances': [*_INSTANCES, {'id': 'i', 'input': 'x', 'output': []}]}, r'Instances 5: .* at least one'),
      ({'Instances': [*_INSTANCES, 'x']}, r"Instances 5: wanted a JSON object, found 'x'"),
      ({'Positive Examples': [{'input': 'x'}]}, r"Positive Examples 1: field 'output' is missing"))
  def test_faults(self, content, message):
    with self.assertRaisesRegex(ValueError, message):
      self.read(content)

  def test_bad_instances_are_skipped_up_to_the_limit(self):
    bad = {'Instances': [_INSTANCES[0], {'input': 'x'}, _INSTANCES[2], {'input': 3, 'output': ['x']}]}
    gin.parse_config('records.skip_bad_lines.limit = 2')
    with self.assertLogs(level='WARNING') as logs:
      task = self.read(bad)
    self.assertEqual([instance and instance['id'] for instance in task.instances], ['task1-0', None, 'task1-2', None])
    self.assertLen(logs.output, 1)
    self.assertRegex(logs.output[0], r"skipped 2 of 4 instances of .*task1_a.json: Instances 2 \(field 'output' is missing\), "
                                     r"Instances 4 \(field 'input' is 3, wanted str\)")
    gin.parse_config('records.skip_bad_lines.limit = 1')
    with self.assertRaisesRegex(ValueError, r"Instances 4: field 'input' is 3.*limit = 1 had allowed Instances 2"):
      self.read(bad)

  def test_rows(self):
    task = self.read({'Instances': _INSTANCES[:1]})
    contents = superni_case.task()
    self.assertEqual(task, superni_files.TaskFile('Word Semantics', [{
        'id': 'task1-0', 'input': 'word 0', 'output': ['a0', 'b0', 'c0'], 'definition': 'Say the opposite',
        'positive': contents['Positive Examples'], 'negative': contents['Negative Examples']}]))

  def test_earlier_scheme(self):
    """Before the final release: a plain definition, plain outputs, no instance ids."""
    task = self.read({'Definition': 'Say it', 'Instances': [{'input': 'x', 'output': 'y'}] * 2})
    self.assertEqual([(row['id'], row['definition'], row['output']) for row in task.instances],
                     [('task1_a-1', 'Say it', ['y']), ('task1_a-2', 'Say it', ['y'])])

  @parameterized.parameters((['B', 'A'], 'B'), ('B', 'B'), ([], 'unknown'), (None, 'unknown'), ([3], 'unknown'))
  def test_categories(self, named, category):
    self.assertEqual(self.read({'Categories': named}).category, category)


if __name__ == '__main__':
  absltest.main()
