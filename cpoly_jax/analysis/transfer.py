"""Transfer between tasks: the loss of each task's examples where they are routed as another task.

Notation: T tasks.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping

import jax
import numpy as np

from cpoly_jax.training.features import TASK_ID


def losses(model: Any, params: Mapping[str, Any], batches: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
  """Evaluates each task's examples with each task's routing; nothing else of them changes.

  Args:
    model: a `CPolyModel`.
    params: nested dict of all parameters.
    batches: by task, a batch of its examples alone; equal shapes compile once.

  Returns:
    float64 [T, T]: nats for each target token of the examples of a task (row), routed as another one (column).
  """
  params = jax.device_put(params)
  loss = jax.jit(lambda params, batch: model.loss_fn(params, batch, None)[0] / batch['decoder_loss_weights'].sum())
  routed = [batch[TASK_ID] for batch in batches.values()]
  return np.array([[float(loss(params, {**batch, TASK_ID: rows})) for rows in routed] for batch in batches.values()])


def similarity(found: np.ndarray) -> np.ndarray:
  """Returns how well two tasks serve each other, [T, T]: higher is better, the same both ways, only to be compared.

  A task's own loss is taken off, so that where routing changes nothing all tasks serve alike.
  """
  lost = found - np.diag(found)[:, None]
  return -(lost + lost.T)


def best_other(found: np.ndarray) -> np.ndarray:
  """Returns for each task the other one with whose routing its loss is lowest, int [T]; T is two or more."""
  return np.where(np.eye(len(found), dtype=bool), np.inf, found).argmin(axis=1)
