"""The commands `from_peft` and `to_peft` of `python -m cpoly_jax.checkpoints`."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

_EXAMPLES = """
examples:
  python -m cpoly_jax.checkpoints from_peft adapters/poly_peft adapters/poly --base=models/flan-t5-base --task_names=cb,rte,wic
  python -m cpoly_jax.checkpoints to_peft outputs/poly exported/poly --base_name=google/flan-t5-base
  python -m cpoly_jax.checkpoints to_peft outputs/cpoly exported/rte --task=rte
  python -m cpoly_jax.checkpoints to_peft outputs/cpoly exported/rte --task=rte --rank=4
"""
# Of the vocabularies of T5, T5 1.1, FLAN-T5 and mT5.
_EXTRA_IDS = 100
_VOCABULARY_FILE = 'spiece.model'
_SECONDS_BETWEEN_LINES = 5.


def add_commands(commands: Any, **settings: Any) -> None:
  """Adds both to the subparsers of a parser; the result's `function(options)` returns what is printed."""
  add = commands.add_parser(
      'from_peft', help='a POLY adapter of PEFT to a shared adapter', epilog=_EXAMPLES,
      description='Writes a Polytropon or multi-head adapter of Hugging Face PEFT (peft_type POLY) as a shared adapter.',
      **settings)
  add.add_argument('folder', metavar='PEFT_FOLDER', help='with adapter_config.json and adapter_model.safetensors')
  add.add_argument('out', metavar='OUT', help='a new folder')
  add.add_argument('--base', required=True, metavar='PATH', help='the base: a Hugging Face folder or a T5X checkpoint')
  add.add_argument('--task_names', required=True, metavar='A,B', help="the tasks' names, in the order of PEFT's task_ids")
  add.add_argument('--vocabulary', metavar='PATH', help=f"a SentencePiece model (default: the base's {_VOCABULARY_FILE})")
  add.set_defaults(function=from_peft)

  add = commands.add_parser(
      'to_peft', help='skills to an adapter of PEFT', epilog=_EXAMPLES,
      description='Writes skills for Hugging Face PEFT: all of Polytropon or multi-head routing as POLY, or one task of any '
                  'system that routes by task as a plain LoRA or (IA)^3. The base is not needed.', **settings)
  add.add_argument('checkpoint', metavar='CHECKPOINT', help='a MODEL_DIR, a checkpoint_<step>, or a shared adapter')
  add.add_argument('out', metavar='OUT', help='a new folder')
  add.add_argument('--task', metavar='NAME', help='write this task alone')
  add.add_argument('--rank', type=int, metavar='R', help='with --task: at most this rank, and how much that leaves out '
                                                         '(default: the exact one)')
  add.add_argument('--base_name', metavar='NAME', help="the base's name at Hugging Face, for PEFT's configuration")
  add.set_defaults(function=to_peft)


def from_peft(options: argparse.Namespace) -> str:
  """Writes a POLY adapter of PEFT as a shared adapter; returns what is printed.

  Raises:
    FileExistsError: there is something at the destination.
    FileNotFoundError: the adapter or its base is absent.
    ValueError: the adapter cannot be read, does not fit the base, or has another number of tasks.
  """
  from cpoly_jax import model_settings
  from cpoly_jax.checkpoints import adapter_file, converting, folders, peft
  from cpoly_jax.t5 import network
  from cpoly_jax.task_index import TaskIndex
  folder, out, base = (os.path.expanduser(path).rstrip('/') for path in (options.folder, options.out, options.base))
  folders.check_new(out)
  settings = converting.open_model(base).settings
  transformer_config = network.T5Config(**settings)
  adapter, params = peft.read(folder, transformer_config)
  index = TaskIndex(tuple(options.task_names.split(',')))
  if len(index) != adapter.describe().num_tasks:
    raise ValueError(f'{folder} has {adapter.describe().num_tasks} tasks, and --task_names has {len(index)} names: write one '
                     "for each, in the order of PEFT's task_ids")
  transformer = network.Transformer(transformer_config, adapter)
  identity, frozen = adapter_file.identify(base)
  vocabulary = _vocabulary(options.vocabulary, base)
  model = {**model_settings.describe(transformer), 'task_index': index.to_json(),
           'vocabularies': {'input': vocabulary, 'output': vocabulary}}
  written = adapter_file.write(out, {'format': adapter_file.FORMAT, 'step': None, 'model': model, 'base': identity,
                                     'frozen': frozen, 'renamed': {}, 'frozen_dtype': None}, params)
  router = adapter.describe()
  told = '' if vocabulary else f'\nno vocabulary is recorded: the base has no {_VOCABULARY_FILE}; --vocabulary=PATH gives one'
  return (f'wrote {out}: {len(index)} tasks, {router.num_skills} skills, {router.num_heads} heads on {adapter.targets}, '
          f'{written["bytes"] / 1e6:.2f} MB\nbase {identity["path"]} (digest {identity["digest"]}){told}')


