"""Command line: tasks of a routed model as plain T5s (`python -m cpoly_jax.merge --help`).

What is written runs without this project: a checkpoint in T5X's native format, or a Hugging Face folder. The base is read once,
and each task's kernels are computed when they are written.
"""

from __future__ import annotations

import argparse
import os
import json
import re
import sys
import time
from typing import Any, TextIO
from collections.abc import Mapping, Sequence

from cpoly_jax import command_line

T5X, HUGGING_FACE = 't5x', 'huggingface'
INDEX_FILE = 'merged.json'
_LONGEST_NAME = 200
_SECONDS_BETWEEN_LINES = 5.
_EXAMPLES = """
CHECKPOINT is a MODEL_DIR (its newest checkpoint), a checkpoint_<step>, or the folder of a shared adapter. Written is
  --task=NAME                    OUT/checkpoint_<step>, and OUT/model.json, which describes the network
  --task=NAME --to=huggingface   OUT/config.json, OUT/model.safetensors
  --all_tasks                    the same in OUT/<task> for each task, and OUT/merged.json, which names the folders

Memory: the base as it is stored, and one array. Systems that route by token cannot be merged.

examples:
  python -m cpoly_jax.merge outputs/cpoly merged/rte --task=rte
  python -m cpoly_jax.merge outputs/cpoly merged --all_tasks --to=huggingface --dtype=bfloat16
  python -m cpoly_jax.merge adapters/cpoly merged --all_tasks --base=models/flan_t5_base/checkpoint_0 --dry_run
"""


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m cpoly_jax.merge', allow_abbrev=False, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Writes tasks of a routed model as plain T5s: the mixed skills of a task are added to the kernels.')
  add = parser.add_argument
  add('checkpoint', metavar='CHECKPOINT', help='skills, routing and the way to their base')
  add('out', metavar='OUT', help='a new folder')
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--task', metavar='NAME', help='the task whose skills are merged')
  which.add_argument('--all_tasks', action='store_true', help='each task, one after the other, in a folder of its own')
  add('--to', choices=(T5X, HUGGING_FACE), default=T5X, help='(default: %(default)s)')
  add('--base', metavar='PATH', help='the base checkpoint, where it is not at its recorded place')
  add('--dtype', choices=('float32', 'bfloat16'), default='float32',
      help='of what is written; bfloat16 rounds the sum of base and skills (default: %(default)s)')
  add('--dry_run', action='store_true', help='print what would be read and written, and write nothing')
  return parser


def folder_names(tasks: Sequence[str]) -> dict[str, str]:
  """Returns a folder's name for each task: letters, digits and `._-`, without a dot in front.

  Args:
    tasks: names; others than the above become `_`.

  Raises:
    ValueError: two tasks would have one folder, upper and lower case taken for the same.
  """
  found, taken = {}, {}
  for task in tasks:
    name = re.sub(r'[^A-Za-z0-9._-]+', '_', task)[:_LONGEST_NAME]
    name = re.sub(r'^\.+', '_', name) or '_'
    other = taken.setdefault(name.lower(), task)
    if other != task:
      raise ValueError(f'tasks {other!r} and {task!r} would both be written to the folder {name}: merge them one by one, with '
                       '--task and an OUT of their own')
    found[task] = name
  return found


class _Progress:
  """Tells, every few seconds, how many arrays are written, how fast, and how long the rest takes."""

  def __init__(self, tasks: Sequence[str], arrays: int, stream: TextIO):
    self._tasks, self._arrays, self._stream = tasks, arrays, stream
    self._done, self._first, self._told = 0, 0., 0.

  def __call__(self, name: str, size: int) -> None:
    """Counts an array that was written. The first, which waits for compilation, says nothing of the rate."""
    del name, size
    self._done += 1
    now, total = time.monotonic(), len(self._tasks) * self._arrays
    if self._done == 1:
      self._first = self._told = now
    if now - self._told < _SECONDS_BETWEEN_LINES:
      return
    self._told = now
    rate = (self._done - 1) / (now - self._first)
    task = (self._done - 1) // self._arrays
    print(f'task {task + 1} of {len(self._tasks)} ({self._tasks[task]}): {self._done}/{total} arrays, {rate:.1f} a second, '
          f'{(total - self._done) / rate:.0f} s left', file=self._stream, flush=True)


def _destinations(options: argparse.Namespace, tasks: Sequence[str]) -> dict[str, str]:
  """Returns the folder of each task."""
  if options.task is not None:
    return {options.task: options.out}
  return {task: f'{options.out}/{name}' for task, name in folder_names(tasks).items()}


