"""`--dry_run`: what a command would read and write, checked as the command itself would, and nothing else done.

The three entry points have their arguments in common by class and by name, so one report serves all of them: data sets are
looked up and their examples counted, checkpoints are looked up with the base that they rely on, and folders are named. No array
is made, nothing is compiled, and no file is written.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_LISTED = 8  # Files of a kind that are named.


def instead_of(fn: Callable[..., Any]) -> Callable[..., None]:
  """Returns a function with the name and parameters of `fn`, and in its place in its module, that only prints the report.

  Args:
    fn: `train`, `evaluate` or `infer`.
  """

  @functools.wraps(fn)
  def told(**arguments):
    tell(fn, arguments)

  # Gin files find it by this module, and by its signature what may be bound.
  told.__signature__ = inspect.signature(fn)
  setattr(sys.modules[fn.__module__], fn.__name__, told)
  return told


def tell(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
  """Prints the report of a call of `fn`, whose arguments are given as far as they have no defaults."""
  bound = inspect.signature(fn).bind(**arguments)
  bound.apply_defaults()
  print('\n'.join(report(fn.__name__, bound.arguments)), flush=True)


def report(name: str, arguments: Mapping[str, Any]) -> list[str]:
  """Returns the lines to print.

  Args:
    name: 'train', 'evaluate' or 'infer'.
    arguments: all of its arguments, by name.

  Raises:
    ValueError, FileNotFoundError: one line, as the command itself.
  """
  folder = arguments.get('model_dir') or arguments.get('output_dir')
  lines = [f'dry run of {name}: nothing is computed or written']
  lines += [f'reads   {line}' for line in [*_checkpoints(name, arguments, folder), *_data(name, arguments)]]
  lines += [f'writes  {line}' for line in _outputs(name, arguments, folder)]
  return lines


def _checkpoints(name: str, arguments: Mapping[str, Any], folder: str) -> Iterator[str]:
  from t5x import checkpoint_reader
  from t5x import restore
  if name == 'train':
    own = restore.RestoreCheckpointConfig(path=folder, mode='latest')
    initial = arguments['checkpoint_cfg'].restore
    cfg, paths = restore.get_first_valid_restore_config_and_paths([own, initial])
    if not paths:
      yield 'no checkpoint: training starts from new parameters'
  else:
    cfg = arguments['restore_checkpoint_cfg']
    paths = restore.checkpoints_for_inference(cfg, arguments['fallback_init_rng'])
  for path in paths:
    yield f'checkpoint {path}'
    recorded = ((checkpoint_reader.open_checkpoint(path).metadata or {}).get('base') or {}).get('path')
    if recorded:
      base = cfg.base_path or os.environ.get('T5X_BASE_CHECKPOINT') or recorded
      checkpoint_reader.open_checkpoint(base)  # Says what is wrong with it.
      yield f'base checkpoint {base}'


def _data(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
  from t5x import datasets
  model = arguments['model']
  verify = arguments.get('verify_matching_vocabs_fn', datasets.verify_matching_vocabs)
  for argument, cfg in arguments.items():
    if not isinstance(cfg, datasets.DatasetConfig):
      continue
    arguments['partitioner'].get_data_layout(cfg.batch_size)
    if name == 'infer' or name == 'train' and argument != 'infer_eval_dataset_cfg':
      datasets.check_feature_lengths(cfg)
    tasks = datasets.tasks_with_split(cfg)
    if verify is not None:
      verify(cfg, model)
    if hasattr(model, 'check_mixture'):
      model.check_mixture(datasets.get_mixture_or_task(cfg))
    counts = [datasets.stated_examples(task, cfg.split) for task in tasks]
    number = 'an unknown number of' if None in counts else f'{sum(counts):,}'
    of = f'{len(tasks)} tasks' if tasks[1:] else f'task {tasks[0].name}'
    lengths = ', '.join(f'{k} {v}' for k, v in (cfg.task_feature_lengths or {}).items()) or 'as long as the longest'
    yield (f"{argument.removesuffix('_cfg')} '{datasets.name_of(cfg)}', split {cfg.split}: {number} examples of {of}, batches "
           f'of {cfg.batch_size}, lengths: {lengths}')
    yield from _shortened([f'  {path}' for path in dict.fromkeys(p for task in tasks for p in _source_files(task, cfg.split))])


def _source_files(task: Any, split: str) -> list[str]:
  """The files of a task, as far as its source names them."""
  try:
    shards = [os.fspath(shard) for shard in task.source.list_shards(split)]
  except (KeyError, TypeError, ValueError, NotImplementedError):
    return []
  return [shard for shard in shards if os.sep in shard]


def _outputs(name: str, arguments: Mapping[str, Any], folder: str) -> Iterator[str]:
  from t5x import datasets
  from t5x import infer_chunks
  yield f'{folder}: config.gin, model-info.txt{"" if name == "infer" else ", results.json, results.md"}'
  if name == 'train':
    save = arguments['checkpoint_cfg'].save
    relative = arguments['relative_steps']
    end = f'{relative} steps on' if relative else f"step {arguments['total_steps']}"
    every = f'every {save.period} steps' if save and save.period else 'at the end'
    yield f'{folder}/checkpoint_<step>: {every}, up to {end}'
    if arguments['infer_eval_dataset_cfg'] is not None and arguments['eval_period']:
      yield f"{folder}/inference_eval: every {arguments['eval_period']} steps"
    return
  cfg = arguments['dataset_cfg']
  if name == 'evaluate':
    yield f'{folder}/inference_eval'
    return
  shard = (arguments['shard_id'], arguments['num_shards'])
  several = len(_paths(arguments)) > 1
  where = os.path.join(folder, 'checkpoint_<step>') if several else folder
  tasks = datasets.tasks_with_split(cfg, warn=False)
  yield from _shortened([
      infer_chunks.TaskFiles(task, cfg, arguments['mode'], where, shard, arguments['file_extension']).path for task in tasks])


def _shortened(lines: list[str]) -> list[str]:
  """The first lines, and how many more there are."""
  more = len(lines) - _LISTED
  return lines if more <= 0 else [*lines[:_LISTED], f'  and {more} more']


def _paths(arguments: Mapping[str, Any]) -> list[str]:
  from t5x import restore
  return list(restore.checkpoints_for_inference(arguments['restore_checkpoint_cfg'], arguments['fallback_init_rng']))
