"""How sharp, how sparse and how evenly used a routing is (Polytropon, arXiv 2202.13914, section 4.3), and who shares skills.

Pure functions of arrays. Notation: T tasks, k skills of a table, p = sigmoid(Z) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy import special


def discreteness(p: np.ndarray) -> float:
  """1 - mean_ij H(p_ij), with the binary entropy H(p) = -p log2 p - (1 - p) log2 (1 - p) in bits.

  A binary table scores 1 and all one half scores 0, as the text after equation 5 of the paper says; the formula as it is
  printed there, and reference codes, leave out the `1 -`.

  Args:
    p: probabilities, [T, k] or any other shape.

  Returns:
    A number from 0 to 1.
  """
  p = np.asarray(p, np.float64)
  return float(1 - np.mean(special.entr(p) + special.entr(1 - p)) / np.log(2))


def sparsity(active: np.ndarray) -> float:
  """mean_ij round(p_ij): the share of the skills that a task uses, on average.

  Args:
    active: bool [T, k], p > 1/2.

  Returns:
    From 0 (none) to 1 (all).
  """
  return float(np.mean(active))


def usage(values: np.ndarray) -> float:
  """H(q) / log k for the shares q_j = sum_i |v_ij| / sum_ij |v_ij| of the columns: how evenly skills are used.

  Args:
    values: [T, k], how much each task uses each skill.

  Returns:
    1 where all skills are used alike, 0 where one has everything; NaN for a single skill, or if nothing is used.
  """
  sums = np.abs(np.asarray(values, np.float64)).sum(axis=0)
  if sums.size < 2 or not sums.sum():
    return float('nan')
  return float(np.sum(special.entr(sums / sums.sum())) / np.log(sums.size))


def partition(active: np.ndarray) -> dict[tuple[int, ...], list[int]]:
  """Groups tasks by the subset of skills that they use.

  Args:
    active: bool [T, k].

  Returns:
    {skills: tasks}, both ascending, the largest groups first.
  """
  groups: dict[tuple[int, ...], list[int]] = {}
  for task, row in enumerate(np.asarray(active, bool)):
    groups.setdefault(tuple(np.flatnonzero(row).tolist()), []).append(task)
  return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))


def labels(active: np.ndarray) -> np.ndarray:
  """Returns the partition as one label for each task, int [T]."""
  found = np.zeros(len(active), int)
  for label, tasks in enumerate(partition(active).values()):
    found[tasks] = label
  return found


def mean(values: Iterable[float | None]) -> float:
  """Returns the mean of the numbers that are there; NaN if there is none."""
  known = [value for value in values if value is not None and not np.isnan(value)]
  return float(np.mean(known)) if known else float('nan')


def means_by(keys: Sequence[Hashable], values: Sequence[float]) -> dict[Hashable, float]:
  """Returns the mean of the values of each key, in the order in which keys come."""
  groups: dict[Hashable, list[float]] = {}
  for key, value in zip(keys, values, strict=True):
    groups.setdefault(key, []).append(value)
  return {key: mean(group) for key, group in groups.items()}
