"""A plain T5 from one format to the other: Hugging Face folders and T5X checkpoints, tensor by tensor.

Nothing is computed: names change, kernels are transposed, and values are cast where another dtype is asked for.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import types
from typing import Any, TextIO
from collections.abc import Mapping

import numpy as np

from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import safetensors_files
from cpoly_jax.checkpoints import sizes
from cpoly_jax.checkpoints import t5x_files

HUGGING_FACE, T5X = 'huggingface', 't5x'
FORMATS = (T5X, HUGGING_FACE)
DTYPES = ('bfloat16', 'float32')
_SECONDS_BETWEEN_LINES = 5.


@dataclasses.dataclass(frozen=True)
class Model:
  """A plain T5 in files.

  Attributes:
    path: the folder.
    kind: `huggingface` or `t5x`.
    params: T5X's flat names to tensors that are not read yet.
    settings: keyword arguments of `network.T5Config`.
  """

  path: str
  kind: str
  params: Mapping[str, Any]
  settings: Mapping[str, Any]


def open_model(path: str) -> Model:
  """Opens a plain T5 of either format.

  Args:
    path: a Hugging Face folder, a T5X checkpoint, or a folder of T5X checkpoints, of which the newest is taken.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: it is damaged, or not a plain T5.
  """
  if not folders.exists(path):
    raise FileNotFoundError(f'there is nothing at {path}')
  if huggingface.is_folder(path):
    return Model(path, HUGGING_FACE, huggingface.open_folder(path), huggingface.network_settings(path))
  found = t5x_files.find(path)
  if found is None:
    raise ValueError(f'{path} is neither a Hugging Face folder (config.json, model.safetensors) nor a T5X checkpoint')
  params = {name.removeprefix('target/'): leaf for name, leaf in t5x_files.open_arrays(found.path).items()
            if name.startswith('target/')}
  settings = sizes.from_shapes({name: leaf.shape for name, leaf in params.items()}, found.path)
  recorded = (found.metadata.get('model') or {}).get('network') or {}
  if 'mlp_activations' in recorded and len(recorded['mlp_activations']) == len(settings['mlp_activations']):
    settings['mlp_activations'] = tuple(recorded['mlp_activations'])
  return Model(found.path, T5X, params, {**settings, 'dropout_rate': 0.1})


def destination_format(model: Model, to: str | None) -> str:
  """Returns `to`, or the format that the model does not have."""
  return to or (T5X if model.kind == HUGGING_FACE else HUGGING_FACE)


def stored_dtype(leaf: Any, dtype: str | None) -> np.dtype:
  """Returns the dtype in which a tensor is written."""
  cast = dtype is not None and folders.is_floating(leaf.dtype)
  return safetensors_files.dtype_of(dtype) if cast else np.dtype(leaf.dtype)


def total_bytes(model: Model, dtype: str | None) -> int:
  """Returns the size of all values in the dtype in which they are written."""
  return sum(int(np.prod(leaf.shape, dtype=np.int64)) * stored_dtype(leaf, dtype).itemsize for leaf in model.params.values())


def plan(model: Model, destination: str, to: str, dtype: str | None) -> str:
  """Returns what a conversion would read and write, a line for each tensor."""
  source = lambda name: names.to_huggingface(name)[0] if model.kind == HUGGING_FACE else f'target/{name}'
  if to == HUGGING_FACE:
    place = {name: file for file, group in huggingface.plan_shards(model.params, _numpy(dtype)).items() for name in group}
    target = lambda name: f'{place[name]}: {names.to_huggingface(name)[0]}'
  else:
    target = lambda name: f'target/{name}'
  lines = []
  for name, leaf in model.params.items():
    turned = names.to_huggingface(name)[1]
    shape = lambda kind: list(leaf.shape[::-1] if turned and kind == HUGGING_FACE else leaf.shape)  # noqa: B023
    lines.append(f'{source(name)} {np.dtype(leaf.dtype).name}{shape(model.kind)} -> '
                 f'{target(name)} {stored_dtype(leaf, dtype).name}{shape(to)}')
  return '\n'.join([*lines, _summary('would write', model, destination, to, dtype)])


def _summary(verb: str, model: Model, destination: str, to: str, dtype: str | None) -> str:
  count = sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in model.params.values())
  return (f'{verb} {destination} ({to}): {len(model.params)} arrays, {count:,} parameters, '
          f'{total_bytes(model, dtype) / 1e6:,.1f} MB, from {model.path} ({model.kind})')


def _numpy(dtype: str | None) -> np.dtype | None:
  return None if dtype is None else safetensors_files.dtype_of(dtype)


class _Progress:
  """Tells, every few seconds, how far a conversion is."""

  def __init__(self, arrays: int, total: int, stream: TextIO):
    self._arrays, self._total, self._stream = arrays, total, stream
    self._done, self._bytes, self._told = 0, 0, time.monotonic()

  def __call__(self, name: str, size: int) -> None:
    self._done, self._bytes = self._done + 1, self._bytes + size
    if time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
      self._told = time.monotonic()
      print(f'{self._done}/{self._arrays} arrays, {self._bytes / 1e6:,.0f} of {self._total / 1e6:,.0f} MB',
            file=self._stream, flush=True)


def check_destination(destination: str, to: str) -> None:
  """Raises FileExistsError or ValueError if a conversion could not write there."""
  if to == T5X:
    t5x_files.step_of_new(destination)
  folders.check_new(destination)


def convert(source: str, destination: str, *, to: str | None = None, dtype: str | None = None, dry_run: bool = False,
            stream: TextIO | None = None) -> str:
  """Converts a plain T5; returns what was done, or with `dry_run` what would be.

  Args:
    source: see `open_model`.
    destination: a new folder; for T5X named `checkpoint_<step>`.
    to: `t5x` or `huggingface`; None: the format that the source does not have.
    dtype: 'bfloat16' or 'float32'; None: that of each tensor.
    dry_run: nothing is written.
    stream: gets the lines on progress; None: stderr.

  Raises:
    FileExistsError: there is something at `destination`.
    FileNotFoundError, ValueError: the source is not there, damaged, or no plain T5; or the destination has a wrong name.
    OSError: the destination cannot be written.
  """
  model = open_model(os.path.expanduser(source))
  to, destination = destination_format(model, to), os.path.expanduser(destination).rstrip('/')
  check_destination(destination, to)
  if dry_run:
    return plan(model, destination, to, dtype)
  progress = _Progress(len(model.params), total_bytes(model, dtype), stream or sys.stderr)
  if to == T5X:
    t5x_files.write_checkpoint(destination, model.params, dtype=_numpy(dtype), tell=progress)
  else:
    huggingface.write_folder(destination, model.params, types.SimpleNamespace(**model.settings), dtype=_numpy(dtype),
                             tell=progress)
  return _summary('wrote', model, destination, to, dtype)
