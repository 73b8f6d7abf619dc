"""SuperGLUE's files: the lines of the official release as rows.

A row has the fields of TFDS's `super_glue` (MultiRC one per answer, ReCoRD one per query, `label` as a class index, -1 where
hidden), whichever of the two it was read from, so there is one prompt per task (`superglue_prompts`). AX-b and AX-g have the
fields of RTE. DPR, which is no part of SuperGLUE, has those of WSC.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any
from collections.abc import Callable, Iterable, Mapping, Sequence

from tasks import records

Row = dict[str, Any]
FALSE_TRUE = ('False', 'True')
HIDDEN = -1


@dataclasses.dataclass(frozen=True)
class Format:
  """How the files of one task are read.

  Attributes:
    folder: the task's folder in the official release.
    config: its configuration in TFDS's `super_glue`.
    fields: required fields of a line of the official files and their types.
    columns: fields that a row keeps as they are.
    labels: target text of each class in T5's format.
    raw_labels: what the official files write for each class.
    to_rows: (format, line, label is required, where) -> rows; None: one, of `columns`, `idx` and `label`.
    key: fields that name an example; no two rows of a file have the same.
    group: fields whose rows belong together: a question's answers; () for `key`.
    from_tfds: what makes a row of TFDS's, where their fields differ.
  """

  folder: str
  config: str
  fields: Mapping[str, Any]
  columns: Sequence[str] = ()
  labels: Sequence[str] = FALSE_TRUE
  raw_labels: Sequence[Any] = (False, True)
  to_rows: Callable[..., Iterable[Row]] | None = None
  key: Sequence[str] = ('idx',)
  group: Sequence[str] = ()
  from_tfds: Callable[[Row], Row] = lambda row: row

  def read(self, path: os.PathLike | str, labelled: bool) -> list[Row]:
    """Reads an official file.

    Args:
      path: e.g. `BoolQ/train.jsonl`.
      labelled: whether every example must have its label or answers (all but the test files).

    Raises:
      FileNotFoundError: there is no such file.
      BadRecord: a fault of a line, named by file and line; see `records.read_rows`.
    """
    lines: dict[Any, str] = {}

    def to_rows(record: Row, where: str) -> list[Row]:
      rows = list((self.to_rows or _plain_rows)(self, record, labelled, where))
      keys = [tuple(row[name] for name in self.key) for row in rows]
      for i, key in enumerate(keys):
        if key in lines or key in keys[:i]:
          told = ', '.join(f'{name} {value}' for name, value in zip(self.key, key))
          raise records.BadRecord(f'{where}: {told} is that of line {lines.get(key, where).rpartition(":")[2]} already; '
                                  'remove one of them or give it a number of its own')
      lines.update(dict.fromkeys(keys, where))
      return rows

    return records.read_rows(path, self.fields, to_rows)

  def group_of(self, row: Row) -> tuple[int, ...]:
    """Returns what names a row's group, or the row itself."""
    return tuple(int(row[name]) for name in self.group or self.key)


def _class_of(form: Format, record: Mapping[str, Any], labelled: bool, where: str) -> int:
  """The class index of a line's `label`, or -1 where a test line has none."""
  if 'label' not in record:
    if labelled:
      raise records.BadRecord(f"{where}: field 'label' is missing; only test.jsonl may lack it")
    return HIDDEN
  for index, raw in enumerate(form.raw_labels):
    # The type counts too: in Python True == 1.
    if type(record['label']) is type(raw) and record['label'] == raw:
      return index
  allowed = ', '.join(map(repr, form.raw_labels))
  raise records.BadRecord(f"{where}: label {record['label']!r} is not one of {allowed}")


def _plain_rows(form: Format, line: Row, labelled: bool, where: str) -> list[Row]:
  row = {name: line[name] for name in form.columns}
  return [{**row, 'idx': line['idx'], 'label': _class_of(form, line, labelled, where)}]


def _copa_rows(form: Format, line: Row, labelled: bool, where: str) -> list[Row]:
  if line['question'] not in ('cause', 'effect'):
    raise records.BadRecord(f"{where}: question {line['question']!r} is neither 'cause' nor 'effect'")
  return _plain_rows(form, line, labelled, where)


