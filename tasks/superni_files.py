"""The files of Super-NaturalInstructions: the lists of its splits, and one JSON file for each task.

The layout is that of the official repository. A task file is read as a whole; its instances keep their positions, because
splits are made by position (`superni_splits`): where a bad instance is skipped, no other one takes its place.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from typing import Any
from collections.abc import Mapping, Sequence

from etils import epath

from tasks import records

VARIABLE = 'SUPERNI_DIR'
SPLITS_VARIABLE = 'SUPERNI_SPLITS'
LAYOUT = 'tasks/<name>.json and splits/default/{train_tasks,test_tasks}.txt'
UNKNOWN_CATEGORY = 'unknown'
_TASK_FIELDS = {'Definition': (list, str), 'Positive Examples': list, 'Negative Examples': list,
                'Instances': list}


@dataclasses.dataclass(frozen=True)
class Lists:
  """Names of task files, without `.json`.

  Attributes:
    train: the training tasks (756 in the official English split).
    test: the test tasks (119).
    every: all tasks that there are: those of both lists, and with a folder of tasks all of its files.
  """
  train: Sequence[str]
  test: Sequence[str]
  every: Sequence[str]


@dataclasses.dataclass(frozen=True)
class TaskFile:
  """A task.

  Attributes:
    category: the first of its `Categories`, `unknown` where the file has none.
    instances: by position: `id`, `input`, `output` (the acceptable outputs) and the task's `definition`, `positive` and
      `negative` examples; None for an instance that was bad and skipped.
  """
  category: str
  instances: Sequence[Mapping[str, Any] | None]


def task_name(stem: str) -> str:
  """SeqIO name of a task file: `superni_` and its stem, with `_` for characters that SeqIO does not allow."""
  return 'superni_' + re.sub(r'[^\w.:#]', '_', stem)


def folder() -> epath.Path | None:
  """Returns the folder that SUPERNI_DIR names, None where it is not set; raises FileNotFoundError if it does not exist."""
  return records.folder_of(VARIABLE, LAYOUT)


def read_lists() -> Lists | None:
  """Reads the lists of SUPERNI_DIR, else those in the folder SUPERNI_SPLITS; None where neither is set.

  `excluded_tasks.txt` (738 tasks, many of them in other languages or from the sources of test tasks) may be absent.

  Raises:
    FileNotFoundError: a folder or list is missing, or a list names a task without a file.
    ValueError: a list is empty, or a task is in two of them.
  """
  root = folder()
  where = root / 'splits' / 'default' if root else records.folder_of(SPLITS_VARIABLE, 'train_tasks.txt and test_tasks.txt')
  if where is None:
    return None
  names = ['train_tasks.txt', 'test_tasks.txt', 'excluded_tasks.txt']
  if not (where / names[-1]).exists():
    names.pop()
  lists = {name: task_list(where / name) for name in names}
  for one, other in itertools.combinations(names, 2):
    both = sorted(set(lists[one]) & set(lists[other]))
    if both:
      raise ValueError(f'{where}: {one} and {other} both list {both[0]}; keep it in one')
  train, test = lists[names[0]], lists[names[1]]
  if root is None:
    return Lists(train, test, train + test)
  files = sorted(path.stem for path in (root / 'tasks').glob('*.json'))
  absent = sorted(set(train + test) - set(files))
  if absent:
    raise FileNotFoundError(f'{where} lists {len(absent)} tasks without a file in {root}/tasks, e.g. {absent[0]}.json; add the '
                            'files or remove the names')
  return Lists(train, test, files)


def task_list(path: epath.PathLike) -> list[str]:
  """Reads a list of task names, one a line, with or without `.json`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it names no task.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no file {path}; {VARIABLE} must name a folder with {LAYOUT}')
  lines = map(str.strip, records.decode(records.read_bytes(path), str(path)).splitlines())
  stems = [line.removesuffix('.json') for line in lines if line]
  if not stems:
    raise ValueError(f'{path}: no task in the list; write one task name a line')
  return list(dict.fromkeys(stems))


def read_task(path: epath.PathLike) -> TaskFile:
  """Reads a task file; bad instances are skipped as `records.skip_bad_lines` allows.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a fault of the file, with the place of it; BadRecord where it is that of an instance.
  """
  stem, path = epath.Path(path).stem, os.fspath(path)
  task = records.read_json(path, _TASK_FIELDS)
  common = {'definition': _definition(task['Definition'], path), 'positive': task['Positive Examples'],
            'negative': task['Negative Examples']}
  for kind in ('Positive Examples', 'Negative Examples'):
    for number, example in enumerate(task[kind], start=1):
      records.check_fields(example, {'input': str, 'output': str}, f'{path}: {kind} {number}')
  instances = []
  with records.Faults(path, 'instances') as faults:
    for number, instance in enumerate(task['Instances'], start=1):
      instances.append(None)
      with faults.record(f'Instances {number}'):
        instances[-1] = {**common, **_instance(instance, stem, number, f'{path}: Instances {number}')}
  named = task.get('Categories')
  category = named[0] if isinstance(named, list) and named else named
  return TaskFile(category if isinstance(category, str) and category else UNKNOWN_CATEGORY, instances)


def _definition(definition: Sequence[str] | str, path: str) -> str:
  """The definition, of which later releases hold a list and use the first."""
  if isinstance(definition, str):
    return definition
  if not definition or not isinstance(definition[0], str):
    raise ValueError(f"{path}: field 'Definition' has no text; wanted a list of strings")
  return definition[0]


def _instance(instance: Any, stem: str, number: int, where: str) -> dict[str, Any]:
  records.check_fields(instance, {'input': str, 'output': (list, str)}, where)
  outputs = [instance['output']] if isinstance(instance['output'], str) else instance['output']
  if not outputs or not all(isinstance(output, str) for output in outputs):
    raise records.BadRecord(f"{where}: field 'output' is {outputs!r:.40}; wanted at least one text")
  return {'id': str(instance.get('id', f'{stem}-{number}')), 'input': instance['input'], 'output': outputs}
