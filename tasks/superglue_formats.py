"""SuperGLUE as text: rows of the official files, and T5's input and target strings.

A row has the fields of TFDS's `super_glue` (MultiRC one per answer, ReCoRD one per query, `label`
as a class index, -1 where hidden), whichever of the two it was read from, so there is one format
per task.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any
from collections.abc import Callable, Iterator, Mapping, Sequence

from tasks import records

Row = dict[str, Any]
FALSE_TRUE = ('False', 'True')
HIDDEN = -1
HIDDEN_TEXT = '<unk>'


@dataclasses.dataclass(frozen=True)
class Format:
  """How one task is read and written.

  Attributes:
    folder: the task's folder in the official release.
    config: its configuration in TFDS's `super_glue`.
    fields: required fields of a line of the official files and their types.
    text_fields: fields that make the input, in order, each written `name: value`.
    labels: target text of each class.
    raw_labels: what the official files write for each class.
    to_rows: (line, label is required, where) -> rows.
    to_example: row -> `inputs`, `targets` and what evaluation needs.
    training_rows: row -> the rows it gives in training.
    evaluation_rows: row -> the rows it gives otherwise.
  """
  folder: str
  config: str
  fields: Mapping[str, Any]
  text_fields: Sequence[str] = ()
  labels: Sequence[str] = FALSE_TRUE
  raw_labels: Sequence[Any] = (False, True)
  to_rows: Callable[..., Iterator[Row]] | None = None
  to_example: Callable[..., Row] | None = None
  training_rows: Callable[[Row], Sequence[Row]] = lambda row: [row]
  evaluation_rows: Callable[[Row], Sequence[Row]] = lambda row: [row]

  def read(self, path: os.PathLike | str, labelled: bool) -> list[Row]:
    """Reads an official file.

    Args:
      path: e.g. `BoolQ/train.jsonl`.
      labelled: whether every example must have its label or answers (all but the test files).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a fault of a line, named by file and line.
    """
    to_rows = self.to_rows or _plain_rows
    return [row for number, line in records.read_json_lines(path, self.fields)
            for row in to_rows(self, line, labelled, f'{os.fspath(path)}:{number}')]

  def example(self, row: Row) -> Row:
    """Returns the text features of a row, and what evaluation needs."""
    return (self.to_example or _plain_example)(self, row)


def _class_of(form: Format, record: Mapping[str, Any], labelled: bool, where: str) -> int:
  """The class index of a line's `label`, or -1 where a test line has none."""
  if 'label' not in record:
    if labelled:
      raise ValueError(f"{where}: field 'label' is missing; only test.jsonl may lack it")
    return HIDDEN
  for index, raw in enumerate(form.raw_labels):
    # The type counts too: in Python True == 1.
    if type(record['label']) is type(raw) and record['label'] == raw:
      return index
  allowed = ', '.join(map(repr, form.raw_labels))
  raise ValueError(f"{where}: label {record['label']!r} is not one of {allowed}")


def _target(form: Format, label: int) -> str:
  return HIDDEN_TEXT if label == HIDDEN else form.labels[label]


def _joined(form: Format, row: Row) -> str:
  parts = (f'{name}: {row[name]}' for name in form.text_fields)
  return ' '.join([form.config, *parts])


def _plain_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterator[Row]:
  row = {name: line[name] for name in form.text_fields}
  yield {**row, 'idx': line['idx'], 'label': _class_of(form, line, labelled, where)}


def _plain_example(form: Format, row: Row) -> Row:
  return {'inputs': _joined(form, row), 'targets': _target(form, row['label']),
          'label': row['label'], 'idx': row['idx']}


# MultiRC: a passage with questions with answers; one row per answer.


def _multirc_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterator[Row]:
  passage = line['passage']
  records.check_fields(passage, {'text': str, 'questions': list}, f'{where}: passage')
  for question in passage['questions']:
    records.check_fields(question, {'question': str, 'answers': list, 'idx': int},
                         f'{where}: question')
    for answer in question['answers']:
      records.check_fields(answer, {'text': str, 'idx': int}, f'{where}: answer')
      yield {'paragraph': passage['text'], 'question': question['question'],
             'answer': answer['text'], 'label': _class_of(form, answer, labelled, where),
             'idx/paragraph': line['idx'], 'idx/question': question['idx'],
             'idx/answer': answer['idx']}


def _multirc_example(form: Format, row: Row) -> Row:
  inputs = re.sub(r'</?b>', '', _joined(form, row).replace('<br>', ' '))
  return {'inputs': inputs, 'targets': _target(form, row['label']), 'label': row['label'],
          **{name: row[name] for name in ('idx/paragraph', 'idx/question', 'idx/answer')}}


# ReCoRD: a passage with queries with answers; one row per query, in training one per answer.


def _record_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterator[Row]:
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
           'answers': sorted({answer['text'] for answer in answers}),
           'idx/passage': line['idx'], 'idx/query': query['idx']}


