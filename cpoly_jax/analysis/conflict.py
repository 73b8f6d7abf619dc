"""Whether tasks pull shared parameters in opposite directions: cosines of their gradients (as PCGrad, arXiv 2001.06782).

Gradients need data, which a checkpoint does not have, so this is for use from Python:

    loss = lambda params, batch: model.loss_fn(params, batch, None)[0]
    found = conflict.cosines(conflict.task_gradients(loss, params, {'rte': rte_batch, 'boolq': boolq_batch}))

Notation: T tasks, n parameters.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Callable, Mapping

import jax
import numpy as np

from cpoly_jax.analysis import hierarchy


def task_gradients(loss: Callable[[Any, Any], jax.Array], params: Any, batches: Mapping[str, Any]) -> np.ndarray:
  """Returns the gradient of each task's loss.

  Args:
    loss: (params, batch) -> scalar.
    params: the parameters that tasks share and that train, a pytree; others belong into `loss`.
    batches: a batch of each task alone, by name; equal shapes compile once.

  Returns:
    float32 [T, n], in the order of `batches`.
  """
  gradient = jax.jit(jax.grad(loss))
  flat = lambda tree: np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree_util.tree_leaves(tree)])
  return np.stack([flat(gradient(params, batch)) for batch in batches.values()])


def cosines(gradients: np.ndarray) -> np.ndarray:
  """cos_ij = <g_i, g_j> / (|g_i| |g_j|): below zero where a step for one task harms the other, to first order.

  Args:
    gradients: [T, n].

  Returns:
    float64 [T, T].
  """
  return hierarchy.cosines(gradients)


def conflicting(cosine: np.ndarray) -> float:
  """Returns the share of pairs of tasks whose gradients have a negative cosine; NaN for a single task."""
  upper = cosine[np.triu_indices(len(cosine), 1)]
  return float(np.mean(upper < 0)) if upper.size else float('nan')
