"""What can be wrong with a user's tasks although every record can be read: leaks, doubles, labels, missing splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tasks import own_data
from tasks import own_data_files
from tasks import own_data_metrics

TRAIN, VALIDATION, TEST = own_data_files.SPLITS
MOST = 5  # Warnings of one kind for one task; more are counted.


def warnings(splits: own_data_files.Splits) -> list[str]:
  """Returns a line for each thing that training or evaluation would suffer from.

  Args:
    splits: split -> rows of one task.
  """
  found = []
  for lines in (_leaks(splits), *(_doubles(splits[split]) for split in splits), _labels(splits)):
    kept = []
    more = 0
    for line in lines:
      if len(kept) < MOST:
        kept.append(line)
      else:
        more += 1
    if more:
      kept[-1] += f' (and {more} more like this)'
    found += kept
  return found


def notes(task: str, splits: own_data_files.Splits, where: str) -> list[str]:
  """Returns a line for each split that the task lacks and what happens then.

  Raises:
    ValueError: nothing can be held out for validation.
  """
  if TRAIN not in splits:
    return [f'{where}: {task} has no training examples; it can be evaluated, and its row of the routing stays as it starts']
  if VALIDATION in splits:
    return []
  train = len(splits[TRAIN])
  held = len(own_data.hold_out(splits, own_data.HELD_OUT, where)[VALIDATION])
  return [f'{where}: {task} has no validation split; {held} of its {train} training examples will be held out for it; write a '
          'split validation, or set own_data.mixture.held_out']


def _leaks(splits: own_data_files.Splits) -> Iterator[str]:
  """Inputs of evaluation that are also in a split before it."""
  seen: dict[str, tuple[str, str]] = {}
  for split in own_data_files.SPLITS:
    for row in splits.get(split, ()):
      before, where = seen.get(row.input, (split, ''))
      if before != split:
        yield f'{row.where}: this input of {split} is also in {before}, {where} (a leak); remove one of them'
    for row in splits.get(split, ()):
      seen.setdefault(row.input, (split, row.where))


def _doubles(rows: Sequence[own_data_files.Row]) -> Iterator[str]:
  """Records of a split with the input of an earlier one."""
  seen: dict[str, own_data_files.Row] = {}
  for row in rows:
    first = seen.setdefault(row.input, row)
    if first is not row:
      what = 'the same record as' if first.targets == row.targets else 'the same input, with another target, as'
      yield f'{row.where}: {what} {first.where}; remove one of them'


def _labels(splits: own_data_files.Splits) -> Iterator[str]:
  """Labels that training never shows, and labels of training that differ in case only."""
  known = own_data_metrics.label_counts(row.targets for row in splits.get(TRAIN, ()))
  spelt: dict[str, str] = {}
  for label in known:
    other = spelt.setdefault(label.lower(), label)
    if other != label:
      where = next(row.where for row in splits[TRAIN] if row.targets == (label,))
      yield f'{where}: the labels {other!r} and {label!r} differ in case only; write one of them everywhere'
  told = set(known)
  for split in (VALIDATION, TEST) if known else ():
    for row in splits.get(split, ()):
      for target in row.targets:
        if target not in told:
          told.add(target)
          yield f'{row.where}: the label {target!r:.60} of {split} never occurs in train; add examples of it, or mend it'


def clashes(files: Mapping[str, str]) -> list[str]:
  """Returns a line for each task whose SeqIO name another one has too.

  Args:
    files: task -> where it is.
  """
  seen: dict[str, str] = {}
  lines = []
  for task, where in files.items():
    other = seen.setdefault(own_data.task_name(own_data.NAME, task), task)
    if other != task:
      lines.append(f'{where}: the task {task!r} gets the same name as {other!r}, {own_data.task_name(own_data.NAME, task)}; '
                   'rename one of them')
  return lines
