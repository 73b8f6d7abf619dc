"""Writes T5X's own format: a msgpack index, and a zarr folder for each large array.

Every T5X reads it. It always holds the complete state, in one synchronous save; `OrbaxCheckpointManagerInterface`
is the one to train with. `save_single_file` makes the form for a small pretrained base: one file, no folders.
"""

from __future__ import annotations

import os
import time
from typing import Any
from collections.abc import Mapping, Sequence

from absl import logging
from etils import epath
from flax import serialization
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_reader
from t5x import checkpoint_state
from t5x import orbax_checkpoint

VERSION = 3
_INLINE_BYTES = 2**14
_CHUNK_BYTES = 2**26


def _to_host(leaf: Any) -> np.ndarray:
  """Returns the whole array, in a multi-process job on every process."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def _cast(name: str, value: np.ndarray, dtype) -> np.ndarray:
  casts = dtype is not None and name.startswith('target/') and jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(jnp.dtype(dtype), copy=False) if casts else value


def _write_zarr(folder: str, name: str, value: np.ndarray) -> dict[str, Any]:
  """Writes one array and returns the pointer that the index keeps."""
  import tensorstore as ts

  dotted = name.replace('/', '.')
  chunks = list(value.shape)
  while np.prod(chunks, dtype=np.int64) * value.dtype.itemsize > _CHUNK_BYTES:
    chunks[int(np.argmax(chunks))] = -(-max(chunks) // 2)
  metadata = {'chunks': chunks, 'compressor': {'id': 'gzip', 'level': 1}, 'shape': list(value.shape)}
  spec = {'driver': 'zarr', 'dtype': value.dtype.name, 'metadata': metadata}
  store = ts.open(
      ts.Spec({**spec, 'kvstore': checkpoint_reader._kvstore_spec(f'{folder}/{dotted}')}), create=True, open=True
  ).result()
  store.write(value).result()
  return {**spec, 'kvstore': {'driver': 'file', 'path': f'{dotted}/'}}


def _write(directory: str, step: int, leaves: Mapping[str, Any], dtype, inline_bytes: int | None) -> str:
  """Writes `checkpoint_<step>` under a temporary name and renames it; returns its path."""
  final = checkpoint_reader.get_checkpoint_dir(directory, step)
  temporary = epath.Path(f'{final}.tmp-{int(time.time())}')
  is_writer = jax.process_index() == 0
  try:
    if is_writer:
      temporary.mkdir(parents=True)
    flat = {}
    for name, leaf in leaves.items():
      if leaf is None:
        flat[name] = None
        continue
      value = _cast(name, _to_host(leaf), dtype)  # All processes: gathering is collective.
      if is_writer:
        large = inline_bytes is not None and value.nbytes > inline_bytes
        flat[name] = _write_zarr(os.fspath(temporary), name, value) if large else value
    if is_writer:
      content = {'version': VERSION, 'optimizer': checkpoint_state.unflatten(flat)}
      (temporary / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))
      temporary.rename(final)
  except Exception as error:  # TensorStore reports a full disk as ValueError.
    if is_writer and temporary.exists():
      temporary.rmtree()
    described = orbax_checkpoint.save_error(directory, step, error)
    raise described from (error if described is not error else error.__cause__)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'saved {final}')  # No process goes on before the folder is there.
  return final


def save_single_file(path: str, step: int, target: Mapping[str, Any], dtype: Any = None) -> str:
  """Writes parameters as one file, `<path>/checkpoint_<step>/checkpoint`, that every T5X restores.

  Args:
    path: the folder of the checkpoint.
    step: its step.
    target: nested parameters.
    dtype: dtype of the floating-point parameters on disk, None keeps theirs.

  Returns:
    The path of the checkpoint folder.

  Raises:
    FileExistsError: if the checkpoint exists.
    OSError: if it cannot be written.
  """
  final = checkpoint_reader.get_checkpoint_dir(path, step)
  if epath.Path(final).exists():
    raise FileExistsError(f'{final} exists: remove it, or save another step.')
  # No empty `param_states`: T5X's own loader takes an empty node for an array.
  leaves = checkpoint_state.flatten({'target': target, 'state': {'step': np.int32(step)}})
  return _write(path, step, leaves, dtype, inline_bytes=None)


class Checkpointer(checkpoint_state.CheckpointRestorer):
  """Saves the complete train state in T5X's own format, and restores any format."""

  def __init__(
      self,
      train_state,
      partitioner,
      checkpoints_dir: str | os.PathLike,
      dataset_iterator: Any = None,
      *,
      keep: int | None = None,
      save_dtype: np.dtype | None = np.float32,
      restore_dtype: np.dtype | None = None,
      keep_dataset_checkpoints: int | None = None,
  ):
    """Constructor.

    Args:
      train_state: the train state (or its shapes) that `restore` fills.
      partitioner: gives mesh and shardings.
      checkpoints_dir: the folder of the checkpoints.
      dataset_iterator: saved beside the state if given.
      keep: how many checkpoints to keep, None for all; one with a file PINNED is never deleted.
      save_dtype: dtype of floating-point parameters on disk, None keeps theirs.
      restore_dtype: dtype of frozen parameters in memory, None keeps the stored one.
      keep_dataset_checkpoints: accepted for T5X's signature; iterators go with their checkpoint.
    """
    super().__init__(checkpoints_dir, train_state, partitioner, dataset_iterator, restore_dtype)
    self.checkpoints_dir, self.keep = self.directory, keep
    self._save_dtype = save_dtype

  def save(self, train_state, state_transformation_fns=(), *, concurrent_gb: int = 128) -> None:
    """Saves a train state; does nothing if its step is saved.

    Args:
      train_state: the state; its step names the folder.
      state_transformation_fns: `fn(state_dict, infos) -> (state_dict, infos)`, applied in order.
      concurrent_gb: accepted for T5X's signature; one array at a time is on the host.

    Raises:
      OSError: if the checkpoint cannot be written.
    """
    del concurrent_gb
    step = int(train_state.step)
    if step in self.all_steps():
      logging.info('Step %d is saved already.', step)
      return
    leaves = orbax_checkpoint.apply_save_transformations(train_state, state_transformation_fns)
    # T5X writes None for the optimizer state of parameters that do not train.
    untrained = traverse_util.flatten_dict(train_state.state_dict(), sep='/')
    leaves = {**{name: None for name, leaf in untrained.items() if leaf is None}, **leaves}
    path = _write(self.directory, step, leaves, self._save_dtype, _INLINE_BYTES)
    if self._dataset_iterator is not None:
      self._dataset_iterator.save(epath.Path(path) / checkpoint_state.dataset_file_name())
    if self.keep is not None and jax.process_index() == 0:
      for old in self.all_steps()[: -self.keep]:
        folder = epath.Path(checkpoint_reader.get_checkpoint_dir(self.directory, old))
        if not (folder / 'PINNED').exists():
          folder.rmtree()


