"""A model and a system as their gin files make them, without data, devices or checkpoints.

A system is a file of gin_configs/systems/. It is read as a run reads it, together with a model file and
gin_configs/runs/finetune.gin, so that the adapter and the optimizer's rates are those of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import pathlib
import re
import sys
from typing import Any
from collections.abc import Iterator, Mapping, Sequence

import gin
from t5x import gin_utils
from t5x import train

import gin_configs
from cpoly_jax.t5 import network

ROOT = pathlib.Path(gin_configs.__file__).resolve().parents[1]
FOLDER = 'gin_configs'
# What all systems include, and no system itself.
PARTS = ('adapter',)
NUM_TASKS = 8
# What the settings of a run default to here; see runs/superglue.gin.
DEFAULTS = ('TRAIN_STEPS = 20000', 'BATCH_SIZE = 64', "TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 62}")


@dataclasses.dataclass(frozen=True)
class Request:
  """What the systems are compared on.

  Attributes:
    model: a file of gin_configs/models without its suffix, e.g. `t5_1_1/small`, or the path of a gin file.
    num_tasks: T; None for the tasks of MIXTURE_OR_TASK_NAME if that is set, and 8 if not.
    gin_files: files that come after each system's, e.g. gin_configs/skills/sft.gin.
    bindings: gin bindings that come last, e.g. `RANK = 16`.
  """

  model: str = 't5_1_1/small'
  num_tasks: int | None = None
  gin_files: Sequence[str] = ()
  bindings: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Configured:
  """What gin made of a system.

  Attributes:
    system: its name.
    transformer: the network.
    optimizer: the optimizer, which knows what trains.
    num_tasks: T; 1 for a system of a single task.
    batch_size: B.
    lengths: `inputs` and `targets`, positions of an example.
    macros: names of all macros that something uses.
  """

  system: str
  transformer: network.Transformer
  optimizer: Any
  num_tasks: int
  batch_size: int
  lengths: Mapping[str, int]
  macros: frozenset[str]


def systems() -> list[str]:
  """Returns the names of all systems."""
  return sorted(path.stem for path in (ROOT / FOLDER / 'systems').glob('*.gin') if path.stem not in PARTS)


def models() -> list[str]:
  """Returns the names of all models, `<family>/<size>`."""
  files = (ROOT / FOLDER / 'models').glob('*/*.gin')
  return sorted(f'{path.parent.name}/{path.stem}' for path in files if path.parent.name != 'sizes' and path.stem != 'family')


def gin_file(kind: str, name: str, known: Sequence[str]) -> str:
  """Returns the path of the gin file of a system or model: one of `known`, or a path that ends in .gin.

  Args:
    kind: `systems` or `models`.
    name: what was asked for.
    known: the names of that kind.

  Raises:
    ValueError: there is no such file; the nearest name is told.
  """
  if name.endswith('.gin'):
    return name
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {near[0]}?' if near else f'write one of {", ".join(known)}'
    raise ValueError(f'no file of {FOLDER}/{kind} is named {name}; {hint}')
  return f'{FOLDER}/{kind}/{name}.gin'


@contextlib.contextmanager
def configured(system: str, request: Request, **macros: int) -> Iterator[Configured]:
  """Gives a system as gin makes it. It is valid inside the block only: gin makes routers and skills when they are used.

  Replaces what gin had parsed before, and leaves it empty.

  Args:
    system: a name of `systems`, or a path.
    request: the model, T and overrides.
    **macros: values that win over all others.

  Raises:
    ValueError: an unknown name, a mistake in a binding, or macros that this system needs and nobody gave.
    FileNotFoundError: no such gin file.
  """
  gin.clear_config()
  try:
    model = gin_file('models', request.model, models())
    _parse([model, f'{FOLDER}/runs/finetune.gin'], DEFAULTS)
    run = gin.config_str()
    bindings = [*request.bindings, *(f'{name} = {value}' for name, value in macros.items())]
    if request.num_tasks is not None:
      bindings.append(f'NUM_TASKS = {request.num_tasks}')
    _parse([gin_file('systems', system, systems()), *request.gin_files], bindings)
    _check_required(run, gin.config_str())
    if _is_required('MIXTURE_OR_TASK_NAME') and not isinstance(gin.query_parameter('%NUM_TASKS'), int):
      gin.bind_parameter('%NUM_TASKS', NUM_TASKS)
    yield _make(system)
  finally:
    gin.clear_config()


def used_macros(text: str) -> frozenset[str]:
  """Returns the names of the macros that a gin configuration uses."""
  return frozenset(re.findall(r'%(\w+)', text)) - {'gin'}


def macro(name: str) -> Any:
  """Returns the value of a macro of what gin has parsed."""
  value = gin.query_parameter(f'%{name}')
  # A reference such as @task_index.num_tasks() or %OTHER.
  return value.scoped_configurable_fn() if hasattr(value, 'scoped_configurable_fn') else value


@contextlib.contextmanager
def as_training() -> Iterator[None]:
  """Lets gin parse files of runs, which configure the training loop of the module that runs, `python -m t5x.train`."""
  running = sys.modules['__main__']
  sys.modules['__main__'] = train
  try:
    yield
  finally:
    sys.modules['__main__'] = running


def _parse(files: Sequence[str], bindings: Sequence[str]) -> None:
  with as_training():
    gin_utils.parse_gin_flags([str(ROOT)], files, bindings, finalize_config=False)


def _make(system: str) -> Configured:
  make = gin.get_configurable(network.Transformer)
  transformer = make()
  if transformer.adapter is not None and getattr(transformer.adapter.describe(), 'single_task', False):
    gin.bind_parameter('%NUM_TASKS', 1)
    transformer = make()
  num_tasks = macro('NUM_TASKS')
  if not isinstance(num_tasks, int) or num_tasks < 1:
    raise ValueError(f'NUM_TASKS = {num_tasks}: write a whole number above 0')
  return Configured(
      system=system, transformer=transformer, optimizer=macro('OPTIMIZER'), num_tasks=num_tasks, batch_size=macro('BATCH_SIZE'),
      lengths=_lengths(macro('TASK_FEATURE_LENGTHS')), macros=used_macros(gin.config_str()))


def _lengths(lengths: Any) -> Mapping[str, int]:
  if not isinstance(lengths, Mapping) or not {'inputs', 'targets'} <= set(lengths):
    raise ValueError(f"TASK_FEATURE_LENGTHS = {lengths}: write {{'inputs': 512, 'targets': 62}}")
  return lengths


def _required(text: str) -> set[str]:
  return set(re.findall(r'^(\S+) = %gin\.REQUIRED$', text, re.MULTILINE))


def _is_required(name: str) -> bool:
  return name in _required(gin.config_str())


def _check_required(run: str, whole: str) -> None:
  """Raises ValueError if a system needs what nobody gave; `run` is the configuration without it, as text, `whole` with it."""
  missing = sorted(_required(whole) - _required(run))
  if whole.count('%TASK_INDEX') > run.count('%TASK_INDEX') and 'MIXTURE_OR_TASK_NAME' in _required(whole):
    missing.append('MIXTURE_OR_TASK_NAME')  # The system reads the names of the tasks, not only their number.
  if missing:
    raise ValueError(f'give {" and ".join(f"--gin.{name}=..." for name in missing)}')
