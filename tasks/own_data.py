"""A folder of JSONL, TSV and CSV files as a mixture with metrics, by one line of gin.

    from tasks import own_data
    MIXTURE_OR_TASK_NAME = @own_data.mixture()
    own_data.mixture.folder = 'my_tasks'

which `gin_configs/runs/own_data.gin` does for the macro OWN_DATA. `own_data_files` says which layouts are read. Tasks are named
`<name of the mixture>_<task>`. Files are read when a dataset is built; only one file of several tasks is read before, since its
records name the tasks.

A task without validation examples gives up a share of its training examples: those whose inputs have the smallest hashes, so
that they are the same on any machine and in any order of the file, and equal inputs stay on one side.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any
from collections.abc import Sequence

from absl import logging
import gin
import seqio

from tasks import features
from tasks import mixtures
from tasks import own_data_files
from tasks import own_data_metrics
from tasks import sources
from tasks import superni_metrics

NAME = 'own_data'
HELD_OUT = 0.1
RATES = {'proportional': mixtures.proportional_rate, 'equal': mixtures.equal_rate, 'temperature': mixtures.temperature_rate}

_settings: dict[str, tuple[Any, ...]] = {}  # Of each mixture that is registered here.


class OwnDataSource(sources.RowSource):
  """Rows of one task of the user's.

  Args:
    name: SeqIO name of the task.
    files: its files.
    held_out: share of the training inputs that is held out where there is no split `validation`.
  """

  def __init__(self, name: str, files: own_data_files.TaskFiles, held_out: float):
    super().__init__(name)
    self._name = name
    self._files = files
    self._held_out = held_out
    self._read: own_data_files.Splits | None = None

  def origin(self) -> str:
    return self._files.path

  @property
  def splits(self) -> Sequence[str]:
    return tuple(self._rows_by_split())

  def read(self, split: str) -> Sequence[own_data_files.Row]:
    return self._rows_by_split()[split]

  def to_example(self, row: own_data_files.Row, split: str, seed: int) -> dict[str, Any]:
    """Training is on the first of several targets; evaluation knows all of them."""
    del split, seed
    return {'inputs': row.input, 'targets': row.targets[0] if row.targets else '', 'references': list(row.targets)}

  def has_labels(self) -> bool:
    """Whether the targets of training and validation are a small set of labels."""
    rows = self._rows_by_split()
    known = [row.targets for split in (own_data_files.TRAIN, own_data_files.VALIDATION) for row in rows.get(split, ())]
    return bool(own_data_metrics.label_counts(known))

  def _rows_by_split(self) -> own_data_files.Splits:
    if self._read is None:
      found = self._files.read()
      self._read = hold_out(found, self._held_out, self.origin())
      if own_data_files.VALIDATION in self._read and own_data_files.VALIDATION not in found:
        logging.warning(
            '%s: no validation split, so %d of %d training examples are held out for it (own_data.mixture.held_out = %g)',
            self._name, len(self._read[own_data_files.VALIDATION]), len(found[own_data_files.TRAIN]), self._held_out)
    return self._read


def hold_out(splits: own_data_files.Splits, share: float, where: str) -> own_data_files.Splits:
  """Returns the splits, with a share of `train` as `validation` where they have none.

  Args:
    splits: split -> rows.
    share: of the different inputs, rounded, but at least one of them; 0: nothing is held out.
    where: the task, for messages.

  Raises:
    ValueError: nothing would be left to train on.
  """
  train = splits.get(own_data_files.TRAIN)
  if own_data_files.VALIDATION in splits or not train or not share:
    return splits
  inputs = {row.input for row in train}
  if len(inputs) < 2:
    raise ValueError(f'{where}: only one training input, so that none can be held out for validation; add examples, or set '
                     'own_data.mixture.held_out = 0')
  number = min(max(1, round(share * len(inputs))), len(inputs) - 1)
  chosen = set(sorted(inputs, key=lambda text: hashlib.sha256(text.encode('utf-8')).digest())[:number])
  return {**splits, own_data_files.TRAIN: [row for row in train if row.input not in chosen],
          own_data_files.VALIDATION: [row for row in train if row.input in chosen]}


def task_name(mixture_name: str, task: str) -> str:
  """SeqIO name of a task: that of its mixture and its own, with `_` for characters that SeqIO does not allow."""
  return re.sub(r'[^\w.:#]', '_', f'{mixture_name}_{task}')


@gin.configurable(module='tasks.own_data')
def mixture(folder: os.PathLike | str | None = None, name: str = NAME, metrics: Sequence[str] | None = None,
            rate: str = 'proportional', held_out: float = HELD_OUT) -> str:
  """Registers a folder's tasks and the mixture of them, and returns its name; the second time it only returns the name.

  Args:
    folder: a folder in one of the layouts of `own_data_files`, or one file with a field `task`; local or in a bucket.
    name: of the mixture, and the start of its tasks' names.
    metrics: names of `own_data_metrics`; None: accuracy for labels, and exact_match, f1, rouge for free text.
    rate: `proportional`, `equal` or `temperature`, see `mixtures`.
    held_out: share of a task's training inputs that are held out where it has no split `validation`; 0: none.

  Raises:
    FileNotFoundError: there is no such folder, or nothing in it.
    ValueError: a name or file fits nothing, an argument is wrong, or another mixture has the name.
  """
  if not folder:
    raise ValueError("own_data.mixture.folder is not set; set it to the folder of your tasks (OWN_DATA = 'my_tasks')")
  settings = (os.fspath(folder), tuple(metrics) if metrics is not None else None, rate, held_out)
  if _settings.get(name) == settings:
    return name
  if name in seqio.MixtureRegistry.names() or name in seqio.TaskRegistry.names():
    whose = f'{_settings[name][0]} with other settings' if name in _settings else 'another mixture or task'
    raise ValueError(f'the name {name!r} is that of {whose}; set own_data.mixture.name to another one')
  if name != task_name(name, '')[:-1]:
    raise ValueError(f'own_data.mixture.name is {name!r}; write letters, digits and _')
  if rate not in RATES:
    raise ValueError(f"own_data.mixture.rate is {rate!r}; write one of {', '.join(RATES)}")
  if not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
    raise ValueError(f'own_data.mixture.held_out is {held_out!r}; set it to a share from 0 to less than 1')
  if metrics is not None:
    own_data_metrics.check_names(metrics)
  tasks, faults = own_data_files.find(folder)
  if faults:
    more = f'; {len(faults) - 1} more such faults, see python -m tasks.check {folder}' if faults[1:] else ''
    raise ValueError(f'{faults[0]}{more}')
  _register(name, tasks, metrics, rate, held_out)
  _settings[name] = settings
  return name


def _register(name: str, tasks: Sequence[own_data_files.TaskFiles], metrics: Sequence[str] | None, rate: str,
              held_out: float) -> None:
  by_name: dict[str, own_data_files.TaskFiles] = {}
  for task in tasks:
    of_task = task_name(name, task.name)
    if of_task in by_name:
      raise ValueError(f'the tasks {by_name[of_task].name!r} and {task.name!r} both become {of_task}; rename one of them')
    if of_task in seqio.TaskRegistry.names():
      raise ValueError(f'there is a task {of_task} already; set own_data.mixture.name to another one than {name!r}')
    by_name[of_task] = task
  for of_task, files in by_name.items():
    source = OwnDataSource(of_task, files, held_out)
    seqio.TaskRegistry.add(
        of_task,
        source=source,
        output_features=features.output_features(),
        preprocessors=features.pipeline(),
        postprocess_fn=superni_metrics.references,
        metric_fns=[own_data_metrics.metric_fn(of_task, metrics, source.has_labels)])
  seqio.MixtureRegistry.add(name, list(by_name), default_rate=RATES[rate])


def unregister(name: str = NAME) -> None:
  """Forgets a mixture that `mixture` registered, and its tasks, so that its name can be given again."""
  if _settings.pop(name, None) is not None:
    for task in seqio.MixtureRegistry.get(name).tasks:
      seqio.TaskRegistry.remove(task.name)
    seqio.MixtureRegistry.remove(name)
