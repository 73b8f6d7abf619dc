"""Rank classification: a task evaluated by which of its choices the model finds most likely.

Beside a task that is evaluated by the text the model generates, `add_task` registers another with the same rows and one
example per choice, whose target is that choice. SeqIO's Evaluator then asks the model only for the log-likelihood of
these targets (`score_batch`); nothing is generated. A row's answer is its likeliest choice, and the task's own
postprocessor and metrics judge this text just as they judge a generated one. See T5 (arXiv 1910.10683), GPT-3
(arXiv 2005.14165, section 2.4) and T0 (arXiv 2110.08207).

By default the log-probabilities of a choice's tokens are added up; `rank_classification.best_choice.length_normalised =
True` in gin divides by their number, which does not favour short choices.

These tasks have no split `train`: most of their targets are wrong answers.
"""

from __future__ import annotations

import collections
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from absl import logging
import gin
import numpy as np
import seqio
import tensorflow as tf

from cpoly_jax import task_index
from tasks import sources

Texts = Callable[[sources.Row, Mapping[str, Any]], Sequence[str]]

# What the source writes for each row, and `expand_choices` takes out again.
_CHOICES, _GOLDS = 'rank/all_choices', 'rank/golds'
# What every example has: its row's position in the split, its choice's position in the row and the number of these, whether
# the choice is right, how many tokens it has (with the end of sequence, before any is cut off), and the row's own target.
EXAMPLE, CHOICE, NUM_CHOICES = 'rank/example', 'rank/choice', 'rank/num_choices'
RIGHT, TOKENS, GOLD = 'rank/right', 'rank/tokens', 'rank/gold'


def add_task(name: str, task: str, choices: Sequence[str] | Texts, *, golds: Texts | None = None,
             length_normalised: bool | None = None) -> seqio.Task:
  """Registers `name`: the registered task `task`, answered by ranking choices. Its examples are routed as those of `task`.

  Args:
    name: by custom `<task>_rank`.
    task: a task whose source is a `sources.RowSource`, with metrics of predictions.
    choices: the label words of every row; or fn(row, example) -> those of one row, where `row` is the source's and
      `example` what the source makes of it (`inputs`, `targets`, ...). It is called whenever a dataset is built.
    golds: fn(row, example) -> the right choices of a row, none where they are hidden; None: its `targets`.
    length_normalised: see `best_choice`; None: as gin says there.

  Returns:
    The new task, with the metrics of `task`.

  Raises:
    ValueError: `task` is unknown or cannot be ranked, or `choices` are too few or not different.
  """
  if task not in seqio.TaskRegistry.names():
    raise ValueError(f'{name}: no task is named {task!r}; register it first')
  base = seqio.TaskRegistry.get(task)
  if not isinstance(base.source, sources.RowSource):
    raise ValueError(f'{name}: the source of {task} is a {type(base.source).__name__}; choices need a sources.RowSource')
  if not base.predict_metric_fns:
    raise ValueError(f'{name}: {task} has no metric of predictions to judge the chosen text with; give it metric_fns')
  preprocessors = list(base.preprocessors)
  if seqio.preprocessors.tokenize not in preprocessors:
    raise ValueError(f'{name}: {task} does not tokenize; make its preprocessors with features.pipeline')
  preprocessors.insert(preprocessors.index(seqio.preprocessors.tokenize), expand_choices)
  if not callable(choices):
    fixed = tuple(choices)
    _check(fixed, (), name)
    choices = lambda row, example: fixed
  task_index.route_as(name, task)
  return seqio.TaskRegistry.add(
      name,
      source=ChoiceSource(name, task, base.source, choices, golds or (lambda row, example: (example['targets'],))),
      output_features=base.output_features,
      preprocessors=preprocessors,
      postprocess_fn=_postprocessor(base),
      metric_fns=[_metric(name, base.predict_metric_fns, length_normalised)])


class ChoiceSource(sources.RowSource):
  """The rows of another source with their choices, which are asked for when a dataset is built.

  Args:
    name: the task of this source, for messages.
    task: the task whose key the examples get.
    source: the rows.
    choices: (row, example) -> choices.
    golds: (row, example) -> right choices.
  """

  def __init__(self, name: str, task: str, source: sources.RowSource, choices: Texts, golds: Texts):
    super().__init__(task_index.routed_as(task))
    self._name = name
    self._source = source
    self._choices = choices
    self._golds = golds

  def origin(self) -> str:
    return self._source.origin()

  @property
  def splits(self) -> Sequence[str]:
    return tuple(split for split in self._source.splits if split != 'train')

  def read(self, split: str) -> Sequence[Any]:
    return list(enumerate(self._source.rows(split)))

  def to_example(self, row: Any, split: str, seed: int) -> dict[str, Any]:
    """Adds the choices; raises ValueError, naming the row, where these cannot be ranked."""
    position, inner = row
    example = dict(self._source.to_example(inner, split, seed))
    choices, golds = list(self._choices(inner, example)), list(self._golds(inner, example))
    _check(choices, golds, f"{self._name}: row {position + 1} of '{split}' in {self.origin()}")
    return {**example, EXAMPLE: position, _CHOICES: choices, _GOLDS: golds}


