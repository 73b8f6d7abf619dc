"""Opens checkpoints: one view over every format that T5X has written, and over those of other packages.

`open_checkpoint` reads only the small index of a checkpoint and returns its arrays as `StoredArray`s: name,
shape, dtype, and a way to fetch the values. Legacy T5X (a msgpack file with inline arrays or with pointers
to zarr folders) and Orbax (OCDBT or zarr folders) both end up in TensorStore, so the rest of the package
never asks which format it reads. `array_reader` moves tensors one by one into their sharding.

An installed package makes another format readable by an entry point of the group `t5x.checkpoint_formats`: a function of
a path (local or a bucket) that returns None if the path is not of its format, and else a mapping of T5X's flat
parameter names, without `target/`, to tensors: objects with `shape`, `dtype` and `read(index, dtype)`, which
returns a NumPy array for a tuple of slices. The mapping may have an attribute `metadata`: that of a `StoredCheckpoint`, with
its `step` besides. Its ValueError and FileNotFoundError, of one line, are for the user.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.metadata
import json
import os
import queue
import re
import threading
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from etils import epath
from flax import serialization
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from t5x import array_reader
from t5x import checksums

CHECKPOINT_PREFIX = 'checkpoint_'
STATE_ITEM = 'state'
METADATA_ITEM = 'metadata'
FORMATS_GROUP = 't5x.checkpoint_formats'
# An unreachable bucket must be told within seconds; reading values has no such limit.
_PROBE_SECONDS = 8.0
_STEP_FOLDER = re.compile(CHECKPOINT_PREFIX + r'(\d+)$')
_PLACEHOLDER = 'PLACEHOLDER://'
NATIVE, ORBAX = 'T5X-native', 'Orbax'
# Under this name too, beside `open_checkpoint`.
read_arrays = array_reader.read_arrays


class CheckpointReadError(ValueError):
  """A checkpoint that exists but cannot be read: truncated, corrupt, or not a checkpoint at all."""


def get_checkpoint_dir(checkpoints_dir: str | os.PathLike, step: int) -> str:
  """Returns the folder of `step`, e.g. `/model/checkpoint_100`."""
  return os.path.join(os.fspath(checkpoints_dir), f'{CHECKPOINT_PREFIX}{step}')


def normalize_path(path: str | os.PathLike) -> str:
  """Cleans a user's checkpoint path; `.../checkpoint_7/checkpoint` means its parent folder.

  Raises:
    ValueError: if the path is empty.
  """
  path = os.path.expanduser(os.fspath(path)).rstrip('/')
  if not path:
    raise ValueError(
        "The restore path is empty: set INITIAL_CHECKPOINT_PATH to a checkpoint folder such as "
        "'/models/t5/checkpoint_1000000', or set the restore configuration to None to start from scratch."
    )
  parent, name = os.path.split(path)
  return parent if name == 'checkpoint' and _STEP_FOLDER.search(parent) else path


def absolute_path(path: str | os.PathLike) -> str:
  """Returns a normalized path that stays valid in another working directory."""
  path = normalize_path(path)
  return path if '://' in path else os.path.abspath(path)


def get_step_from_checkpoint_dir(checkpoints_dir: str) -> tuple[str, int]:
  """Splits `/model/checkpoint_100` into `('/model', 100)`.

  Raises:
    ValueError: if the last part of the path is not `checkpoint_<step>`.
  """
  parent, name = os.path.split(normalize_path(checkpoints_dir))
  match = _STEP_FOLDER.fullmatch(name)
  if not match:
    raise ValueError(f'{checkpoints_dir} does not end in {CHECKPOINT_PREFIX}<step>, e.g. checkpoint_1000.')
  return parent, int(match.group(1))


def is_remote(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


def _cannot_reach(path: str) -> FileNotFoundError:
  return FileNotFoundError(f'cannot reach {path}: check the network and credentials')


def _with_deadline(function, path: str):
  """Calls `function()`, for remote paths with a deadline: storage clients retry for minutes offline."""
  if not is_remote(path):
    return function()
  import tensorflow  # noqa: F401  # By which epath reads buckets; its slow import must not eat the deadline.

  box = queue.SimpleQueue()

  def work():
    try:
      box.put((function(), None))
    except Exception as error:  # The storage clients raise many kinds; all mean the same to the user.
      box.put((None, error))

  # Not a pool: its threads are joined when Python exits, a daemon thread is left behind.
  threading.Thread(target=work, daemon=True).start()
  try:
    value, error = box.get(timeout=_PROBE_SECONDS)
  except queue.Empty:
    raise _cannot_reach(path) from None
  if error is not None:
    raise _cannot_reach(path) from error
  return value


def all_steps(checkpoints_dir: str | os.PathLike) -> Sequence[int]:
  """Returns the steps of the finished checkpoints in a folder, ascending; [] if there is none.

  Raises:
    FileNotFoundError: if the bucket does not answer.
  """
  path = epath.Path(checkpoints_dir)
  remote = is_remote(checkpoints_dir)

  def steps():
    found = []
    for entry in path.iterdir() if path.exists() else ():
      match = _STEP_FOLDER.fullmatch(entry.name)
      # A bucket has no atomic rename: there a marker, written last, says that the folder is complete.
      if match and (not remote or (entry / 'commit_success.txt').exists() or (entry / 'checkpoint').exists()):
        found.append(int(match.group(1)))
    return sorted(found)

  return _with_deadline(steps, os.fspath(checkpoints_dir))


def latest_step(checkpoints_dir: str | os.PathLike) -> int | None:
  """Returns the newest step in a folder, None if there is no checkpoint."""
  return max(all_steps(checkpoints_dir), default=None)


def find_checkpoint(path: str | os.PathLike, step: int | None = None) -> str:
  """Finds one checkpoint: `path` itself, or `checkpoint_<step>` (default: the newest) inside it.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
  """
  path = normalize_path(path)
  if step is not None:
    return path if _STEP_FOLDER.fullmatch(os.path.basename(path)) else get_checkpoint_dir(path, step)
  if is_remote(path) and _STEP_FOLDER.fullmatch(os.path.basename(path)):
    return path
  if not is_remote(path) and not os.path.exists(path):
    raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a checkpoint_<step> folder.')
  newest = latest_step(path) if is_remote(path) or os.path.isdir(path) else None
  return path if newest is None else get_checkpoint_dir(path, newest)


@functools.cache
def _context():
  """One TensorStore context, so that all tensors of a checkpoint share the cached OCDBT index."""
  import tensorstore as ts

  return ts.Context({'cache_pool#ocdbt': {'total_bytes_limit': 100_000_000}})


def kvstore_spec(path: str) -> dict[str, Any]:
  """Returns the TensorStore key-value spec of a local or gs:// folder."""
  if path.startswith('gs://'):
    bucket, _, prefix = path.removeprefix('gs://').partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{prefix.strip("/")}/'}
  return {'driver': 'file', 'path': os.path.join(os.path.abspath(path), '')}


