"""Tk-Instruct's prompt: a definition, worked examples as far as they fit, and the input to complete (arXiv 2204.07705).

Which examples fit depends on the vocabulary and the input length of the run, so the pieces are written here as text and joined
inside the dataset, where both are known.
"""

from __future__ import annotations

import dataclasses
import string
from typing import Any
from collections.abc import Mapping, Sequence

import gin
import seqio
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class PromptOptions:
  """What a prompt holds; the defaults are Tk-Instruct's.

  Attributes:
    task_name: whether the task's name comes first.
    definition: whether the definition comes next.
    num_positive: positive examples, at most.
    num_negative: negative examples, at most.
    explanation: whether examples come with their explanation.
    max_source_length: most tokens of the input, its end-of-sequence included; a shorter `inputs`
      length of the run counts instead.
    max_target_length: the same for the target.
  """
  task_name: bool = False
  definition: bool = True
  num_positive: int = 2
  num_negative: int = 0
  explanation: bool = False
  max_source_length: int = 1024
  max_target_length: int = 128

  def __post_init__(self):
    if self.num_positive < 0 or self.num_negative < 0:
      raise ValueError(f'num_positive={self.num_positive}, num_negative={self.num_negative}; '
                       'set both to 0 or more')
    if self.max_source_length < 2 or self.max_target_length < 2:
      raise ValueError(f'max_source_length={self.max_source_length}, max_target_length='
                       f'{self.max_target_length}; set both to 2 (a token and its end) or more')


@gin.configurable(module='tasks.superni_prompts')
def prompt_options(task_name: bool = False, definition: bool = True, num_positive: int = 2,
                   num_negative: int = 0, explanation: bool = False, max_source_length: int = 1024,
                   max_target_length: int = 128) -> PromptOptions:
  """The run's `PromptOptions`, which gin can set; asked for whenever a dataset is built."""
  return PromptOptions(task_name, definition, num_positive, num_negative, explanation,
                       max_source_length, max_target_length)


def prompt_pieces(task: str, definition: str, positive: Sequence[Mapping[str, str]],
                  negative: Sequence[Mapping[str, str]], source: str,
                  options: PromptOptions) -> dict[str, Any]:
  """Writes the pieces of a prompt.

  Args:
    task: name of the task.
    definition: its definition.
    positive: examples with `input`, `output` and perhaps `explanation`.
    negative: the same.
    source: the input to complete.
    options: what to write.

  Returns:
    `name` and `head`: what comes before the examples; `positive` and `negative`: `num_positive` and `num_negative` example
    texts, empty beyond those that exist; `tail`: everything after them.
  """
  head = _stopped(f'Definition: {definition.strip()}') + '\n\n' if options.definition else ''

  def texts(kind: str, examples: Sequence[Mapping[str, str]], number: int) -> list[str]:
    written = [_example(kind, i, example, options.explanation)
               for i, example in enumerate(examples[:number], start=1)]
    return written + [''] * (number - len(written))

  tail = _stopped(f'Now complete the following example -\nInput: {source.strip()}')
  return {'name': f'{task}. ' if options.task_name else '',
          'head': head,
          'positive': texts('Positive', positive, options.num_positive),
          'negative': texts('Negative', negative, options.num_negative),
          'tail': f'{tail}\nOutput: '}


def join_pieces(dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None,
                output_features: Mapping[str, seqio.Feature] | None = None) -> tf.data.Dataset:
  """Preprocessor: joins the pieces to `inputs`, with as many examples as fit.

  Positive examples are added one by one until one does not fit, then negative ones likewise. As in Tk-Instruct, an example fits
  where the text with it, in tokens of the run's vocabulary and with the end of sequence, is within the limit; that text has no
  task name, and a space between two examples of a kind that are in it already. Vocabularies that merge spaces do not see it.
  """
  options = prompt_options()
  limit = _limit(options.max_source_length, sequence_length, 'inputs')
  vocabulary = output_features['inputs'].vocabulary

  def join(example):
    example = dict(example)
    name, head, tail = (example.pop(piece) for piece in ('name', 'head', 'tail'))
    prompt = measured = head
    for kind, number in (('positive', options.num_positive), ('negative', options.num_negative)):
      texts = example.pop(kind)
      fits, space = tf.constant(True), ''
      for i in range(number):
        with_it = measured + texts[i] + tail
        fits = fits & (texts[i] != '') & (tf.size(vocabulary.encode_tf(with_it)) + 1 <= limit)
        measured = tf.where(fits, measured + space + texts[i], measured)
        prompt = tf.where(fits, prompt + texts[i], prompt)
        space = ' '
    return {**example, 'inputs': name + prompt + tail}

  return dataset.map(join, num_parallel_calls=tf.data.AUTOTUNE)


def truncate(dataset: tf.data.Dataset,
             sequence_length: Mapping[str, int] | None = None) -> tf.data.Dataset:
  """Preprocessor after `tokenize`: cuts what is too long, leaving room for the end of sequence."""
  options = prompt_options()
  limits = {'inputs': _limit(options.max_source_length, sequence_length, 'inputs'),
            'targets': _limit(options.max_target_length, sequence_length, 'targets')}

  def cut(example):
    return {**example, **{name: example[name][:limit - 1] for name, limit in limits.items()}}

  return dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def _limit(maximum: int, sequence_length: Mapping[str, int] | None, feature: str) -> int:
  length = (sequence_length or {}).get(feature)
  return maximum if length is None else min(maximum, length)


def _example(kind: str, number: int, example: Mapping[str, str], explanation: bool) -> str:
  lines = [f' {kind} Example {number} -', _stopped(f"Input: {example['input'].strip()}"),
           _stopped(f" Output: {example['output'].strip()}")]
  if explanation and 'explanation' in example:
    lines.append(_stopped(f" Explanation: {example['explanation'].strip()}"))
  return '\n'.join(lines) + '\n\n'


def _stopped(text: str) -> str:
  """Adds a full stop unless some punctuation mark ends the text already."""
  return text if text[-1] in string.punctuation else text + '.'
