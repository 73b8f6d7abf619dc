"""Penalties that shape the routing: the Indian buffet process, entropy and sparsity.

Notation: T tasks, S skills, m_k tasks that use skill k. A prior is a function of one table of logits [..., T, S]; a
model adds the sum over its tables to the loss (see `total`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from collections.abc import Callable

import jax
from jax.scipy.special import gammaln
import jax.numpy as jnp

from cpoly_jax.routing import functions

# Tables of logits: W_A of C-Poly, and Z of Polytropon and of multi-head routing.
TABLES = r'(.*/)?routing/common'


def ibp_log_probability(z: jax.Array, alpha: float) -> jax.Array:
  """log P of a binary task x skill matrix under the Indian buffet process (Griffiths & Ghahramani 2011, eq. 14).

  log P = K log alpha - sum_h log K_h! - alpha H_T + sum_k [log (T - m_k)! + log (m_k - 1)! - log T!]

  over the K skills that some task uses; K_h counts the columns that are equal to each other, H_T = 1 + ... + 1/T.

  Args:
    z: [T, S] of 0 and 1; gradients reach it through m_k.
    alpha: the process's strength: expected skills of a task.

  Returns:
    A float32 scalar.
  """
  tasks = z.shape[0]
  used = jnp.sum(z, axis=0) > 0.5
  m = jnp.where(used, jnp.sum(z, axis=0), 1.)
  per_skill = gammaln(tasks - m + 1.) + gammaln(m) - gammaln(tasks + 1.)
  harmonic = jnp.sum(1. / jnp.arange(1, tasks + 1))
  return (jnp.sum(jnp.where(used, per_skill + jnp.log(alpha), 0.)) - alpha * harmonic
          - _log_repeats(jax.lax.stop_gradient(z), used))


def _log_repeats(z: jax.Array, used: jax.Array) -> jax.Array:
  """sum_h log K_h!: a column that has j equal ones before it contributes log(j + 1)."""
  equal = jnp.all(z[:, :, None] == z[:, None, :], axis=0) & used[:, None] & used[None]
  before = jnp.sum(jnp.triu(equal, 1), axis=0)
  return jnp.sum(jnp.log1p(before))


@dataclasses.dataclass(frozen=True)
class IBP:
  """-log P of the hard routing under the Indian buffet process, as the first Polytropon paper regularises.

  Values are rounded from above one half, with straight-through gradients.

  Attributes:
    alpha: strength of the process; 5 in that paper's runs.
  """

  alpha: float = 5.0

  def __call__(self, logits: jax.Array) -> jax.Array:
    """Returns the penalty of a table [T, S]."""
    return -ibp_log_probability(functions.straight_through(jax.nn.sigmoid(logits)), self.alpha)


@dataclasses.dataclass(frozen=True)
class Entropy:
  """Mean binary entropy of sigmoid(Z), in nats: pushes the routing towards 0 and 1."""

  def __call__(self, logits: jax.Array) -> jax.Array:
    """Returns the penalty of a table [T, S], from 0 to log 2."""
    p = jax.nn.sigmoid(logits)
    return jnp.mean(-p * jax.nn.log_sigmoid(logits) - (1 - p) * jax.nn.log_sigmoid(-logits))


@dataclasses.dataclass(frozen=True)
class Sparsity:
  """Mean of sigmoid(Z): pushes tasks to use few skills."""

  def __call__(self, logits: jax.Array) -> jax.Array:
    """Returns the penalty of a table [T, S], from 0 to 1."""
    return jnp.mean(jax.nn.sigmoid(logits))


def total(params: Any, prior: Callable[[jax.Array], jax.Array], tables: str = TABLES) -> jax.Array:
  """Returns the sum of a prior over the tables of a model.

  Args:
    params: nested dict of parameters.
    prior: one of this file's, or any function of a table [T, S].
    tables: regular expression of the tables' paths; each head of [T, H, S] counts as a table.

  Raises:
    ValueError: no parameter matches.
  """
  flat = {'/'.join(str(getattr(k, 'key', k)) for k in path): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
  found = [leaf for path, leaf in flat.items() if re.fullmatch(tables, path)]
  if not found:
    raise ValueError(f'PRIOR is set, but this system has no table of logits ({tables}): set PRIOR = None')
  heads = lambda leaf: [leaf] if leaf.ndim == 2 else list(jnp.moveaxis(leaf, 1, 0))
  return sum(prior(table) for leaf in found for table in heads(leaf))
