"""Whether tasks pull the skills that they share in opposite directions: cosines of their gradients (PCGrad, arXiv 2001.06782).

From a run (`python -m cpoly_jax.analysis MODEL_DIR --examples=64`), or with any loss:

    loss = lambda params, batch: model.loss_fn(params, batch, None)[0]
    found = conflict.cosines(conflict.task_gradients(loss, params, {'rte': rte_batch, 'boolq': boolq_batch}))

A gradient of few examples is mostly chance, and chance is at right angles to everything: how well two halves of one task's
examples agree says how much a small cosine of two tasks means.

Notation: T tasks, S skills, N examples of a task, n parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Callable, Mapping

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax.analysis import diversity

_COLUMNS = 1 << 20  # Of gradients that are multiplied at once, in float64.


@dataclasses.dataclass(frozen=True)
class Pulls:
  """How the gradients of tasks agree.

  Attributes:
    cosine: by kind of skill (`common`, `specific`, or `all`), float64 [T, T].
    halves: by kind, the cosine of the gradients of two halves of a task's examples, float64 [T].
  """

  cosine: Mapping[str, np.ndarray]
  halves: Mapping[str, np.ndarray]


def pulls(model: Any, params: Mapping[str, Any], batches: Mapping[str, Mapping[str, np.ndarray]], owners: np.ndarray) -> Pulls:
  """Compares the gradients of tasks with respect to the skills, as the network is evaluated: without noise and dropout.

  Args:
    model: a `CPolyModel`.
    params: nested dict of all parameters.
    batches: by task, a batch of its examples alone; N, the same for all, is even.
    owners: [S], the row of the task whose own a skill is, or -1.

  Returns:
    Cosines for common and specific skills apart, or for `all` where none is specific.
  """
  flat = traverse_util.flatten_dict(dict(params), sep='/')
  trained = {name: value for name, value in flat.items()
             if adapters.SKILLS in name.split('/') and jnp.issubdtype(value.dtype, jnp.floating)}
  # An argument, as values that a program closes over are compiled into it.
  rest = jax.device_put({name: value for name, value in flat.items() if name not in trained})

  def loss(skills, data):
    batch, others = data
    return model.loss_fn(traverse_util.unflatten_dict({**skills, **others}, sep='/'), batch, None)[0]

  examples = len(next(iter(next(iter(batches.values())).values())))
  cut = lambda rows: {task: ({name: value[rows] for name, value in batch.items()}, rest) for task, batch in batches.items()}
  first, second = (task_gradients(loss, trained, cut(rows)) for rows in (slice(0, examples // 2), slice(examples // 2, None)))
  specific = np.asarray(owners) >= 0
  if specific.any():
    columns = np.concatenate([_of_specific(trained[name], specific) for name in sorted(trained)])
    kinds = {'common': ~columns, 'specific': columns}
  else:
    kinds = {'all': np.ones(first.shape[1], bool)}
  cosine, halves = {}, {}
  for kind, chosen in kinds.items():
    if chosen.any():
      pair = np.concatenate([first[:, chosen], second[:, chosen]])
      agreement = cosines(pair)
      count = len(batches)
      halves[kind] = np.diag(agreement[:count, count:])
      cosine[kind] = cosines(pair[:count] + pair[count:])
  return Pulls(cosine, halves)


def _of_specific(value: np.ndarray, specific: np.ndarray) -> np.ndarray:
  """Says for each number of a parameter [S, ...], flat, whether it is of a specific skill."""
  return np.repeat(specific, value.size // len(specific))


def task_gradients(loss: Callable[[Any, Any], jax.Array], params: Any, batches: Mapping[str, Any]) -> np.ndarray:
  """Returns the gradient of each task's loss.

  Args:
    loss: (params, batch) -> scalar.
    params: the parameters that tasks share and that train, a pytree; others belong into `loss`, or into the batches.
    batches: a batch of each task alone, by name; equal shapes compile once.

  Returns:
    float32 [T, n], in the order of `batches`; n is in the order of the leaves of `params`.
  """
  gradient = jax.jit(jax.grad(loss))
  flat = lambda tree: np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree_util.tree_leaves(tree)])
  return np.stack([flat(gradient(params, batch)) for batch in batches.values()])


def cosines(gradients: np.ndarray) -> np.ndarray:
  """cos_ij = <g_i, g_j> / (|g_i| |g_j|): below zero where a step for one task harms the other, to first order.

  Args:
    gradients: [T, n].

  Returns:
    float64 [T, T]; 1 on the diagonal, and 0 between a gradient of zeros and another.
  """
  products = np.zeros((len(gradients), len(gradients)))
  for start in range(0, gradients.shape[1], _COLUMNS):
    part = np.asarray(gradients[:, start:start + _COLUMNS], np.float64)
    products += part @ part.T
  found = np.nan_to_num(diversity.cosines(products))
  np.fill_diagonal(found, 1)
  return found


def conflicting(cosine: np.ndarray) -> float:
  """Returns the share of pairs of tasks whose gradients have a negative cosine; NaN for a single task."""
  upper = cosine[np.triu_indices(len(cosine), 1)]
  return float(np.mean(upper < 0)) if upper.size else float('nan')
