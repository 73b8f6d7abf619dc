"""TaskIndex: which row of the routing belongs to which task.

A data set marks each example with `task_key(name)`, a number that depends on the task's name alone, so the
same (cached) data serves any run. A run's `TaskIndex` maps these keys to rows. It is written as
`task_index.json` into MODEL_DIR and into every checkpoint, compared when a run resumes, and names the
rows in every report.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
from typing import Any
from collections.abc import Mapping, Sequence
import zlib

import numpy as np

FILE_NAME = 'task_index.json'

_routed_as: dict[str, str] = {}


def task_key(name: str) -> int:
  """Returns the number that marks the examples of task `name`: CRC-32 without its sign bit."""
  return zlib.crc32(name.encode('utf-8')) & 0x7FFFFFFF


def route_as(name: str, other: str) -> None:
  """Declares that examples of task `name` are routed as those of task `other`, whose key their source has to write.

  So a diagnostic set, or another way to evaluate a task, needs no routing row of its own: an index of a mixture that has
  `name` holds `other` in its place, and an index that has `other` covers `name`.

  Raises:
    ValueError: `name` is routed as another task already, or `other` is, in the end, routed as `name`.
  """
  if routed_as(other) == name:
    raise ValueError(f'task {name!r} cannot be routed as {other!r}, which is routed as {name!r}')
  if _routed_as.setdefault(name, other) != other:
    raise ValueError(f'task {name!r} is routed as {_routed_as[name]!r} already, not as {other!r}')


def routed_as(name: str) -> str:
  """Returns the task whose row examples of task `name` use: `name` itself unless `route_as` says otherwise."""
  while name in _routed_as:
    name = _routed_as[name]
  return name


@dataclasses.dataclass(frozen=True)
class TaskIndex:
  """An ordered set of task names; the position is the routing row.

  Attributes:
    names: T different task names; `names[row]` is the task of `row`.

  Raises:
    ValueError: no names, a name twice, or two names with the same key.
  """

  names: tuple[str, ...]

  def __post_init__(self):
    object.__setattr__(self, 'names', tuple(self.names))
    if not self.names:
      raise ValueError('a TaskIndex needs at least one task name')
    seen: dict[int, str] = {}
    for name in self.names:
      other = seen.setdefault(task_key(name), name)
      if other == name and self.names.count(name) > 1:
        raise ValueError(f'task {name!r} is listed twice in the TaskIndex')
      if other != name:
        raise ValueError(f'tasks {other!r} and {name!r} have the same key: rename one of them')

  def __len__(self) -> int:
    return len(self.names)

  def row(self, name: str) -> int:
    """Returns the row of `name`. Raises ValueError, naming the nearest task, if it has none."""
    try:
      return self._rows[name]
    except KeyError:
      near = difflib.get_close_matches(name, self.names, n=1)
      hint = f'did you mean {near[0]!r}?' if near else f'known: {_shorten(self.names)}'
      raise ValueError(f'task {name!r} has no routing row; {hint}') from None

  @functools.cached_property
  def _rows(self) -> dict[str, int]:
    return {name: row for row, name in enumerate(self.names)}

  @functools.cached_property
  def keys(self) -> np.ndarray:
    """The tasks' keys in row order, int32 [T]."""
    return np.array([task_key(name) for name in self.names], np.int32)

  def check_covers(self, names: Sequence[str]) -> None:
    """Raises ValueError if any of `names`, or the task it is routed as (`route_as`), has no row."""
    missing = [name for name in names if routed_as(name) not in self._rows]
    if missing:
      raise ValueError(
          f'{len(missing)} of {len(names)} tasks have no routing row: {_shorten(missing)}; '
          f'the run routes {len(self)} tasks: {_shorten(self.names)}')

  def check_same(self, other: TaskIndex, where: str) -> None:
    """Raises ValueError, listing the difference, unless `other` (read from `where`) is equal."""
    if self.names == other.names:
      return
    missing = [name for name in other.names if name not in self._rows]
    added = [name for name in self.names if name not in other._rows]
    parts = []
    if missing:
      parts.append(f'only there: {_shorten(missing)}')
    if added:
      parts.append(f'only in this run: {_shorten(added)}')
    if not parts:
      parts.append('the same tasks in another order')
    raise ValueError(
        f'{where} was trained with another TaskIndex ({len(other)} tasks, this run has {len(self)}): '
        f'{"; ".join(parts)}. Use another MODEL_DIR, or the mixture it was trained with (ROUTED_MIXTURE)')

  def grown(self, names: Sequence[str]) -> TaskIndex:
    """Returns an index with `names` after those of this one, whose rows stay; ValueError if one of them has a row already."""
    there = [name for name in names if name in self._rows]
    if there:
      have = 'have' if there[1:] else 'has'
      raise ValueError(f'{_shorten(there)} {have} a routing row already (row {self._rows[there[0]]}): name new tasks only')
    return TaskIndex((*self.names, *names))

  def without(self, names: Sequence[str]) -> TaskIndex:
    """Returns an index without `names`, the others in their order; ValueError if one has no row, or none would be left."""
    rows = {self.row(name) for name in names}
    if len(rows) == len(self):
      raise ValueError(f'nothing is left without {_shorten(list(names))}: keep at least one task')
    return TaskIndex(tuple(name for row, name in enumerate(self.names) if row not in rows))

  def to_json(self) -> dict[str, Any]:
    """Returns the JSON form, `{"tasks": [...]}`."""
    return {'tasks': list(self.names)}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> TaskIndex:
    """Inverse of `to_json`; raises ValueError on anything else."""
    names = data.get('tasks') if isinstance(data, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
      raise ValueError('a task index is {"tasks": ["name", ...]}')
    return cls(tuple(names))

  def save(self, folder: str) -> None:
    """Writes `task_index.json` into `folder` (made if need be; local or a bucket)."""
    from etils import epath  # Here: only runs that save need it.
    path = epath.Path(os.fspath(folder))
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f'{FILE_NAME}.tmp'
    temporary.write_text(json.dumps(self.to_json(), indent=1) + '\n')
    temporary.replace(path / FILE_NAME)

  @classmethod
  def load(cls, folder: str) -> TaskIndex | None:
    """Reads `task_index.json` from `folder`; None if there is none."""
    from etils import epath
    path = epath.Path(os.fspath(folder)) / FILE_NAME
    if not path.exists():
      return None
    try:
      return cls.from_json(json.loads(path.read_text()))
    except ValueError as e:
      raise ValueError(f'{path} is damaged: {e}') from None


def from_mixture(mixture_or_task_name: str, module: str | None = None) -> TaskIndex:
  """Returns the index of a SeqIO mixture's tasks, sorted by name; a task that is routed as another gives that one.

  Args:
    mixture_or_task_name: a registered mixture or task.
    module: a module to import first, which registers it.

  Raises:
    ValueError: nothing of that name is registered.
  """
  import importlib
  import seqio  # Here: it brings TensorFlow.
  if module:
    importlib.import_module(module)
  names = set(seqio.MixtureRegistry.names()) | set(seqio.TaskRegistry.names())
  if mixture_or_task_name not in names:
    near = difflib.get_close_matches(mixture_or_task_name, sorted(names), n=3)
    hint = (f'did you mean {" or ".join(near)}?' if near else
            'set MIXTURE_OR_TASK_MODULE to the module that registers it')
    raise ValueError(f'no task or mixture is named {mixture_or_task_name!r}; {hint}')
  provider = seqio.get_mixture_or_task(mixture_or_task_name)
  return TaskIndex(tuple(sorted({routed_as(task.name) for task in seqio.get_subtasks(provider)})))


def num_tasks(index: TaskIndex) -> int:
  """Returns T, the rows that the routing of `index` needs."""
  return len(index)


def _shorten(names: Sequence[str], most: int = 6) -> str:
  """Joins at most `most` names, telling how many more there are."""
  shown = ', '.join(names[:most])
  return f'{shown} and {len(names) - most} more' if len(names) > most else shown
