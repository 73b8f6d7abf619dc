"""Who borrows from whom in C-Poly (arXiv 2312.03248): the mass of W_B that lies on other tasks' skills.

Notation: T tasks, W specific skills of all tasks.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Loan:
  """`borrower` uses skills of `lender`: `share` of the borrower's weights on specific skills, sum of `weight`s."""

  borrower: int
  lender: int
  share: float
  weight: float


def by_owner(weights: np.ndarray, owners: np.ndarray) -> np.ndarray:
  """M_tu = sum of |w_tj| over the skills j that task u owns.

  Args:
    weights: [T, W], of the specific skills.
    owners: int [W], the task that each is the own of.

  Returns:
    [T, T]; the diagonal is what tasks take from their own skills.
  """
  tasks = len(weights)
  own = np.asarray(owners)[:, None] == np.arange(tasks)
  return np.abs(np.asarray(weights, np.float64)) @ own


def shares(taken: np.ndarray) -> np.ndarray:
  """Rows of M over their sums, [T, T]; a row of zeros stays."""
  sums = taken.sum(axis=1, keepdims=True)
  return np.divide(taken, sums, out=np.zeros_like(taken, dtype=np.float64), where=sums > 0)


def borrowed(taken: np.ndarray) -> float:
  """1 - trace(M) / sum(M): the share of W_B's mass off the block diagonal; 0 at the start, NaN if there is no mass."""
  total = taken.sum()
  return float(1 - np.trace(taken) / total) if total else float('nan')


def loans(taken: np.ndarray, signed: np.ndarray, most: int) -> list[Loan]:
  """Returns the largest entries of M off the diagonal, by share of the borrower's row.

  Args:
    taken: M, [T, T].
    signed: the same sums with signs, [T, T]: a negative one takes a skill away.
    most: how many.
  """
  part = shares(taken)
  np.fill_diagonal(part, 0)
  first = np.argsort(-part, axis=None, kind='stable')[:most]
  pairs = zip(*np.unravel_index(first, part.shape))
  return [Loan(int(t), int(u), float(part[t, u]), float(signed[t, u])) for t, u in pairs if part[t, u] > 0]
