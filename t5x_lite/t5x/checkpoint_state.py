"""From a stored checkpoint to a train state: names, shapes, the frozen base, and what is missing.

A checkpoint of a run with frozen parameters stores only what trains. The frozen parameters come from a base
checkpoint that the `metadata` item names: its path, a digest of the values, and which parameters to take.
`restore_train_state` puts both together, applies the user's transformations, compares every shape before
any value is read, reads each tensor into its sharding, and initialises only what no checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from absl import logging
from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_reader
from t5x.checkpoint_reader import StoredArray

BASE_VARIABLE = 'T5X_BASE_CHECKPOINT'
METADATA_FORMAT = 1
_SAMPLES = 64
_LISTED = 3  # How many parameters an error names before it counts the rest.

FlatState = dict[str, Any]
# Initialises the named leaves only: flat names -> arrays.
ScratchFn = Callable[[Sequence[str]], Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class BaseReference:
  """Where a train state's frozen parameters came from, so that they need not be saved.

  Attributes:
    path: the base checkpoint.
    digest: `digest` of the parameters, None if it could not be taken.
    sources: name in the train state (`target/...`) to name in the base checkpoint.
  """

  path: str
  digest: str | None
  sources: Mapping[str, str]


def flatten(state_dict: Mapping[str, Any]) -> FlatState:
  """Returns `{'target/a/b': leaf}` without None leaves and empty nodes."""
  flat = traverse_util.flatten_dict(state_dict, sep='/')
  return {name: leaf for name, leaf in flat.items() if leaf is not None}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def trainable_names(train_state) -> frozenset[str]:
  """Returns the flat names of the parameters that train; none for an InferenceState."""
  mask = getattr(train_state, 'trainable_mask', None)
  if mask is None:
    return frozenset()
  return frozenset(name for name, trains in flatten({'target': mask}).items() if trains)


def flat_shardings(train_state, partitioner) -> dict[str, jax.sharding.Sharding]:
  """Returns the sharding of each leaf of a train state (shapes or arrays), by flat name."""
  axes = flatten(partitioner.get_mesh_axes(train_state).state_dict())
  replicated = jax.sharding.PartitionSpec()
  return {
      name: jax.sharding.NamedSharding(partitioner.mesh, axes.get(name, replicated))
      for name in flatten(train_state.state_dict())
  }


def digest(arrays: Mapping[str, jax.Array]) -> str | None:
  """Fingerprints parameters by name, shape and 64 evenly spaced values of each.

  The values (first and last included) are rounded to bfloat16, so the float32 and the bfloat16 copy of a
  base have the same digest. Names are sorted; the result is the first 32 digits of a SHA-256.

  Args:
    arrays: flat names to arrays, sharded or not.

  Returns:
    The digest, None if an array is float16, which would round differently.
  """
  if any(array.dtype == jnp.float16 for array in arrays.values()):
    return None
  result = hashlib.sha256()
  for name in sorted(arrays):
    array = arrays[name]
    if array.size:
      flat = np.unique(np.linspace(0, array.size - 1, _SAMPLES).astype(np.int64))
      values = _gather(array, np.unravel_index(flat, array.shape)) if array.ndim else np.asarray(array)
      values = values.astype(jnp.bfloat16)
    else:
      values = np.zeros(0, jnp.bfloat16)
    result.update(f'{name} {tuple(array.shape)} '.encode() + values.tobytes())
  return result.hexdigest()[:32]


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
  checkpoint = checkpoint_reader.open_checkpoint(path)
  arrays = dict(checkpoint.arrays)
  metadata = checkpoint.metadata or {}
  if metadata.get('format', METADATA_FORMAT) != METADATA_FORMAT:
    raise ValueError(
        f'{path} has metadata format {metadata["format"]}, this version reads {METADATA_FORMAT}: upgrade t5x_lite.'
    )
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


def _listed(items: Sequence[str]) -> str:
  """Joins the first few items and counts the others, for one line."""
  more = len(items) - _LISTED
  return ', '.join(items[:_LISTED]) + (f' and {more} more' if more > 0 else '')


def _check_shapes(path: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises a one-line ValueError that names the first parameters whose shapes differ."""
  for array in found.values():
    if isinstance(array, StoredArray):
      array.start_opening()
  wrong = [
      f'{name} is {tuple(found[name].shape)} there and {tuple(wanted[name].shape)} in the model'
      for name in found
      if tuple(found[name].shape) != tuple(wanted[name].shape)
  ]
  if wrong:
    hint = 'use the gin file of the same model size'
    if all(text.startswith('state/param_states') for text in wrong):
      hint = (
          "drop its optimizer state with assignment_map=(('state/param_states.*', None),) and "
          'fallback_to_scratch=True'
      )
    raise ValueError(f'The checkpoint {path} does not fit the model: {_listed(wrong)}; {hint}.')


