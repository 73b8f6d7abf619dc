"""Metrics of a user's own tasks by name, in percent; without names the data choose them.

    accuracy      the output is the target, letter by letter
    exact_match   the same without case, punctuation and extra spaces
    f1            F1 of the words, without case, punctuation and articles (SQuAD, arXiv 1606.05250)
    rouge         ROUGE-L with stemming, as in Super-NI

Where several targets are acceptable, the best one counts.
"""

from __future__ import annotations

import collections
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

from tasks import superglue_metrics
from tasks import superni_metrics
from tasks import text_metrics

References = Sequence[Sequence[str]]
Metric = Callable[[References, Sequence[str]], Mapping[str, float]]

# Targets are labels where there are no more different ones, and each comes twice on average.
MAX_LABELS = 20


def label_counts(targets: Iterable[Sequence[str]]) -> dict[str, int]:
  """Returns label -> examples, the most frequent first, or {} where the targets are free text.

  Args:
    targets: the acceptable targets of each example; with labels that is one, or none where it is hidden.
  """
  counts: collections.Counter[str] = collections.Counter()
  for acceptable in targets:
    if len(acceptable) > 1:
      return {}
    counts.update(acceptable)
  return dict(counts.most_common()) if len(counts) <= MAX_LABELS and 2 * len(counts) <= counts.total() else {}


def accuracy(targets: References, predictions: Sequence[str]) -> Mapping[str, float]:
  """Share of predictions that are an acceptable target, but for the space around them."""
  right = [int(prediction.strip() in acceptable) for acceptable, prediction in zip(targets, predictions)]
  return superglue_metrics.accuracy([1] * len(right), right)


def f1(targets: References, predictions: Sequence[str]) -> Mapping[str, float]:
  """Mean F1 of the words of a prediction and its best target."""
  normalise = text_metrics.squad_normalise
  scores = [max(text_metrics.token_f1(normalise(target), normalise(prediction)) for target in acceptable)
            for acceptable, prediction in zip(targets, predictions)]
  return {'f1': 100 * sum(scores) / len(scores)}


def rouge(targets: References, predictions: Sequence[str]) -> Mapping[str, float]:
  """ROUGE-L of a prediction and its best target."""
  return {'rougeL': superni_metrics.rouge(targets, predictions)['rougeL']}


METRICS: Mapping[str, Metric] = {
    'accuracy': accuracy, 'exact_match': superni_metrics.exact_match, 'f1': f1, 'rouge': rouge}
OF_LABELS = ('accuracy',)
OF_TEXT = ('exact_match', 'f1', 'rouge')


def check_names(names: Sequence[str]) -> None:
  """Raises ValueError unless `names` are different metrics, and at least one."""
  if isinstance(names, str) or not names or len(set(names)) < len(names):
    raise ValueError(f"own_data.mixture.metrics is {names!r}; write a list of different ones of {', '.join(METRICS)}")
  for name in names:
    if name not in METRICS:
      near = difflib.get_close_matches(str(name), METRICS, n=1)
      hint = f'did you mean {near[0]}?' if near else f"write one of {', '.join(METRICS)}"
      raise ValueError(f'own_data.mixture.metrics: there is no metric {name!r}; {hint}')


def metric_fn(task: str, names: Sequence[str] | None, has_labels: Callable[[], bool]) -> Metric:
  """Returns the metrics of a task as one function for SeqIO.

  Args:
    task: its name, for messages.
    names: of metrics; None: accuracy for labels, and exact_match, f1, rouge for free text.
    has_labels: tells whether the targets are labels; asked when metrics are computed, not before.
  """

  def metrics(targets: References, predictions: Sequence[str]) -> Mapping[str, float]:
    if not all(targets):
      raise ValueError(f"{task}: examples of this split have no target to compare with; evaluate on 'validation'")
    chosen = names or (OF_LABELS if has_labels() else OF_TEXT)
    return {key: value for name in chosen for key, value in METRICS[name](targets, predictions).items()}

  return metrics
