"""Tests of `tasks.records`: what is read, and that each fault is named by place and remedy."""

from __future__ import annotations

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin

from tasks import records


def _read(path, fields):
  """Returns (line number, value of `a`) of each record."""
  return records.read_rows(path, fields, lambda record, where: [(where.rpartition(':')[2], record['a'])])


class RecordsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)

  def limit(self, number):
    gin.bind_parameter('tasks.records.skip_bad_lines.limit', number)

  def write(self, content: bytes | str) -> pathlib.Path:
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'some.jsonl'
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
    return path

  def test_lines_keep_their_numbers_across_blank_ones(self):
    path = self.write('{"a": 1}\n\n{"a": "é"}\r\n')
    self.assertEqual(_read(path, ['a']), [('1', 1), ('3', 'é')])

  def test_byte_order_mark_and_crlf(self):
    self.assertEqual(_read(self.write(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n'), ['a']), [('1', 1), ('2', 2)])

  @parameterized.parameters(
      (b'{"a": 1}\n{"a": 2', r'some.jsonl:2: not valid JSON \(.*column 8.*\); fix or remove'),
      (b'{"a": 1}\n{"b": 2}', r"some.jsonl:2: field 'a' is missing \(fields here: b\)"),
      (b'{"a": 1}\n{"a": "x"}', r"some.jsonl:2: field 'a' is 'x', wanted int"),
      (b'{"a": true}', r"some.jsonl:1: field 'a' is True, wanted int"),
      (b'[1]', r'some.jsonl:1: wanted a JSON object, found \[1\]'),
      (b'{"a": 1}\n{"a": "\xff"}', r'some.jsonl:2: not UTF-8 \(byte 0xff at column 8\); save .*'),
      (b'', r'some.jsonl: no examples in the file'),
      (b'\n \n', r'some.jsonl: no examples in the file'),
      (b'[' * 100_000, r'some.jsonl:1: not usable JSON \(nested too deeply\); fix or remove'),
      (b'{"a": ' + b'9' * 5000 + b'}', r'some.jsonl:1: not usable JSON \(a number of thousands of digits\)'),
      (b'{"a": 1, "b": "\\ud83d"}', r'some.jsonl:1: not usable JSON \(half of a surrogate pair'),
      (b'{"a": 2147483648}', r"some.jsonl:1: field 'a' is 2147483648, wanted an int of 32 bits"),
      ('{"a": 1}'.encode('utf-16'), r'some.jsonl: saved as UTF-16; save the file as UTF-8'),
      ('{"a": 1}'.encode('utf-16-le'), r'some.jsonl: saved as UTF-16; save the file as UTF-8'),
      ('{"a": 1}'.encode('utf-16-be'), r'some.jsonl: saved as UTF-16; save the file as UTF-8'),
  )
  def test_faulty_lines(self, content, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      _read(self.write(content), {'a': int})
    self.assertNotIn('\n', str(caught.exception))

  def test_surrogate_pairs_and_large_numbers_elsewhere_are_fine(self):
    self.assertEqual(_read(self.write('{"a": "\\ud83d\\ude00", "b": 2147483648}'), {'a': str}), [('1', '\U0001f600')])

  FAULTY = b'{"a": 1}\n{"a": 2\n{"b": 3}\n\n{"a": 4}\n'  # Lines 2 and 3 are bad; line 4 is blank.

  def test_bad_lines_up_to_the_limit_are_skipped_and_told(self):
    path = self.write(self.FAULTY)
    self.limit(2)
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(_read(path, {'a': int}), [('1', 1), ('5', 4)])
    self.assertEqual([record.getMessage() for record in logs.records],
                     [f"skipped 2 of 4 lines of {path}: line 2 (not valid JSON), line 3 (field 'a' is missing)"])

  def test_the_first_bad_line_beyond_the_limit_is_an_error(self):
    path = self.write(self.FAULTY)
    self.limit(1)
    with self.assertRaisesRegex(ValueError, r"some.jsonl:3: field 'a' is missing \(fields here: b\); "
                                r'records.skip_bad_lines.limit = 1 had allowed line 2 \(not valid JSON\)$') as caught:
      _read(path, {'a': int})
    self.assertNotIsInstance(caught.exception, records.BadRecord)

  def test_a_file_of_bad_lines_only_is_an_error_whatever_the_limit(self):
    self.limit(9)
    with self.assertRaisesRegex(ValueError, r'some.jsonl: all 2 lines are bad: line 1 \(.*line 2 \(.*; fix the file$'):
      _read(self.write(b'x\n\xff\n'), {'a': int})

  def test_no_row_of_a_bad_record_is_kept(self):
    def to_rows(record, where):
      yield record['a']
      if record['a'] == 2:
        raise records.BadRecord(f'{where}: two; leave it out')
    path = self.write('{"a": 1}\n{"a": 2}\n')
    with self.assertRaisesRegex(records.BadRecord, 'some.jsonl:2: two; leave it out'):
      records.read_rows(path, (), to_rows)
    self.limit(1)
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(records.read_rows(path, (), to_rows), [1])
    self.assertIn('line 2 (two)', logs.records[0].getMessage())

  def test_only_ten_places_are_named(self):
    self.limit(20)
    with self.assertLogs(level='WARNING') as logs:
      _read(self.write(b'x\n' * 13 + b'{"a": 1}'), {'a': int})
    self.assertRegex(logs.records[0].getMessage(), r'^skipped 13 of 14 lines .*line 10 \(not valid JSON\) and 3 more$')

  def test_other_records_than_lines(self):
    self.limit(1)
    kept = []
    with self.assertLogs(level='WARNING') as logs:
      with records.Faults('t.json', 'instances') as faults:
        for number, instance in enumerate(({'input': 'x'}, 3), start=1):
          with faults.record(f'Instances {number}'):
            records.check_fields(instance, {'input': str}, f't.json: Instances {number}')
            kept.append(instance)
    self.assertEqual(kept, [{'input': 'x'}])
    self.assertEqual(logs.records[0].getMessage(),
                     'skipped 1 of 2 instances of t.json: Instances 2 (wanted a JSON object, found 3)')

  def test_collecting_lists_all_faults_and_raises_none(self):
    path = self.write(self.FAULTY)
    with self.assertNoLogs(level='WARNING'), records.collecting() as faults:
      self.assertEqual(_read(path, {'a': int}), [('1', 1), ('5', 4)])
    self.assertEqual([(fault.path, fault.place) for fault in faults], [(str(path), 'line 2'), (str(path), 'line 3')])
    self.assertStartsWith(faults[1].message, f"{path}:3: field 'a' is missing")
    with self.assertRaises(records.BadRecord):
      _read(path, {'a': int})

  @parameterized.parameters(-1, True, 0.5, '3')
  def test_the_limit_is_a_number_of_records(self, limit):
    self.limit(limit)
    with self.assertRaisesRegex(ValueError, 'records.skip_bad_lines.limit is .*; set it to 0 or a positive whole number'):
      _read(self.write('{"a": 1}'), {'a': int})

  @parameterized.parameters(
      (b'{"a": [\n1,,2]}', r'some.jsonl:2: not valid JSON'),
      (b'{"b": 1}', r"some.jsonl: field 'a' is missing"),
      (b'{"a": 1}', r"some.jsonl: field 'a' is 1, wanted list or str"),
      (b'{"a":\n"\xc3"}', r'some.jsonl:2: not UTF-8'),
      (b' ', r'some.jsonl: the file is empty'),
  )
  def test_faulty_object(self, content, message):
    with self.assertRaisesRegex(ValueError, message):
      records.read_json(self.write(content), {'a': (list, str)})

  def test_object(self):
    self.assertEqual(records.read_json(self.write('{"a":\n [1]}'), {'a': list}), {'a': [1]})

  def test_missing_files(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*absent.json'):
      records.read_json(os.path.join(folder, 'absent.json'))
    with self.assertRaisesRegex(FileNotFoundError, 'is a folder; wanted a file'):
      _read(folder, [])

  def test_folder_of_a_variable(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    with mock.patch.dict(os.environ, {'SOME_DIR': folder}):
      self.assertEqual(str(records.folder_of('SOME_DIR', 'x.json')), folder)
    with mock.patch.dict(os.environ, {'SOME_DIR': ''}):
      self.assertIsNone(records.folder_of('SOME_DIR', 'x.json'))
    with mock.patch.dict(os.environ, {'SOME_DIR': folder + '/absent'}):
      with self.assertRaisesRegex(FileNotFoundError,
                                  'SOME_DIR=.*/absent is not a folder; set SOME_DIR to .* x.json'):
        records.folder_of('SOME_DIR', 'x.json')


if __name__ == '__main__':
  absltest.main()
