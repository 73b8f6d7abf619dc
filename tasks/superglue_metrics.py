"""SuperGLUE's metrics as T5 computes them, in percent, on postprocessed targets and predictions.

Class texts, which depend on the style of the run's prompts, become class indices, -1 for any other
text. Gold labels come from the example, not from its decoded target, and a hidden one (-1) is an
error: a score against hidden labels would mean nothing.
"""

from __future__ import annotations

import collections
from typing import Any
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tasks import superglue_prompts
from tasks import text_metrics

_DETERMINERS = frozenset(
    'a an few her his each every many much my our some that the their these this those which whose '
    'your'.split())

# The metrics of each task that count towards the benchmark's score.
OFFICIAL_METRICS: Mapping[str, Sequence[str]] = {
    'superglue_boolq': ('accuracy',),
    'superglue_cb': ('mean_3class_f1', 'accuracy'),
    'superglue_copa': ('accuracy',),
    'superglue_multirc': ('f1', 'exact_match'),
    'superglue_record': ('f1', 'em'),
    'superglue_rte': ('accuracy',),
    'superglue_wic': ('accuracy',),
    'superglue_wsc': ('accuracy',),
}


def benchmark_score(metrics_by_task: Mapping[str, Mapping[str, float]]) -> float:
  """SuperGLUE's score: the mean over the eight tasks, each first the mean of its own metrics.

  Args:
    metrics_by_task: task name -> metric name -> value; further tasks and metrics are ignored.

  Raises:
    ValueError: a task or a metric is missing, or a value is not finite.
  """
  scores = []
  for task, names in OFFICIAL_METRICS.items():
    found = metrics_by_task.get(task, {})
    missing = [name for name in names if name not in found]
    if missing:
      raise ValueError(f"no {' and '.join(missing)} of {task}: the score needs all eight tasks, "
                       'so evaluate the mixture superglue')
    scores.append(np.mean([found[name] for name in names]))
  if not np.all(np.isfinite(scores)):
    raise ValueError(f'a metric is not finite: {dict(zip(OFFICIAL_METRICS, scores))}')
  return float(np.mean(scores))


# Postprocessors: SeqIO calls them with the decoded text and the example, whose strings are bytes.


def class_index(task: str) -> Callable[..., int]:
  """Returns a postprocessor of a task with label texts: the class that a text names, else -1.

  T5's label words count exactly as they are written; blanks around a letter do not matter.
  """

  def postprocess(text: str, example: Mapping[str, Any] | None = None,
                  is_target: bool = False) -> int:
    if is_target and example is not None:
      return int(example['label'])
    if superglue_prompts.prompt() == superglue_prompts.LETTERS:
      text = text.strip()
    labels = superglue_prompts.labels(task)
    return labels.index(text) if text in labels else -1

  return postprocess


def grouped(task: str, *names: str) -> Callable[..., dict[str, Any]]:
  """Returns a postprocessor that tells, besides the class of `class_index`, the group of a target.

  Args:
    task: as of `class_index`.
    *names: the example's fields that name its group.
  """
  to_class = class_index(task)

  def postprocess(text: str, example: Mapping[str, Any] | None = None,
                  is_target: bool = False) -> dict[str, Any]:
    value = to_class(text, example, is_target)
    return {'value': value, 'group': tuple(int(example[n]) for n in names)} if is_target else {'value': value}

  return postprocess


def record_answer(text: str, example: Mapping[str, Any] | None = None,
                  is_target: bool = False) -> dict[str, Any]:
  """Postprocessor of ReCoRD: the text, and for targets all answers and the query they belong to."""
  if not is_target:
    return {'value': text}
  answers = [a.decode('utf-8') if isinstance(a, bytes) else str(a) for a in example['answers']]
  return {'value': answers, 'group': (int(example['idx/passage']), int(example['idx/query']))}


def wsc_answer(text: str, example: Mapping[str, Any] | None = None,
               is_target: bool = False) -> int:
  """Postprocessor of WSC: `wsc_referent`, or the class that a letter stands for."""
  if superglue_prompts.prompt() == superglue_prompts.LETTERS:
    return class_index('wsc')(text, example, is_target)
  return wsc_referent(text, example, is_target)


def wsc_referent(text: str, example: Mapping[str, Any] | None = None,
                 is_target: bool = False) -> int:
  """Postprocessor of WSC: 1 where the text names the referent, 0 where not, -1 where it is empty.

  Case and determiners are ignored. One set of words must contain the other ("fuzzy bunny" names
  "bunny"), and an apostrophe must be in both or in neither ("Bob" does not name "Bob's hat").
  """
  if is_target:
    return int(example['label'])
  predicted = _without_determiners(text)
  if not predicted:
    return -1
  gold = example['targets_pretokenized']
  gold = _without_determiners(gold.decode('utf-8') if isinstance(gold, bytes) else str(gold))
  if ("'" in predicted) != ("'" in gold):
    return 0
  predicted_words, gold_words = set(predicted.split(' ')), set(gold.split(' '))
  return int(predicted_words <= gold_words or gold_words <= predicted_words)


