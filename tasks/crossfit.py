"""CrossFit's 160 few-shot tasks and its RANDOM partition of 120, 20 and 20 (Ye et al. 2021, arXiv 2104.08835).

CROSSFIT_DIR names the folder that the authors' scripts write (layout: `crossfit_files`). Every task is `crossfit_<name>`
(characters that SeqIO does not allow become `_`); the mixtures `crossfit_random_train`, `crossfit_random_dev` and
`crossfit_random_test` hold the partition, all rows counting alike. `mixture` makes one of some of the tasks.

Splits follow the files of one seed (gin: `crossfit.few_shot.seed`): `train`, `validation` (its dev file) and `test`. Tasks of
the train partition are learnt upstream, so their `train` is what CrossFit and Polytropon train on: the train and dev files of
all five seeds together. Their `validation` is then a part of it, and tells how well they are learnt, not how they generalise.

The input is `[<task>] <input>`, the task named as CrossFit does. The published code for BART puts a space before both texts;
SentencePiece adds one anyway and bytes need none, so there is none here. Where a row has several outputs, training takes one,
drawn by a hash of the row and the data seed, and evaluation accepts all.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import importlib.resources
import re
from typing import Any
from collections.abc import Mapping, Sequence
import zlib

from etils import epath
import gin
import seqio

from tasks import crossfit_files
from tasks import crossfit_metrics
from tasks import features
from tasks import mixtures
from tasks import records
from tasks import sources
from tasks import summaries

VARIABLE = 'CROSSFIT_DIR'
PARTITIONS = ('train', 'dev', 'test')
_PARTS = {'train': 'train', 'validation': 'dev', 'test': 'test'}
_SHOTS_PER_LABEL = 16  # Classification draws 16 rows per label; other tasks 32 in all.
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True)
class Task:
  """What CrossFit fixes about a task: `name` there, `partition`, `metric` (a key of METRICS), and `shots` of its files."""
  name: str
  partition: str
  metric: str
  shots: int


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Which few-shot sets are read; see `few_shot`."""
  seed: int
  shots: int | None
  pooled: Sequence[str]

  def __post_init__(self):
    if not _is_whole(self.seed, 0):
      raise ValueError(f'crossfit.few_shot.seed is {self.seed!r}; set it to a whole number, such as 100')
    if self.shots is not None and not _is_whole(self.shots, 1):
      raise ValueError(f'crossfit.few_shot.shots is {self.shots!r}; set it to a positive whole number, such as 32, or to None')
    if isinstance(self.pooled, str) or not set(self.pooled) <= set(PARTITIONS):
      raise ValueError(f'crossfit.few_shot.pooled is {self.pooled!r}; set it to a list of some of {", ".join(PARTITIONS)}')


@gin.configurable(module='tasks.crossfit')
def few_shot(seed: int = 100, shots: int | None = None, pooled: Sequence[str] = ('train',)) -> FewShot:
  """Returns which few-shot sets the run reads; asked for whenever a dataset is built.

  Args:
    seed: of the draw: 100, 13, 21, 42 or 87 of the published files.
    shots: number in the files' names; None: each task's own, 16 per label or 32 in all.
    pooled: partitions whose tasks train on the train and dev files of all five seeds.

  Raises:
    ValueError: a value is out of its range.
  """
  return FewShot(seed, shots, pooled)


@gin.configurable(module='tasks.crossfit')
def prompt(task_name: bool = True) -> bool:
  """Returns whether inputs start with `[<task>] `, as in CrossFit."""
  return task_name


@functools.cache
def task_table() -> Mapping[str, Task]:
  """Returns CrossFit's 160 tasks by their names there."""
  text = importlib.resources.files('tasks').joinpath('assets', 'crossfit.csv').read_text(encoding='utf-8')
  return {row['task']: Task(row['task'], row['partition'], row['metric'], int(row['shots']))
          for row in csv.DictReader(text.splitlines())}


def task_name(name: str) -> str:
  """SeqIO name of a CrossFit task: `crossfit_` and its name, with `_` for disallowed characters."""
  return 'crossfit_' + re.sub(r'[^\w.:#]', '_', name)


class TaskSource(sources.RowSource):
  """Rows of one task, from the files of the settings at the time."""

  def __init__(self, task: Task):
    super().__init__(task_name(task.name))
    self._task = task

  def origin(self) -> str:
    folder = records.folder_of(VARIABLE, crossfit_files.LAYOUT)
    settings = few_shot()
    shots = settings.shots or self._task.shots
    seeds = 'all seeds' if self._task.partition in settings.pooled else f'seed {settings.seed}'
    return f'{folder / self._task.name if folder else VARIABLE} (seed {settings.seed}, {shots} shots, training on {seeds})'

  @property
  def splits(self) -> Sequence[str]:
    return tuple(_PARTS)

  def read(self, split: str) -> Sequence[sources.Row]:
    folder = _folder()
    parts, seeds = _needed(self._task, split)
    files = _files(folder, self._task)
    absent = files.absent(parts, seeds)
    if absent:
      raise FileNotFoundError(_absence(folder, self._task, split, absent[0]))
    return [row for seed in seeds for part in parts for row in files.rows(part, seed)]

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    outputs = row['outputs']
    chosen = _draw(f'{seed}:{row["id"]}', len(outputs)) if split == 'train' else 0
    return {'inputs': f'[{self._task.name}] {row["input"]}' if prompt() else row['input'],
            'targets': outputs[chosen], 'references': outputs}


