"""EXPERT: a task x skill matrix that people wrote down, read from a file.

Notation: B batch, T tasks, S skills.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax.routing import functions
from cpoly_jax.routing.router import TaskRouter
from cpoly_jax.skills import SkillGroup
from cpoly_jax.task_index import TaskIndex

Matrix = tuple[tuple[float, ...], ...]


class ExpertRouter(TaskRouter):
  """Fixed weights: the rows of a binary [T, S], divided by their sums; nothing is learned (Polytropon's EXPERT).

  Attributes:
    matrix: the rows, in the order of the TaskIndex (see `expert_matrix`).
  """

  matrix: Matrix = ()

  @property
  def num_skills(self) -> int:
    """S."""
    return len(self.matrix[0]) if self.matrix else 0

  @property
  def active_skills(self) -> int:
    """Skills of the task that has most."""
    return int(max(map(sum, self.matrix)))

  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    if len(self.matrix) != self.num_tasks:
      raise ValueError(f'ExpertRouter.matrix has {len(self.matrix)} rows for {self.num_tasks} tasks: write one for each '
                       'task of the run')
    table = functions.normalise(jnp.asarray(self.matrix, jnp.float32))
    return [SkillGroup(self.rows(table, task_ids)[:, None])]


@functools.lru_cache(maxsize=8)
def expert_matrix(path: str, index: TaskIndex) -> Matrix:
  """Reads which skills each task uses.

  Args:
    path: a .csv file with the header `task,<skill>,<skill>,...` and a row of 0 and 1 for each task, or a .json file
      `{"<task>": ["<skill>", ...], ...}`; local or a bucket.
    index: the run's tasks. The file may have more tasks; each of these must be there.

  Returns:
    The rows [T, S] of 0. and 1. in the order of the index, without the skills that no task of the run uses.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is malformed, lacks a task, or gives a task no skill; file and line are named.
  """
  from etils import epath  # Here: only EXPERT reads files.
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f'no task x skill matrix {path}: set EXPERT_MATRIX to a .csv or .json file')
  text = file.read_text().removeprefix('\ufeff')  # Spreadsheets mark UTF-8 with it.
  readers = {'.csv': _read_csv, '.json': _read_json}
  kind = os.path.splitext(path)[1]
  if kind not in readers:
    raise ValueError(f'{path}: a task x skill matrix is a .csv or a .json file')
  rows = readers[kind](path, text)
  missing = [name for name in index.names if name not in rows]
  if missing:
    raise ValueError(f'{path} has no row for {", ".join(missing[:6])}{" and more" if missing[6:] else ""}; it has '
                     f'{", ".join(list(rows)[:6])}{" and more" if list(rows)[6:] else ""}')
  empty = [name for name in index.names if not any(rows[name])]
  if empty:
    raise ValueError(f'{path} gives {", ".join(empty[:6])} no skill: each task needs one')
  matrix = np.array([rows[name] for name in index.names])
  return tuple(map(tuple, matrix[:, matrix.any(axis=0)].tolist()))


def _read_csv(path: str, text: str) -> Mapping[str, Sequence[float]]:
  lines = list(csv.reader(io.StringIO(text)))
  header = [cell.strip() for cell in lines[0]] if lines else []
  if len(header) < 2 or header[0] != 'task':
    raise ValueError(f'{path}:1: the header is task,<skill>,<skill>,...')
  rows: dict[str, list[float]] = {}
  for number, line in enumerate(lines[1:], 2):
    if not line:
      continue
    name, *cells = (cell.strip() for cell in line)
    if len(cells) != len(header) - 1 or not set(cells) <= {'0', '1'}:
      raise ValueError(f'{path}:{number}: write the task and {len(header) - 1} times 0 or 1')
    if name in rows:
      raise ValueError(f'{path}:{number}: task {name!r} is there twice')
    rows[name] = [float(cell) for cell in cells]
  return rows


def _read_json(path: str, text: str) -> Mapping[str, Sequence[float]]:
  try:
    data = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(f'{path}:{e.lineno}: {e.msg}') from None
  if not isinstance(data, dict) or not all(isinstance(v, list) and all(isinstance(s, str) for s in v) for v in data.values()):
    raise ValueError(f'{path}: write {{"<task>": ["<skill>", ...], ...}}')
  skills = sorted({skill for row in data.values() for skill in row})
  return {name: list(np.isin(skills, row).astype(float)) for name, row in data.items()}