def _plan(options: argparse.Namespace, opened: Any, destinations: Mapping[str, str]) -> str:
  """Returns what would be read and written."""
  import numpy as np

  from cpoly_jax.checkpoints import merging
  parts = {'skills and routing': {n: a for n, a in opened.arrays.items() if merging.is_added(n)},
           'base': {n: a for n, a in opened.arrays.items() if not merging.is_added(n)}}
  count = lambda arrays: sum(int(np.prod(array.shape, dtype=np.int64)) for array in arrays.values())
  size = lambda arrays: sum(int(np.prod(a.shape, dtype=np.int64)) * np.dtype(a.dtype).itemsize for a in arrays.values())
  lines = [f'would read {opened.path}']
  lines += [f'  {what}: {len(arrays)} arrays, {count(arrays):,} parameters, {size(arrays) / 1e6:,.1f} MB'
            + (f', from {opened.base_path}' if what == 'base' and opened.base_path else '') for what, arrays in parts.items()]
  each = count(parts['base']) * (4 if options.dtype == 'float32' else 2)
  changed = len(merging.targets(opened.transformer))
  lines.append(f'would write {len(destinations)} x {each / 1e6:,.1f} MB = {len(destinations) * each / 1e6:,.1f} MB '
               f'({options.to}, {options.dtype}; {changed} of {len(parts["base"])} arrays change)')
  return '\n'.join([*lines, *(f'  {task} -> {folder}' for task, folder in destinations.items())])


def _write(options: argparse.Namespace, loaded: Any, destinations: Mapping[str, str], stream: TextIO) -> None:
  """Writes each task."""
  from flax import traverse_util

  from cpoly_jax import model_settings
  from cpoly_jax.checkpoints import huggingface, merging, safetensors_files, t5x_files
  dtype = safetensors_files.dtype_of(options.dtype)
  flat = traverse_util.flatten_dict(loaded.params, sep='/')
  plain = merging.plain(loaded.transformer)
  progress = _Progress(list(destinations), sum(not merging.is_added(name) for name in flat), stream)
  for task, folder in destinations.items():
    params = merging.merge_lazily(loaded.transformer, flat, loaded.task_index.row(task), dtype=dtype)
    if options.to == HUGGING_FACE:
      huggingface.write_folder(folder, params, plain.config, dtype=dtype, tell=progress)
      continue
    t5x_files.write_checkpoint(f'{folder}/checkpoint_{loaded.step or 0}', params, dtype=dtype, tell=progress)
    told = {'vocabularies': loaded.description['vocabularies']} if 'vocabularies' in loaded.description else {}
    model_settings.save({**model_settings.describe(plain), **told}, folder)


def _write_index(options: argparse.Namespace, path: str, step: int | None, destinations: Mapping[str, str]) -> None:
  from etils import epath
  index = {'checkpoint': path, 'step': step, 'format': options.to, 'dtype': options.dtype,
           'folders': {task: os.path.basename(folder) for task, folder in destinations.items()}}
  (epath.Path(options.out) / INDEX_FILE).write_text(json.dumps(index, indent=1) + '\n')


def run(arguments: Sequence[str]) -> command_line.Result:
  """Returns what the program prints, and its exit code.

  Raises:
    ValueError: a mistake in the arguments, a task that the run does not have, or a model that cannot be merged.
    OSError: something is not there, is there already, or cannot be written.
  """
  options = _parser().parse_args(arguments)
  options.out = os.path.expanduser(options.out).rstrip('/')
  from cpoly_jax.checkpoints import folders, loading, merging
  from cpoly_jax.task_index import TaskIndex
  folders.check_new(options.out)
  opened = loading.open_files(os.path.expanduser(options.checkpoint), base=options.base)
  merging.check(opened.transformer)
  index = TaskIndex.from_json(opened.description.get('task_index'))
  if options.task is not None:
    index.row(options.task)  # Before anything large is read.
  destinations = _destinations(options, index.names)
  if options.dry_run:
    return _plan(options, opened, destinations), 0
  _write(options, loading.read(opened), destinations, sys.stderr)
  if options.all_tasks:
    _write_index(options, opened.path, opened.step, destinations)
  models = f'{len(destinations)} plain T5{"s" if len(destinations) > 1 else ""}'
  return f'wrote {models} ({options.to}, {options.dtype}) to {options.out}', 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Merges tasks; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
