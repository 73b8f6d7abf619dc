"""A user's own files as tasks: which layouts are read, and how each format gives rows.

Layouts, all of them with `.jsonl`, `.tsv` or `.csv` files:

    my_tasks/sentiment.tsv                  one file a task; a field `split` may say train, validation or test
    my_tasks/qa/train.jsonl                 one folder a task, one file a split
    my_tasks/qa/validation.csv
    all.jsonl                               one file given instead of a folder; a field `task` names each record's task

A record has `input` (or `inputs`) and `target` (or `targets`): a text, or in JSON a list of acceptable texts. Only records of
the split `test` may lack a target. The space around targets does not count. See `own_data_tables` for TSV and CSV.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any
from collections.abc import Callable, Iterable, Mapping, Sequence

from etils import epath

from tasks import own_data_tables
from tasks import records

TRAIN, VALIDATION, TEST = SPLITS = ('train', 'validation', 'test')
SUFFIXES = ('.jsonl', '.tsv', '.csv')
LAYOUT = '<task>.jsonl, <task>.tsv or <task>.csv, or folders <task>/ with train.jsonl, validation.tsv, ...'
_INPUT, _TARGET = ('input', 'inputs'), ('target', 'targets')
_NOT_TASKS = re.compile(r'(readme|license)(\..*)?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Row:
  """An example: its input, the acceptable targets (none where they are hidden), and `file:line` of it."""
  input: str
  targets: tuple[str, ...]
  where: str


Splits = Mapping[str, Sequence[Row]]


@dataclasses.dataclass(frozen=True)
class TaskFiles:
  """The files of one task.

  Attributes:
    name: of the task.
    files: split -> file; the key '' stands for one file whose records tell their split.
    rows: split -> rows, where finding the task took reading its file.
  """
  name: str
  files: Mapping[str, epath.Path]
  rows: Splits | None = None

  @property
  def path(self) -> str:
    """Where the task is: its file, or its folder."""
    return os.fspath(self.files['']) if '' in self.files else os.fspath(next(iter(self.files.values())).parent)

  def read(self) -> Splits:
    """Returns split -> rows, without empty splits.

    Raises:
      FileNotFoundError, ValueError: one line, as `read_file`.
    """
    if self.rows is not None:
      return self.rows
    return _by_split(row for split, path in self.files.items() for row in read_file(path, split, self.name))


def find(folder: os.PathLike | str) -> tuple[list[TaskFiles], list[str]]:
  """Looks for tasks by the names of files; only a file given instead of a folder is read.

  Args:
    folder: a folder, or a file with a field `task`; local or in a bucket.

  Returns:
    The tasks by name, and one line for each file or folder that fits no layout.

  Raises:
    FileNotFoundError: there is no such folder, or it has no tasks.
    ValueError: `folder` is a file with faults.
  """
  root = epath.Path(folder)
  if not root.exists():
    raise FileNotFoundError(f'no folder {root}; give a folder with {LAYOUT}, or one file with a field task')
  if not root.is_dir():
    if root.suffix not in SUFFIXES:
      raise ValueError(f'{root}: {_not_a_table(root)}')
    by_task: dict[str, list[tuple[str, str, Row]]] = {}
    for found in read_file(root, '', None):
      by_task.setdefault(found[0], []).append(found)
    return [TaskFiles(name, {'': root}, _by_split(rows)) for name, rows in sorted(by_task.items())], []
  tasks: dict[str, TaskFiles] = {}
  faults: list[str] = []
  for path in sorted(root.iterdir()):
    if path.name.startswith('.') or _NOT_TASKS.fullmatch(path.name):
      continue
    try:
      task = _task_of_folder(path) if path.is_dir() else _task_of_file(path)
      if task.name in tasks:
        other = next(iter(tasks[task.name].files.values()))
        raise ValueError(f'{path}: a second task {task.name}, besides {other}; rename one of them, or put the files of its '
                         f'splits into {root / task.name}/')
      tasks[task.name] = task
    except ValueError as e:
      faults.append(str(e))
  if not tasks and not faults:
    raise FileNotFoundError(f'{root}: no tasks in the folder; wanted {LAYOUT}')
  return sorted(tasks.values(), key=lambda task: task.name), faults


def _by_split(rows: Iterable[tuple[str, str, Row]]) -> Splits:
  found: dict[str, list[Row]] = {split: [] for split in SPLITS}
  for _, split, row in rows:
    found[split].append(row)
  return {split: rows for split, rows in found.items() if rows}


def _not_a_table(path: epath.Path) -> str:
  return f"no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; convert it, or move it out of the folder"


def _task_of_file(path: epath.Path) -> TaskFiles:
  if path.suffix not in SUFFIXES:
    raise ValueError(f'{path}: {_not_a_table(path)}')
  task, _, split = path.stem.rpartition('.')
  if task and split in SPLITS:
    raise ValueError(f'{path}: the name has a split in it; move the file to {path.parent / task / (split + path.suffix)}')
  if path.stem in SPLITS:
    raise ValueError(f'{path}: a file of one split lies in the folder of a task; move it to '
                     f'{path.parent}/<task>/{path.name}, and give {path.parent}')
  return TaskFiles(path.stem, {'': path})


def _task_of_folder(folder: epath.Path) -> TaskFiles:
  files: dict[str, epath.Path] = {}
  for path in sorted(folder.iterdir()):
    if path.name.startswith('.') or _NOT_TASKS.fullmatch(path.name):
      continue
    if path.is_dir():
      raise ValueError(f'{path}: a folder inside the folder of a task; move its files to {folder}')
    if path.suffix not in SUFFIXES:
      raise ValueError(f'{path}: {_not_a_table(path)}')
    if path.stem not in SPLITS:
      raise ValueError(f"{path}: '{path.stem}' is no split; rename the file to one of "
                       f"{', '.join(split + path.suffix for split in SPLITS)}")
    if path.stem in files:
      raise ValueError(f'{path}: a second file of this split, besides {files[path.stem].name}; keep one of them')
    files[path.stem] = path
  if not files:
    raise ValueError(f'{folder}: no files in the folder; put train{SUFFIXES[0]} into it, or remove it')
  return TaskFiles(folder.name, files)


def read_file(path: os.PathLike | str, split: str, task: str | None) -> list[tuple[str, str, Row]]:
  """Reads a file of any of the formats; bad records are skipped as `records.skip_bad_lines` allows.

  Args:
    path: the file; its suffix tells the format.
    split: the split that all records are of; '' where a field `split` may tell, and `train` is meant without it.
    task: the task that all records are of; None where a field `task` tells.

  Returns:
    (task, split, row) of each record, in the order of the file.

  Raises:
    FileNotFoundError: there is no such file.
    BadRecord: the first bad record, where none may be skipped.
    ValueError: a fault of the whole file, such as a missing column.
  """
  path = epath.Path(path)

  def to_rows(record: Mapping[str, Any], where: str) -> Iterable[tuple[str, str, Row]]:
    of_task = _choice(record, 'task', where) or task
    if not of_task:
      raise records.BadRecord(f"{where}: field 'task' is missing or empty; write the name of the record's task into it")
    if task is not None and of_task != task:
      raise records.BadRecord(f"{where}: field 'task' is {_shown(of_task)}, in the file of the task {_shown(task)}; give the "
                              'file itself instead of its folder, or remove the field')
    of_split = _choice(record, 'split', where) or split or TRAIN
    if of_split not in SPLITS:
      raise records.BadRecord(f"{where}: split {_shown(of_split)} is none of {', '.join(SPLITS)}; write one of them")
    if split and of_split != split:
      raise records.BadRecord(f"{where}: field 'split' is {_shown(of_split)}, in the file of the split {split}; move the "
                              'record or remove the field')
    yield of_task, of_split, _row(record, of_split, where)

  if path.suffix == '.jsonl':
    return records.read_rows(path, (), to_rows)
  # A table of unlabelled test examples has no target.
  required = (_INPUT, _TARGET) if split in (TRAIN, VALIDATION) else (_INPUT,)
  return own_data_tables.read_rows(path, required, to_rows)


def _choice(record: Mapping[str, Any], field: str, where: str) -> str:
  """The text of a field, without the space around it; '' where it is missing or null."""
  value = record.get(field)
  if value is None:
    return ''
  if not isinstance(value, str):
    raise records.BadRecord(f"{where}: field '{field}' is {_shown(value)}, wanted a text")
  return value.strip()


def _row(record: Mapping[str, Any], split: str, where: str) -> Row:
  text = _field(record, _INPUT, where)
  if not isinstance(text, str):
    raise records.BadRecord(f"{where}: the input is {_shown(text)}, wanted a text; write it in quotes")
  if not text.strip():
    raise records.BadRecord(f'{where}: the input is empty; fill it in or remove the record')
  if split == TEST and not any(field in record for field in _TARGET):
    return Row(text, (), where)
  found = _field(record, _TARGET, where)
  targets = found if isinstance(found, list) else [found]
  if not all(isinstance(target, str) for target in targets):
    raise records.BadRecord(f"{where}: the target is {_shown(found)}, wanted a text or a list of texts; write it in quotes")
  targets = tuple(target.strip() for target in targets)
  if split == TEST and not any(targets):
    return Row(text, (), where)
  if not targets or not all(targets):
    raise records.BadRecord(f'{where}: the target is empty; fill it in or remove the record')
  return Row(text, targets, where)


def _field(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
  present = [name for name in names if name in record]
  if len(present) == 1:
    return record[present[0]]
  if present:
    raise records.BadRecord(f"{where}: both '{names[0]}' and '{names[1]}' are there; keep one of them")
  fields = _shown(', '.join(map(str, record)) or 'none', str)
  raise records.BadRecord(f"{where}: field '{names[0]}' is missing (fields here: {fields}); rename the field that has it")


def _shown(value: Any, to_text: Callable[[Any], str] = repr) -> str:
  text = to_text(value)
  # On one line, whatever the text.
  text = ' '.join(text.split())
  return text if len(text) <= 60 else f'{text[:57]}...'
