"""From a stored checkpoint to a train state: names, shapes, the frozen base, and what is missing.

A checkpoint of a run with frozen parameters stores only what trains. The frozen parameters come from a base
checkpoint that the `metadata` item names: its path, a digest of the values, and which parameters to take.
`restore_train_state` puts both together, applies the user's transformations, compares every shape before
any value is read, reads each tensor into its sharding, and initialises only what no checkpoint holds.
"""

from __future__ import annotations

import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from absl import logging
from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from t5x import base_checkpoint
from t5x import checkpoint_reader
from t5x import checksums
from t5x.base_checkpoint import BaseReference
from t5x.checkpoint_reader import StoredArray

FlatState = dict[str, Any]
# Initialises the named leaves only: flat names -> arrays.
ScratchFn = Callable[[Sequence[str]], Mapping[str, jax.Array]]


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
    raise ValueError(f'The checkpoint {path} does not fit the model: {base_checkpoint.listed(wrong)}; {hint}.')


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
    force_base: bool = False,
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
    base_path: see `base_checkpoint.collect_arrays`.
    fallback_base_path: see `base_checkpoint.collect_arrays`.
    force_base: whether another base of the same shapes is accepted.
    model: has its `check_checkpoint_metadata(dict)` called, if it has one, before anything is read.

  Returns:
    The restored train state and the origin of its frozen parameters (None if there is none).

  Raises:
    FileNotFoundError: if the checkpoint or its base is absent.
    checkpoint_reader.CheckpointReadError: if it is damaged.
    ValueError: if names, shapes, or the base do not fit.
  """
  checkpoint, arrays = base_checkpoint.collect_arrays(path, base_path=base_path, fallback_base_path=fallback_base_path)
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
        f'The checkpoint {path} has parameters that the model lacks: {base_checkpoint.listed(extra)}; use the gin file of the '
        'same model, or set RestoreCheckpointConfig.strict=False to leave them out.'
    )
  missing = [name for name in wanted if name not in available]
  if missing and scratch is None:
    hint = 'set fallback_to_scratch=True to initialise them'
    if is_resuming:
      hint = 'use the gin file of the run that wrote it'
    raise ValueError(f'The checkpoint {path} lacks {base_checkpoint.listed(missing)}; {hint}.')
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

  _verify_base(checkpoint, arrays, found, restored, force_base)
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
  """Brings stored arrays, and arrays that a transformation computed, into their shardings; compares checksums."""
  stored = {name: array for name, array in found.items() if isinstance(array, StoredArray)}
  summed = {name: checksums.Summed(array) for name, array in stored.items() if array.checksum is not None}
  requests = {name: (array, shardings[name], dtypes[name]) for name, array in {**stored, **summed}.items()}
  restored, failure = {}, None
  try:
    restored = dict(checkpoint_reader.read_arrays(requests))
  except checkpoint_reader.CheckpointReadError as error:
    failure = error
  _raise_together(failure)
  checksums.check_read(summed, shardings)
  for name in found.keys() - stored.keys():
    restored[name] = jax.device_put(jnp.asarray(found[name], dtypes[name]), shardings[name])
  return restored


def _raise_together(failure: Exception | None) -> None:
  """Raises the failure to read, in a multi-process job on every process: each may have read other parts."""
  if jax.process_count() > 1:
    failures = multihost_utils.process_allgather(np.int32(failure is not None))
    if failure is None and failures.any():
      failure = checkpoint_reader.CheckpointReadError('Another process could not read its part of the checkpoint.')
  if failure is not None:
    raise failure


def _verify_base(checkpoint, arrays, found, restored, force: bool) -> None:
  """Raises a ValueError if the frozen parameters are not the recorded ones."""
  metadata = checkpoint.metadata or {}
  names = metadata.get('frozen', ())
  if not metadata.get('base') or not names:
    return
  if any(name not in found or found[name] is not arrays[name] for name in names):
    logging.info('The base of %s is not verified: only a part of it was asked for.', checkpoint.path)
    return
  actual = base_checkpoint.digest_as_stored({name: arrays[name] for name in names}, restored)
  base_checkpoint.check_base(checkpoint.path, metadata['base'], arrays[names[0]].path, actual, force)


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
  return BaseReference(
      paths[0], base_checkpoint.digest_as_stored(first, restored), sources, sum(array.size for array in first.values()),
      sum(array.size * array.dtype.itemsize for array in first.values()))


def make_metadata(reference: BaseReference | None, train_state, model: Any = None,
                  data_place: Mapping[str, int] | None = None, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns the JSON `metadata` item that is saved beside a train state.

  Args:
    reference: where the frozen parameters came from that are not saved.
    train_state: the state.
    model: asked for its `checkpoint_metadata()`, if it has that.
    data_place: where the next batch begins.
    saved: the arrays that are saved, whose checksums it gets.
  """
  trainable = trainable_names(train_state)
  flat = flatten(train_state.state_dict())
  dtypes = {
      jnp.dtype(leaf.dtype).name
      for name, leaf in flat.items()
      if name.startswith('target/') and name not in trainable and jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  sources = reference.sources if reference else {}
  return checksums.sealed({
      'format': base_checkpoint.METADATA_FORMAT,
      'base': reference.identity() if reference else None,
      'frozen': sorted(sources),
      'renamed': {name: source for name, source in sorted(sources.items()) if name != source},
      'frozen_dtype': dtypes.pop() if len(dtypes) == 1 else None,
      'model': model.checkpoint_metadata() if hasattr(model, 'checkpoint_metadata') else None,
      'data_place': data_place,
      checksums.CHECKSUMS: checksums.compute(saved or {}),
  })


class CheckpointRestorer:
  """What every checkpoint writer of this package shares: listing steps and restoring train states.

  Attributes:
    directory: the folder of the `checkpoint_<step>` folders, '' if nothing is saved.
    model: asked for `checkpoint_metadata()` and `check_checkpoint_metadata(dict)`, if it has them.
    data_place: fn(step) -> where the batch after a step begins in the training data, for JSON, or None.
    base_reference: origin of the frozen parameters of the last restored state; set by `restore`.
    strict, base_path, fallback_base_path, force_base: see `restore_train_state`.
    restore_dataset: whether `restore` sets the state of the dataset iterator too.
  """

  def __init__(self, directory, train_state, partitioner, dataset_iterator=None, restore_dtype=None):
    self.directory = os.fspath(directory or '')
    self.model: Any = None
    self.data_place: Callable[[int], Mapping[str, int] | None] = lambda step: None
    self.base_reference: BaseReference | None = None
    self.strict, self.base_path, self.fallback_base_path, self.force_base = False, None, None, False
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
        force_base=self.force_base,
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
