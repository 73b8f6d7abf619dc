"""Writes checkpoints with Orbax: asynchronous, atomic, and only what is worth its bytes.

A `checkpoint_<step>` folder has the item `state` (names and layout are T5X's) and the JSON item `metadata`.
Frozen parameters that a base checkpoint holds are left out; `metadata` says where they are.
"""

from __future__ import annotations

import functools
import re
from typing import Any
from collections.abc import Sequence

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_reader
from t5x import checkpoint_state

_REASONS = re.compile(
    'No space left on device|Disk quota exceeded|File too large|Read-only file system|Permission denied'
)


def apply_save_transformations(train_state, state_transformation_fns) -> checkpoint_state.FlatState:
  """Returns the flat state after the user's `fn(state_dict, infos) -> (state_dict, infos)`.

  `infos` mirrors the state dict with a `jax.ShapeDtypeStruct` per leaf.
  """
  state = train_state.state_dict()
  infos = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), state)
  for fn in state_transformation_fns:
    state, infos = fn(state, infos)
  return checkpoint_state.flatten(state)


def save_error(directory: str, step: int, error: Exception) -> Exception:
  """Makes the one-line OSError of a checkpoint that could not be written; other errors stay as they are."""
  found = _REASONS.search(f'{error} {error.__cause__} {error.__context__}')
  if not found and not isinstance(error, OSError):
    return error
  last = max((s for s in checkpoint_reader.all_steps(directory) if s != step), default=None)
  reason = found.group() if found else ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
  intact = 'there is no earlier checkpoint' if last is None else f'checkpoint_{last} is intact'
  return OSError(
      f'Could not save checkpoint_{step} in {directory}: {reason}; {intact}. Free space there, lower '
      'SaveCheckpointConfig.keep, or set MODEL_DIR to another folder, then start the same command again.'
  )


