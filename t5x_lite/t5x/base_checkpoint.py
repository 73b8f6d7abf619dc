"""The frozen base of a checkpoint: which one it is, where it lies, and both opened as one.

A checkpoint of a run with frozen parameters stores only what trains. Its `metadata` item names the base checkpoint that
holds the rest: path, size, a digest of the values, and which parameters to take.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any
from collections.abc import Mapping, Sequence

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_reader
from t5x import checksums
from t5x.checkpoint_reader import StoredArray

BASE_VARIABLE = 'T5X_BASE_CHECKPOINT'
METADATA_FORMAT = 1
_SAMPLES = 64
_LISTED = 3  # How many parameters an error names before it counts the rest.


@dataclasses.dataclass(frozen=True)
class BaseReference:
  """Where a train state's frozen parameters came from, so that they need not be saved.

  Attributes:
    path: the base checkpoint.
    digest: `digest` of the parameters, None if it could not be taken.
    sources: name in the train state (`target/...`) to name in the base checkpoint.
    parameters: how many values they have.
    bytes: how many bytes these have in the base checkpoint.
  """

  path: str
  digest: str | None
  sources: Mapping[str, str]
  parameters: int | None = None
  bytes: int | None = None

  def identity(self) -> dict[str, Any]:
    """Returns what tells this base from others, for JSON."""
    return {'path': self.path, 'digest': self.digest, 'parameters': self.parameters, 'bytes': self.bytes}


def digest(arrays: Mapping[str, Any]) -> str | None:
  """Fingerprints parameters by name, shape and 64 evenly spaced values of each.

  The values (first and last included) are rounded to bfloat16, so the float32 and the bfloat16 copy of a
  base have the same digest. Names are sorted; the result is the first 32 digits of a SHA-256.

  Args:
    arrays: flat names to arrays, sharded or not, or to `StoredArray`s, which are read one at a time.

  Returns:
    The digest, None if an array is float16, which would round differently.
  """
  if any(array.dtype == jnp.float16 for array in arrays.values()):
    return None
  return digest_of({name: sample(name, array) for name, array in arrays.items()})


def sample(name: str, array: Any) -> bytes | None:
  """Returns what one array of a flat name gives to the `digest`; None if it is float16."""
  if isinstance(array, StoredArray):
    array = array.read()
  if array.dtype == jnp.float16:
    return None
  if array.size:
    flat = np.unique(np.linspace(0, array.size - 1, _SAMPLES).astype(np.int64))
    values = _gather(array, np.unravel_index(flat, array.shape)) if array.ndim else np.asarray(array)
    values = values.astype(jnp.bfloat16)
  else:
    values = np.zeros(0, jnp.bfloat16)
  return f'{name} {tuple(array.shape)} '.encode() + values.tobytes()


def digest_of(samples: Mapping[str, bytes | None]) -> str | None:
  """Returns the `digest` of arrays whose samples were taken before; None if one of these is None."""
  if None in samples.values():
    return None
  return hashlib.sha256(b''.join(samples[name] for name in sorted(samples))).hexdigest()[:32]


def _gather(array, index: tuple[np.ndarray, ...]) -> np.ndarray:
  """Returns `array[index]` on the host, without moving the rest of a device array there."""
  if isinstance(array, np.ndarray):
    return array[index]
  if isinstance(array.sharding, jax.sharding.SingleDeviceSharding) or array.sharding.num_devices == 1:
    if next(iter(array.devices())).platform == 'cpu':
      return np.asarray(array)[index]  # No copy on the CPU, and nothing to compile.
  # Replicated, so that each process of a multi-process job sees all samples.
  mesh = getattr(array.sharding, 'mesh', None)
  out = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh is not None else None
  return np.asarray(jax.jit(lambda x, *i: x[i], out_shardings=out)(array, *index))


def collect_arrays(
    path: str, *, base_path: str | None = None, fallback_base_path: str | None = None
) -> tuple[checkpoint_reader.StoredCheckpoint, dict[str, StoredArray]]:
  """Opens a checkpoint and, for the parameters that it leaves to its base, the base.

  Args:
    path: the checkpoint.
    base_path: overrides the recorded base; else the variable T5X_BASE_CHECKPOINT does.
    fallback_base_path: used when the recorded base does not exist.

  Returns:
    The opened checkpoint, and all arrays by name, each knowing the checkpoint that holds it.

  Raises:
    FileNotFoundError: if the checkpoint or its base does not exist.
    ValueError: if the base lacks a parameter.
  """
  checkpoint = open_checked(path)
  arrays, metadata = dict(checkpoint.arrays), checkpoint.metadata or {}
  if metadata.get('base'):
    recorded = metadata['base']['path']
    override = os.environ.get(BASE_VARIABLE) if base_path is None else base_path
    base = _open_base(path, recorded, override, fallback_base_path)
    for name in metadata['frozen']:
      source = metadata.get('renamed', {}).get(name, name)
      if source not in base:
        raise ValueError(f'The base checkpoint {override or recorded} of {path} has no parameter {source!r}.')
      arrays[name] = base[source]
  return checkpoint, arrays


def open_checked(path: str) -> checkpoint_reader.StoredCheckpoint:
  """Opens a checkpoint, without its base; its metadata is the one that was saved, and its arrays know their checksums.

  Raises:
    FileNotFoundError: if it does not exist.
    CheckpointReadError: if the metadata was altered, or arrays were removed or added.
    ValueError: if the metadata is of another version.
  """
  checkpoint = checkpoint_reader.open_checkpoint(path)
  metadata = {} if checkpoint.metadata is None else checkpoint.metadata
  is_object = isinstance(metadata, dict)
  recorded, seal = (metadata.get(key) if is_object else None for key in (checksums.CHECKSUMS, checksums.DIGEST))
  if not is_object or (recorded, seal) != (None, None):
    if not isinstance(recorded, dict) or seal != checksums.digest_of_json(metadata):
      raise checkpoint_reader.CheckpointReadError(
          f'The metadata of {path} (task index, settings, base, checksums) was altered after it was saved.')
    changed = sorted(recorded.keys() ^ checkpoint.arrays.keys())
    if changed:
      raise checkpoint_reader.CheckpointReadError(f'{path} lost or gained {listed(changed)} after it was saved.')
    for name, array in checkpoint.arrays.items():
      array.checksum = recorded.get(name)
  else:
    logging.info('%s has no checksums of its arrays: they are taken as they are.', path)
  if metadata.get('format', METADATA_FORMAT) != METADATA_FORMAT:
    raise ValueError(
        f'{path} has metadata format {metadata["format"]}, this version reads {METADATA_FORMAT}: upgrade t5x_lite.'
    )
  return checkpoint


def _open_base(path, recorded, override, fallback) -> dict[str, StoredArray]:
  """Opens the first base checkpoint that exists."""
  candidates = [override] if override else [recorded, fallback]
  for candidate in filter(None, candidates):
    try:
      if candidate != recorded:
        logging.info('Using %s for the recorded base checkpoint %s.', candidate, recorded)
      # '': a base that has a base of its own is not overridden a second time.
      return collect_arrays(candidate, base_path='')[1]
    except FileNotFoundError as error:
      reason = error
  raise FileNotFoundError(
      f'{path} stores only what was trained; its frozen base checkpoint {override or recorded} cannot be opened: '
      'set RestoreCheckpointConfig.base_path or the variable T5X_BASE_CHECKPOINT to the path that was '
      'INITIAL_CHECKPOINT_PATH when it was trained.'
  ) from reason


def listed(items: Sequence[str]) -> str:
  """Joins the first few items and counts the others, for one line."""
  more = len(items) - _LISTED
  return ', '.join(items[:_LISTED]) + (f' and {more} more' if more > 0 else '')


def digest_as_stored(stored: Mapping[str, StoredArray], restored: Mapping[str, jax.Array]) -> str | None:
  """Returns the digest of the parameters as restored or, where that rounded them differently, as stored."""
  values = {name: restored[name] for name in stored}
  return digest(stored if any(array.dtype == jnp.float16 for array in values.values()) else values)


def check_base(path: str, recorded: Mapping[str, Any], base_path: str, actual: str | None, force: bool = False) -> None:
  """Raises a ValueError if the base of a checkpoint is not the one that it was trained on, unless forced to take it.

  Args:
    path: the checkpoint.
    recorded: `BaseReference.identity` in its metadata.
    base_path: the base that was opened.
    actual: `digest` of the parameters that were taken from it.
    force: only warn.
  """
  if None in (actual, recorded['digest']):
    logging.warning('The base %s of %s is not verified: it is in float16.', base_path, path)
  elif actual != recorded['digest']:
    message = (f'The base checkpoint {base_path} (digest {actual}) is not the one that {path} was trained on, '
               f'{recorded["path"]} (digest {recorded["digest"]})')
    if not force:
      raise ValueError(f'{message}: pass the original one as base_path, or set force_base=True to use this one all the same.')
    logging.warning('%s; it is used all the same, as force_base=True.', message)