def _check(choices: Sequence[str], golds: Sequence[str], where: str) -> None:
  """Raises ValueError unless there are two choices or more, all different, and one of them is right if any is known to be."""
  if len(choices) < 2:
    raise ValueError(f'{where} has {len(choices) or "no"} choice{"s"[:not choices]}; ranking needs at least two')
  doubles = [choice for choice, number in collections.Counter(choices).items() if number > 1]
  if doubles:
    raise ValueError(f'{where} has the choice {doubles[0]!r} more than once; each must differ')
  if golds and not set(golds) & set(choices):
    raise ValueError(f'{where}: the right answer {golds[0]!r} is not among its choices {", ".join(map(repr, choices))}')


def expand_choices(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
  """Preprocessor, before tokens are made: one example per choice of each row, one after another."""
  feature = output_features['targets']

  def expand(row):
    row = dict(row)
    choices, golds, gold = row.pop(_CHOICES), row.pop(_GOLDS), row.pop('targets')

    def example(index):
      choice = choices[index]
      return {**row, 'targets': choice, CHOICE: index, NUM_CHOICES: tf.size(choices),
              RIGHT: tf.cast(tf.reduce_any(tf.equal(golds, choice)), tf.int32),
              TOKENS: tf.size(feature.vocabulary.encode_tf(choice)) + int(feature.add_eos), GOLD: gold}

    return tf.data.Dataset.range(tf.size(choices, tf.int64), output_type=tf.int32).map(example)

  return dataset.flat_map(expand)


def _postprocessor(task: seqio.Task) -> Callable[..., dict[str, Any]]:
  """Returns a postprocessor of targets: the place of a choice in the evaluation, and what `task` makes of its text."""

  def postprocess(text: str, example: Mapping[str, Any], is_target: bool = True) -> dict[str, Any]:
    del is_target  # Nothing is generated.
    gold = example[GOLD].decode('utf-8')
    # The task's own functions may look at the target of the row.
    own = {**example, 'targets_pretokenized': example[GOLD]}
    return {'example': int(example[EXAMPLE]), 'choice': int(example[CHOICE]), 'choices': int(example[NUM_CHOICES]),
            'right': bool(example[RIGHT]), 'length': len(example['targets']),
            'cut': bool(example[TOKENS] > len(example['targets'])),
            'target': task.postprocess_fn(gold, example=own, is_target=True),
            'prediction': task.postprocess_fn(text, example=own, is_target=False)}

  return postprocess


@gin.configurable(module='tasks.rank_classification')
def best_choice(log_likelihoods: Sequence[float], lengths: Sequence[int], length_normalised: bool = False) -> int:
  """Returns the position of the likeliest choice, the first of equal ones.

  Args:
    log_likelihoods: [C] sums of the log-probabilities of the choices' tokens.
    lengths: [C] how many tokens these are, the end of sequence included.
    length_normalised: compare the mean of the tokens instead of the sum.
  """
  values = np.asarray(log_likelihoods, np.float64)
  return int(np.argmax(values / np.asarray(lengths) if length_normalised else values))


def chosen(name: str, targets: Sequence[Mapping[str, Any]], scores: Sequence[float],
           length_normalised: bool | None = None) -> tuple[list[Any], list[Any]]:
  """Ranks the choices of each row, whatever the order of the examples.

  Rows some of whose choices are absent (an evaluation of the first N examples may end within a row) are left out with a
  warning.

  Args:
    name: the task, for messages.
    targets: what the postprocessor made of each example.
    scores: the log-likelihood of each example's target.
    length_normalised: see `best_choice`; None: as gin says there.

  Returns:
    (targets, predictions) of the rows as the original task has them, in the order of the rows.

  Raises:
    ValueError: a score is not finite, there are not as many as examples, or no row is complete.
  """
  if len(targets) != len(scores):
    raise ValueError(f'{name}: {len(targets)} examples have {len(scores)} scores; wanted one each')
  if not np.all(np.isfinite(scores)):
    raise ValueError(f'{name}: {np.sum(~np.isfinite(scores))} of {len(scores)} scores are not finite; did training diverge?')
  rows: dict[int, dict[int, tuple[Mapping[str, Any], float]]] = collections.defaultdict(dict)
  for target, score in zip(targets, scores):
    rows[target['example']][target['choice']] = (target, score)
  complete = [[row[i] for i in sorted(row)] for _, row in sorted(rows.items())
              if len(row) == next(iter(row.values()))[0]['choices']]
  if not complete:
    raise ValueError(f'{name}: none of {len(rows)} rows has all its choices; EVALUATOR_NUM_EXAMPLES counts choices: raise it')
  if len(complete) < len(rows):
    logging.warning('%s: %d of %d rows lack some of their choices, and are left out (EVALUATOR_NUM_EXAMPLES counts choices)',
                    name, len(rows) - len(complete), len(rows))
  if cut := sum(target['cut'] for target in targets):
    logging.warning("%s: %d of %d choices are cut to the length of targets, and only what is left of them is ranked; raise "
                    "TASK_FEATURE_LENGTHS['targets']", name, cut, len(targets))
  options = {} if length_normalised is None else {'length_normalised': length_normalised}
  best = [row[best_choice([score for _, score in row], [target['length'] for target, _ in row], **options)][0]
          for row in complete]
  return [choice['target'] for choice in best], [choice['prediction'] for choice in best]


def _metric(name: str, metric_fns: Sequence[Callable[..., Mapping[str, Any]]],
            length_normalised: bool | None) -> Callable[..., dict[str, Any]]:
  """Returns one metric of scores, with all values of `metric_fns` for the chosen texts."""

  def rank_classification(targets, scores):
    golds, predictions = chosen(name, targets, scores, length_normalised)
    return {key: value for metric in metric_fns for key, value in metric(golds, predictions).items()}

  return rank_classification
