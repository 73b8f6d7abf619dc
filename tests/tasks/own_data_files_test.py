"""Tests of the layouts and formats of own tasks: what is read, and that each fault is told with its place and remedy."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import gin

from tasks import own_data_files
from tasks import records
from tasks.own_data_files import Row
from tests.tasks import command_case

JSONL = '{"input": "a", "target": "b"}\n'
TSV = 'input\ttarget\na\tb\n'


class FilesTest(command_case.FolderTestCase):

  def read(self, name, content, split='', task='t'):
    """Returns (split, input, targets, line) of each record."""
    path = self.write(name, content)
    return [(of_split, row.input, row.targets, row.where.removeprefix(f'{path}:'))
            for _, of_split, row in own_data_files.read_file(path, split, task)]

  # Layouts.

  def test_one_file_and_one_folder_a_task(self):
    self.write('zoo.tsv', TSV)
    self.write('qa/train.jsonl', JSONL)
    self.write('qa/validation.csv', 'input,target\nc,d\n')
    for name in ('.DS_Store', 'README.md', 'LICENSE', 'qa/.x', 'qa/readme.txt'):
      self.write(name, 'x')
    tasks, faults = own_data_files.find(self.folder)
    self.assertEqual(faults, [])
    self.assertEqual([(task.name, task.path) for task in tasks],
                     [('qa', str(self.folder / 'qa')), ('zoo', str(self.folder / 'zoo.tsv'))])
    self.assertEqual(tasks[0].read(), {'train': [Row('a', ('b',), f'{self.folder}/qa/train.jsonl:1')],
                                       'validation': [Row('c', ('d',), f'{self.folder}/qa/validation.csv:2')]})

  def test_one_file_of_several_tasks(self):
    path = self.write('all.csv', 'task,split,input,target\nb,train,1,2\na,validation,3,4\nb,,5,6\n')
    tasks, faults = own_data_files.find(path)
    self.assertEqual((faults, [task.name for task in tasks], tasks[0].path), ([], ['a', 'b'], str(path)))
    self.assertEqual(tasks[0].read(), {'validation': [Row('3', ('4',), f'{path}:3')]})
    self.assertEqual(tasks[1].read(), {'train': [Row('1', ('2',), f'{path}:2'), Row('5', ('6',), f'{path}:4')]})

  @parameterized.parameters(
      ('notes.txt', r'notes.txt: no .jsonl, .tsv or .csv file; convert it'),
      ('a.train.jsonl', r'a.train.jsonl: the name has a split in it; move the file to .*/a/train.jsonl'),
      ('train.jsonl', r'train.jsonl: a file of one split lies in the folder of a task; move it to .*/<task>/train.jsonl'),
      ('qa/dev.tsv', r"qa/dev.tsv: 'dev' is no split; rename the file to one of train.tsv, validation.tsv, test.tsv"),
      ('qa/train.json', r'qa/train.json: no .jsonl'),
      ('qa/more/train.jsonl', r'qa/more: a folder inside the folder of a task'),
      ('ok.csv', r'ok.jsonl: a second task ok, besides .*/ok.csv; rename one of them, or put .* into .*/ok/'),
  )
  def test_what_fits_no_layout(self, name, message):
    self.write('ok.jsonl', JSONL)
    self.write(name, JSONL)
    tasks, faults = own_data_files.find(self.folder)
    self.assertEqual([task.name for task in tasks], ['ok'])
    self.assertLen(faults, 1)
    self.assertRegex(faults[0], message)

  def test_two_files_of_a_split(self):
    self.write('qa/train.jsonl', JSONL)
    self.write('qa/train.tsv', TSV)
    self.assertRegex(own_data_files.find(self.folder)[1][0], r'qa/train.tsv: a second file of this split, besides train.jsonl')

  def test_nothing_there(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no tasks in the folder; wanted <task>.jsonl'):
      own_data_files.find(self.folder)
    with self.assertRaisesRegex(FileNotFoundError, 'no folder .*/absent; give a folder with <task>.jsonl'):
      own_data_files.find(self.folder / 'absent')
    with self.assertRaisesRegex(ValueError, 'x.json: no .jsonl'):
      own_data_files.find(self.write('x.json', '{}'))
    (self.folder / 'qa').mkdir()
    self.assertRegex(own_data_files.find(self.folder)[1][0], 'qa: no files in the folder; put train.jsonl into it')

  # Records.

  def test_names_of_fields(self):
    self.assertEqual(
        self.read('x.jsonl', '{"inputs": " a ", "targets": [" b", "c "], "id": 3}\n\n{"input": "d", "target": "e"}\n'),
        [('train', ' a ', ('b', 'c'), '1'), ('train', 'd', ('e',), '3')])

  def test_splits_of_one_file(self):
    self.assertEqual(
        self.read('x.tsv', 'split\tinput\ttarget\ntrain\ta\tb\n\tc\td\nvalidation\te\tf\ntest\tg\t\n'),
        [('train', 'a', ('b',), '2'), ('train', 'c', ('d',), '3'), ('validation', 'e', ('f',), '4'), ('test', 'g', (), '5')])

  def test_quotes_line_breaks_and_their_lines(self):
    content = 'input,target\r\n"two\r\nlines, ""quoted""",b\r\n\r\nc,"d\n"\n'
    self.assertEqual(self.read('x.csv', b'\xef\xbb\xbf' + content.encode()),
                     [('train', 'two\r\nlines, "quoted"', ('b',), '2'), ('train', 'c', ('d',), '5')])
    self.assertEqual(self.read('x.tsv', 'input\ttarget\nsay "x", y\tb\n'), [('train', 'say "x", y', ('b',), '2')])

  def test_long_fields(self):
    long = 'x' * 200_000
    self.assertEqual(self.read('x.csv', f'input,target\n{long},b\n'), [('train', long, ('b',), '2')])

  def test_hidden_targets_of_test(self):
    self.assertEqual(self.read('test.jsonl', '{"input": "a"}\n{"input": "b", "target": ""}\n', 'test'),
                     [('test', 'a', (), '1'), ('test', 'b', (), '2')])
    self.assertEqual(self.read('test.csv', 'input\na\n', 'test'), [('test', 'a', (), '2')])

  @parameterized.parameters(
      ('{"target": "b"}', r":2: field 'input' is missing \(fields here: target\); rename the field that has it"),
      ('{"input": "a"}', r":2: field 'target' is missing \(fields here: input\)"),
      ('{"input": "a", "inputs": "a", "target": "b"}', r":2: both 'input' and 'inputs' are there; keep one"),
      ('{"input": 3, "target": "b"}', r':2: the input is 3, wanted a text; write it in quotes'),
      ('{"input": " ", "target": "b"}', r':2: the input is empty; fill it in or remove the record'),
      ('{"input": "a", "target": 3}', r':2: the target is 3, wanted a text or a list of texts; write it in quotes'),
      ('{"input": "a", "target": ["b", null]}', r":2: the target is \['b', None\], wanted a text or a list of texts"),
      ('{"input": "a", "target": []}', r':2: the target is empty'),
      ('{"input": "a", "target": ["b", " "]}', r':2: the target is empty'),
      ('{"input": "a", "target": "b", "split": "dev"}', r":2: split 'dev' is none of train, validation, test; write one"),
      ('{"input": "a", "target": "b", "split": 1}', r":2: field 'split' is 1, wanted a text"),
      ('{"input": "a", "target": "b", "task": "u"}', r":2: field 'task' is 'u', in the file of the task 't'; give the file"),
      ('{"input": "a\\ud800", "target": "b"}', r':2: not usable JSON \(half of a surrogate pair'),
  )
  def test_bad_records(self, line, message):
    with self.assertRaisesRegex(records.BadRecord, r'x.jsonl' + message) as caught:
      self.read('x.jsonl', JSONL + line)
    self.assertNotIn('\n', str(caught.exception))
    gin.bind_parameter('tasks.records.skip_bad_lines.limit', 1)
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(self.read('x.jsonl', JSONL + line), [('train', 'a', ('b',), '1')])
    self.assertRegex(logs.records[0].getMessage(), r'^skipped 1 of 2 lines of .*x.jsonl: line 2 \(')

  def test_a_split_that_contradicts_its_file(self):
    with self.assertRaisesRegex(records.BadRecord, "field 'split' is 'test', in the file of the split train; move the record"):
      self.read('train.jsonl', '{"input": "a", "target": "b", "split": "test"}', 'train')

  def test_a_task_that_is_not_named(self):
    with self.assertRaisesRegex(records.BadRecord, r"all.jsonl:1: field 'task' is missing or empty; write the name"):
      own_data_files.find(self.write('all.jsonl', JSONL))

  @parameterized.parameters(
      ('a\tb\tc\n', r':3: 3 fields, and the header has 2; put a field that has tabs, quotes or line breaks in quotes'),
      ('a\n', r':3: 1 fields, and the header has 2'),
      ('"a" b\tc\n', r":3: not a valid row \('\t' expected after '\"'\); put the field in quotes"),
      (b'\xe9\tc\n', r':3: not UTF-8 \(byte 0xe9\); save the file as UTF-8'),
  )
  def test_bad_records_of_tables(self, line, message):
    content = TSV.encode() + (line if isinstance(line, bytes) else line.encode()) + b'd\te\n'
    with self.assertRaisesRegex(records.BadRecord, r'x.tsv' + message):
      self.read('x.tsv', content)
    gin.bind_parameter('tasks.records.skip_bad_lines.limit', 1)
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(self.read('x.tsv', content), [('train', 'a', ('b',), '2'), ('train', 'd', ('e',), '4')])
    self.assertRegex(logs.records[0].getMessage(), r'^skipped 1 of 3 records of .*x.tsv: line 3 \(')

  @parameterized.parameters(
      ('x.tsv', '', r'x.tsv: the file is empty; its first line names the columns: input, target'),
      ('x.tsv', TSV[:13], r'x.tsv: no examples in the file after its header'),
      ('x.tsv', 'a\tb\n', r"x.tsv:1: no column 'input' \(columns here: 'a', 'b'\); the first line names the columns: input"),
      ('x.csv', TSV, r'x.csv:1: no column .*fields are separated by commas here, and this line seems to have tabs'),
      ('x.tsv', 'input;target\na;b', r'x.tsv:1: no column .*separated by tabs here, and this line seems to have semicolons'),
      ('x.tsv', 'input\ttarget\tinput\na\tb\tc', r"x.tsv:1: two columns are named 'input'; rename one of them"),
      # A quote that swallows lines is never skipped: who knows how many.
      ('x.tsv', TSV + '"a\tb\nc\td\n', r'x.tsv:3: a quote that opens here does not close its field \(lines 3 to 4\); write'),
      ('x.csv', TSV.encode('utf-16'), r'x.csv: saved as UTF-16; save the file as UTF-8'),
  )
  def test_faults_of_whole_tables(self, name, content, message):
    gin.bind_parameter('tasks.records.skip_bad_lines.limit', 100)
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.read(name, content)
    self.assertNotIsInstance(caught.exception, records.BadRecord)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