def _as_rte(row: Row) -> Row:
  return {'premise': row['sentence1'], 'hypothesis': row['sentence2'], 'idx': row['idx'], 'label': row['label']}


def _axb_rows(form: Format, line: Row, labelled: bool, where: str) -> list[Row]:
  del labelled  # The diagnostic sets are published with their labels.
  return [_as_rte({**line, 'label': _class_of(form, line, True, where)})]


def _axg_rows(form: Format, line: Row, labelled: bool, where: str) -> list[Row]:
  del labelled
  return _plain_rows(form, line, True, where)


def _multirc_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterable[Row]:
  """A passage with questions with answers: one row per answer."""
  passage = line['passage']
  records.check_fields(passage, {'text': str, 'questions': list}, f'{where}: passage')
  for question in passage['questions']:
    records.check_fields(question, {'question': str, 'answers': list, 'idx': int}, f'{where}: question')
    for answer in question['answers']:
      records.check_fields(answer, {'text': str, 'idx': int}, f'{where}: answer')
      yield {'paragraph': passage['text'], 'question': question['question'], 'answer': answer['text'],
             'label': _class_of(form, answer, labelled, where), 'idx/paragraph': line['idx'],
             'idx/question': question['idx'], 'idx/answer': answer['idx']}


def _record_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterable[Row]:
  """A passage with queries with answers: one row per query."""
  del form
  passage = line['passage']
  records.check_fields(passage, {'text': str, 'entities': list}, f'{where}: passage')
  for entity in passage['entities']:
    records.check_fields(entity, {'start': int, 'end': int}, f'{where}: entity')
  # Ends are inclusive. Duplicates are dropped and the rest sorted, as TFDS does.
  entities = sorted({passage['text'][e['start']:e['end'] + 1] for e in passage['entities']})
  for query in line['qas']:
    records.check_fields(query, {'query': str, 'idx': int}, f'{where}: qas')
    if labelled:
      records.check_fields(query, {'answers': list}, f'{where}: qas')
    answers = query.get('answers', [])
    for answer in answers:
      records.check_fields(answer, {'text': str}, f'{where}: answer')
    yield {'passage': passage['text'], 'query': query['query'], 'entities': entities,
           'answers': sorted({answer['text'] for answer in answers}), 'idx/passage': line['idx'], 'idx/query': query['idx']}


_SPANS = {'span1_text': str, 'span1_index': int, 'span2_text': str, 'span2_index': int}


def _wsc_rows(form: Format, line: Row, labelled: bool, where: str) -> list[Row]:
  """Whether a pronoun (span 2) stands for a candidate (span 1)."""
  records.check_fields(line['target'], _SPANS, f'{where}: target')
  row = {'text': line['text'], **{name: line['target'][name] for name in _SPANS}}
  words = len(line['text'].split(' '))
  for name in ('span1_index', 'span2_index'):
    if not 0 <= row[name] < words:
      raise records.BadRecord(f'{where}: {name} is {row[name]}, but the text has {words} words')
  for span in ('span1', 'span2'):
    row[f'{span}_text'] = _span_as_in_text(row['text'], row[f'{span}_text'], row[f'{span}_index'])
  return [{**row, 'idx': line['idx'], 'label': _class_of(form, line, labelled, where)}]


def _span_as_in_text(text: str, span: str, index: int) -> str:
  """Repairs a span's case, final stop or line break where the text differs (TFDS `wsc.fixed`)."""
  words = text.split()
  if span in text or not words:
    return span
  first = span[0].lower() if words[min(index, len(words) - 1)][0].islower() else span[0].upper()
  repaired = (first + span[1:]).rstrip('.').replace('\n', ' ')
  return repaired if repaired in text else span