def restore_train_state(
    path: str,
    train_state,
    partitioner,
    *,
    state_transformation_fns: Sequence[Callable[..., Mapping[str, Any]]] = (),
    dtype: np.dtype | None = None,
    scratch: ScratchFn | Mapping[str, Any] | None = None,
    is_resuming: bool = False,
    strict: bool = False,
    base_path: str | None = None,
    fallback_base_path: str | None = None,
    model: Any = None,
) -> tuple[Any, BaseReference | None]:
  """Restores a train state from a checkpoint of any format.

  Args:
    path: the checkpoint.
    train_state: a train state of arrays or `jax.ShapeDtypeStruct`s that says what is wanted.
    partitioner: gives the mesh and the sharding of each leaf.
    state_transformation_fns: `fn(checkpoint_state, model_state, is_resuming=...)` on nested state dicts,
      applied in order; the leaves of the checkpoint state are `StoredArray`s.
    dtype: dtype of the frozen floating-point parameters, None keeps the stored one. Parameters that train,
      optimizer state and step always get the dtype of `train_state`.
    scratch: initialises what the checkpoint lacks: a function of the missing names, or a nested state dict.
      None makes a missing leaf an error.
    is_resuming: whether the checkpoint is one of this very run.
    strict: whether parameters of the checkpoint that the model lacks are an error.
    base_path: see `collect_arrays`.
    fallback_base_path: see `collect_arrays`.
    model: has its `check_checkpoint_metadata(dict)` called, if it has one, before anything is read.

  Returns:
    The restored train state and the origin of its frozen parameters (None if there is none).

  Raises:
    FileNotFoundError: if the checkpoint or its base is absent.
    checkpoint_reader.CheckpointReadError: if it is damaged.
    ValueError: if names, shapes, or the base do not fit.
  """
  checkpoint, arrays = collect_arrays(path, base_path=base_path, fallback_base_path=fallback_base_path)
  metadata = checkpoint.metadata or {}
  if metadata.get('model') is not None and hasattr(model, 'check_checkpoint_metadata'):
    model.check_checkpoint_metadata(metadata['model'])
  wanted = flatten(train_state.state_dict())

  state = unflatten(arrays)
  for fn in state_transformation_fns:
    state = fn(state, train_state.state_dict(), is_resuming=is_resuming)
  available = flatten(state)

  extra = sorted(name for name in available if name.startswith('target/') and name not in wanted)
  if extra and strict and not state_transformation_fns and scratch is None:
    raise ValueError(
        f'The checkpoint {path} has parameters that the model lacks: {_listed(extra)}; use the gin file of the '
        'same model, or set RestoreCheckpointConfig.strict=False to leave them out.'
    )
  missing = [name for name in wanted if name not in available]
  if missing and scratch is None:
    hint = 'set fallback_to_scratch=True to initialise them'
    if is_resuming:
      hint = 'use the gin file of the run that wrote it'
    raise ValueError(f'The checkpoint {path} lacks {_listed(missing)}; {hint}.')
  found = {name: available[name] for name in wanted if name in available}
  _check_shapes(path, found, wanted)

  trainable = trainable_names(train_state)
  frozen = {name for name in wanted if name.startswith('target/') and name not in trainable}
  if is_resuming and 'frozen_dtype' in metadata:
    # Continue in the precision of the run so far, else the loss curve would not be continued exactly.
    dtype = metadata['frozen_dtype']
  dtypes = {
      name: _leaf_dtype(wanted[name], found.get(name), dtype, frozen=name in frozen) for name in wanted
  }
  shardings = flat_shardings(train_state, partitioner)
  restored = _read(found, shardings, dtypes)
  if missing:
    logging.info('Initialised from scratch, not in %s: %s', path, ', '.join(missing))
    fresh = scratch(missing) if callable(scratch) else flatten(scratch)
    for name in missing:
      restored[name] = jnp.asarray(fresh[name], dtypes[name])

  _verify_base(checkpoint, arrays, found, restored)
  reference = None
  if trainable:
    reference = _base_reference(checkpoint, {name: found[name] for name in frozen & set(found)}, restored, is_resuming)
  logging.info('Restored %s.', path)
  full = traverse_util.flatten_dict(train_state.state_dict(), sep='/', keep_empty_nodes=True)
  return train_state.restore_state(unflatten({**full, **restored})), reference


