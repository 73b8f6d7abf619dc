"""The public names of checkpointing; the work is done in the `checkpoint_*` and `*_checkpoint` files."""

from __future__ import annotations

import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from t5x import base_checkpoint
from t5x import checkpoint_state
from t5x.base_checkpoint import (  # noqa: F401
    BaseReference, check_base, collect_arrays, digest, digest_of, open_checked, sample)
from t5x.checkpoint_reader import (  # noqa: F401
    CheckpointReadError, StoredArray, StoredCheckpoint, absolute_path, all_steps, find_checkpoint, get_checkpoint_dir,
    get_step_from_checkpoint_dir, latest_step, normalize_path, open_checkpoint, register_format)
from t5x.checkpoint_state import CheckpointRestorer, restore_train_state  # noqa: F401
from t5x.legacy_checkpoint import VERSION, Checkpointer  # noqa: F401
from t5x.orbax_checkpoint import OrbaxCheckpointManagerInterface

LazyArray = StoredArray
CheckpointerConstructor = Callable[..., Checkpointer]
CheckpointManagerConstructor = Callable[..., OrbaxCheckpointManagerInterface]
# fn(checkpoint_state, model_state, *, is_resuming) -> checkpoint_state
RestoreStateTransformationFn = Callable[..., Mapping[str, Any]]
# fn(state_dict, infos) -> (state_dict, infos)
SaveStateTransformationFn = Callable[..., tuple[Mapping[str, Any], Mapping[str, Any]]]


def load_t5x_checkpoint(
    path: str | os.PathLike,
    step: int | None = None,
    state_transformation_fns: Sequence[RestoreStateTransformationFn] = (),
    remap: bool = True,
    restore_dtype: np.dtype | None = None,
    lazy_parameters: bool = False,
) -> dict[str, Any]:
  """Reads a checkpoint of any format without knowing the model.

  Args:
    path: a checkpoint, or a folder of checkpoints.
    step: which one of the folder; default the newest.
    state_transformation_fns: `fn(checkpoint_state, model_state, is_resuming=False)`, applied in order; there
      is no model here, so both states are the checkpoint's.
    remap: accepted for T5X's signature; the legacy names need no change.
    restore_dtype: dtype of the floating-point parameters, None keeps the stored one.
    lazy_parameters: return `StoredArray`s, read by their `get()`, instead of numpy arrays.

  Returns:
    {'target': nested parameters, 'state': {'step', 'param_states'}}, with the frozen parameters of the base.

  Raises:
    FileNotFoundError: if there is no checkpoint, or its base is absent.
    CheckpointReadError: if it is damaged.
  """
  del remap
  _, arrays = base_checkpoint.collect_arrays(find_checkpoint(path, step))
  state = checkpoint_state.unflatten(arrays)
  for fn in state_transformation_fns:
    state = fn(state, state, is_resuming=False)
  flat = checkpoint_state.flatten(state)
  for array in flat.values():
    if isinstance(array, StoredArray):
      array.start_opening()
  for name, array in flat.items():
    if restore_dtype is not None and name.startswith('target/') and jnp.issubdtype(array.dtype, jnp.floating):
      array = array.astype(restore_dtype)
    flat[name] = array.get() if isinstance(array, StoredArray) and not lazy_parameters else array
  result = checkpoint_state.unflatten(flat)
  result.setdefault('target', {})
  return result