# Metrics.


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Share of predictions that equal their target."""
  _check(targets, predictions)
  return {'accuracy': 100 * float(np.mean(np.equal(targets, predictions)))}


def mean_3class_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Macro-F1 over the classes 0, 1, 2; a class without targets and predictions counts 0."""
  _check(targets, predictions)
  scores = [_f1(np.equal(targets, c), np.equal(predictions, c)) for c in range(3)]
  return {'mean_3class_f1': 100 * float(np.mean(scores))}


def matthews_correlation(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Matthews' correlation of targets and predictions, 0 where either is constant; -1, no class, is a class of its own.

  With more than two classes it is Gorodkin's R_K (Computational Biology and Chemistry 28, 2004), as in scikit-learn.
  """
  _check(targets, predictions)
  classes = sorted({*targets, *predictions})
  gold, predicted = (np.array([[value == c for c in classes] for value in values], float)
                     for values in (targets, predictions))
  covariance = lambda x, y: np.sum((x - x.mean(0)) * (y - y.mean(0)))
  spread = np.sqrt(covariance(gold, gold) * covariance(predicted, predicted))
  return {'matthews_correlation': 100 * float(covariance(gold, predicted) / spread) if spread else 0.0}


def accuracy_and_gender_parity(targets: Sequence[Mapping[str, Any]],
                               predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Winogender's metrics: accuracy, and the share of pairs whose sentences, of either gender, get the same class.

  A text that is no class makes its pair unequal. A pair with one sentence only, as at the end of a cut evaluation, does not
  count towards the parity.
  """
  values = [p['value'] for p in predictions]
  scores = accuracy([t['value'] for t in targets], values)
  pairs = collections.defaultdict(list)
  for target, value in zip(targets, values):
    pairs[target['group']].append(value)
  whole = [pair for pair in pairs.values() if len(pair) > 1]
  if not whole:
    raise ValueError('no pair has both its sentences: gender parity needs all lines of AX-g')
  equal = [len(set(pair)) == 1 and pair[0] != -1 for pair in whole]
  return {**scores, 'gender_parity': 100 * float(np.mean(equal))}


def multirc_f1(targets: Sequence[Mapping[str, Any]],
               predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """F1a: F1 of the class True over all answers; a text that is no class counts as the wrong one."""
  gold = np.array([t['value'] for t in targets])
  predicted = np.array([p['value'] for p in predictions])
  _check(gold, predicted)
  predicted = np.where(predicted == -1, 1 - gold, predicted)
  return {'f1': 100 * _f1(gold == 1, predicted == 1)}


def multirc_exact_match(targets: Sequence[Mapping[str, Any]],
                        predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Share of questions all of whose answers are right. Needs all answers of a question."""
  _check([t['value'] for t in targets], predictions)
  right = collections.defaultdict(lambda: True)
  for target, prediction in zip(targets, predictions):
    right[target['group']] &= target['value'] == prediction['value']
  return {'exact_match': 100 * float(np.mean(list(right.values())))}


def record_em_f1(targets: Sequence[Mapping[str, Any]],
                 predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """SQuAD's exact match and token F1, best over the answers; only a query's first row counts."""
  first = {}
  for target, prediction in zip(targets, predictions, strict=True):
    first.setdefault(target['group'], (target['value'], prediction['value']))
  if not first or not all(answers for answers, _ in first.values()):
    raise ValueError("answers are hidden in this split; evaluate on 'validation'")
  normalise = text_metrics.squad_normalise
  pairs = [([normalise(a) for a in answers], normalise(text)) for answers, text in first.values()]
  return {'em': 100 * float(np.mean([text in answers for answers, text in pairs])),
          'f1': 100 * float(np.mean([max(text_metrics.token_f1(a, text) for a in answers)
                                     for answers, text in pairs]))}


def _check(targets: Sequence[int], predictions: Sequence[Any]) -> None:
  if len(targets) != len(predictions) or not len(targets):
    raise ValueError(f'{len(targets)} targets and {len(predictions)} predictions; '
                     'wanted as many, and at least one')
  if np.any(np.equal(targets, -1)):
    raise ValueError("labels are hidden (-1) in this split; evaluate on 'validation'")


def _f1(gold: np.ndarray, predicted: np.ndarray) -> float:
  both, either = np.sum(gold & predicted), np.sum(gold) + np.sum(predicted)
  return float(2 * both / either) if either else 0.0


def _without_determiners(text: str) -> str:
  return ' '.join(word for word in text.strip().lower().split(' ') if word not in _DETERMINERS)
