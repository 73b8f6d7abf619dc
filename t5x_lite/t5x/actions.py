"""Actions look at the metrics after training or evaluation and may end a run early."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
import enum
import logging
from typing import Any

import numpy as np

MetricsByTask = Mapping[str, Mapping[str, Any]]


class PreemptionError(Exception):
  """The machine is about to be taken away: save the state, then let the error go on."""


class ActionMode(enum.Enum):
  """When an action runs."""

  TRAIN = 1
  TRAIN_EVAL = 2
  INFER_EVAL = 3


class BaseAction(abc.ABC):
  """Something to do with the metrics of a period."""

  @abc.abstractmethod
  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """Returns whether training is to stop.

    Args:
      train_state: the present state.
      metrics_by_task: {task: {metric: clu Value or number}}.
    """


ActionMapType = Mapping[ActionMode, Sequence[BaseAction]]


def _metric(metrics_by_task: MetricsByTask, task: str, name: str) -> float | None:
  """Returns the number, or None with a warning where the task or the metric is absent."""
  metrics = metrics_by_task.get(task)
  if metrics is None or name not in metrics:
    known = sorted(metrics_by_task) if metrics is None else sorted(metrics)
    logging.warning(
        'An action looks for metric %r of task %r, but there is only %s.', name, task, known)
    return None
  value = metrics[name]
  return float(np.asarray(getattr(value, 'value', value)))


class EarlyStoppingAction(BaseAction):
  """Stops when a metric has not improved for a while."""

  def __init__(
      self,
      metric: tuple[str, str],
      mode: str,
      patience: int = 3,
      atol: float = 0.0,
      rtol: float = 0.0,
  ):
    """Says what to watch.

    Args:
      metric: (task, metric).
      mode: 'min' or 'max', the direction of an improvement.
      patience: number of looks without an improvement after which to stop.
      atol: an improvement must be larger than this,
      rtol: and larger than this share of the best value so far.

    Raises:
      ValueError: for another mode.
    """
    if mode not in ('min', 'max'):
      raise ValueError(f"EarlyStoppingAction: mode must be 'min' or 'max', got {mode!r}.")
    self._task, self._name = metric
    self._sign = 1.0 if mode == 'max' else -1.0
    self._patience, self._atol, self._rtol = patience, atol, rtol
    self._best: float | None = None
    self._looks_since_best = 0

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    value = _metric(metrics_by_task, self._task, self._name)
    if value is None:
      return False
    if self._best is None or (
        self._sign * (value - self._best) > self._atol + self._rtol * abs(self._best)):
      self._best, self._looks_since_best = value, 0
      return False
    self._looks_since_best += 1
    if self._looks_since_best < self._patience:
      return False
    logging.warning('Stopping: %s/%s has not been better than %s for %d looks.',
                    self._task, self._name, self._best, self._looks_since_best)
    return True


class TerminateOnNanAction(BaseAction):
  """Stops when a metric is no longer a finite number."""

  def __init__(self, task: str, metric: str = 'loss'):
    self._task, self._name = task, metric

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    value = _metric(metrics_by_task, self._task, self._name)
    if value is None or np.isfinite(value):
      return False
    logging.warning('Stopping: %s/%s is %s.', self._task, self._name, value)
    return True
