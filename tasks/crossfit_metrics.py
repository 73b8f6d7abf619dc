"""CrossFit's seven metrics by its own rules (Ye et al. 2021, arXiv 2104.08835), in percent.

A target is the list of acceptable outputs of a row; a prediction is a text without surrounding space. Classification-F1,
Matthew-Correlation and Pearson-Correlation compare with the first acceptable output alone, the others take the best one.
"""

from __future__ import annotations

import collections
import math
from typing import Any
from collections.abc import Callable, Mapping, Sequence
import string

from absl import logging
import gin
import numpy as np

from tasks import text_metrics

ACCEPTABLE = 'acceptable'  # CoLA's positive label, the only task of Matthew-Correlation.
Targets = Sequence[Sequence[str]]


def references(text: str, example: Mapping[str, Any] | None = None, is_target: bool = False) -> str | list[str]:
  """Postprocessor: all acceptable outputs for a target, the stripped text for a prediction."""
  if not is_target:
    return text.strip()
  return [r.decode('utf-8') if isinstance(r, bytes) else str(r) for r in example['references']]


def accuracy(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """ACC: share of predictions that equal an acceptable output but for case."""
  return {'accuracy': _mean_of_best(lambda target, text: target.lower() == text.lower(), targets, predictions)}


def exact_match(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """EM: the same after SQuAD's normalisation."""
  normal = text_metrics.squad_normalise
  return {'exact_match': _mean_of_best(lambda target, text: normal(target) == normal(text), targets, predictions)}


def qa_f1(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """QA-F1: F1 of the words after SQuAD's normalisation; 0 where no word is shared, even if both are empty."""
  normal, f1 = text_metrics.squad_normalise, text_metrics.token_f1
  return {'qa_f1': _mean_of_best(lambda target, text: f1(normal(target), normal(text)), targets, predictions)}


def rouge_l(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """Rouge-L: F-measure of the package `rouge`, see `rouge_l_f`; 0 for a prediction of nothing but punctuation."""

  def score(target: str, text: str) -> float:
    return rouge_l_f(target, text) if text.strip(string.punctuation) else 0.0

  return {'rouge_l': _mean_of_best(score, targets, predictions)}


def classification_f1(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """Classification-F1: the mean F1 over every text that is a label or a prediction, compared as they stand.

  A prediction that is no label is a class of its own, of F1 0, which lowers the mean.
  """
  _check(targets, predictions)
  labels = [texts[0] for texts in targets]
  right = collections.Counter(label for label, text in zip(labels, predictions) if label == text)
  either = collections.Counter(labels) + collections.Counter(predictions)
  return {'classification_f1': 100 * float(np.mean([2 * right[name] / count for name, count in either.items()]))}


def matthews_correlation(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """Matthew-Correlation of being "acceptable"; any other text counts as not. 0 where one side has one class only."""
  _check(targets, predictions)
  gold = np.array([texts[0] == ACCEPTABLE for texts in targets], float)
  predicted = np.array([text == ACCEPTABLE for text in predictions], float)
  value = _correlation(gold, predicted)
  return {'matthews_correlation': 100 * (0.0 if math.isnan(value) else value)}


def pearson_correlation(targets: Targets, predictions: Sequence[str]) -> dict[str, float]:
  """Pearson-Correlation of the numbers that the texts are.

  NaN where all targets or all predictions are equal, and, as in CrossFit, where a prediction is no number, unless `unparsable`
  gives one for it. A warning says which of the two it was.

  Raises:
    ValueError: a target is no number.
  """
  _check(targets, predictions)
  gold = [_number(texts[0]) for texts in targets]
  if None in gold:
    raise ValueError(f'the target {targets[gold.index(None)][0]!r} is no number; correct the row')
  numbers = [_number(text) for text in predictions]
  default = unparsable()
  bad = [text for text, number in zip(predictions, numbers) if number is None]
  if bad and default is None:
    logging.warning('pearson_correlation is NaN: %d of %d predictions are no numbers, the first is %.40r; '
                    'crossfit_metrics.unparsable.value = 0 would count them as 0', len(bad), len(numbers), bad[0])
    return {'pearson_correlation': math.nan}
  value = _correlation(np.array(gold), np.array([default if number is None else number for number in numbers]))
  if math.isnan(value):
    logging.warning('pearson_correlation is NaN: all %s are equal', 'targets' if len(set(gold)) == 1 else 'predictions')
  return {'pearson_correlation': 100 * value}


METRICS: Mapping[str, Callable[[Targets, Sequence[str]], dict[str, float]]] = {
    'ACC': accuracy,
    'Classification-F1': classification_f1,
    'EM': exact_match,
    'Matthew-Correlation': matthews_correlation,
    'Pearson-Correlation': pearson_correlation,
    'QA-F1': qa_f1,
    'Rouge-L': rouge_l,
}
_NAMES = frozenset(function.__name__ for function in METRICS.values())


@gin.configurable(module='tasks.crossfit_metrics')
def unparsable(value: float | None = None) -> float | None:
  """Returns the number that stands for a prediction that is none; None: it makes Pearson-Correlation NaN."""
  return value if value is None else float(value)


def mean_of_metrics(metrics_by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """Returns `mean`: the mean over tasks of each one's metric, as tables of CrossFit and Polytropon give it.

  Args:
    metrics_by_task: task -> {metric: value}; each task of CrossFit has one metric.

  Raises:
    ValueError: there is no task, or a value is not finite.
  """
  values = {task: value for task, metrics in metrics_by_task.items() for name, value in metrics.items()
            if name in _NAMES}
  if not values:
    raise ValueError('no metric of any CrossFit task')
  bad = sorted(task for task, value in values.items() if not math.isfinite(value))
  if bad:
    raise ValueError(f'the metric of {", ".join(bad)} is not finite, so there is no mean over tasks')
  return {'mean': float(np.mean(list(values.values())))}


def rouge_l_f(target: str, text: str) -> float:
  """Returns ROUGE-L's F-measure, from 0 to 1, as the package `rouge` (1.0.0 and 1.0.1) computes it.

  Texts are split into sentences at each full stop and into words at spaces; case and other punctuation count. Each word
  counts once: with U the words of the longest common subsequences of all pairs of sentences, recall is |U| over the number of
  different words of the target, precision |U| over that of `text`.
  """
  gold, predicted = _sentences(target), _sentences(text)
  common = {word for x in gold for y in predicted for word in _common_subsequence(x, y)}
  if not common:
    return 0.0
  recall = len(common) / len({word for sentence in gold for word in sentence})
  precision = len(common) / len({word for sentence in predicted for word in sentence})
  return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
  # A part of spaces alone is one empty word there.
  return [part.split() or [''] for part in text.split('.') if part]


def _common_subsequence(x: Sequence[str], y: Sequence[str]) -> set[str]:
  """Words of a longest common subsequence; of several ones, that which is found from the end by dropping words of y first."""
  lengths = [[0] * (len(y) + 1) for _ in range(len(x) + 1)]
  for i, first in enumerate(x):
    for j, second in enumerate(y):
      lengths[i + 1][j + 1] = lengths[i][j] + 1 if first == second else max(lengths[i][j + 1], lengths[i + 1][j])
  words, i, j = set(), len(x), len(y)
  while i and j:
    if x[i - 1] == y[j - 1]:
      words.add(x[i - 1])
      i, j = i - 1, j - 1
    elif lengths[i - 1][j] > lengths[i][j - 1]:
      i -= 1
    else:
      j -= 1
  return words


def _mean_of_best(score: Callable[[str, str], float], targets: Targets, predictions: Sequence[str]) -> float:
  _check(targets, predictions)
  return 100 * float(np.mean([max(score(target, text) for target in texts) for texts, text in zip(targets, predictions)]))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  """Pearson's coefficient of two arrays [N]; NaN where one is constant."""
  if not np.ptp(x) or not np.ptp(y):
    return math.nan
  x, y = x - x.mean(), y - y.mean()
  return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def _number(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _check(targets: Targets, predictions: Sequence[str]) -> None:
  if len(targets) != len(predictions) or not predictions:
    raise ValueError(f'{len(targets)} targets and {len(predictions)} predictions; wanted as many, and at least one')
  if not all(len(texts) for texts in targets):
    raise ValueError('a row has no reference; give each at least one acceptable output')
