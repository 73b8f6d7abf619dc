"""SuperGLUE's rows as texts, in one of two styles: T5's label words, or questions with lettered options.

*   `t5`: `rte hypothesis: .. premise: ..` -> `entailment`, as T5 was trained (arXiv 1910.10683, appendix D).
*   `letters`: the row, a question, and options `A.`, `B.`, `C.`, with the letter as the target. BoolQ, MultiRC, RTE and WiC
    are written as in PEFT's example of Polytropon; CB (A yes, B no, C maybe), COPA (the two choices) and WSC (does *pronoun*
    refer to the candidate?) follow suit. ReCoRD keeps T5's format: its answers are entities of the passage, sometimes more of
    them than letters, and its metric compares words.

`superglue.prompt.style` in gin chooses, whenever a dataset is built or an answer is judged. In T5's style WSC's target is the
referent, so only true pairs can teach it; with letters all pairs do.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from collections.abc import Callable, Mapping, Sequence

import gin

from tasks import superglue_formats

Row = Mapping[str, Any]
T5, LETTERS = 't5', 'letters'
HIDDEN_TEXT = '<unk>'


@gin.configurable(module='tasks.superglue')
def prompt(style: str = T5) -> str:
  """Returns the style of the run's prompts, `t5` or `letters`; raises ValueError for any other."""
  if style not in (T5, LETTERS):
    raise ValueError(f'superglue.prompt.style is {style!r}; set it to {T5!r} or {LETTERS!r}')
  return style


@dataclasses.dataclass(frozen=True)
class Lettered:
  """The `letters` style of a task.

  Attributes:
    question: what stands before the options; `{name}` is the row's field.
    classes: the class that each option stands for, in the order of the letters.
    options: the options' texts.
    fields: row -> the fields that `question` and `options` use.
  """

  question: str
  classes: Sequence[int]
  options: Sequence[str] = ('Yes', 'No')
  fields: Callable[[Row], Row] = lambda row: row

  def inputs(self, row: Row) -> str:
    """Writes the question with its options."""
    options = [f'{letter}. {option}' for letter, option in zip('ABC', self.options)]
    return '\n'.join([self.question, *options, 'Answer:']).format_map(self.fields(row))

  @property
  def letters(self) -> Sequence[str]:
    """The letter of each class."""
    return tuple('ABC'[self.classes.index(i)] for i in range(len(self.classes)))


def labels(task: str) -> Sequence[str]:
  """Returns the target text of each class of `task` (`boolq`, ...) in the run's style, () where targets are free text."""
  if task == 'record' or task == 'wsc' and prompt() == T5:
    return ()
  return _LETTERED[task].letters if prompt() == LETTERS else superglue_formats.FORMATS[task].labels


def inputs(task: str, row: Row) -> str:
  """Returns the input text of a row in the run's style."""
  return _LETTERED[task].inputs(row) if prompt() == LETTERS and task in _LETTERED else _T5[task](row)


def target(task: str, row: Row) -> str:
  """Returns the target text of a row in the run's style, `<unk>` where it is hidden."""
  if task == 'record':
    return row['target']
  if task == 'wsc' and prompt() == T5:
    return row['span1_text']
  return HIDDEN_TEXT if row['label'] == superglue_formats.HIDDEN else labels(task)[row['label']]


def expand(task: str, row: Row, training: bool) -> list[Row]:
  """Returns the rows that a row of the files gives in the run's style.

  ReCoRD has one per answer in training, the first of them otherwise; WSC with T5's targets trains on true pairs only.
  """
  if task == 'record':
    rows = [{**row, 'target': answer} for answer in row['answers'] or [HIDDEN_TEXT]]
    return rows if training else rows[:1]
  if task == 'wsc' and training and prompt() == T5 and row['label'] != 1:
    return []
  return [row]


def mark_pronoun(text: str, pronoun: str, index: int) -> str:
  """Returns `text` with its word number `index` written `*pronoun*`.

  Two official rows are at odds with themselves: a pronoun with punctuation glued to it, which is split off (and the text's
  trailing space goes, as in T5's repair), and an index that is off by one, where the nearest such word is meant.
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


def _marked(row: Row) -> str:
  return row['marked'] if 'marked' in row else mark_pronoun(row['text'], row['span2_text'], row['span2_index'])


def _without_markup(text: str) -> str:
  return re.sub(r'</?b>', '', text.replace('<br>', ' '))


def _record(row: Row) -> str:
  passage = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', row['passage']).replace('\n@highlight\n', '. ')
  return f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {passage}"


def _named(task: str, *names: str) -> Callable[[Row], str]:
  return lambda row: ' '.join([task, *(f'{name}: {row[name]}' for name in names)])


_T5: Mapping[str, Callable[[Row], str]] = {
    'boolq': _named('boolq', 'passage', 'question'),
    'cb': _named('cb', 'hypothesis', 'premise'),
    'copa': _named('copa', 'choice1', 'choice2', 'premise', 'question'),
    'multirc': lambda row: _without_markup(_named('multirc', 'question', 'answer', 'paragraph')(row)),
    'record': _record,
    'rte': _named('rte', 'hypothesis', 'premise'),
    'wic': _named('wic', 'sentence1', 'sentence2', 'word'),
    'wsc': lambda row: f'wsc: {_marked(row)}',
}

_YES_IS_1, _YES_IS_0 = (1, 0), (0, 1)
_ENTAILED = '{premise}\n{hypothesis}\nIs the sentence below entailed by the sentence above?'
_ASKED = {'cause': 'What was the cause of this?', 'effect': 'What happened as a result?'}

_LETTERED: Mapping[str, Lettered] = {
    'boolq': Lettered('{passage}\nQuestion: {question}', _YES_IS_1),
    'cb': Lettered(_ENTAILED, (0, 1, 2), ('Yes', 'No', 'Maybe')),
    'copa': Lettered('{premise}\nQuestion: {asked}', (0, 1), ('{choice1}', '{choice2}'),
                     lambda row: {**row, 'asked': _ASKED[row['question']]}),
    'multirc': Lettered('{paragraph}\nQuestion: {question}\nAnswer: {answer}\nIs it true?', _YES_IS_1,
                        fields=lambda row: {name: _without_markup(row[name]) for name in ('paragraph', 'question', 'answer')}),
    'rte': Lettered(_ENTAILED, _YES_IS_0),
    'wic': Lettered("Sentence 1: {sentence1}\nSentence 2: {sentence2}\nAre '{word}' in the above two sentences the same?",
                    _YES_IS_1),
    'wsc': Lettered('{marked}\nQuestion: Does *{span2_text}* refer to {span1_text}?', _YES_IS_1,
                    fields=lambda row: {**row, 'marked': _marked(row)}),
}
