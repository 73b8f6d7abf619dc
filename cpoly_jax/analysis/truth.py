"""How well a routing finds a known task x skill matrix, as the latent-skill suite has one.

Notation: T tasks, k skills of the routing, K true skills.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os

import numpy as np
from scipy import optimize

from cpoly_jax import routing
from cpoly_jax.task_index import TaskIndex


@dataclasses.dataclass(frozen=True)
class Truth:
  """The skills that tasks have.

  Attributes:
    skills: K names.
    matrix: bool [T, K].
  """

  skills: tuple[str, ...]
  matrix: np.ndarray


@dataclasses.dataclass(frozen=True)
class Match:
  """A routing's columns laid beside the true ones, one to one, so that as many entries as possible agree.

  Attributes:
    pairs: (true skill, column of the routing), by true skill.
    precision: of the entries that the routing has, those that are true.
    recall: of the true entries, those that the routing has.
    f1: 2 hits / (entries of the routing + true entries).
  """

  pairs: tuple[tuple[int, int], ...]
  precision: float
  recall: float
  f1: float


def read(path: str, index: TaskIndex) -> Truth:
  """Reads a matrix in the format of EXPERT: `task,<skill>,...` with 0 and 1 (.csv), or {task: [skills]} (.json).

  Skills that no task of the run has are left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is malformed or lacks a task; file and line are named.
  """
  from etils import epath
  if not epath.Path(path).exists():
    raise FileNotFoundError(f'no task x skill matrix {path}: give --truth a .csv or .json file')
  matrix = np.array(routing.expert_matrix(path, index), bool)  # Checks the file, too.
  text = epath.Path(path).read_text().removeprefix('\ufeff')
  if os.path.splitext(path)[1] == '.json':
    data = json.loads(text)
    return Truth(tuple(sorted({skill for task in index.names for skill in data[task]})), matrix)
  header, *lines = ([cell.strip() for cell in line] for line in csv.reader(io.StringIO(text)) if line)
  used = np.array([line[1:] for line in lines if line[0] in set(index.names)]) == '1'
  return Truth(tuple(name for name, kept in zip(header[1:], used.any(axis=0)) if kept), matrix)


def match(active: np.ndarray, true: np.ndarray) -> Match:
  """Matches columns by the Hungarian algorithm and scores the entries.

  The numbers of entries do not depend on the matching, so most hits are also the best F1.

  Args:
    active: bool [T, k], of the routing.
    true: bool [T, K]; k and K may differ: what is left over has no hits.
  """
  active, true = np.asarray(active, bool), np.asarray(true, bool)
  hits = true.T.astype(int) @ active
  rows, columns = optimize.linear_sum_assignment(hits, maximize=True)
  found, claimed, actual = int(hits[rows, columns].sum()), int(active.sum()), int(true.sum())
  share = lambda part, whole: part / whole if whole else 0.
  return Match(tuple(zip(rows.tolist(), columns.tolist())), share(found, claimed), share(found, actual),
               share(2 * found, claimed + actual))


def adjusted_rand(left: np.ndarray, right: np.ndarray) -> float:
  """Agreement of two clusterings of the same tasks, corrected for chance (Hubert & Arabie 1985).

  With n_ij tasks in cluster i of one and j of the other, and row and column sums a and b:
  (sum_ij C(n_ij, 2) - e) / ((sum_i C(a_i, 2) + sum_j C(b_j, 2)) / 2 - e), e = sum_i C(a_i, 2) sum_j C(b_j, 2) / C(T, 2).

  Args:
    left: labels [T].
    right: labels [T].

  Returns:
    1 for the same clustering, about 0 for unrelated ones; it can be negative.
  """
  _, left = np.unique(left, return_inverse=True)
  _, right = np.unique(right, return_inverse=True)
  together = np.zeros((left.max() + 1, right.max() + 1))
  np.add.at(together, (left, right), 1)
  pairs = lambda counts: float(np.sum(counts * (counts - 1) / 2))
  both, a, b = pairs(together), pairs(together.sum(axis=1)), pairs(together.sum(axis=0))
  chance = a * b / pairs(np.array([len(left)])) if len(left) > 1 else 0.
  most = (a + b) / 2
  return 1. if most == chance else (both - chance) / (most - chance)


def correlation(left: np.ndarray, right: np.ndarray) -> float:
  """Pearson's correlation of two similarities [T, T] over the pairs of tasks (Mantel's statistic).

  Returns:
    From -1 to 1; NaN where one of them is the same for all pairs.
  """
  upper = np.triu_indices(len(left), 1)
  x, y = left[upper] - left[upper].mean(), right[upper] - right[upper].mean()
  size = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / size) if size > 1e-12 else float('nan')
