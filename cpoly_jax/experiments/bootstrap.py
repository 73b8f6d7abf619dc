"""How sure a mean is: percentile bootstrap intervals (Efron 1979), seeded, so that the same scores give the same intervals.

Runs differ by their seed and tasks by what they ask, so a difference of two systems is resampled over both: rows and columns
of the table [seeds, tasks] are drawn with replacement, independently. With one seed only tasks are drawn, with one task only
seeds. An interval of five seeds is rough, and that of two says little; there is none for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean with its interval; `low` and `high` are None where there is one value only."""

  mean: float
  low: float | None
  high: float | None


def _quantiles(means: np.ndarray) -> tuple[float, float]:
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(means, [tail, 1 - tail])
  return float(low), float(high)


def mean(values: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
  """Returns the mean of values, and the interval of it.

  Args:
    values: one for each seed, at least one.
    draws: resamples.
    seed: of the resampling.
  """
  found = np.asarray(values, np.float64)
  if len(found) < 2:
    return Estimate(float(found.mean()), None, None)
  rows = np.random.default_rng(seed).integers(len(found), size=(draws, len(found)))
  return Estimate(float(found.mean()), *_quantiles(found[rows].mean(axis=1)))


def paired(differences: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
  """Returns the mean of paired differences, and its interval over seeds and tasks.

  Args:
    differences: [seeds, tasks], a score less that of the reference with the same seed, on the same task.
    draws: resamples.
    seed: of the resampling.
  """
  table = np.asarray(differences, np.float64)
  if table.size < 2:
    return Estimate(float(table.mean()), None, None)
  rng = np.random.default_rng(seed)
  # How often each row and column is drawn: the mean of a resample is a product of the two shares.
  rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in table.shape)
  return Estimate(float(table.mean()), *_quantiles(np.einsum('ds,st,dt->d', rows, table, columns)))
