"""Super-NI's metrics, in percent: ROUGE and exact match, best over an instance's references.

As in the benchmark's evaluation script: F-measure of `rouge-score` with its stemmer, the mean over instances, and exact match
after lower-casing and removing punctuation and extra spaces (articles stay). `rouge-score` keeps letters a to z and digits
only, so that texts in other scripts score 0: the English split has none.
"""

from __future__ import annotations

import collections
import functools
import string
from typing import Any
from collections.abc import Mapping, Sequence

import numpy as np

_ROUGE = ('rouge1', 'rougeL', 'rougeLsum')
_BY_CATEGORY = ('exact_match', 'rougeL')


def references(text: str, example: Mapping[str, Any] | None = None,
               is_target: bool = False) -> str | list[str]:
  """Postprocessor: all acceptable outputs for a target, the text itself for a prediction."""
  if not is_target:
    return text
  return [r.decode('utf-8') if isinstance(r, bytes) else str(r) for r in example['references']]


def rouge(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """ROUGE-1, ROUGE-L and ROUGE-Lsum; each takes its own best reference.

  Args:
    targets: the references of each instance.
    predictions: a text for each instance.
  """
  _check(targets, predictions)
  scores = collections.defaultdict(list)
  for texts, prediction in zip(targets, predictions):
    by_reference = [_scorer().score(target=text, prediction=prediction) for text in texts]
    for name in _ROUGE:
      scores[name].append(max(score[name].fmeasure for score in by_reference))
  return {name: 100 * float(np.mean(scores[name])) for name in _ROUGE}


def exact_match(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Share of predictions that equal a reference after normalisation."""
  _check(targets, predictions)
  return {'exact_match': 100 * float(np.mean([
      _normalise(prediction) in [_normalise(text) for text in texts]
      for texts, prediction in zip(targets, predictions)]))}


def benchmark_scores(metrics_by_task: Mapping[str, Mapping[str, float]],
                     num_instances: Mapping[str, int] | None = None,
                     categories: Mapping[str, str] | None = None) -> dict[str, float]:
  """Means over instances, of all tasks and of each category.

  Args:
    metrics_by_task: task name -> metric name -> value, with the same metrics for every task.
    num_instances: instances that each task was evaluated on; None: equally many.
    categories: task name -> category; None: no values by category.

  Returns:
    `<metric>` over all tasks and `<metric>/<category>` for each category.

  Raises:
    ValueError: there is no task, tasks differ in their metrics, or a task has no count or category.
  """
  if not metrics_by_task:
    raise ValueError('no metrics of any task; evaluate the mixture superni_test')
  names = list(next(iter(metrics_by_task.values())))
  groups = collections.defaultdict(list)
  for task, metrics in metrics_by_task.items():
    if set(metrics) != set(names):
      raise ValueError(f'{task} has the metrics {sorted(metrics)}, others have {sorted(names)}')
    for given, what in ((num_instances, 'number of instances'), (categories, 'category')):
      if given is not None and task not in given:
        raise ValueError(f'no {what} given for {task}')
    groups[''].append(task)
    if categories is not None:
      groups[f'/{categories[task]}'].append(task)
  return {name + group: float(np.average([metrics_by_task[task][name] for task in tasks],
                                         weights=[num_instances[task] if num_instances else 1
                                                  for task in tasks]))
          for group, tasks in groups.items() for name in names}


def official_scores(metrics_by_task: Mapping[str, Mapping[str, float]], num_instances: Mapping[str, int],
                    categories: Mapping[str, str]) -> dict[str, float]:
  """The report of the benchmark's evaluation script: all metrics over all instances, two of them for each category.

  Args:
    metrics_by_task: task name -> metric name -> value.
    num_instances: instances that each task was evaluated on.
    categories: task name -> category, e.g. `Textual Entailment`.

  Returns:
    `<metric>`, and `exact_match/<category>` and `rougeL/<category>` for each category, written `textual_entailment`.

  Raises:
    ValueError: as `benchmark_scores`.
  """
  written = {task: '_'.join(category.lower().split()) for task, category in categories.items()}
  scores = benchmark_scores(metrics_by_task, num_instances, written)
  return {name: value for name, value in scores.items() if '/' not in name or name.split('/')[0] in _BY_CATEGORY}


@functools.cache
def _scorer():
  from rouge_score import rouge_scorer  # pylint: disable=g-import-not-at-top
  return rouge_scorer.RougeScorer(_ROUGE, use_stemmer=True)


def _normalise(text: str) -> str:
  return ' '.join(''.join(c for c in text.lower() if c not in string.punctuation).split())


def _check(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> None:
  if len(targets) != len(predictions) or not predictions:
    raise ValueError(f'{len(targets)} targets and {len(predictions)} predictions; '
                     'wanted as many, and at least one')
  if not all(len(texts) for texts in targets):
    raise ValueError('an instance has no reference; give each at least one acceptable output')
