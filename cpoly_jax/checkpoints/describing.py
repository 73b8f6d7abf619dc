"""What lies at a path: its format, arrays, parameters and, where it was trained here, base, tasks and skills."""

from __future__ import annotations

import json
import os
from typing import Any
from collections.abc import Mapping, Sequence

from etils import epath
import numpy as np

from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import safetensors_files
from cpoly_jax.checkpoints import sizes
from cpoly_jax.checkpoints import t5x_files

Rows = list[tuple[str, str]]
# Folders with one file of tensors and one of JSON: what they are, the two files.
_ADAPTERS = (('shared adapter', 'adapter.safetensors', 'adapter.json'),
             ('adapter of Hugging Face PEFT', 'adapter_model.safetensors', 'adapter_config.json'))


def _count(leaf: Any) -> int:
  return int(np.prod(leaf.shape, dtype=np.int64))


def _totals(arrays: Mapping[str, Any]) -> Rows:
  """Returns number, parameters, dtypes and size of arrays."""
  dtypes = sorted({np.dtype(leaf.dtype).name for leaf in arrays.values()})
  size = sum(_count(leaf) * np.dtype(leaf.dtype).itemsize for leaf in arrays.values())
  return [('arrays', f'{len(arrays):,}'), ('parameters', f'{sum(map(_count, arrays.values())):,}'),
          ('dtype', ', '.join(dtypes) or '-'), ('size', f'{size / 1e6:,.1f} MB')]


def _network(settings: Mapping[str, Any]) -> tuple[str, str]:
  return 'network', ', '.join(f'{name}={value!r}' for name, value in sorted(settings.items()))


def _trained(model: Mapping[str, Any]) -> Rows:
  """Returns what a model's own JSON says: its skills, routing and tasks."""
  rows, adapter = [], model.get('adapter') or {}
  for part in ('inventory', 'router'):
    if isinstance(adapter.get(part), Mapping):
      told = ', '.join(f'{k}={v!r}' for k, v in adapter[part].items() if k != 'kind' and not isinstance(v, (dict, list)))
      rows.append(('skills' if part == 'inventory' else 'routing', f'{adapter[part].get("kind")} ({told})'))
  tasks = (model.get('task_index') or {}).get('tasks')
  if isinstance(tasks, list):
    rows.append(('tasks', f'{len(tasks)}: {", ".join(map(str, tasks))}'))
  return rows


def _base(base: Any) -> Rows:
  """Returns the row on the frozen base, if there is one."""
  if isinstance(base, str) and base:
    return [('base', base)]
  if not isinstance(base, Mapping):
    return []
  digest = f' (digest {base["digest"]})' if base.get('digest') else ''
  return [('base', f'{base.get("path")}{digest}')]


def _huggingface(path: str) -> tuple[Rows, Mapping[str, Any]]:
  tensors = huggingface.open_folder(path)
  files = len({tensor.source.path for tensor in tensors.values()})
  return [('format', f'Hugging Face T5, {files} file{"s" if files > 1 else ""} of safetensors'), *_totals(tensors),
          _network(huggingface.network_settings(path))], tensors


def _t5x(found: t5x_files.Found) -> tuple[Rows, Mapping[str, Any]]:
  """Describes a T5X checkpoint; where its base is absent, by what it says of itself."""
  rows = [('format', f'T5X checkpoint, {found.kind}'), ('step', '-' if found.step is None else str(found.step))]
  model, base = found.metadata.get('model') or {}, _base(found.metadata.get('base'))
  frozen = frozenset(found.metadata.get('frozen') or ())
  try:
    arrays = t5x_files.open_arrays(found.path)
  except FileNotFoundError:
    if not base:
      raise
    return [*rows, *base, ('arrays', 'not listed: the base, to which its arrays refer, is not there'), *_trained(model)], {}
  target = {name.removeprefix('target/'): leaf for name, leaf in arrays.items()
            if name.startswith('target/') and name not in frozen}
  rows += _totals(target)
  state = [leaf for name, leaf in arrays.items() if name.startswith('state/param_states/')]
  if state:
    rows.append(('optimizer', f'{len(state):,} arrays, {sum(map(_count, state)):,} values'))
  if base:
    rows += [*base, ('from the base', f'{len(frozen):,} arrays, '
                     f'{sum(_count(arrays[name]) for name in frozen if name in arrays):,} parameters')]
  rows += _trained(model)
  if not base:
    try:
      rows.append(_network(sizes.from_shapes({name: leaf.shape for name, leaf in target.items()}, found.path)))
    except ValueError:
      pass  # Not a plain T5: the totals say all.
  return rows, target


def _adapter(path: str, kind: str, tensors_file: str, json_file: str) -> tuple[Rows, Mapping[str, Any]]:
  """Describes a folder with the tensors of an adapter and their JSON."""
  tensors = safetensors_files.open_file(os.path.join(path, tensors_file))
  file = epath.Path(path) / json_file
  try:
    told = json.loads(file.read_text())
  except (ValueError, RecursionError):
    told = None
  if not isinstance(told, dict):
    raise ValueError(f'{file} is not a JSON object')
  rows = [('format', f'{kind} ({tensors_file}, {json_file})')]
  if 'step' in told:
    rows.append(('step', str(told['step'])))
  if 'peft_type' in told:
    rows.append(('skills', f'{told["peft_type"]} (r={told.get("r")!r})'))
  model = told.get('model') if isinstance(told.get('model'), Mapping) else told
  return [*rows, *_totals(tensors), *_base(told.get('base') or told.get('base_model_name_or_path')), *_trained(model)], tensors


def describe(path: str) -> tuple[Rows, Mapping[str, Any]]:
  """Describes what lies at a path, from indices and headers alone.

  Args:
    path: a Hugging Face folder, a T5X checkpoint of either format, a folder of these (the newest is taken), a shared adapter,
      an adapter of PEFT, or a file of safetensors.

  Returns:
    Pairs of what and how much, and the arrays of parameters by name (with `shape` and `dtype`), without those of a base.

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: it is damaged, or none of these.
  """
  path = os.path.expanduser(path).rstrip('/')
  place = epath.Path(path)
  if not folders.exists(path):
    raise FileNotFoundError(f'there is nothing at {path}')
  found_at = path
  adapter = next((row for row in _ADAPTERS if (place / row[2]).is_file()), None)
  if adapter is not None:
    rows, arrays = _adapter(path, *adapter)
  elif huggingface.is_folder(path):
    rows, arrays = _huggingface(path)
  elif place.is_file() and path.endswith('.safetensors'):
    arrays = safetensors_files.open_file(path)
    rows = [('format', 'a file of safetensors'), *_totals(arrays)]
  else:
    found = t5x_files.find(path)
    if found is None:
      raise ValueError(f'{path} is no checkpoint of T5X, no Hugging Face folder and no adapter')
    found_at, (rows, arrays) = found.path, _t5x(found)
  return [('path', found_at), *rows], arrays


def text(rows: Sequence[tuple[str, str]], arrays: Mapping[str, Any] | None = None) -> str:
  """Returns a description for people: a line for each pair and, where arrays are given, for each of them."""
  width = max(len(name) for name, _ in rows) + 2
  lines = [f'{name:<{width}}{value}' for name, value in rows]
  lines += [f'{name} {np.dtype(leaf.dtype).name}{list(leaf.shape)}' for name, leaf in (arrays or {}).items()]
  return '\n'.join(lines)