def _leaf_dtype(wanted, found, dtype: np.dtype | None, *, frozen: bool) -> np.dtype:
  """Decides the dtype of one leaf in memory (see `restore_train_state`)."""
  if not frozen or not jnp.issubdtype(wanted.dtype, jnp.floating):
    return jnp.dtype(wanted.dtype)
  if dtype is None:
    dtype = wanted.dtype if found is None else found.dtype
  return jnp.dtype(dtype)


def _read(found, shardings, dtypes) -> FlatState:
  """Brings stored arrays, and arrays that a transformation computed, into their shardings."""
  stored = {n: (a, shardings[n], dtypes[n]) for n, a in found.items() if isinstance(a, StoredArray)}
  restored = dict(checkpoint_reader.read_arrays(stored))
  for name in found.keys() - stored.keys():
    restored[name] = jax.device_put(jnp.asarray(found[name], dtypes[name]), shardings[name])
  return restored


def _verify_base(checkpoint, arrays, found, restored) -> None:
  """Raises a ValueError if the frozen parameters are not the recorded ones."""
  metadata = checkpoint.metadata or {}
  names = metadata.get('frozen', ())
  if not metadata.get('base') or not names:
    return
  if any(name not in found or found[name] is not arrays[name] for name in names):
    logging.info('The base of %s is not verified: only a part of it was asked for.', checkpoint.path)
    return
  recorded = metadata['base']
  actual = digest({name: restored[name] for name in names})
  if None not in (actual, recorded['digest']) and actual != recorded['digest']:
    raise ValueError(
        f'The base checkpoint {arrays[names[0]].path} (digest {actual}) is not the one that {checkpoint.path} was '
        f'trained on, {recorded["path"]} (digest {recorded["digest"]}): pass the original one as base_path.'
    )


def _base_reference(checkpoint, frozen: Mapping[str, Any], restored, is_resuming: bool) -> BaseReference | None:
  """Says which frozen parameters the next checkpoints may leave out.

  Those read unchanged from a base: the base that the checkpoint itself refers to or, when training starts
  from a complete checkpoint, that one. A checkpoint of this very run is no base: `keep` may delete it.
  """
  if (checkpoint.metadata or {}).get('base'):
    is_base = lambda array: array.path != checkpoint.path
  else:
    is_base = lambda array: not is_resuming
  # A cast or computed array cannot be found again by its name alone.
  kept = {n: a for n, a in frozen.items() if isinstance(a, StoredArray) and a.cast_dtype is None and is_base(a)}
  if not kept:
    return None
  paths = sorted({array.path for array in kept.values()})
  first = {name: array for name, array in kept.items() if array.path == paths[0]}
  sources = {name: array.name for name, array in first.items()}
  return BaseReference(paths[0], digest({name: restored[name] for name in first}), sources)


