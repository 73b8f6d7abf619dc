"""Tests of `python -m tasks.check`: every fault in a line, warnings, counts, exit codes, the benchmarks' folders."""

from __future__ import annotations

import json
import os

from absl.testing import absltest
from absl.testing import parameterized

from cpoly_jax import testing
from tasks import check
from tasks import own_data_checks
from tasks.own_data_files import Row
from tests.tasks import command_case


def run(*arguments):
  return command_case.run(check.main, *arguments)


class CheckTest(command_case.FolderTestCase):

  def lines(self, *arguments):
    """Returns the exit code and the lines, with `F` for the folder."""
    code, out, err = run(self.folder, *arguments)
    self.assertEqual(err, '')
    return code, out.replace(str(self.folder), 'F').splitlines()

  def test_nothing_to_complain_about(self):
    self.write('qa/train.jsonl', [('a', 'b'), ('c', 'd')])
    self.write('qa/validation.tsv', 'input\ttarget\ne\tf\n')
    self.assertEqual(self.lines(), (0, ['task  train  validation', '----  -----  ----------', 'qa        2           1', '',
                                        'F: 1 task, no faults']))

  def test_all_faults_of_all_files(self):
    self.write('a.jsonl', b'{"input": "a", "target": "b"}\nx\n{"input": "c", "target": ""}\n{"input": "\xff", "target": "b"}\n'
                          b'{"input": "d", "target": "e"}\n')
    self.write('a.tsv', 'input\ttarget\na\tb\n')
    self.write('b/train.csv', 'text,label\na,b\n')
    self.write('b/validation.csv', 'input,target\n,b\nc,d\n')
    self.write('c/dev.jsonl', [('a', 'b')])
    self.write('d.csv', 'input,target\na,b\nc,d\n'.encode('utf-16'))
    code, lines = self.lines()
    self.assertEqual(code, 1)
    self.assertEqual([line.split(': ')[0] for line in lines[:8]],
                     ['F/a.tsv', 'F/c/dev.jsonl', 'F/a.jsonl:2', 'F/a.jsonl:3', 'F/a.jsonl:4', 'F/b/train.csv:1',
                      'F/b/validation.csv:2', 'F/d.csv'])
    self.assertRegex(lines[-1], '^F: 2 tasks, 8 faults$')
    self.assertIn('a         2           -', lines)
    self.assertIn('b         -           1', lines)

  def test_bad_lines_that_may_be_skipped(self):
    self.write('qa/train.jsonl', '{"input": "a", "target": "b"}\nx\ny\n')
    self.write('qa/validation.jsonl', [('c', 'd')])
    code, lines = self.lines('--skip_bad_lines=2')
    self.assertEqual(code, 0)
    self.assertEqual([line.split(' (')[0] for line in lines[:2]],
                     ['skipped: F/qa/train.jsonl:2: not valid JSON', 'skipped: F/qa/train.jsonl:3: not valid JSON'])
    code, lines = self.lines('--skip_bad_lines=1')
    self.assertEqual((code, lines[-1]), (1, 'F: 1 task, 2 faults'))

  def test_many_bad_lines_of_a_file(self):
    self.write('qa/train.jsonl', 'x\n' * 30 + '{"input": "a", "target": "b"}\n')
    self.write('qa/validation.jsonl', [('c', 'd')])
    _, lines = self.lines()
    self.assertStartsWith(lines[19], 'F/qa/train.jsonl:20: ')
    self.assertEqual(lines[20], 'F/qa/train.jsonl: 10 more bad records')

  def test_tasks_without_a_split(self):
    self.write('a.jsonl', [(f'{i}', 'b') for i in range(20)])
    self.write('b.jsonl', [('a', 'b')])
    self.write('c/test.jsonl', [('a', 'b')])
    code, lines = self.lines()
    self.assertEqual(code, 1)
    self.assertRegex(lines[0], r'^F/b.jsonl: only one training input, so that none can be held out for validation; add')
    self.assertRegex(lines[1], r'^note: F/a.jsonl: a has no validation split; 2 of its 20 training examples will be held out')
    self.assertRegex(lines[2], r'^note: F/c: c has no training examples; it can be evaluated')

  def test_names_that_become_the_same(self):
    for name in ('a-b', 'a_b'):
      self.write(f'{name}/train.jsonl', [('a', 'b')])
      self.write(f'{name}/validation.jsonl', [('c', 'd')])
    code, lines = self.lines()
    self.assertEqual((code, lines[0]),
                     (1, "F/a_b: the task 'a_b' gets the same name as 'a-b', own_data_a_b; rename one of them"))

  def test_leaks_doubles_and_labels(self):
    rows = lambda split, *pairs: [Row(a, (b,), f'{split}:{i}') for i, (a, b) in enumerate(pairs, start=1)]
    train = [('a', 'yes'), ('b', 'no'), ('a', 'yes'), ('b', 'yes'), ('e', 'No'), ('f', 'No')]
    found = own_data_checks.warnings({
        'train': rows('train', *train), 'validation': rows('validation', ('a', 'yes'), ('c', 'perhaps'), ('d', 'perhaps')),
        'test': rows('test', ('c', 'no'), ('g', 'maybe'))})
    self.assertEqual([line.rpartition(';')[0] for line in found], [
        'validation:1: this input of validation is also in train, train:1 (a leak)',
        'test:1: this input of test is also in validation, validation:2 (a leak)',
        'train:3: the same record as train:1',
        'train:4: the same input, with another target, as train:2',
        "train:2: the labels 'No' and 'no' differ in case only",
        "validation:2: the label 'perhaps' of validation never occurs in train",
        "test:2: the label 'maybe' of test never occurs in train"])

  def test_many_warnings_of_a_kind(self):
    doubles = [Row('a', ('b c',), f'train:{i}') for i in range(1, 10)]
    found = own_data_checks.warnings({'train': doubles, 'validation': []})
    self.assertLen(found, own_data_checks.MOST)
    self.assertEndsWith(found[-1], '; remove one of them (and 3 more like this)')

  def test_warnings_are_no_faults(self):
    self.write('a/train.jsonl', [('a', 'b')])
    self.write('a/validation.jsonl', [('a', 'b')])
    code, lines = self.lines()
    self.assertEqual((code, lines[-1]), (0, 'F: 1 task, 1 warning'))
    self.assertEqual(lines[0], 'warning: F/a/validation.jsonl:1: this input of validation is also in train, F/a/train.jsonl:1 '
                               '(a leak); remove one of them')

  def test_one_file_of_several_tasks(self):
    path = self.folder / 'all.csv'
    self.write('all.csv', 'task,split,input,target\na,train,1,2\na,validation,3,4\n,train,5,6\n')
    code, out, _ = run(path)
    self.assertEqual(code, 1)
    self.assertStartsWith(out, f"{path}:4: field 'task' is missing or empty")
    self.assertIn('a         1           1', out)

  @parameterized.parameters(
      (('absent',), 'error: no folder absent; give a folder of tasks'),
      ((), 'error: the following arguments are required: FOLDER'),
      (('x', '--skip_bad_lines=-1'), 'error: '),
  )
  def test_mistakes(self, arguments, message):
    code, out, err = run(*arguments)
    self.assertEqual((code, out), (1, ''))
    self.assertStartsWith(err, message)
    self.assertEqual(err.count('\n'), 1)

  def test_no_task_in_the_folder(self):
    code, lines = self.lines()
    self.assertEqual(code, 1)
    self.assertStartsWith(lines[0], 'F: no tasks in the folder; wanted <task>.jsonl')

  # Benchmarks.

  def test_superglue(self):
    for folder in ('BoolQ', 'CB'):
      for split in ('train', 'val'):
        self.write(f'{folder}/{split}.jsonl', '')
    boolq = {'question': 'q', 'passage': 'p', 'idx': 0, 'label': True}
    self.write('BoolQ/train.jsonl', json.dumps(boolq) + '\n' + json.dumps({**boolq, 'idx': 1, 'label': 'yes'}) + '\n')
    code, lines = self.lines()
    self.assertEqual(code, 1)
    self.assertEqual(lines[0], "F/BoolQ/train.jsonl:2: label 'yes' is not one of False, True")
    self.assertEqual(lines[1], 'F/BoolQ/val.jsonl: no examples in the file; wanted one JSON object a line')
    self.assertIn('superglue_boolq      1', lines)

  def test_superni(self):
    task = {'Definition': ['d'], 'Positive Examples': [], 'Negative Examples': [], 'Categories': ['c'],
            'Instances': [{'id': '1', 'input': 'a', 'output': ['b']}, {'id': '2', 'input': 'a', 'output': []}]}
    self.write('tasks/task1_x.json', json.dumps(task))
    self.write('tasks/task2_y.json', '{')
    self.write('splits/default/train_tasks.txt', 'task1_x\n')
    self.write('splits/default/test_tasks.txt', 'task3_z\n')
    before = dict(os.environ)
    code, lines = self.lines()
    self.assertEqual((code, dict(os.environ)), (1, before))
    self.assertRegex(lines[0], r'^F/splits/default lists 1 tasks without a file in F/tasks, e.g. task3_z.json')
    self.assertRegex(lines[1], r"^F/tasks/task1_x.json: Instances 2: field 'output' is \[\]")
    self.assertRegex(lines[2], r'^F/tasks/task2_y.json:1: not valid JSON')
    self.assertIn('superni_task1_x          1', lines)

  def test_crossfit(self):
    self.write('ag_news/ag_news_16_13_train.tsv', 'a\tb\nc\n')
    self.write('ag_news/ag_news_16_13_dev.tsv', 'a\tb\n')
    code, lines = self.lines()
    self.assertEqual(code, 1)
    self.assertRegex(lines[0], r'^F/ag_news/ag_news_16_13_train.tsv:2: no tab in the line')
    self.assertIn('ag_news      1           1', lines)

  @parameterized.parameters(('superglue', 8), ('superni', 100))
  def test_real_data(self, name, tasks):
    code, out, err = run(testing.shared_data(name))
    self.assertEqual((code, err), (0, ''))
    self.assertEndsWith(out, f': {tasks} tasks, no faults\n')


if __name__ == '__main__':
  absltest.main()
