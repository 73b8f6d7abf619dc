"""Readers of files, given arbitrary bytes and damaged files: they read them, or raise one line that names the file.

Any other exception would be a traceback in a user's terminal.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import gin
import hypothesis
from hypothesis import strategies as st

from tasks import crossfit_files
from tasks import own_data_files
from tasks import records
from tasks import superglue_formats
from tasks import superni_files
from tests.tasks import command_case

hypothesis.settings.register_profile('files', max_examples=150, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile('files')

_WSC = {'text': 'Mark told Pete', 'target': {'span1_text': 'Mark', 'span1_index': 0, 'span2_text': 'Pete', 'span2_index': 2},
        'idx': 0, 'label': True}
_RECORD = {'idx': 0, 'passage': {'text': 'Ann met Bob', 'entities': [{'start': 0, 'end': 2}]},
           'qas': [{'query': '@placeholder left', 'idx': 0, 'answers': [{'text': 'Ann', 'start': 0, 'end': 2}]}]}
_MULTIRC = {'idx': 0, 'passage': {'text': 'p', 'questions': [
    {'question': 'q', 'idx': 0, 'answers': [{'text': 'a', 'idx': 0, 'label': 1}]}]}}
_ENTAILMENT = {'premise': 'p', 'hypothesis': 'h', 'idx': 0, 'label': 'entailment'}
# A good line of each format.
SUPERGLUE = {
    'boolq': {'question': 'q', 'passage': 'p', 'idx': 0, 'label': True},
    'cb': _ENTAILMENT,
    'copa': {'premise': 'p', 'choice1': 'a', 'choice2': 'b', 'question': 'cause', 'idx': 0, 'label': 1},
    'multirc': _MULTIRC,
    'record': _RECORD,
    'rte': _ENTAILMENT,
    'wic': {'word': 'w', 'sentence1': 'a w', 'sentence2': 'w b', 'idx': 0, 'label': False,
            'start1': 2, 'start2': 0, 'end1': 3, 'end2': 1, 'version': 1.1},
    'wsc': _WSC,
}
SUPERNI = {'Contributors': [], 'Categories': ['c'], 'Definition': ['d'],
           'Positive Examples': [{'input': 'a', 'output': 'b', 'explanation': 'c'}], 'Negative Examples': [],
           'Instances': [{'id': 'task1-1', 'input': 'a', 'output': ['b', 'c']}]}
OWN = {'input': 'a', 'target': ['b'], 'split': 'train', 'task': 'file'}

# Any JSON, to be put in the place of a part of a good record.
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4), max_leaves=4,
    extend=lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


def _places(value, path=()):
  """Paths of all parts of a JSON value."""
  yield path
  parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, part in parts:
    yield from _places(part, (*path, key))


def _replaced(value, path, other):
  """The value with `other` in the place of the part at `path`."""
  if not path:
    return other
  copy = dict(value) if isinstance(value, dict) else list(value)
  copy[path[0]] = _replaced(value[path[0]], path[1:], other)
  return copy


def mutated(record):
  """Strategy: the record as JSON, with a part replaced, or with a field that no reader knows, which harms none."""
  replaced = st.tuples(st.sampled_from(sorted(_places(record), key=str)), _json).map(lambda drawn: _replaced(record, *drawn))
  extended = st.tuples(st.text(max_size=3), _json).map(lambda drawn: {**record, f'other {drawn[0]}': drawn[1]})
  return (replaced | extended).map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw, good: bytes):
  """Strategy: bytes of a good file, with some of them replaced, inserted or cut."""
  start = draw(st.integers(0, len(good)))
  end = draw(st.integers(start, min(len(good), start + 8)))
  return good[:start] + draw(st.binary(max_size=4)) + good[end:]


class FuzzTest(command_case.FolderTestCase):

  def survives(self, strategy, name, read, wanted_reads):
    """Gives many files of a strategy to a reader.

    Args:
      strategy: of the bytes of the file.
      name: of the file.
      read: reads a path and returns rows.
      wanted_reads: whether some of the files must be readable, lest only the first check is ever reached.
    """
    path = self.folder / name
    outcomes = []

    @hypothesis.given(strategy)
    def once(content):
      path.write_bytes(content)
      try:
        self.assertIsInstance(read(path), list)
        outcomes.append('read')
      except (ValueError, FileNotFoundError) as e:
        # UnicodeError is a ValueError too, but none of ours.
        self.assertIn(type(e), (ValueError, records.BadRecord, FileNotFoundError), repr(e))
        self.assertStartsWith(str(e), str(path))
        self.assertLen(str(e).splitlines(), 1)
        self.assertLess(len(str(e)), 1000 + len(str(path)))
        outcomes.append('refused')

    once()
    self.assertIn('refused', outcomes)
    if wanted_reads:
      self.assertIn('read', outcomes)

  # Own data.

  def own(self, path):
    """Reads a file, and its rows as bytes: texts must be fit for a tensor."""
    rows = own_data_files.read_file(path, '', 'file')
    for task, split, row in rows:
      self.assertEqual((task, split in own_data_files.SPLITS), ('file', True))
      ''.join([row.input, *row.targets]).encode('utf-8')
    return rows

  @parameterized.parameters('file.jsonl', 'file.tsv', 'file.csv')
  def test_own_data_of_arbitrary_bytes(self, name):
    self.survives(st.binary(max_size=200), name, self.own, wanted_reads=False)

  def test_own_data_of_other_json(self):
    self.survives(mutated(OWN), 'file.jsonl', self.own, wanted_reads=True)

  @parameterized.parameters(('file.jsonl', (json.dumps(OWN) + '\n').encode() * 2),
                            ('file.tsv', b'input\ttarget\tsplit\na b\t"c\n""d"\ttrain\ne\tf\ttest\n'),
                            ('file.csv', b'\xef\xbb\xbfinput,target\r\n"a, b","c\r\n""d"\r\ne,\xc3\xa9\r\n'))
  def test_own_data_that_is_damaged(self, name, good):
    self.survives(damaged(good), name, self.own, wanted_reads=True)

  @parameterized.parameters('\n', '\t', ',', '"', '\r')
  def test_own_tables_of_texts(self, favourite):
    """Texts around the signs that mean something in a table."""
    signs = st.text(st.sampled_from(['a', 'é', '\0', '\u2028', ',', '\t', '"', '\n', '\r', favourite]), max_size=30)
    self.survives(signs.map(lambda text: f'input,target\na,b\n{text}'.encode()), 'file.csv', self.own, wanted_reads=True)

  def test_limits_skip_what_they_may(self):
    """With a large limit only faults of the whole file remain, and no row is lost that can be read."""
    gin.bind_parameter('tasks.records.skip_bad_lines.limit', 1000)
    lines = st.lists(mutated(OWN) | st.just(json.dumps(OWN).encode()), min_size=1, max_size=5)

    @hypothesis.given(lines)
    def once(drawn):
      path = self.folder / 'file.jsonl'
      readable = 0
      for line in drawn:
        path.write_bytes(line)
        try:
          readable += len(self.own(path))
        except ValueError:
          pass
      path.write_bytes(b'\n'.join(drawn))
      if readable:
        self.assertLen(self.own(path), readable)
      else:
        with self.assertRaisesRegex(ValueError, r'all \d+ lines are bad'):
          self.own(path)

    once()

  # Benchmarks.

  def test_every_format_is_here(self):
    self.assertEqual(set(SUPERGLUE), set(superglue_formats.FORMATS))

  @parameterized.parameters(*SUPERGLUE)
  def test_superglue_of_other_json(self, task):
    form = superglue_formats.FORMATS[task]
    good = self.folder / 'good.jsonl'
    good.write_text(json.dumps(SUPERGLUE[task]))
    self.assertNotEmpty(form.read(good, labelled=True))
    self.survives(mutated(SUPERGLUE[task]), f'{task}.jsonl', lambda path: form.read(path, labelled=True), wanted_reads=True)

  @parameterized.parameters(*SUPERGLUE)
  def test_superglue_that_is_damaged(self, task):
    form = superglue_formats.FORMATS[task]
    good = json.dumps(SUPERGLUE[task]).encode()
    self.survives(damaged(good), f'{task}.jsonl', lambda path: form.read(path, labelled=True), wanted_reads=True)

  @parameterized.parameters(True, False)
  def test_superni(self, keeps_json):
    self.survives(mutated(SUPERNI) if keeps_json else damaged(json.dumps(SUPERNI).encode()), 'task1_x.json',
                  lambda path: list(superni_files.read_task(path).instances), wanted_reads=True)

  def test_superni_lists(self):
    self.survives(st.binary(max_size=50), 'train_tasks.txt', superni_files.task_list, wanted_reads=True)

  @parameterized.parameters(True, False)
  def test_crossfit(self, arbitrary):
    self.survives(st.binary(max_size=100) if arbitrary else damaged(b'a b\tc\td\ne\tf\n'), 'x_16_13_train.tsv',
                  crossfit_files.read_tsv, wanted_reads=not arbitrary)

  def test_arbitrary_files_of_a_folder(self):
    names = st.lists(st.text(st.sampled_from('a.-_ é/'), min_size=1, max_size=6).map(
        lambda name: os.path.normpath('./' + name.strip('/'))).filter(lambda name: '..' not in name), min_size=1, max_size=3)
    suffixes = st.sampled_from(['.jsonl', '.tsv', '.csv', '.json', '', '.train.csv'])

    @hypothesis.given(names, suffixes)
    def once(drawn, suffix):
      with tempfile.TemporaryDirectory() as folder:
        for name in drawn:
          path = pathlib.Path(folder) / (name + suffix)
          try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('')
          except OSError:
            continue  # A file of that name is a folder, or the other way round.
        try:
          tasks, faults = own_data_files.find(folder)
        except FileNotFoundError as e:
          tasks, faults = [], [str(e)]
        self.assertTrue(tasks or faults)
        for fault in faults:
          self.assertStartsWith(fault, folder)
          self.assertLen(fault.splitlines(), 1)

    once()


if __name__ == '__main__':
  absltest.main()