def make_metadata(reference: BaseReference | None, train_state, model: Any = None,
                  data_place: Mapping[str, int] | None = None) -> dict[str, Any]:
  """Returns the JSON `metadata` item that is saved beside a train state; `data_place` is where the next batch begins."""
  trainable = trainable_names(train_state)
  flat = flatten(train_state.state_dict())
  dtypes = {
      jnp.dtype(leaf.dtype).name
      for name, leaf in flat.items()
      if name.startswith('target/') and name not in trainable and jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  sources = reference.sources if reference else {}
  return {
      'format': METADATA_FORMAT,
      'base': {'path': reference.path, 'digest': reference.digest} if reference else None,
      'frozen': sorted(sources),
      'renamed': {name: source for name, source in sorted(sources.items()) if name != source},
      'frozen_dtype': dtypes.pop() if len(dtypes) == 1 else None,
      'model': model.checkpoint_metadata() if hasattr(model, 'checkpoint_metadata') else None,
      'data_place': data_place,
  }


class CheckpointRestorer:
  """What every checkpoint writer of this package shares: listing steps and restoring train states.

  Attributes:
    directory: the folder of the `checkpoint_<step>` folders, '' if nothing is saved.
    model: asked for `checkpoint_metadata()` and `check_checkpoint_metadata(dict)`, if it has them.
    data_place: fn(step) -> where the batch after a step begins in the training data, for JSON, or None.
    base_reference: origin of the frozen parameters of the last restored state; set by `restore`.
    strict, base_path, fallback_base_path: see `restore_train_state`.
    restore_dataset: whether `restore` sets the state of the dataset iterator too.
  """

  def __init__(self, directory, train_state, partitioner, dataset_iterator=None, restore_dtype=None):
    self.directory = os.fspath(directory or '')
    self.model: Any = None
    self.data_place: Callable[[int], Mapping[str, int] | None] = lambda step: None
    self.base_reference: BaseReference | None = None
    self.strict, self.base_path, self.fallback_base_path = False, None, None
    self.restore_dataset = False
    self._train_state, self._partitioner = train_state, partitioner
    self._dataset_iterator, self._restore_dtype = dataset_iterator, restore_dtype

  def all_steps(self) -> Sequence[int]:
    return checkpoint_reader.all_steps(self.directory) if self.directory else []

  def latest_step(self) -> int | None:
    return max(self.all_steps(), default=None)

  def wait_until_finished(self) -> None:
    """Waits for the running save, where saving is asynchronous."""

  def close(self) -> None:
    """Releases what saving needs."""

  def restore(
      self,
      step: int | None = None,
      path: str | None = None,
      fallback_state: ScratchFn | Mapping[str, Any] | None = None,
      state_transformation_fns: Sequence[Callable[..., Mapping[str, Any]]] = (),
      lazy_parameters: bool | None = False,
  ):
    """Restores a train state.

    Args:
      step: a step in `directory`; default the newest.
      path: a checkpoint anywhere, instead of `step`.
      fallback_state: what to take leaves from that the checkpoint lacks: a nested state dict, or a function
        of the missing flat names. Not used for a checkpoint of this very directory.
      state_transformation_fns: see `restore_train_state`.
      lazy_parameters: accepted for T5X's signature; arrays go straight to their devices either way.

    Returns:
      The restored train state.

    Raises:
      FileNotFoundError, ValueError: see `restore_train_state`.
    """
    del lazy_parameters
    if path is None:
      step = self.latest_step() if step is None else step
      if step is None:
        raise FileNotFoundError(f'There is no checkpoint in {self.directory}: pass the path of one.')
      path = checkpoint_reader.get_checkpoint_dir(self.directory, step)
    path = checkpoint_reader.absolute_path(path)
    is_resuming = bool(self.directory) and os.path.dirname(path) == checkpoint_reader.absolute_path(self.directory)
    state, self.base_reference = restore_train_state(
        path,
        self._train_state,
        self._partitioner,
        state_transformation_fns=state_transformation_fns,
        dtype=self._restore_dtype,
        scratch=None if is_resuming else fallback_state,
        is_resuming=is_resuming,
        strict=self.strict,
        base_path=self.base_path,
        fallback_base_path=self.fallback_base_path,
        model=self.model,
    )
    if self.restore_dataset and self._dataset_iterator is not None:
      self._restore_dataset(path)
    return state

  def _restore_dataset(self, path: str) -> None:
    """Continues the input where it was when the checkpoint was saved."""
    for folder in (f'{path}/dataset', path):
      file = os.path.join(folder, dataset_file_name())
      if epath.Path(f'{file}.index').exists():
        self._dataset_iterator.restore(epath.Path(file))
        return
    raise ValueError(
        f'{path} has no state of the dataset iterator: set RestoreCheckpointConfig.restore_dataset=False, or '
        'train with SaveCheckpointConfig.save_dataset=True.'
    )


def dataset_file_name() -> str:
  """Returns the name under which this process saves its dataset iterator."""
  return f'train_ds-{jax.process_index():03}-of-{jax.process_count():03}'
