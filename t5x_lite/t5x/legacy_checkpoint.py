"""Writes T5X's own format: a msgpack index, and a zarr folder for each large array.

Every T5X reads it. It always holds the complete state, in one synchronous save; `OrbaxCheckpointManagerInterface`
is the one to train with.
"""

from __future__ import annotations

import os
import time
from typing import Any

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


def _write_zarr(folder: str, name: str, value: np.ndarray) -> dict[str, Any]:
  """Writes one array and returns the pointer that the index keeps."""
  import tensorstore as ts

  dotted = name.replace('/', '.')
  chunks = list(value.shape)
  while np.prod(chunks, dtype=np.int64) * value.dtype.itemsize > _CHUNK_BYTES:
    chunks[int(np.argmax(chunks))] = -(-max(chunks) // 2)
  metadata = {'chunks': chunks, 'compressor': {'id': 'gzip', 'level': 1}, 'shape': list(value.shape)}
  spec = {'driver': 'zarr', 'dtype': value.dtype.name, 'metadata': metadata}
  kvstore = checkpoint_reader.kvstore_spec(f'{folder}/{dotted}')
  ts.open(ts.Spec({**spec, 'kvstore': kvstore}), create=True, open=True).result().write(value).result()
  return {**spec, 'kvstore': {'driver': 'file', 'path': f'{dotted}/'}}


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
    """Saves a train state and waits; does nothing if its step is saved.

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
    final = checkpoint_reader.get_checkpoint_dir(self.directory, step)
    temporary = epath.Path(f'{final}.tmp-{int(time.time())}')
    is_writer = jax.process_index() == 0
    try:
      if is_writer:
        temporary.mkdir(parents=True)
      # All processes: gathering is collective.
      flat = {name: None if leaf is None else self._store(temporary, name, _to_host(leaf)) for name, leaf in leaves.items()}
      if is_writer:
        content = {'version': VERSION, 'optimizer': checkpoint_state.unflatten(flat)}
        (temporary / 'checkpoint').write_bytes(serialization.msgpack_serialize(content))
        temporary.rename(final)
    except Exception as error:  # TensorStore reports a full disk as ValueError.
      if is_writer and temporary.exists():
        temporary.rmtree()
      described = orbax_checkpoint.save_error(self.directory, step, error)
      raise described from (error if described is not error else error.__cause__)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'saved {final}')  # No process goes on before the folder is there.
    if self._dataset_iterator is not None:
      self._dataset_iterator.save(epath.Path(final) / checkpoint_state.dataset_file_name())
    if self.keep is not None and is_writer:
      for old in self.all_steps()[: -self.keep]:
        folder = epath.Path(checkpoint_reader.get_checkpoint_dir(self.directory, old))
        if not (folder / 'PINNED').exists():
          folder.rmtree()

  def _store(self, folder: epath.Path, name: str, value: np.ndarray) -> Any:
    """Returns what the index keeps of an array: itself if it is small, else a pointer to the folder just written."""
    if self._save_dtype is not None and name.startswith('target/') and jnp.issubdtype(value.dtype, jnp.floating):
      value = value.astype(jnp.dtype(self._save_dtype), copy=False)
    is_written = value.nbytes > _INLINE_BYTES and jax.process_index() == 0
    return _write_zarr(os.fspath(folder), name, value) if is_written else value
