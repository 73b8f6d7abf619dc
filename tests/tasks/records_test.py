"""Tests of `tasks.records`: what is read, and that each fault is named by place and remedy."""

from __future__ import annotations

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from tasks import records


class RecordsTest(parameterized.TestCase):

  def write(self, content: bytes | str) -> pathlib.Path:
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'some.jsonl'
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
    return path

  def test_lines_keep_their_numbers_across_blank_ones(self):
    path = self.write('{"a": 1}\n\n{"a": "é"}\r\n')
    self.assertEqual(list(records.read_json_lines(path, ['a'])), [(1, {'a': 1}), (3, {'a': 'é'})])

  @parameterized.parameters(
      (b'{"a": 1}\n{"a": 2', r'some.jsonl:2: not valid JSON \(.*column 8.*\); fix or remove'),
      (b'{"a": 1}\n{"b": 2}', r"some.jsonl:2: field 'a' is missing \(fields here: b\)"),
      (b'{"a": 1}\n{"a": "x"}', r"some.jsonl:2: field 'a' is 'x', wanted int"),
      (b'{"a": true}', r"some.jsonl:1: field 'a' is True, wanted int"),
      (b'[1]', r'some.jsonl:1: wanted a JSON object, found \[1\]'),
      (b'{"a": 1}\n{"a": "\xff"}', r'some.jsonl:2: not UTF-8 \(byte 0xff at column 8\); save .*'),
      (b'', r'some.jsonl: no examples in the file'),
      (b'\n \n', r'some.jsonl: no examples in the file'),
  )
  def test_faulty_lines(self, content, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      list(records.read_json_lines(self.write(content), {'a': int}))
    self.assertNotIn('\n', str(caught.exception))

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
      list(records.read_json_lines(folder))

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