def _one_row_per_answer(row: Row) -> Sequence[Row]:
  return [{**row, 'target': answer} for answer in row['answers'] or [HIDDEN_TEXT]]


def _record_example(form: Format, row: Row) -> Row:
  passage = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', row['passage'])
  passage = passage.replace('\n@highlight\n', '. ')
  inputs = (f"{form.config} query: {row['query']} entities: {', '.join(row['entities'])} "
            f'passage: {passage}')
  return {'inputs': inputs, 'targets': row['target'], 'answers': list(row['answers']),
          'idx/passage': row['idx/passage'], 'idx/query': row['idx/query']}


# WSC: the target is the referent's text, so only true pairs can teach; `label` is for evaluation.

_SPANS = {'span1_text': str, 'span1_index': int, 'span2_text': str, 'span2_index': int}


def _wsc_rows(form: Format, line: Row, labelled: bool, where: str) -> Iterator[Row]:
  records.check_fields(line['target'], _SPANS, f'{where}: target')
  row = {'text': line['text'], **{name: line['target'][name] for name in _SPANS}}
  words = len(line['text'].split(' '))
  for name in ('span1_index', 'span2_index'):
    if not 0 <= row[name] < words:
      raise ValueError(f'{where}: {name} is {row[name]}, but the text has {words} words')
  for span in ('span1', 'span2'):
    row[f'{span}_text'] = _span_as_in_text(row['text'], row[f'{span}_text'], row[f'{span}_index'])
  yield {**row, 'idx': line['idx'], 'label': _class_of(form, line, labelled, where)}


def _span_as_in_text(text: str, span: str, index: int) -> str:
  """Repairs a span's case, final stop or line break where the text differs (TFDS `wsc.fixed`)."""
  if span in text:
    return span
  words = text.split()
  first = span[0].lower() if words[min(index, len(words) - 1)][0].islower() else span[0].upper()
  repaired = (first + span[1:]).rstrip('.').replace('\n', ' ')
  return repaired if repaired in text else span


def mark_pronoun(text: str, pronoun: str, index: int) -> str:
  """Returns `text` with its word number `index` written `*pronoun*`.

  Two official rows are at odds with themselves: a pronoun with punctuation glued to it, which is
  split off (and the text's trailing space goes, as in T5's repair), and an index that is off by
  one, where the nearest such word is meant.
  """
  words = text.split(' ')
  if words[index] != pronoun:
    if re.fullmatch(re.escape(pronoun) + r'\W+', words[index]):
      words[index] = f'*{pronoun}* {words[index][len(pronoun):]}'
      return ' '.join(words).rstrip()
    same = [i for i, word in enumerate(words) if word == pronoun]
    index = min(same, key=lambda i: abs(i - index), default=index)
  words[index] = f'*{pronoun}*'
  return ' '.join(words)


def _wsc_example(form: Format, row: Row) -> Row:
  del form
  text = mark_pronoun(row['text'], row['span2_text'], row['span2_index'])
  return {'inputs': f'wsc: {text}', 'targets': row['span1_text'], 'label': row['label'],
          'idx': row['idx']}


def _texts(*names: str) -> dict[str, Any]:
  return {**{name: str for name in names}, 'idx': int}


_ENTAILMENT = ('entailment', 'contradiction', 'neutral')
_RTE = ('entailment', 'not_entailment')

FORMATS: Mapping[str, Format] = {
    'boolq': Format('BoolQ', 'boolq', _texts('passage', 'question'), ('passage', 'question')),
    'cb': Format('CB', 'cb', _texts('hypothesis', 'premise'), ('hypothesis', 'premise'),
                 labels=_ENTAILMENT, raw_labels=_ENTAILMENT),
    'copa': Format('COPA', 'copa', _texts('choice1', 'choice2', 'premise', 'question'),
                   ('choice1', 'choice2', 'premise', 'question'),
                   labels=('choice1', 'choice2'), raw_labels=(0, 1)),
    'multirc': Format('MultiRC', 'multirc', {'idx': int, 'passage': dict},
                      ('question', 'answer', 'paragraph'), raw_labels=(0, 1),
                      to_rows=_multirc_rows, to_example=_multirc_example),
    'record': Format('ReCoRD', 'record', {'idx': int, 'passage': dict, 'qas': list},
                     to_rows=_record_rows, to_example=_record_example,
                     training_rows=_one_row_per_answer,
                     evaluation_rows=lambda row: _one_row_per_answer(row)[:1]),
    'rte': Format('RTE', 'rte', _texts('hypothesis', 'premise'), ('hypothesis', 'premise'),
                  labels=_RTE, raw_labels=_RTE),
    'wic': Format('WiC', 'wic', _texts('sentence1', 'sentence2', 'word'),
                  ('sentence1', 'sentence2', 'word')),
    'wsc': Format('WSC', 'wsc.fixed', {'text': str, 'target': dict, 'idx': int},
                  to_rows=_wsc_rows, to_example=_wsc_example,
                  training_rows=lambda row: [row] if row['label'] == 1 else []),
}
