"""SuperGLUE by rank classification: the tasks `superglue_<task>_rank`, and mixtures of them.

Ranked are the label words of BoolQ, CB, COPA, MultiRC, RTE and WiC, and the entities of each passage of ReCoRD. WSC is
left out: its target is the referent itself, and a row names one candidate but none of those it would have to beat.

Mixtures: `superglue_rank` has these tasks, `superglue_both` those of `superglue` as well, for evaluations that show
both views side by side. Routing rows are those of `superglue`. Their summaries compare the two views on the seven tasks
that have both (`score_without_wsc`, `score_without_wsc_rank`).
"""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

import numpy as np
import seqio

from tasks import mixtures
from tasks import rank_classification
from tasks import sources
from tasks import summaries
from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_metrics
from tasks import superglue_prompts

_LABELLED = ('boolq', 'cb', 'copa', 'multirc', 'rte', 'wic')
TASKS = tuple(f'superglue_{task}_rank' for task in sorted((*_LABELLED, 'record')))


def _labels(task: str) -> rank_classification.Texts:
  """Returns the choices of a task with label words, which depend on how its prompts are written."""
  return lambda row, example: superglue_prompts.labels(task)


def _gold_label(row: sources.Row, example: Mapping[str, Any]) -> Sequence[str]:
  return () if row['label'] == superglue_formats.HIDDEN else (example['targets'],)


def score_without_wsc(metrics: Mapping[str, Mapping[str, float]], suffix: str = '') -> float:
  """SuperGLUE's score over the seven tasks that both views have: the mean of each task's mean.

  Args:
    metrics: {task: {metric: value}}.
    suffix: of the tasks' names, `_rank` for the ranked ones.

  Raises:
    ValueError: a task or a metric is missing.
  """
  scores = []
  for name in TASKS:
    task = name.removesuffix('_rank')
    found = metrics.get(task + suffix, {})
    if missing := [metric for metric in superglue_metrics.OFFICIAL_METRICS[task] if metric not in found]:
      raise ValueError(f"no {' and '.join(missing)} of {task}{suffix}")
    scores.append(np.mean([found[metric] for metric in superglue_metrics.OFFICIAL_METRICS[task]]))
  return float(np.mean(scores))


def both_scores(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  """Returns SuperGLUE's score, and both views' without WSC. Raises ValueError where a task or a metric is missing."""
  return {'score': superglue_metrics.benchmark_score(metrics), 'score_without_wsc': score_without_wsc(metrics),
          'score_without_wsc_rank': score_without_wsc(metrics, '_rank')}


def register() -> None:
  """Registers tasks and mixtures; does nothing the second time."""
  if 'superglue_rank' in seqio.MixtureRegistry.names():
    return
  for task in _LABELLED:
    rank_classification.add_task(f'superglue_{task}_rank', f'superglue_{task}', _labels(task), golds=_gold_label)
  rank_classification.add_task('superglue_record_rank', 'superglue_record', lambda row, example: row['entities'],
                               golds=lambda row, example: row['answers'])
  seqio.MixtureRegistry.add('superglue_rank', TASKS, default_rate=mixtures.equal_rate)
  # Only the tasks of `superglue` can be trained on, so the rates of the others never count.
  seqio.MixtureRegistry.add('superglue_both', [(task, mixtures.proportional_rate) for task in superglue.TASKS] +
                            [(task, mixtures.equal_rate) for task in TASKS])
  summaries.register('superglue_rank', lambda metrics: {'score_without_wsc_rank': score_without_wsc(metrics, '_rank')})
  summaries.register('superglue_both', both_scores)


register()
