"""Polytropon and multi-head routing of Hugging Face PEFT (`peft_type` POLY): its adapter folders, read and written.

Both compute the same in evaluation and in training, so that parameters only change their shapes:

    PEFT, of a module                      ours, of a projection
    poly_lora_A [H, S, d/H, r]             skills/down [S, d, r]
    poly_lora_B [H, S, r, o/H]             skills/up [S, r, o]
    poly_router.module_logits [T, H*S]     routing/common [T, S], or [T, H, S] for H > 1

Notation: T tasks, S skills, H heads (PEFT: n_splits), r rank, d inputs and o outputs of a projection.
"""

from __future__ import annotations

import functools
import json
from typing import Any
from collections.abc import Mapping

from etils import epath
import numpy as np

from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import merging
from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import peft_targets
from cpoly_jax.checkpoints import safetensors_files
from cpoly_jax.t5 import flops
from cpoly_jax.t5 import network

CONFIG_FILE = 'adapter_config.json'
TENSOR_FILE = 'adapter_model.safetensors'
# What PEFT puts before the names of the base's modules.
PREFIX = 'base_model.model.'
_PARTS = {'poly_lora_A': 'skills/down', 'poly_lora_B': 'skills/up', 'poly_router.module_logits': 'routing/common'}
_SIZES = ('r', 'n_tasks', 'n_skills', 'n_splits')


def read_config(folder: str) -> dict[str, Any]:
  """Returns adapter_config.json.

  Raises:
    FileNotFoundError: the folder has none.
    ValueError: it is not a JSON object.
  """
  path = epath.Path(folder) / CONFIG_FILE
  if not path.exists():
    raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}: name a folder that PEFT's save_pretrained wrote")
  try:
    config = json.loads(path.read_text())
  except (ValueError, RecursionError):
    config = None
  if not isinstance(config, dict):
    raise ValueError(f'{path} is not a JSON object: copy the folder again')
  return config


def read(folder: str, config: network.T5Config) -> tuple[Adapter, dict[str, np.ndarray]]:
  """Reads a POLY adapter of PEFT.

  Args:
    folder: has adapter_config.json and adapter_model.safetensors.
    config: sizes of the base that it adapts.

  Returns:
    The adapter, and its parameters float32, flat by name, e.g. `encoder/layers_0/attention/query/skills/down`.

  Raises:
    FileNotFoundError: a file is absent.
    ValueError: another kind of adapter, a pickle, tensors that do not fit the configuration or the base, or targets that
      have no counterpart here.
  """
  settings = read_config(folder)
  tasks, num_skills, heads, rank = _read_sizes(folder, settings)
  shapes = flops.projection_shapes(config)
  params: dict[str, np.ndarray] = {}
  paths: dict[str, set[str]] = {}
  for name, tensor in _open(folder).items():
    path, part = _place(name, shapes)
    d, o = shapes[path]
    if d % heads or o % heads:
      raise ValueError(f'{folder}: n_splits = {heads} does not divide the {d} inputs and {o} outputs of {path}')
    expected = {'skills/down': (heads, num_skills, d // heads, rank), 'skills/up': (heads, num_skills, rank, o // heads),
                'routing/common': (tasks, heads * num_skills)}[part]
    if tensor.shape != expected:
      raise ValueError(f'{folder}: {name} has shape {list(tensor.shape)}, and with this configuration and base it would have '
                       f'{list(expected)}')
    params[f'{path}/{part}'] = _to_ours(part, tensor.read(dtype=np.float32), heads, num_skills)
    paths.setdefault(path, set()).add(part)
  for path, parts in paths.items():
    for theirs, ours in _PARTS.items():
      if ours not in parts:
        raise ValueError(f'{folder}: {names.module_to_huggingface(path)} has no {theirs}')
  if not paths:
    raise ValueError(f'{folder}: {TENSOR_FILE} has no tensors')
  return Adapter(
      router=functools.partial(routing.PolyRouter, num_tasks=tasks, num_skills=num_skills, num_heads=heads),
      inventory=functools.partial(skills.LoRA, rank=rank, alpha=1., mixing=skills.FACTORS),
      targets=peft_targets.to_pattern(paths, list(shapes))), params


def write(folder: str, transformer: network.Transformer, params: Mapping[str, Any], base_name: str | None = None) -> int:
  """Writes skills and routing as a POLY adapter of PEFT, whose outputs in evaluation are the same.

  Args:
    folder: a new one.
    transformer: a network with a PolyRouter and LoRA skills.
    params: its parameters, flat by name.
    base_name: the base's name or path at Hugging Face, for PEFT's configuration.

  Returns:
    Bytes of the tensors.

  Raises:
    FileExistsError: the folder is there.
    ValueError: PEFT has no counterpart.
  """
  paths = merging.targets(transformer)
  adapter, known = transformer.adapter, network.projection_paths(transformer.config)
  router, lora = adapter.describe(), inventory_of(transformer)
  _check_counterpart(router, lora)
  heads, tensors = router.num_heads, {}
  task = merging.Task(transformer, params, 0)
  # PEFT's scale is 1/r, without our alpha.
  banks = {'poly_lora_A': ('down', 1.), 'poly_lora_B': ('up', lora.alpha)}
  for path in paths:
    module = PREFIX + names.module_to_huggingface(path)
    for part, (bank, scale) in banks.items():
      value = np.asarray(params[f'{path}/skills/{bank}'], np.float32)
      tensors[f'{module}.{part}'] = _to_theirs(bank, value if scale == 1 else value * np.float32(scale), heads)
    logits = np.asarray(params[task.routing_name(path, 'common')], np.float32)
    tensors[f'{module}.poly_router.module_logits'] = logits.reshape(len(logits), -1)
  config = {'peft_type': 'POLY', 'poly_type': 'poly', 'r': lora.rank, 'n_tasks': router.num_tasks,
            'n_skills': router.num_skills, 'n_splits': heads, 'init_weights': True,
            'target_modules': peft_targets.to_modules(paths, known)}
  return write_folder(folder, config, tensors, base_name)


def write_folder(folder: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray],
                 base_name: str | None = None) -> int:
  """Writes an adapter folder of PEFT: the tensors, then the configuration.

  Args:
    folder: a new one.
    config: settings of this kind of adapter; what all kinds have is added.
    tensors: by PEFT's names.
    base_name: the base's name or path at Hugging Face.

  Returns:
    Bytes of the tensors.

  Raises:
    FileExistsError: the folder is there.
  """
  common = {'auto_mapping': None, 'base_model_name_or_path': base_name, 'inference_mode': True, 'modules_to_save': None,
            'revision': None, 'task_type': 'SEQ_2_SEQ_LM'}
  with folders.new_folder(folder) as path:
    folders.save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path / TENSOR_FILE)
    (path / CONFIG_FILE).write_text(json.dumps(dict(sorted({**common, **config}.items())), indent=2) + '\n')
  return sum(value.nbytes for value in tensors.values())