def _vocabulary(path: str | None, base: str) -> dict[str, Any] | None:
  from etils import epath
  path = os.path.expanduser(path) if path else os.path.join(base, _VOCABULARY_FILE)
  if not epath.Path(path).is_file():
    if path != os.path.join(base, _VOCABULARY_FILE):
      raise FileNotFoundError(f'no SentencePiece model at {path}')
    return None
  return {'kind': 'sentencepiece', 'path': path if '://' in path else os.path.abspath(path), 'extra_ids': _EXTRA_IDS}


def to_peft(options: argparse.Namespace) -> str:
  """Writes skills as an adapter of PEFT; returns what is printed.

  Raises:
    FileExistsError: there is something at the destination.
    FileNotFoundError: there is no checkpoint.
    ValueError: a task that the run does not have, or skills or routing without a counterpart in PEFT.
  """
  from cpoly_jax.checkpoints import folders, loading, merging, peft, peft_export
  from cpoly_jax.task_index import TaskIndex
  out = os.path.expanduser(options.out).rstrip('/')
  folders.check_new(out)
  if options.rank is not None and options.task is None:
    raise ValueError('--rank makes one task smaller: give --task=NAME, too')
  opened = loading.open_own(os.path.expanduser(options.checkpoint))
  projections = len(merging.targets(opened.transformer))
  index = TaskIndex.from_json(opened.description.get('task_index'))
  row = None if options.task is None else index.row(options.task)  # Before values are read.
  params = {name: folders.whole(array) for name, array in opened.arrays.items() if merging.is_added(name)}
  if row is None:
    size = peft.write(out, opened.transformer, params, options.base_name)
    names = ', '.join(f'{i} {name}' for i, name in enumerate(index.names))
    return f'wrote {out}: POLY on {projections} projections, {size / 1e6:.2f} MB\ntask_ids: {names}'
  exported = peft_export.export(out, opened.transformer, params, row, rank=options.rank, base_name=options.base_name,
                                progress=_progress())
  kind = exported.kind if exported.kind == 'IA3' else f'{exported.kind} of rank {exported.rank}'
  return f'wrote {out}: {options.task} as {kind} on {projections} projections, {exported.bytes / 1e6:.2f} MB, {_loss(exported)}'


def _loss(exported: Any) -> str:
  if not exported.errors:
    return 'exact'
  worst = max(exported.errors, key=exported.errors.get)
  mean = statistics.fmean(exported.errors.values())
  return (f'which leaves out {100 * mean:.3g} % of what the skills do to a kernel on average, '
          f'{100 * exported.errors[worst]:.3g} % at worst ({worst})')


def _progress() -> Any:
  first = told = 0.

  def tell(done: int, total: int) -> None:
    nonlocal first, told
    now = time.monotonic()
    if done <= 1:  # The first projection waits for compilation, and says nothing of the rate.
      first = told = now
    elif now - told >= _SECONDS_BETWEEN_LINES:
      told, rate = now, (done - 1) / (now - first)
      print(f'{done}/{total} projections, {rate:.1f} a second, {(total - done) / rate:.0f} s left', file=sys.stderr, flush=True)

  return tell