def read_small_file(folder: str, name: str) -> bytes | None:
  """Returns the content of `folder/name`, None if it is absent.

  Raises:
    FileNotFoundError: if the bucket does not answer.
  """
  file = epath.Path(folder) / name
  # Only the probe is bound in time: a long index may take longer on a slow line.
  return file.read_bytes() if _with_deadline(file.is_file, folder) else None


class StoredArray:
  """One array of a checkpoint, not read yet; values are fetched by `get` or `read_arrays`.

  Attributes:
    name: its name in the checkpoint, e.g. `target/encoder/encoder_norm/scale`.
    path: the checkpoint that physically holds it (differs from the one opened for a frozen base).
    kind: the format of that checkpoint.
    cast_dtype: the dtype that values are cast to when they are read, None for the stored one.
    checksum: of the stored values (`checksums.compute`), None if none was saved.
  """

  cast_dtype: np.dtype | None = None
  checksum: str | None = None

  def __init__(self, name: str, path: str, value: np.ndarray | None = None, spec: dict | None = None,
               tensor: Any = None, kind: str = NATIVE):
    """Constructor.

    Args:
      name: see above.
      path: see above.
      value: the values, where the index holds them; or
      spec: TensorStore's specification; or
      tensor: a tensor of another format: `shape`, `dtype`, `read(index, dtype)`.
      kind: see above.
    """
    self.name, self.path, self.kind = name, path, kind
    self._value, self._spec, self._tensor, self._opening = value, spec, tensor, None
    self._metadata = (spec or {}).get('metadata', {})

  def start_opening(self) -> None:
    """Starts to open the array in the background, so that many are opened at the same time."""
    if self._spec is not None and self._opening is None:
      import tensorstore as ts

      spec = {k: v for k, v in self._spec.items() if k not in ('metadata', 'dtype')}
      self._opening = ts.open(ts.Spec(spec), open=True, read=True, context=_context())

  def _open(self):
    """Returns the numpy array, the opened TensorStore or the tensor of another format."""
    if self._tensor is not None:
      return self._tensor
    if self._spec is None:
      return self._value
    self.start_opening()
    try:
      return self._opening.result()
    except Exception as error:
      raise _unreadable(self.path, error, self.name) from error

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(self._metadata['shape']) if 'shape' in self._metadata else tuple(self._open().shape)

  @property
  def dtype(self) -> np.dtype:
    if self.cast_dtype is not None:
      return self.cast_dtype
    dtype = self._open().dtype
    return jnp.dtype(dtype) if self._spec is None else jnp.dtype(dtype.numpy_dtype)

  @property
  def size(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64))

  def read(self, index: Any = (), dtype: np.dtype | None = None) -> np.ndarray:
    """Reads the part of the array that `index` (a tuple of slices) selects, cast to `dtype`; () checks the checksum."""
    if self.checksum is not None and index == ():
      return checksums.read_whole(self, dtype)
    source, dtype = self._open(), dtype or self.cast_dtype
    if self._tensor is not None:
      return source.read(index, dtype)
    if self._spec is None:
      # A copy: the values would else keep the whole msgpack buffer alive.
      return np.array(source[index], dtype=dtype or source.dtype)
    try:
      return array_reader.read_blocks(source, index, dtype)
    except Exception as error:
      raise _unreadable(self.path, error, self.name) from error

  def get(self) -> np.ndarray:
    """Reads the whole array."""
    return self.read()

  def astype(self, dtype) -> StoredArray:
    """Returns the array with another `cast_dtype`."""
    result = copy.copy(self)
    result.cast_dtype = jnp.dtype(dtype)
    return result

  def __repr__(self) -> str:
    return f'StoredArray({self.name!r} in {self.path!r})'