class OrbaxCheckpointManagerInterface(checkpoint_state.CheckpointRestorer):
  """Saves and restores train states; see `CheckpointRestorer` for restoring."""

  def __init__(
      self,
      directory: str,
      train_state,
      partitioner,
      dataset_iterator: Any = None,
      save_dtype: np.dtype | None = None,
      restore_dtype: np.dtype | None = None,
      keep: int | None = None,
      period: int | None = 1,
      checkpoint_steps: Sequence[int] | None = None,
      keep_dataset_checkpoints: int | None = None,
      force_keep_period: int | None = None,
      metric_name_to_monitor: str | None = None,
      metric_mode: str = 'max',
      keep_checkpoints_without_metrics: bool = True,
  ):
    """Constructor; nothing is created before the first `save`.

    Args:
      directory: the folder of the checkpoints, '' or None to restore only.
      train_state: the train state (or its shapes) that `restore` fills.
      partitioner: gives mesh and shardings.
      dataset_iterator: saved beside the state if given.
      save_dtype: dtype of floating-point parameters on disk, None keeps theirs.
      restore_dtype: dtype of frozen parameters in memory, None keeps the stored one.
      keep: how many checkpoints to keep, None for all.
      period: `should_save` is true at its multiples; None for `checkpoint_steps` only.
      checkpoint_steps: further steps at which `should_save` is true.
      keep_dataset_checkpoints: how many dataset iterators to keep, None for all.
      force_keep_period: checkpoints at multiples of it are never deleted.
      metric_name_to_monitor: must be None, see Raises.
      metric_mode: 'max' or 'min'; used with a metric only.
      keep_checkpoints_without_metrics: used with a metric only.

    Raises:
      ValueError: if a metric is to be monitored, which this package does not offer.
    """
    super().__init__(directory, train_state, partitioner, dataset_iterator, restore_dtype)
    del metric_mode, keep_checkpoints_without_metrics
    if metric_name_to_monitor is not None:
      raise ValueError(
          f'metric_name_to_monitor={metric_name_to_monitor!r} is not offered: set keep=None and pick the best step '
          'from MODEL_DIR/inference_eval/<task>-metrics.jsonl.'
      )
    self._save_dtype = None if save_dtype is None else jnp.dtype(save_dtype)
    self._keep, self._force_keep_period = keep, force_keep_period
    self._period, self._checkpoint_steps = period, frozenset(checkpoint_steps or ())
    self._keep_dataset_checkpoints = keep_dataset_checkpoints
    self._saving: int | None = None
    self._created = False

  @functools.cached_property
  def _manager(self):
    """The Orbax manager, made when first needed: a run that only restores never imports Orbax."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        step_prefix=checkpoint_reader.CHECKPOINT_PREFIX.rstrip('_'),
        max_to_keep=self._keep,
        keep_period=self._force_keep_period,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        enable_async_checkpointing=True,
    )
    self._created = True
    items = [checkpoint_reader.STATE_ITEM, checkpoint_reader.METADATA_ITEM]
    if self._dataset_iterator is not None:
      items.append('dataset')
    return ocp.CheckpointManager(checkpoint_reader.absolute_path(self.directory), options=options, item_names=items)

  def should_save(self, step: int) -> bool:
    """Whether `step` is one of the steps to save at."""
    return step in self._checkpoint_steps or bool(self._period and step % self._period == 0)

  def save(self, train_state, state_transformation_fns=(), force: bool = True) -> bool:
    """Starts to save a train state; returns as soon as its values are copied off the devices.

    Args:
      train_state: the state; its step names the folder.
      state_transformation_fns: `fn(state_dict, infos) -> (state_dict, infos)`, applied in order.
      force: save even where `should_save(step)` is false.

    Returns:
      Whether a save was started: not if the step is saved already.

    Raises:
      OSError: if this save, or the one still running, failed: disk full, quota, no permission.
    """
    import orbax.checkpoint as ocp

    step = int(train_state.step)
    if not force and not self.should_save(step):
      return False
    self.wait_until_finished()
    flat = apply_save_transformations(train_state, state_transformation_fns)
    left_out = self.base_reference.sources if self.base_reference else ()
    flat = {name: leaf for name, leaf in flat.items() if name not in left_out}
    if self._save_dtype is not None:
      # Here and not by Orbax: the checksums are of the very values that are written.
      flat = {name: leaf.astype(self._save_dtype)
              if name.startswith('target/') and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
              for name, leaf in flat.items()}
    metadata = checkpoint_state.make_metadata(
        self.base_reference, train_state, self.model, self.data_place(step), saved=flat)
    args = {
        checkpoint_reader.STATE_ITEM: ocp.args.PyTreeSave(checkpoint_state.unflatten(flat)),
        checkpoint_reader.METADATA_ITEM: ocp.args.JsonSave(metadata),
    }
    if self._dataset_iterator is not None:
      from t5x import orbax_dataset

      args['dataset'] = orbax_dataset.DatasetSave(self._dataset_iterator)
    self._saving = step
    try:
      if step in self._manager.all_steps():
        logging.info('Step %d is saved already.', step)
        return False
      return bool(self._manager.save(step, args=ocp.args.Composite(**args), force=True))
    except Exception as error:  # Orbax and TensorStore raise OSError, ValueError and XlaRuntimeError alike.
      self._fail(error)

  def wait_until_finished(self) -> None:
    """Waits for the running save.

    Raises:
      OSError: if it failed.
    """
    if not self._created or self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # See `save`.
      self._fail(error)
    self._saving = None
    self._delete_old_dataset_items()

  def _fail(self, error: Exception) -> None:
    """Removes what a failed save left and raises its one-line error."""
    step, self._saving = self._saving, None
    try:
      if jax.process_index() == 0:
        for path in epath.Path(self.directory).glob(f'{checkpoint_reader.CHECKPOINT_PREFIX}{step}.orbax-*'):
          path.rmtree()
    except OSError as cleaning:
      logging.warning('Could not clean %s: %s', self.directory, cleaning)
    described = save_error(self.directory, step, error)
    raise described from (error if described is not error else error.__cause__)

  def _delete_old_dataset_items(self) -> None:
    if self._keep_dataset_checkpoints is None or self._dataset_iterator is None or jax.process_index():
      return
    for step in self.all_steps()[: -self._keep_dataset_checkpoints or None]:
      folder = epath.Path(checkpoint_reader.get_checkpoint_dir(self.directory, step)) / 'dataset'
      if folder.exists():
        folder.rmtree()

  def close(self) -> None:
    """Waits for the running save and releases the threads.

    Raises:
      OSError: if the save failed.
    """
    try:
      self.wait_until_finished()
    finally:
      if self._created:
        self._manager.close()
