"""Actions look at the metrics after training or evaluation and may end a run early."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
import enum
from typing import Any

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
