"""CrossFit's files: rows, faults by file and line, published and whole sets."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
from etils import epath
import gin

from tasks import crossfit_files
from tests.tasks import command_case


class ReadTsvTest(command_case.FolderTestCase):

  def test_rows(self):
    path = self.write('x.tsv', '\ufeffone\tyes\r\n\n  two "b" \t no\t\tNo way \n#3\té')
    self.assertEqual(crossfit_files.read_tsv(path), [
        {'id': 'x.tsv:1', 'input': 'one', 'outputs': ['yes']},
        {'id': 'x.tsv:3', 'input': 'two "b"', 'outputs': ['no', 'No way']},
        {'id': 'x.tsv:4', 'input': '#3', 'outputs': ['é']}])

  @parameterized.parameters(
      ('a\tb\nthe first half\nof it\tb\n', r'x\.tsv:2: no tab in the line; wanted the input, a tab and the output on one line'),
      ('a\tb\nc\t \t\n', r'x\.tsv:2: the output is empty; wanted the input, a tab'),
      ('\tb\n', r'x\.tsv:1: the input is empty'),
      (b'a\tb\ncaf\xe9\tb\n', r'x\.tsv:2: not UTF-8 \(byte 0xe9 at column 4\); save the file as UTF-8'),
      ('a\tb\n'.encode('utf-16'), r'x\.tsv: saved as UTF-16; save the file as UTF-8'),
      ('\n \n', r'x\.tsv: no rows in the file; wanted the input'),
  )
  def test_faults(self, data, expected):
    path = self.write('x.tsv', data)
    with self.assertRaisesRegex(ValueError, expected) as raised:
      crossfit_files.read_tsv(path)
    self.assertNotIn('\n', str(raised.exception))

  def test_bad_rows_are_skipped_up_to_the_limit(self):
    path = self.write('x.tsv', 'a\tb\nhalf\nc\td\n\te\n')
    gin.parse_config('tasks.records.skip_bad_lines.limit = 2')
    with self.assertLogs(level='WARNING') as logged:
      rows = crossfit_files.read_tsv(path)
    self.assertEqual([row['input'] for row in rows], ['a', 'c'])
    self.assertIn('line 2 (no tab in the line), line 4 (the input is empty)', logged.output[0])
    gin.parse_config('tasks.records.skip_bad_lines.limit = 1')
    with self.assertRaisesRegex(ValueError, r'x\.tsv:4: the input is empty'):
      crossfit_files.read_tsv(path)

  def test_no_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*x.tsv'):
      crossfit_files.read_tsv(self.folder / 'x.tsv')


class TaskFilesTest(command_case.FolderTestCase):

  def _files(self, per_label=True, shots=2):
    return crossfit_files.TaskFiles(epath.Path(self.folder), 'boolq', shots, per_label)

  def test_published(self):
    for seed in (100, 13):
      for part in crossfit_files.PARTS:
        self.write(f'boolq/boolq_2_{seed}_{part}.tsv', f'{part} {seed}\tyes\n')
    self.write('boolq/boolq_4_21_train.tsv', 'of another number of shots\tyes\n')
    files = self._files()
    self.assertEqual(files.seeds(), [13, 100])
    self.assertEqual(files.absent(crossfit_files.PARTS, (100, 13)), [])
    for seed in (100, 13):
      for part in crossfit_files.PARTS:
        self.assertEqual([row['input'] for row in files.rows(part, seed)], [f'{part} {seed}'])
    self.assertEqual([path.name for path in files.absent(('dev', 'test'), (13, 42))],
                     ['boolq_2_42_dev.tsv', 'boolq_2_42_test.tsv'])

  def test_no_folder(self):
    self.assertEqual(self._files().seeds(), [])
    self.assertLen(self._files().absent(crossfit_files.PARTS, (100,)), 3)

  def _write_whole(self, part, number=20):
    self.write(f'boolq/boolq_{part}.tsv', ''.join(f'{part} {i}\t{"yes" if i % 4 else "no"}\n' for i in range(number)))

  def test_whole_files(self):
    self._write_whole('train')
    self._write_whole('test')
    files = self._files(shots=3)
    self.assertEqual(files.absent(crossfit_files.PARTS, (7,)), [])
    train, dev = files.rows('train', 7), files.rows('dev', 7)
    for rows in (train, dev):
      self.assertCountEqual([row['outputs'][0] for row in rows[:6]], ['yes'] * 3 + ['no'] * (len(rows) - 3))
    # There are five rows of no: three, and the two that are left.
    self.assertLen(train, 6)
    self.assertLen(dev, 5)
    self.assertEmpty({row['input'] for row in train} & {row['input'] for row in dev})
    self.assertEqual(files.rows('train', 7), train)
    self.assertNotEqual(files.rows('train', 8), train)
    self.assertLen(files.rows('test', 7), 20)

  def test_whole_files_in_all(self):
    self._write_whole('train')
    self._write_whole('dev')
    files = self._files(per_label=False, shots=8)
    self.assertLen(files.rows('train', 7), 8)
    self.assertLen(files.rows('dev', 7), 8)
    self.assertEqual({row['input'].split()[0] for row in files.rows('dev', 7)}, {'dev'})
    self.assertEqual([path.name for path in files.absent(crossfit_files.PARTS, (7,))], ['boolq_8_7_test.tsv'])

  def test_a_lost_dev_file_is_not_drawn_from_what_is_trained_on(self):
    self._write_whole('train')
    self.write('boolq/boolq_2_100_train.tsv', 'train 1\tyes\n')
    files = self._files()
    self.assertLen(files.rows('train', 100), 1)
    self.assertLen(files.absent(('dev',), (100,)), 1)
    with self.assertRaisesRegex(FileNotFoundError, 'boolq_2_100_dev.tsv'):
      files.rows('dev', 100)

  def test_one_test_file_for_all_seeds(self):
    self.write('boolq/boolq_test.tsv', 'test\tyes\n')
    self.assertEmpty(self._files().absent(('test',), (100, 13)))
    self.assertEqual(self._files().rows('test', 13)[0]['input'], 'test')


if __name__ == '__main__':
  absltest.main()
