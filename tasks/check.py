"""Command line: every fault of a folder of data in one line each, without training (`python -m tasks.check --help`).

Own tasks are checked record by record and against each other. Folders of SuperGLUE, Super-NI and CrossFit are read by the
readers of their tasks.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from cpoly_jax import command_line
from cpoly_jax.systems import tables
from tasks import crossfit_files
from tasks import own_data_checks
from tasks import own_data_files
from tasks import records
from tasks import superglue_formats
from tasks import superni_files
from tasks.command_line import configured

_EXAMPLES = """
Prints one line for each fault, then what the folder holds. The exit code is 1 where there are faults. Warnings (leaks from
training into evaluation, doubles, labels that training never shows) and notes do not count.

examples:
  python -m tasks.check my_tasks
  python -m tasks.check all_tasks.jsonl --skip_bad_lines=10
  python -m tasks.check /data/superglue
"""
_MOST_OF_A_FILE = 20
_SPLITS = own_data_files.SPLITS
_INSTANCES = 'instances'  # Of tasks whose splits depend on the run.


@dataclasses.dataclass
class Report:
  """What was found.

  Attributes:
    faults: lines of what a run would refuse.
    skipped: lines of bad records that the limit allows to skip.
    warnings: lines of what a run would suffer from.
    notes: lines of what a run does by itself.
    counts: task -> split -> examples.
  """
  faults: list[str] = dataclasses.field(default_factory=list)
  skipped: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def reading(self, limit: int) -> Iterator[None]:
    """Takes the faults of the files that are read inside; `limit` bad records of a file may be skipped."""
    with records.collecting() as bad:
      try:
        yield
      except (ValueError, OSError) as e:
        self.faults.append(command_line.first_line(e))
    by_file = collections.defaultdict(list)
    for fault in bad:
      by_file[fault.path].append(fault.message)
    for path, messages in by_file.items():
      kept, more = messages[:_MOST_OF_A_FILE], len(messages) - _MOST_OF_A_FILE
      if more > 0:
        kept.append(f'{path}: {more} more bad records')
      (self.skipped if len(messages) <= limit else self.faults).extend(kept)

  def count(self, task: str, split: str, number: int) -> None:
    """Adds `number` examples."""
    of_task = self.counts.setdefault(task, {})
    of_task[split] = of_task.get(split, 0) + number

  def text(self, name: str) -> str:
    """Returns all lines, the table of counts and a summary."""
    lines = [*self.faults, *(f'skipped: {line}' for line in self.skipped), *(f'warning: {line}' for line in self.warnings),
             *(f'note: {line}' for line in self.notes)]
    if self.counts:
      splits = [split for split in (*_SPLITS, _INSTANCES) if any(split in of_task for of_task in self.counts.values())]
      rows = [[task, *(of_task.get(split) for split in splits)] for task, of_task in sorted(self.counts.items())]
      lines += [''] * bool(lines) + [tables.render(['task', *splits], rows, tables.TABLE), '']
    tasks = f"{len(self.counts)} task{'s'[:len(self.counts) != 1]}"
    found = [f'{len(kind)} {what}{"s"[:len(kind) != 1]}' for kind, what in (
        (self.faults, 'fault'), (self.warnings, 'warning')) if kind]
    return '\n'.join([*lines, f"{name}: {tasks}, {', '.join(found) or 'no faults'}"])


def check(folder: os.PathLike | str) -> Report:
  """Reads a folder of own tasks, SuperGLUE, Super-NI or CrossFit, or a file of own tasks.

  Raises:
    FileNotFoundError: there is no such folder.
  """
  root = epath.Path(folder)
  if not root.exists():
    raise FileNotFoundError(f'no folder {root}; give a folder of tasks, or one file with a field task')
  report, limit = Report(), records.skip_bad_lines()
  _reader(root)(root, report, limit)
  return report


def _reader(root: epath.Path) -> Callable[[epath.Path, Report, int], None]:
  """Returns the function that checks a folder, by the files that it has."""
  if not root.is_dir():
    return _own_data
  if any((root / form.folder / 'val.jsonl').exists() for form in superglue_formats.FORMATS.values()):
    return _superglue
  if (root / 'splits' / 'default').is_dir() and (root / 'tasks').is_dir():
    return _superni
  crossfit = (path for folder in root.iterdir() if folder.is_dir() for path in [*folder.glob(f'{folder.name}_*_train.tsv')])
  return _crossfit if next(iter(crossfit), None) else _own_data


def _own_data(root: epath.Path, report: Report, limit: int) -> None:
  tasks: list[own_data_files.TaskFiles] = []
  with report.reading(limit):
    tasks, faults = own_data_files.find(root)
    report.faults += faults
  report.faults += own_data_checks.clashes({task.name: task.path for task in tasks})
  for task in tasks:
    splits: dict[str, list[own_data_files.Row]] = {}
    for split, path in task.files.items():
      with report.reading(limit):
        for found, rows in (dataclasses.replace(task, files={split: path}).read()).items():
          splits.setdefault(found, []).extend(rows)
    for split, rows in splits.items():
      report.count(task.name, split, len(rows))
    if splits:
      report.warnings += own_data_checks.warnings(splits)
      with report.reading(limit):
        report.notes += own_data_checks.notes(task.name, splits, task.path)


def _superglue(root: epath.Path, report: Report, limit: int) -> None:
  for task, form in superglue_formats.FORMATS.items():
    for split, file in (('train', 'train.jsonl'), ('validation', 'val.jsonl'), ('test', 'test.jsonl')):
      path = root / form.folder / file
      if split == 'test' and not path.exists():
        continue  # Its labels are hidden, and a run does not need it.
      with report.reading(limit):
        report.count(f'superglue_{task}', split, len(form.read(path, labelled=split != 'test')))


def _superni(root: epath.Path, report: Report, limit: int) -> None:
  with report.reading(limit), _variable(superni_files.VARIABLE, str(root)):
    superni_files.read_lists()
  for path in sorted((root / 'tasks').glob('*.json')):
    with report.reading(limit):
      instances = superni_files.read_task(path).instances
      report.count(superni_files.task_name(path.stem), _INSTANCES, sum(instance is not None for instance in instances))


def _crossfit(root: epath.Path, report: Report, limit: int) -> None:
  splits: Mapping[str, str] = {'train': 'train', 'dev': 'validation', 'test': 'test'}
  for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    for path in sorted(folder.glob(f'{folder.name}_*.tsv')):
      split = splits.get(path.stem.rpartition('_')[2])
      if split:
        with report.reading(limit):
          report.count(folder.name, split, len(crossfit_files.read_tsv(path)))


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
  """Sets an environment variable for the block."""
  before = os.environ.get(name)
  os.environ[name] = value
  try:
    yield
  finally:
    if before is None:
      del os.environ[name]
    else:
      os.environ[name] = before


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m tasks.check', allow_abbrev=False, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Checks a folder of own tasks (docs/own_data.md), SuperGLUE, Super-NI or CrossFit, without training.')
  parser.add_argument('folder', metavar='FOLDER', help='the folder, or one file of own tasks')
  parser.add_argument('--skip_bad_lines', type=int, default=0, metavar='N',
                      help='bad records of each file that are no fault (default: %(default)s)')
  return parser


def run(arguments: Sequence[str]) -> tuple[str, int]:
  """Returns what the program prints, and 1 where there are faults, else 0.

  Raises:
    ValueError: a mistake in the arguments.
    FileNotFoundError: there is no such folder.
  """
  options = _parser().parse_args(arguments)
  with configured((), (), options.skip_bad_lines):
    report = check(options.folder)
  return report.text(options.folder), int(bool(report.faults))


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints what was found; returns the exit code."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