class LegacyCheckpointManager:
  """Drives a `Checkpointer` (or a subclass of it) through the interface of the Orbax manager."""

  def __init__(self, *, save_cfg=None, restore_cfg=None, train_state_shape, partitioner, ds_iter=None, model_dir=None):
    """Builds `save_cfg.checkpointer_cls` and `restore_cfg.checkpointer_cls`."""
    self.directory = os.fspath(model_dir or '')
    self._save_cfg = save_cfg
    self._saver = self.restorer = None
    if save_cfg is not None:
      self._saver = save_cfg.checkpointer_cls(
          train_state_shape, partitioner, self.directory, ds_iter if save_cfg.save_dataset else None,
          keep=save_cfg.keep, save_dtype=save_cfg.dtype, keep_dataset_checkpoints=save_cfg.keep_dataset_checkpoints,
      )
    if restore_cfg is not None:
      self.restorer = restore_cfg.checkpointer_cls(
          train_state_shape, partitioner, self.directory, ds_iter if restore_cfg.restore_dataset else None,
          restore_dtype=restore_cfg.dtype,
      )

  def all_steps(self) -> Sequence[int]:
    return checkpoint_reader.all_steps(self.directory) if self.directory else []

  def latest_step(self) -> int | None:
    return max(self.all_steps(), default=None)

  def should_save(self, step: int) -> bool:
    cfg = self._save_cfg
    return step in (cfg.checkpoint_steps or ()) or bool(cfg.period and step % cfg.period == 0)

  def save(self, train_state, state_transformation_fns=(), force: bool = True) -> bool:
    """Saves and waits; see `OrbaxCheckpointManagerInterface.save`."""
    if not force and not self.should_save(int(train_state.step)):
      return False
    self._saver.save(train_state, state_transformation_fns)
    return True

  def restore(self, *args, **kwargs):
    """Restores one train state; see `CheckpointRestorer.restore`."""
    return self.restorer.restore(*args, **kwargs)

  def wait_until_finished(self) -> None:
    """Does nothing: `save` has waited."""

  def close(self) -> None:
    """Does nothing: no thread is left."""
