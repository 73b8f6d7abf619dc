"""Which tasks are alike: cosines of their rows, averaged over routers, and the tree of tasks that these give.

Skill 1 of a layer has nothing to do with skill 1 of another layer, so rows of different routers must not be averaged; how
alike two rows of one router are may be.

Notation: T tasks, n columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance


def cosines(rows: np.ndarray) -> np.ndarray:
  """cos_ij = <r_i, r_j> / (|r_i| |r_j|).

  Args:
    rows: [T, n].

  Returns:
    float64 [T, T]; 1 on the diagonal, and 0 between a row of zeros and another.
  """
  rows = np.asarray(rows, np.float64)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
  found = np.clip(unit @ unit.T, -1, 1)
  np.fill_diagonal(found, 1)
  return found


def similarity(tables: Iterable[np.ndarray]) -> np.ndarray:
  """Returns the mean over tables [T, n] (n may differ) of the cosines of their rows: float64 [T, T].

  Raises:
    ValueError: there is no table.
  """
  total, count = 0., 0
  for table in tables:
    total, count = total + cosines(table), count + 1
  if not count:
    raise ValueError('there are no rows to compare')
  return total / count


def tree(alike: np.ndarray) -> np.ndarray:
  """Clusters tasks by average linkage (UPGMA) on the distances 1 - similarity.

  Args:
    alike: symmetric [T, T], T >= 2.

  Returns:
    SciPy's linkage matrix [T - 1, 4]: the two that are joined, their distance, and the tasks in them.
  """
  away = np.maximum(1 - (alike + alike.T) / 2, 0)
  np.fill_diagonal(away, 0)
  return hierarchy.linkage(distance.squareform(away, checks=False), method='average')


def order(linkage: np.ndarray) -> list[int]:
  """Returns the tasks as the leaves of the tree stand from left to right."""
  return hierarchy.leaves_list(linkage).tolist()


def clusters(linkage: np.ndarray, count: int) -> np.ndarray:
  """Cuts the tree into `count` clusters: undoes the last count - 1 joins.

  Exactly as many as asked for, also where joins have equal distances.

  Returns:
    int labels [T].
  """
  tasks = len(linkage) + 1
  members = {task: [task] for task in range(tasks)}
  for number, (left, right, *_) in enumerate(linkage[:tasks - count]):
    members[tasks + number] = members.pop(int(left)) + members.pop(int(right))
  found = np.zeros(tasks, int)
  for label, group in enumerate(sorted(members.values(), key=min)):
    found[group] = label
  return found
