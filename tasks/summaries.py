"""Numbers of a whole mixture, computed from the metrics of its tasks: a benchmark's score, means by category.

A module that registers a mixture registers its summary too:

    summaries.register('superglue', lambda metrics: {'score': benchmark_score(metrics)})

and `summaries.Evaluator`, which runs use in the place of `seqio.Evaluator` (gin_configs/runs), calls it when all tasks of an
evaluation are done. The numbers go to the same loggers as a task's, under the mixture's name (TensorBoard, and
`<mixture>-metrics.jsonl`), and into the metrics that the evaluation returns; t5x_lite shows them below its table of tasks.
"""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Any
from collections.abc import Callable, Mapping

from absl import logging
import seqio

Summary = Callable[..., Mapping[str, float]]

_summaries: dict[str, tuple[Summary, bool]] = {}


def register(mixture_name: str, fn: Summary, counted: bool = False) -> None:
  """Makes `fn` the summary of a mixture, in the place of an earlier one.

  Args:
    mixture_name: the SeqIO mixture.
    fn: {task: {metric: value}} of the tasks that were evaluated -> {name: value}; it may raise ValueError where they do not
      suffice, whose message is then logged.
    counted: whether `fn` has a second argument, {task: number of examples that it was evaluated on}.
  """
  _summaries[mixture_name] = fn, counted


def summarize(mixture_name: str, metrics: Mapping[str, Mapping[str, Any]],
              num_examples: Mapping[str, int] | None = None) -> dict[str, float]:
  """Returns the summary of a mixture from its tasks' metrics, {} where it has none or they do not suffice.

  Args:
    mixture_name: the SeqIO mixture.
    metrics: {task: {metric: number or SeqIO scalar}}; other values, such as texts, are left out.
    num_examples: {task: number of examples}, for a summary that is `counted`.
  """
  if mixture_name not in _summaries:
    return {}
  fn, counted = _summaries[mixture_name]
  try:
    values = fn({task: _numbers(values) for task, values in metrics.items()}, *([num_examples or {}] if counted else []))
  except ValueError as e:
    logging.warning('No summary of %s: %s', mixture_name, e)
    return {}
  return {name: float(value) for name, value in values.items()}


class Evaluator(seqio.Evaluator):
  """`seqio.Evaluator` that adds the summary of its mixture, logged and returned under the mixture's name."""

  def __init__(self, mixture_or_task_name: str, *args, **kwargs):
    super().__init__(mixture_or_task_name, *args, **kwargs)
    self._name = getattr(mixture_or_task_name, 'name', mixture_or_task_name)

  def evaluate(self, *, compute_metrics: bool, step: int | None = None, **kwargs):
    """As SeqIO's."""
    metrics, outputs = super().evaluate(compute_metrics=compute_metrics, step=step, **kwargs)
    if not compute_metrics:
      return metrics, outputs
    summarized = concurrent.futures.Future()

    def add_summary(done: concurrent.futures.Future) -> None:
      # In the thread that has computed the metrics, so `close` waits for this too.
      try:
        summarized.set_result(self._with_summary(done.result(), step))
      except Exception as e:  # Whoever waits for the metrics gets it.
        summarized.set_exception(e)

    metrics.add_done_callback(add_summary)
    return summarized, outputs

  @functools.cached_property
  def _num_examples(self) -> dict[str, int]:
    return {name: sum(1 for _ in dataset) for name, dataset in self.cached_task_datasets.items()}

  def _with_summary(self, metrics: Mapping[str, Mapping[str, Any]], step: int | None) -> dict[str, Mapping[str, Any]]:
    counted = _summaries.get(self._name, (None, False))[1]
    summary = summarize(self._name, metrics, self._num_examples if counted else None)
    if not summary:
      return dict(metrics)
    for logger in self.loggers:
      logger(task_name=self._name, step=step, metrics={k: seqio.metrics.Scalar(v) for k, v in summary.items()},
             dataset=None, inferences=None, targets=None)
    return {**metrics, self._name: summary}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  found = {}
  for name, value in values.items():
    try:
      found[name] = float(getattr(value, 'value', value))
    except (TypeError, ValueError):
      pass
  return found