def dpr_rows(line: Row, number: int, where: str) -> list[Row]:
  """Makes rows of WSC, one per candidate, of an example of Definite Pronoun Resolution (Rahman and Ng, 2012).

  They have a field `marked` besides: the sentence with the pronoun marked as T5 does.

  Args:
    line: `sentence`, `pronoun`, `candidates` (two) and `label`, the index of the right one, as TFDS has them.
    number: the example's number.
    where: start of messages.

  Raises:
    BadRecord: other fields, candidates or labels, or the pronoun is not in the sentence.
  """
  records.check_fields(line, {'sentence': str, 'pronoun': str, 'candidates': list, 'label': int}, where)
  sentence, pronoun, candidates = line['sentence'], line['pronoun'], line['candidates']
  if len(candidates) != 2 or not all(isinstance(candidate, str) for candidate in candidates):
    raise records.BadRecord(f'{where}: candidates are {candidates!r:.60}; wanted two texts')
  if line['label'] not in (0, 1):
    raise records.BadRecord(f"{where}: label {line['label']} is not one of 0, 1, the right candidate's index")
  # The pronoun to resolve is the first one; T5 looks for it between a blank and one of these.
  name = re.escape(pronoun)
  found = (re.search(rf'(?<= ){name}(?=[ .,])', sentence) or
           re.search(rf'(?<!\S){name}(?!\w)', sentence, re.IGNORECASE)) if pronoun.strip() else None
  if not found:
    raise records.BadRecord(f'{where}: pronoun {pronoun!r} is not a word of the sentence')
  marked = f'{sentence[:found.start()]}*{found.group()}*{sentence[found.end():]}'
  return [{'marked': marked, 'span1_text': candidate, 'span2_text': found.group(), 'idx': number,
           'label': int(i == line['label'])} for i, candidate in enumerate(candidates)]


def _texts(*names: str) -> dict[str, Any]:
  return {**{name: str for name in names}, 'idx': int}


_CB = ('entailment', 'contradiction', 'neutral')
_RTE = ('entailment', 'not_entailment')

FORMATS: Mapping[str, Format] = {
    'boolq': Format('BoolQ', 'boolq', _texts('passage', 'question'), ('passage', 'question')),
    'cb': Format('CB', 'cb', _texts('hypothesis', 'premise'), ('hypothesis', 'premise'), labels=_CB, raw_labels=_CB),
    'copa': Format('COPA', 'copa', _texts('choice1', 'choice2', 'premise', 'question'),
                   ('choice1', 'choice2', 'premise', 'question'), labels=('choice1', 'choice2'), raw_labels=(0, 1),
                   to_rows=_copa_rows),
    'multirc': Format('MultiRC', 'multirc', {'idx': int, 'passage': dict}, raw_labels=(0, 1), to_rows=_multirc_rows,
                      key=('idx/paragraph', 'idx/question', 'idx/answer'), group=('idx/paragraph', 'idx/question')),
    'record': Format('ReCoRD', 'record', {'idx': int, 'passage': dict, 'qas': list}, to_rows=_record_rows,
                     key=('idx/passage', 'idx/query')),
    'rte': Format('RTE', 'rte', _texts('hypothesis', 'premise'), ('hypothesis', 'premise'), labels=_RTE, raw_labels=_RTE),
    'wic': Format('WiC', 'wic', _texts('sentence1', 'sentence2', 'word'), ('sentence1', 'sentence2', 'word')),
    'wsc': Format('WSC', 'wsc.fixed', {'text': str, 'target': dict, 'idx': int}, to_rows=_wsc_rows),
}

# The diagnostic sets, which have one file each and no training data.
DIAGNOSTICS: Mapping[str, Format] = {
    'axb': Format('AX-b', 'axb', _texts('sentence1', 'sentence2'), labels=_RTE, raw_labels=_RTE, to_rows=_axb_rows,
                  from_tfds=_as_rte),
    'axg': Format('AX-g', 'axg', {**_texts('hypothesis', 'premise'), 'pair_id': int}, ('hypothesis', 'premise', 'pair_id'),
                  labels=_RTE, raw_labels=_RTE, to_rows=_axg_rows,
                  # TFDS leaves `pair_id` out; the two of a pair follow each other.
                  from_tfds=lambda row: {**row, 'pair_id': row['idx'] // 2}),
}

# Read by `dpr_rows`; its two rows of a sentence belong together.
DPR = Format('DPR', 'dpr', {})