def inventory_of(transformer: network.Transformer) -> Any:
  """Returns the inventory of a network's projections, for its settings."""
  adapter = transformer.adapter
  return adapter.inventory(num_skills=adapter.describe().num_skills, features=1, parent=None)


def _read_sizes(folder: str, settings: Mapping[str, Any]) -> tuple[int, int, int, int]:
  """Returns T, S, H and r; ValueError if this is no POLY adapter that we can read."""
  kind = settings.get('peft_type')
  if kind != 'POLY':
    raise ValueError(f'{folder} is an adapter of kind {kind!r}: of PEFT only POLY, with its routing by task, can be read')
  if settings.get('poly_type', 'poly') != 'poly':
    raise ValueError(f'{folder} has poly_type {settings["poly_type"]!r}: only \'poly\' can be read')
  if settings.get('modules_to_save'):
    raise ValueError(f'{folder} has modules_to_save = {settings["modules_to_save"]}: trained copies of whole modules have no '
                     'counterpart here')
  sizes = {key: settings.get(key) for key in _SIZES}
  for key, size in sizes.items():
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
      raise ValueError(f'{folder}: {key} in {CONFIG_FILE} is {size!r}, and not a whole number above 0')
  return sizes['n_tasks'], sizes['n_skills'], sizes['n_splits'], sizes['r']


def _open(folder: str) -> dict[str, safetensors_files.Tensor]:
  path = epath.Path(folder)
  if not (path / TENSOR_FILE).exists() and any(path.glob('*.bin')):
    raise ValueError(f'{folder} keeps its tensors in a .bin file, a pickle, which can run any code and is not read: save it '
                     'again with PEFT as safetensors')
  return safetensors_files.open_file(str(path / TENSOR_FILE))


def _place(name: str, shapes: Mapping[str, Any]) -> tuple[str, str]:
  """Returns the projection's path and our name of the part for a tensor of PEFT; ValueError if there is none."""
  for theirs, ours in _PARTS.items():
    if name.startswith(PREFIX) and name.endswith(f'.{theirs}'):
      module = name[len(PREFIX):-len(theirs) - 1]
      try:
        path = names.module_from_huggingface(module)
      except ValueError:
        path = None
      if path not in shapes:
        raise ValueError(f'the adapter is on {module}, which is no adapted projection of this base: here skills are on '
                         "the attention and feed-forward projections of T5's layers")
      return path, ours
  raise ValueError(f'{name} is no tensor of a POLY adapter of PEFT on T5')


def _to_ours(part: str, value: np.ndarray, heads: int, num_skills: int) -> np.ndarray:
  if part == 'skills/down':
    return np.ascontiguousarray(value.swapaxes(0, 1)).reshape(num_skills, -1, value.shape[-1])
  if part == 'skills/up':
    return np.ascontiguousarray(value.transpose(1, 2, 0, 3)).reshape(num_skills, value.shape[2], -1)
  return value if heads == 1 else value.reshape(-1, heads, num_skills)


def _to_theirs(bank: str, value: np.ndarray, heads: int) -> np.ndarray:
  s = len(value)
  if bank == 'down':
    return value.reshape(s, heads, -1, value.shape[-1]).swapaxes(0, 1)
  return value.reshape(s, value.shape[1], heads, -1).transpose(2, 0, 1, 3)


def _check_counterpart(router: Any, lora: Any) -> None:
  """Raises ValueError unless a router and an inventory compute what PEFT's Poly does."""
  remedy = 'export one task as a plain LoRA (--task=NAME), or share the skills in our own format'
  if not isinstance(router, routing.PolyRouter) or not isinstance(lora, skills.LoRA):
    raise ValueError(f'PEFT has Polytropon and multi-head routing of LoRA skills, and no {type(router).__name__} of '
                     f'{type(lora).__name__} skills: {remedy}')
  if lora.mixing == skills.PRODUCTS and router.num_skills > 1:
    raise ValueError(f"PEFT mixes factors, and these skills are mixed as 'products': {remedy}")
  sampling = router.sampling
  if sampling.hard_evaluation or callable(sampling.uniform) or sampling.uniform:
    raise ValueError(f'PEFT has no hard_evaluation and no uniform share of the weights, which this router has: {remedy}')