def _unreadable(path: str, error: Exception, name: str = '') -> CheckpointReadError:
  """Makes the one-line error of a damaged checkpoint."""
  # TensorStore appends its whole specification in brackets.
  reason = ' '.join(str(error).split(' [')[0].split())[:300] or type(error).__name__
  where = f'{name!r} of {path}' if name else path
  return CheckpointReadError(f'{where} cannot be read, the checkpoint is truncated or corrupt: {reason}')


@dataclasses.dataclass
class StoredCheckpoint:
  """The index of one checkpoint.

  Attributes:
    path: its folder (or single file).
    arrays: flat names, `target/...` and `state/...`, to the arrays; None and empty leaves are left out.
    metadata: what this package recorded beside the state, None for checkpoints of other writers.
  """

  path: str
  arrays: dict[str, StoredArray]
  metadata: dict[str, Any] | None = None


_registered: dict[str, Callable[[str], Mapping[str, Any] | None]] = {}


def register_format(name: str, reader: Callable[[str], Mapping[str, Any] | None]) -> None:
  """Makes another format readable in this process, as an entry point of that name does in all of them."""
  _registered[name] = reader


def _formats() -> dict[str, Callable[[], Callable[[str], Mapping[str, Any] | None]]]:
  """Returns what loads the reader of each format, by name."""
  installed = {entry.name: entry.load for entry in importlib.metadata.entry_points(group=FORMATS_GROUP)}
  return installed | {name: (lambda reader=reader: reader) for name, reader in _registered.items()}


def open_other_format(path: str | os.PathLike) -> StoredCheckpoint | None:
  """Asks the readers of other formats, which installed packages offer (see the module's docstring).

  Args:
    path: a path of any kind.

  Returns:
    The checkpoint, whose arrays are parameters and the step, 0 where the format has none; None if no reader knows the format.

  Raises:
    FileNotFoundError, ValueError: a reader knows the format but cannot read this one.
  """
  path = absolute_path(path)
  if not is_remote(path) and not os.path.exists(path):
    return None
  for kind, load in _formats().items():
    tensors = load()(path)
    if tensors is not None:
      arrays = {f'target/{name}': StoredArray(f'target/{name}', path, tensor=tensor, kind=kind)
                for name, tensor in tensors.items()}
      metadata = getattr(tensors, 'metadata', None)
      step = np.asarray((metadata or {}).get('step') or 0, np.int32)
      arrays['state/step'] = StoredArray('state/step', path, value=step, kind=kind)
      return StoredCheckpoint(path, arrays, metadata)
  return None


