"""Whether skills differ: cosines between the changes that they make to a projection's kernel.

Notation: S skills, d inputs, o outputs, r rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

_BLOCK = 1 << 24  # Numbers of a Gram matrix that are held at once.


def low_rank_gram(down: np.ndarray, up: np.ndarray) -> np.ndarray:
  """<A_s B_s, A_t B_t> = tr((A_s^T A_t) (B_t B_s^T)) = sum_ij (A_s^T A_t)_ij (B_s B_t^T)_ij, without any kernel [d, o].

  Args:
    down: A, [S, d, r].
    up: B, [S, r, o].

  Returns:
    Inner products of the skills' deltas, float64 [S, S].
  """
  skills, _, rank = down.shape
  left = np.asarray(down, np.float64).transpose(0, 2, 1).reshape(skills * rank, -1)
  right = np.asarray(up, np.float64).reshape(skills * rank, -1)
  found = np.empty((skills, skills))
  step = max(1, _BLOCK // (skills * rank * rank))
  for start in range(0, skills, step):
    rows = slice(start * rank, (start + step) * rank)
    product = (left[rows] @ left.T) * (right[rows] @ right.T)
    found[start:start + step] = product.reshape(-1, rank, skills, rank).sum(axis=(1, 3))
  return found


def sparse_gram(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
  """Inner products of sparse deltas, which have one value at an index in each run of outputs.

  Args:
    values: [S, d, m].
    indices: whole numbers [S, d, m]; two skills meet where their indices are equal.

  Returns:
    float64 [S, S].
  """
  skills = len(values)
  values, indices = np.asarray(values, np.float64).reshape(skills, -1), np.asarray(indices, np.float32).reshape(skills, -1)
  return np.array([((indices == indices[s]) * values) @ values[s] for s in range(skills)])


def dense_gram(deltas: np.ndarray) -> np.ndarray:
  """Inner products of kernels [S, d, o] or vectors [S, n]: float64 [S, S]."""
  flat = np.asarray(deltas, np.float64).reshape(len(deltas), -1)
  return flat @ flat.T


def gram(skills: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the inner products [S, S] of one projection's skills, of any inventory of this project.

  Args:
    skills: parameters of the inventory by name: `down` and `up`, `values` and `indices`, `kernel`, or `scale`.

  Raises:
    ValueError: they are of another inventory.
  """
  if {'down', 'up'} <= skills.keys():
    return low_rank_gram(skills['down'], skills['up'])
  if {'values', 'indices'} <= skills.keys():
    return sparse_gram(skills['values'], skills['indices'])
  for name in ('kernel', 'scale'):
    if name in skills:
      return dense_gram(skills[name])
  raise ValueError(f'skills of parameters {", ".join(sorted(skills))} cannot be compared: this project has no such inventory')


def cosines(products: np.ndarray) -> np.ndarray:
  """Returns inner products [S, S] over the norms; NaN where a skill is zero, as all are at the start of training."""
  norms = np.sqrt(np.maximum(np.diag(products), 0))
  scale = norms[:, None] * norms
  found = np.full(products.shape, np.nan)
  np.divide(products, scale, out=found, where=scale > 0)
  return np.clip(found, -1, 1)


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Mean |cosine| of pairs of skills, NaN where there is no such pair.

  Attributes:
    pairs: all pairs.
    common: of two common skills.
    across: of a common and a specific one.
    specific: of two specific ones.
  """

  pairs: float
  common: float
  across: float
  specific: float


def overlap(cosine: np.ndarray, owners: np.ndarray) -> Overlap:
  """Averages |cosine| over the kinds of pairs.

  Args:
    cosine: [S, S].
    owners: int [S], -1 for a common skill.
  """
  own = np.asarray(owners) >= 0
  pairs = np.triu(np.ones(cosine.shape, bool), 1) & ~np.isnan(cosine)
  kinds = own[:, None].astype(int) + own
  mean = lambda chosen: float(np.abs(cosine[chosen]).mean()) if chosen.any() else float('nan')
  return Overlap(mean(pairs), *(mean(pairs & (kinds == kind)) for kind in range(3)))
