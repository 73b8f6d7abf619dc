"""T5X checkpoints as files: which format, step and base, the parameters, and writing T5X's native format.

T5X's native format, which every provider of t5x reads, is a folder `checkpoint_<step>` with a msgpack index `checkpoint`;
arrays above 16 KB are zarr folders beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any
from collections.abc import Callable, Mapping

from etils import epath
import numpy as np

from cpoly_jax.checkpoints import folders

NATIVE, ORBAX = 'T5X-native', 'Orbax'
_STEP_FOLDER = re.compile(r'checkpoint_(\d+)')
_INDEX_FILE, _ORBAX_FILE = 'checkpoint', '_METADATA'
_VERSION = 3
_INLINE_BYTES = 2**14
_CHUNK_BYTES = 2**22
# What is given to TensorStore at a time.
_BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Found:
  """A checkpoint of T5X.

  Attributes:
    path: its folder, or its file.
    kind: NATIVE or ORBAX.
    step: by the folder's name, None if that does not say.
    metadata: what t5x_lite recorded: `base`, `frozen` and what the model tells of itself (`model`); {} if it did not write it.
  """

  path: str
  kind: str
  step: int | None
  metadata: Mapping[str, Any]


def find(path: str | os.PathLike) -> Found | None:
  """Returns the T5X checkpoint at `path`, the newest one if that is a folder of checkpoints; None if there is none.

  Raises:
    ValueError: its metadata is damaged.
  """
  path = os.fspath(path).rstrip('/')
  folder = epath.Path(path)
  if not folder.exists():
    return None
  if folder.is_file():
    # A checkpoint of one file may have any name.
    return Found(path, NATIVE, _step(path), {}) if not _is_tensors(path) else None
  for item in ('state', ''):
    if (folder / item / _ORBAX_FILE).is_file():
      return Found(path, ORBAX, _step(path), _metadata(folder))
  if (folder / _INDEX_FILE).is_file():
    return Found(path, NATIVE, _step(path), {})
  steps = [step for entry in folder.iterdir() if (step := _step(entry)) is not None]
  return find(folder / f'checkpoint_{max(steps)}') if steps else None


def _is_tensors(path: str) -> bool:
  return path.endswith(('.safetensors', '.json', '.bin', '.pt'))


def _step(path: str | os.PathLike) -> int | None:
  match = _STEP_FOLDER.fullmatch(os.path.basename(os.fspath(path)))
  return int(match[1]) if match else None


def _metadata(folder: epath.Path) -> Mapping[str, Any]:
  file = folder / 'metadata' / 'metadata'
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text())
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f'{file} is not a JSON object: the checkpoint is damaged')
  return found


def open_arrays(path: str) -> dict[str, Any]:
  """Returns a checkpoint's arrays, not read yet, by flat name: `target/...` and `state/...`.

  They have `shape`, `dtype` and `get()`; small ones may be NumPy arrays. The provider of t5x reads the checkpoint; of a frozen
  base that it refers to, t5x_lite opens the arrays too.

  Raises:
    FileNotFoundError: the checkpoint, or its base, is absent.
    ValueError: it is damaged.
  """
  from flax import traverse_util
  from t5x import checkpoints
  state = checkpoints.load_t5x_checkpoint(path, lazy_parameters=True)
  return {name: leaf for name, leaf in traverse_util.flatten_dict(state, sep='/').items() if hasattr(leaf, 'shape')}


def step_of_new(path: str | os.PathLike) -> int:
  """Returns the step of a checkpoint to be written; ValueError if its last part is not `checkpoint_<step>`."""
  path = os.fspath(path).rstrip('/')
  step = _step(path)
  if step is None:
    raise ValueError(f'{path} has no step: name a T5X checkpoint .../checkpoint_<step>, e.g. {path}/checkpoint_0')
  return step


def write_checkpoint(path: str | os.PathLike, params: Mapping[str, Any], *, dtype: Any = None,
                     tell: Callable[[str, int], None] = lambda name, size: None) -> None:
  """Writes parameters in T5X's native format, with a step and without optimizer state, one array at a time in memory.

  Args:
    path: `.../checkpoint_<step>`, local or gs://; not there as yet. Where writing fails it is not there afterwards either.
    params: T5X's flat names, without `target/`, to arrays, or to tensors with `shape`, `dtype` and `read()` or `get()`.
    dtype: of the floating-point values; None: theirs.
    tell: called with the name and the size in bytes of each array, when it has been written.

  Raises:
    FileExistsError: there is something at `path`.
    ValueError: `path` does not end in `checkpoint_<step>`.
    OSError: it cannot be written.
  """
  from flax import serialization, traverse_util
  path = os.fspath(path).rstrip('/')
  step = step_of_new(path)
  with folders.new_folder(path) as folder:
    target = {}
    for name in params:
      value = folders.whole(params[name], dtype)
      target[name] = value if value.nbytes <= _INLINE_BYTES else _write_zarr(os.fspath(folder), f'target/{name}', value)
      tell(name, value.nbytes)
    index = {'version': _VERSION, 'optimizer': {'target': traverse_util.unflatten_dict(target, sep='/'),
                                                'state': {'step': np.int32(step)}}}
    (folder / _INDEX_FILE).write_bytes(serialization.msgpack_serialize(index))


def _write_zarr(folder: str, name: str, value: np.ndarray) -> dict[str, Any]:
  """Writes an array and returns what the index says of it: TensorStore's specification, relative to the folder."""
  import tensorstore as ts
  chunks = list(value.shape)
  while np.prod(chunks, dtype=np.int64) * value.dtype.itemsize > _CHUNK_BYTES:
    # Rows first: a reader then takes as many as it has room for.
    axis = next(i for i, size in enumerate(chunks) if size > 1)
    chunks[axis] = -(-chunks[axis] // 2)
  entry = {'driver': 'zarr', 'dtype': value.dtype.name,
           'metadata': {'chunks': chunks, 'compressor': {'id': 'gzip', 'level': 1}, 'shape': list(value.shape)}}
  key = f'{name.replace("/", ".")}/'
  bucket, _, prefix = folder.removeprefix('gs://').partition('/')
  place = {'driver': 'gcs', 'bucket': bucket, 'path': f'{prefix}/{key}'} if folder.startswith('gs://') else {
      'driver': 'file', 'path': os.path.join(os.path.abspath(folder), key)}
  rows = max(_BLOCK_BYTES // (value.nbytes // len(value) * chunks[0]), 1) * chunks[0]
  try:
    store = ts.open({**entry, 'kvstore': place}, create=True, open=True).result()
    for start in range(0, len(value), rows):
      stop = min(start + rows, len(value))
      store[start:stop].write(value[start:stop]).result()
  except ValueError as error:  # TensorStore says so where a disk is full, too.
    raise OSError(f'cannot write {folder}: {" ".join(str(error).split(" [")[0].split())}') from error
  return {**entry, 'kvstore': {'driver': 'file', 'path': key}}