def open_checkpoint(path: str | os.PathLike) -> StoredCheckpoint:
  """Reads the index of a checkpoint of any format.

  Args:
    path: a `checkpoint_<step>` folder, its msgpack file, a single msgpack file of any name, or what an installed reader of
      another format takes.

  Raises:
    FileNotFoundError: if nothing is there or the bucket cannot be reached.
    CheckpointReadError: if it is no checkpoint or is damaged.
    ValueError: if it is of another format and damaged.
  """
  path = absolute_path(path)
  if not is_remote(path) and not os.path.exists(path):
    raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a checkpoint_<step> folder.')
  try:
    for item in (f'{path}/{STATE_ITEM}', path):
      content = read_small_file(item, '_METADATA')
      if content is not None:
        recorded = read_small_file(f'{path}/{METADATA_ITEM}', METADATA_ITEM)
        metadata = None if recorded is None else json.loads(recorded)
        return StoredCheckpoint(path, _orbax_arrays(path, item, json.loads(content)), metadata)
    folder, file = os.path.split(path) if os.path.isfile(path) else (path, 'checkpoint')
    content = read_small_file(folder, file)
    if content is not None:
      tree = serialization.msgpack_restore(content)
      return StoredCheckpoint(path, _msgpack_arrays(path, folder, tree))
  except CheckpointReadError:
    raise
  except FileNotFoundError as error:
    raise (_cannot_reach(path) if is_remote(path) else error) from error
  except Exception as error:  # json, msgpack and missing keys: all signs of a damaged index.
    raise _unreadable(path, error) from error
  if (other := open_other_format(path)) is not None:
    return other
  if is_remote(path):
    raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a checkpoint_<step> folder.')
  steps = all_steps(path) if os.path.isdir(path) else []
  readers = ', '.join(_formats()) or 'none installed'
  hint = f'it has neither _METADATA nor a msgpack index, and no reader of other formats ({readers}) knows it'
  if steps:
    hint = f"it holds steps {steps}: name one, or set mode='latest'"
  raise CheckpointReadError(f'{path} is not a checkpoint: {hint}.')


def _orbax_arrays(path: str, item: str, index: Mapping[str, Any]) -> dict[str, StoredArray]:
  """Turns Orbax's `_METADATA` into stored arrays, one TensorStore spec each."""
  arrays = {}
  for entry in index['tree_metadata'].values():
    value = entry['value_metadata']
    if value['value_type'] in ('None', 'Dict', 'List', 'Tuple', 'string') or value.get('skip_deserialize'):
      continue
    keys = [str(key['key']) for key in entry['key_metadata']]
    dotted = '.'.join(keys)
    if index.get('use_ocdbt', False):
      kvstore = {'driver': 'ocdbt', 'base': kvstore_spec(item), 'path': f'{dotted}/', 'cache_pool': 'cache_pool#ocdbt'}
    else:
      kvstore = kvstore_spec(f'{item}/{dotted}')
    spec = {'driver': 'zarr3' if index.get('use_zarr3') else 'zarr', 'kvstore': kvstore}
    if index.get('store_array_data_equal_to_fill_value'):
      # Every chunk was written, so a missing one is damage and must not be read as zeros.
      spec['fill_missing_data_reads'] = False
    arrays['/'.join(keys)] = StoredArray('/'.join(keys), path, spec=spec, kind=ORBAX)
  return arrays


def _msgpack_arrays(path: str, folder: str, tree: Mapping[str, Any]) -> dict[str, StoredArray]:
  """Turns a msgpack index (legacy T5X, or Orbax's first aggregate file) into stored arrays."""
  if 'version' in tree and 'optimizer' in tree:
    if int(tree['version']) < 2:
      raise CheckpointReadError(f'{path} has format version {tree["version"]}; versions 2 and 3 can be read.')
    # Some T5X versions put `flax_mutables` beside the optimizer instead of inside it.
    tree = {**{k: v for k, v in tree.items() if k == 'flax_mutables'}, **tree['optimizer']}
  elif '_optimizer' in tree:
    tree = tree['_optimizer']
  elif 'target' not in tree and 'state' not in tree:
    raise CheckpointReadError(f'{path} is not a T5X checkpoint: its index has the keys {sorted(tree)[:5]}.')
  is_spec = lambda _, value: 'driver' in value and 'kvstore' in value
  arrays = {}
  for name, value in traverse_util.flatten_dict(tree, sep='/', is_leaf=is_spec).items():
    if value is None:
      continue
    spec, kind = None, NATIVE
    if isinstance(value, dict):
      # The recorded driver and root are those of the writer's machine: only the folder name is kept.
      spec = dict(value, kvstore=kvstore_spec(f'{folder}/{value["kvstore"]["path"].strip("/")}'))
    elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
      spec = {'driver': 'zarr', 'kvstore': kvstore_spec(f'{folder}/{value.removeprefix(_PLACEHOLDER)}')}
      kind = ORBAX
    if spec is not None:
      if spec['driver'] == 'zarr':
        spec['fill_missing_data_reads'] = False
      arrays[name] = StoredArray(name, path, spec=spec, kind=kind)
    else:
      arrays[name] = StoredArray(name, path, value=np.asarray(value))
  return arrays