@gin.configurable(module='tasks.crossfit')
def mixture(tasks: Sequence[str] | None = None, partition: str = 'train') -> str:
  """Registers a mixture of some tasks, all rows counting alike, and returns its name, for MIXTURE_OR_TASK_NAME.

  Args:
    tasks: names, CrossFit's or SeqIO's; None: those of `partition` whose files of the settings are in CROSSFIT_DIR.
    partition: train, dev or test.

  Raises:
    FileNotFoundError: `tasks` is None and CROSSFIT_DIR is not set.
    ValueError: a name is unknown, or there is no task.
  """
  if partition not in PARTITIONS:
    raise ValueError(f'crossfit.mixture.partition is {partition!r}; set it to one of {", ".join(PARTITIONS)}')
  if tasks is None:
    folder = _folder()
    found = [task for task in task_table().values() if task.partition == partition and not _lacks(folder, task)]
    if not found:
      raise ValueError(f'{folder} has the files of no task of the {partition} partition; wanted {crossfit_files.LAYOUT}')
    members = [task_name(task.name) for task in found]
  else:
    known = {name: task_name(name) for name in task_table()}
    unknown = [name for name in tasks if name not in known and name not in known.values()]
    if isinstance(tasks, str) or unknown or not tasks:
      raise ValueError(f'crossfit.mixture.tasks is {tasks!r:.60}; set it to a list of CrossFit tasks' +
                       (f' ({unknown[0]!r} is none)' if unknown and not isinstance(tasks, str) else ''))
    members = sorted({known.get(name, name) for name in tasks})
  # The name tells the tasks, so that two lists in one process are two mixtures.
  name = f'crossfit_{len(members)}_tasks_{zlib.crc32(" ".join(members).encode()):08x}'
  if name not in seqio.MixtureRegistry.names():
    _add_mixture(name, members)
  return name


def register() -> None:
  """Registers tasks and mixtures; does nothing the second time."""
  if 'crossfit_random_train' in seqio.MixtureRegistry.names():
    return
  for task in task_table().values():
    seqio.TaskRegistry.add(
        task_name(task.name),
        source=TaskSource(task),
        output_features=features.output_features(),
        preprocessors=features.pipeline(),
        postprocess_fn=crossfit_metrics.references,
        metric_fns=[crossfit_metrics.METRICS[task.metric]])
  for partition in PARTITIONS:
    _add_mixture(f'crossfit_random_{partition}',
                 [task_name(task.name) for task in task_table().values() if task.partition == partition])


def _add_mixture(name: str, members: Sequence[str]) -> None:
  seqio.MixtureRegistry.add(name, members, default_rate=mixtures.proportional_rate)
  summaries.register(name, crossfit_metrics.mean_of_metrics)


def _folder() -> epath.Path:
  folder = records.folder_of(VARIABLE, crossfit_files.LAYOUT)
  if folder is None:
    raise FileNotFoundError(f'{VARIABLE} is not set; set it to the folder that holds {crossfit_files.LAYOUT}')
  return folder


def _files(folder: epath.Path, task: Task) -> crossfit_files.TaskFiles:
  return crossfit_files.TaskFiles(folder, task.name, few_shot().shots or task.shots, task.shots == _SHOTS_PER_LABEL)


def _needed(task: Task, split: str) -> tuple[Sequence[str], Sequence[int]]:
  """Returns the parts and seeds whose rows make a split of a task."""
  settings = few_shot()
  if split == 'train' and task.partition in settings.pooled:
    return ('train', 'dev'), crossfit_files.SEEDS
  return (_PARTS[split],), (settings.seed,)


def _lacks(folder: epath.Path, task: Task, splits: Sequence[str] = ('train', 'validation')) -> bool:
  return any(_files(folder, task).absent(*_needed(task, split)) for split in splits)


def _absence(folder: epath.Path, task: Task, split: str, path: epath.Path) -> str:
  """Returns the message that a file of a task is absent, with what else its partition lacks."""
  seeds = _files(folder, task).seeds()
  if seeds:
    return (f'no file {path}; the folder has the training files of seeds {", ".join(map(str, seeds))}: add the file, or set '
            'crossfit.few_shot' + ('.pooled = () and crossfit.few_shot.seed' if len(_needed(task, split)[1]) > 1 else '.seed')
            + ' to what is there')
  partition = [other for other in task_table().values() if other.partition == task.partition]
  lacking = [other.name for other in partition if _lacks(folder, other, (split,))]
  names = ', '.join(lacking[:_MOST_NAMED]) + (f' and {len(lacking) - _MOST_NAMED} more' if len(lacking) > _MOST_NAMED else '')
  return (f"no file {path}; {len(lacking)} of the {len(partition)} tasks of the {task.partition} partition lack files of split "
          f"'{split}': {names}. Add them, or, for the tasks that are there, set MIXTURE_OR_TASK_NAME = @crossfit.mixture() "
          'with gin_configs/runs/crossfit.gin')


def _is_whole(value: Any, least: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _draw(text: str, number: int) -> int:
  """A number below `number` that depends on the text alone, on any machine."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') % number


register()
