"""From a configuration to a train state: which checkpoint, what to do without one, and with a damaged one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_reader
from t5x import checkpoint_state
from t5x import checkpoints
from t5x import state_utils
from t5x import train_state as train_state_lib

_SAVE_DTYPES = ('float32', 'bfloat16')
_RESTORE_DTYPES = ('float32', 'float16', 'bfloat16')
_MODES = ('latest', 'specific', 'all')


def _check_dtype(dtype: Any, allowed: Sequence[str], field: str) -> str | None:
  """Returns the name of a dtype, or None; raises ValueError if it is not allowed."""
  if dtype is None:
    return None
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = str(dtype)
  if name not in allowed:
    raise ValueError(f'{field}={dtype!r} is not one of {list(allowed)} or None.')
  return name


@dataclasses.dataclass
class SaveCheckpointConfig:
  """When and how checkpoints are saved.

  Attributes:
    dtype: dtype of the parameters on disk: 'float32', 'bfloat16', or None for theirs.
    period: steps between two checkpoints.
    checkpoint_steps: further steps at which to save.
    keep: how many checkpoints to keep, None for all.
    keep_dataset_checkpoints: how many states of the dataset iterator to keep, None for all.
    save_dataset: whether to save the state of the dataset iterator.
    checkpointer_cls: writer of T5X's own format; a subclass given here is used instead of Orbax.
    state_transformation_fns: `fn(state_dict, infos) -> (state_dict, infos)`, applied before saving.
    checkpoint_manager_cls: writer of Orbax checkpoints.
  """

  dtype: str | None = None
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  keep_dataset_checkpoints: int | None = None
  save_dataset: bool = False
  checkpointer_cls: checkpoints.CheckpointerConstructor = checkpoints.Checkpointer
  state_transformation_fns: Sequence[checkpoints.SaveStateTransformationFn] = dataclasses.field(default_factory=list)
  checkpoint_manager_cls: checkpoints.CheckpointManagerConstructor = checkpoints.OrbaxCheckpointManagerInterface

  def __post_init__(self):
    self.dtype = _check_dtype(self.dtype, _SAVE_DTYPES, 'SaveCheckpointConfig.dtype')
    for field in ('period', 'keep', 'keep_dataset_checkpoints'):
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(f'SaveCheckpointConfig.{field}={value} must be at least 1, or None.')


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """Which checkpoint is restored, and how.

  Attributes:
    path: a checkpoint ('specific'), a folder of checkpoints ('latest', 'all'), or a list of them; an empty
      list means none. A checkpoint of another package's format (see `checkpoint_reader`) is taken in every mode.
    mode: 'latest', 'specific' or 'all'.
    assignment_map: `[(regular expression on the model's name, name in the checkpoint or None)]`, see
      `state_utils.apply_assignment_map`; prepended to `state_transformation_fns`.
    strict: whether parameters of the checkpoint that the model lacks are an error.
    fallback_to_scratch: whether what the checkpoint lacks is initialised instead of being an error.
    dtype: dtype in memory of the parameters that do not train (all of them for evaluation and inference):
      'float32', 'float16', 'bfloat16', or None for the stored one. Parameters that train, optimizer state
      and step keep the model's dtypes.
    restore_dataset: whether to restore the state of the dataset iterator.
    checkpointer_cls: reader used with use_orbax=False.
    state_transformation_fns: `fn(checkpoint_state, model_state, *, is_resuming) -> checkpoint_state`.
    checkpoint_manager_cls: reader used with use_orbax=True; it reads every format.
    base_path: the base checkpoint to use instead of the recorded one for frozen parameters.
    force_base: whether a base whose values are not those of the recorded one is used all the same.
  """

  path: str | Sequence[str]
  mode: str = 'latest'
  assignment_map: Sequence[tuple[str, str | None]] | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  checkpointer_cls: checkpoints.CheckpointerConstructor = checkpoints.Checkpointer
  state_transformation_fns: Sequence[checkpoints.RestoreStateTransformationFn] = ()
  checkpoint_manager_cls: checkpoints.CheckpointManagerConstructor = checkpoints.OrbaxCheckpointManagerInterface
  base_path: str | None = None
  force_base: bool = False

  def __post_init__(self):
    if self.mode not in _MODES:
      raise ValueError(f'RestoreCheckpointConfig.mode={self.mode!r} is not one of {list(_MODES)}.')
    self.dtype = _check_dtype(self.dtype, _RESTORE_DTYPES, 'RestoreCheckpointConfig.dtype')
    if self.assignment_map:
      rename = functools.partial(state_utils.apply_assignment_map, assignment_map=self.assignment_map)
      self.state_transformation_fns = [rename, *self.state_transformation_fns]
    # Where to look if the recorded base is gone; set by `get_first_valid_restore_config_and_paths`.
    self.fallback_base_path: str | None = None


@dataclasses.dataclass
class CheckpointConfig:
  """Saving and restoring of a training run; None turns either off."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def _paths(cfg: RestoreCheckpointConfig, other_formats: bool) -> list[str]:
  """Returns the checkpoints that a configuration names, [] if its folder has none yet.

  Raises:
    ValueError: for an empty path.
    FileNotFoundError: for a checkpoint that does not exist.
  """
  given = [cfg.path] if isinstance(cfg.path, (str, os.PathLike)) else list(cfg.path)
  result = []
  for path in map(checkpoints.normalize_path, given):
    if cfg.mode == 'specific':
      # A remote path is not probed here: opening it does, and says why it cannot be reached.
      if '://' not in path and not os.path.exists(path):
        raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a checkpoint_<step> folder.')
      result.append(path)
      continue
    steps = checkpoints.all_steps(path)
    if other_formats and not steps and checkpoint_reader.open_other_format(path) is not None:
      result.append(path)  # A checkpoint of another package's format has no step.
      continue
    result += [checkpoints.get_checkpoint_dir(path, step) for step in (steps[-1:] if cfg.mode == 'latest' else steps)]
  return result


def get_first_valid_restore_config_and_paths(
    restore_cfgs: Sequence[RestoreCheckpointConfig | None],
) -> tuple[RestoreCheckpointConfig | None, Sequence[str]]:
  """Finds the first configuration that has a checkpoint.

  Args:
    restore_cfgs: e.g. the one of MODEL_DIR (may have none yet), then the user's initial checkpoint.

  Returns:
    The configuration and its checkpoints; (None, []) if there is none.

  Raises:
    ValueError: for an empty path.
    FileNotFoundError: if the user's checkpoint, i.e. any after the first configuration, does not exist.
  """
  cfgs = [cfg for cfg in restore_cfgs if cfg is not None]
  for i, cfg in enumerate(cfgs):
    # A folder that a run writes, which comes first, never has another package's format: looking for one takes time.
    paths = _paths(cfg, other_formats=i == len(cfgs) - 1)
    if paths:
      later = cfgs[i + 1].path if i + 1 < len(cfgs) else None
      if isinstance(later, str) and later:
        cfg = copy.copy(cfg)
        cfg.fallback_base_path = later
      return cfg, paths
    if i and cfg.path:
      raise FileNotFoundError(f'There is no checkpoint in {cfg.path}: give a folder with checkpoint_<step> folders.')
  return None, []


def checkpoints_for_inference(cfg: RestoreCheckpointConfig, fallback_init_rng: int | None) -> Sequence[str]:
  """Returns the checkpoints to evaluate or infer with; what of them the model does not want is left out.

  Args:
    cfg: becomes `strict=False` and, where there is a seed, `fallback_to_scratch=True`.
    fallback_init_rng: seed for parameters that a checkpoint lacks; None: they are an error.

  Raises:
    ValueError: if there is no checkpoint.
    FileNotFoundError: if a named one does not exist.
  """
  cfg.strict = False
  if fallback_init_rng is not None:
    cfg.fallback_to_scratch = True
  _, paths = get_first_valid_restore_config_and_paths([cfg])
  if not paths:
    raise ValueError('There is no checkpoint to work with: set CHECKPOINT_PATH.')
  return paths


class TrainStateInitializer:
  """Makes train states of a model: their shapes, from scratch, or from checkpoints.

  Attributes:
    global_train_state_shape: a train state of `jax.ShapeDtypeStruct`s.
    train_state_axes: a train state of PartitionSpecs (None where replicated).
    model: the model that `init_fn` is bound to, None for a plain function.
  """

  def __init__(
      self,
      optimizer_def: Any,
      init_fn: Callable[..., Mapping[str, Any]],
      input_shapes: Mapping[str, Sequence[int]],
      partitioner: Any,
      input_types: Mapping[str, Any] | None = None,
  ):
    """Constructor; computes shapes only, no array is made.

    Args:
      optimizer_def: None gives states for inference.
      init_fn: `init_fn(rng=, input_shapes=, input_types=)` -> variables, e.g. `model.get_initial_variables`.
      input_shapes: feature name to global shape, e.g. [B, Li].
      partitioner: shards the states.
      input_types: feature name to dtype.
    """
    self.model = getattr(init_fn, '__self__', None)
    self._partitioner = partitioner

    def initialize(rng):
      variables = init_fn(rng=rng, input_shapes=input_shapes, input_types=input_types)
      if optimizer_def is None:
        return train_state_lib.InferenceState.create(variables)
      return train_state_lib.FlaxOptimTrainState.create(optimizer_def, variables)

    self._initialize = initialize
    self.global_train_state_shape = jax.eval_shape(initialize, jax.random.PRNGKey(0))
    self.train_state_axes = partitioner.get_mesh_axes(self.global_train_state_shape)

  def from_scratch(self, init_rng: jax.Array):
    """Returns a newly initialised, sharded train state."""
    initialize = self._partitioner.partition(
        self._initialize, in_axis_resources=None, out_axis_resources=self.train_state_axes
    )
    return initialize(init_rng)

  def scratch_leaves(self, init_rng: jax.Array, names: Sequence[str]) -> dict[str, jax.Array]:
    """Returns the named leaves of `from_scratch(init_rng)`, with the same values, making no other array.

    Args:
      init_rng: the key of the initialization.
      names: flat names, e.g. `target/encoder/skills/a`.
    """
    shardings = checkpoint_state.flat_shardings(self.global_train_state_shape, self._partitioner)

    def initialize(rng):
      # The whole program, of which the compiler drops what is not returned: a leaf's value is then the same
      # whatever else is asked for.
      flat = checkpoint_state.flatten(self._initialize(rng).state_dict())
      return {name: flat[name] for name in names}

    specs = {name: shardings[name].spec for name in names}
    return self._partitioner.partition(initialize, in_axis_resources=None, out_axis_resources=specs)(init_rng)


def get_fallback_state(
    restore_cfg: RestoreCheckpointConfig, init_fn: Callable[..., Any], init_rng: jax.Array | None
) -> Callable[..., Any] | Mapping[str, Any] | None:
  """Returns what `restore` takes missing leaves from, None unless fallback_to_scratch is set.

  Args:
    restore_cfg: the configuration.
    init_fn: `init_fn(rng)` -> nested state dict; or a `TrainStateInitializer`, which initialises only the
      leaves that are missing.
    init_rng: the key of the initialization.

  Raises:
    ValueError: if fallback_to_scratch is set but there is no key.
  """
  if not restore_cfg.fallback_to_scratch:
    return None
  if init_rng is None:
    raise ValueError('fallback_to_scratch=True needs a key: pass fallback_init_rng (for eval and infer: an integer).')
  if isinstance(init_fn, TrainStateInitializer):
    return functools.partial(init_fn.scratch_leaves, init_rng)
  return init_fn(init_rng)


def create_orbax_checkpoint_manager(
    *,
    save_cfg: SaveCheckpointConfig | None = None,
    restore_cfg: RestoreCheckpointConfig | None = None,
    train_state: Any,
    partitioner: Any,
    ds_iter: Any = None,
    model_dir: str | None = None,
):
  """Returns the checkpoint manager that the configurations describe.

  Raises:
    ValueError: if there is something to save but no `model_dir`.
  """
  if save_cfg is not None and not model_dir:
    raise ValueError('SaveCheckpointConfig needs a folder: set MODEL_DIR.')
  cls: type = (save_cfg or restore_cfg or SaveCheckpointConfig()).checkpoint_manager_cls
  steps = {'period': save_cfg.period, 'checkpoint_steps': save_cfg.checkpoint_steps} if save_cfg is not None else {}
  return cls(
      directory=model_dir or '', train_state=train_state, partitioner=partitioner, **steps,
      **_manager_arguments(save_cfg, restore_cfg, ds_iter))


def _manager_arguments(save_cfg: SaveCheckpointConfig | None, restore_cfg: RestoreCheckpointConfig | None,
                       ds_iter: Any) -> dict[str, Any]:
  """Returns the arguments that the writers of both formats have in common."""
  uses_dataset = bool((save_cfg and save_cfg.save_dataset) or (restore_cfg and restore_cfg.restore_dataset))
  arguments = {'dataset_iterator': ds_iter if uses_dataset else None,
               'restore_dtype': restore_cfg.dtype if restore_cfg else None}
  if save_cfg is not None:
    arguments.update(save_dtype=save_cfg.dtype, keep=save_cfg.keep,
                     keep_dataset_checkpoints=save_cfg.keep_dataset_checkpoints)
  return arguments


def restore(checkpoint_manager: Any, paths: str | Sequence[str], restore_cfg: RestoreCheckpointConfig,
            fallback_state: Any = None):
  """Restores one train state, or a list of them for a list of paths.

  Args:
    checkpoint_manager: from `create_orbax_checkpoint_manager`.
    paths: one checkpoint or several.
    restore_cfg: how to restore.
    fallback_state: from `get_fallback_state`.

  Raises:
    FileNotFoundError, ValueError: see `checkpoint_state.restore_train_state`.
  """
  if not isinstance(paths, (str, os.PathLike)):
    return [restore(checkpoint_manager, path, restore_cfg, fallback_state) for path in paths]
  if isinstance(checkpoint_manager, checkpoints.CheckpointRestorer):  # Not a manager of the user's own.
    checkpoint_manager.strict, checkpoint_manager.base_path = restore_cfg.strict, restore_cfg.base_path
    checkpoint_manager.fallback_base_path = restore_cfg.fallback_base_path
    checkpoint_manager.force_base = restore_cfg.force_base
    checkpoint_manager.restore_dataset = restore_cfg.restore_dataset
  return checkpoint_manager.restore(
      path=paths, fallback_state=fallback_state, state_transformation_fns=restore_cfg.state_transformation_fns
  )


def _restore_newest_intact(manager: Any, path: str, cfg: RestoreCheckpointConfig, may_rename: bool):
  """Restores `path` or, if it is damaged, the newest older checkpoint of the folder that is not.

  Damaged folders are renamed to `damaged-checkpoint_<step>` where the run will save that step again.
  """
  folder, newest = checkpoints.get_step_from_checkpoint_dir(path)
  damaged, first_error = [], None
  for step in [step for step in reversed(checkpoints.all_steps(folder)) if step <= newest]:
    candidate = checkpoints.get_checkpoint_dir(folder, step)
    try:
      state = restore(manager, candidate, cfg)
    except checkpoints.CheckpointReadError as error:
      first_error = first_error or error
      damaged.append(step)
      logging.error('%s; trying the checkpoint before it.', error)
      continue
    if damaged:
      logging.error('Continuing from %s, since checkpoints of steps %s are damaged.', candidate, damaged)
    for bad in damaged if may_rename and jax.process_index() == 0 else ():
      source = epath.Path(checkpoints.get_checkpoint_dir(folder, bad))
      source.rename(source.parent / f'damaged-{source.name}')
    return state
  raise first_error or FileNotFoundError(f'There is no checkpoint at {path}.')


def create_checkpoint_manager_and_restore(
    train_state_initializer: TrainStateInitializer,
    partitioner: Any,
    restore_checkpoint_cfg: RestoreCheckpointConfig | None,
    restore_path: str | None,
    fallback_init_rng: jax.Array | int | None,
    save_checkpoint_cfg: SaveCheckpointConfig | None = None,
    model_dir: str | None = None,
    ds_iter: Any = None,
    use_orbax: bool = False,
):
  """Creates the manager of a run and restores its train state.

  Args:
    train_state_initializer: says what is wanted and initialises what is missing.
    partitioner: shards the state.
    restore_checkpoint_cfg: from `get_first_valid_restore_config_and_paths`.
    restore_path: the checkpoint, None to restore nothing.
    fallback_init_rng: key, or seed, for fallback_to_scratch.
    save_checkpoint_cfg: what to save, None for nothing.
    model_dir: where to save. A checkpoint restored from here continues the run: transformations are told
      is_resuming=True, nothing may be missing, and a damaged newest one (mode 'latest') gives way to the one
      before it.
    ds_iter: dataset iterator to save or restore.
    use_orbax: False writes T5X's own format, which stores the frozen parameters too.

  Returns:
    The train state (None if `restore_path` is None) and the checkpoint manager.

  Raises:
    FileNotFoundError, ValueError: see `checkpoint_state.restore_train_state`.
  """
  if isinstance(fallback_init_rng, (int, np.integer)):
    fallback_init_rng = jax.random.PRNGKey(fallback_init_rng)
  shape = train_state_initializer.global_train_state_shape
  custom = save_checkpoint_cfg is not None and _is_custom(save_checkpoint_cfg.checkpointer_cls)
  if use_orbax and not custom:
    manager = create_orbax_checkpoint_manager(
        save_cfg=save_checkpoint_cfg, restore_cfg=restore_checkpoint_cfg, train_state=shape, partitioner=partitioner,
        ds_iter=ds_iter, model_dir=model_dir,
    )
  else:
    cls = (save_checkpoint_cfg or restore_checkpoint_cfg or SaveCheckpointConfig()).checkpointer_cls
    manager = cls(shape, partitioner, model_dir or '',
                  **_manager_arguments(save_checkpoint_cfg, restore_checkpoint_cfg, ds_iter))
  manager.model = train_state_initializer.model
  if restore_path is None:
    return None, manager
  path = checkpoints.absolute_path(restore_path)
  resumes = bool(model_dir) and os.path.dirname(path) == checkpoints.absolute_path(model_dir)
  if resumes and restore_checkpoint_cfg.mode == 'latest':
    may_rename = save_checkpoint_cfg is not None
    return _restore_newest_intact(manager, path, restore_checkpoint_cfg, may_rename), manager
  scratch = None
  if not resumes:
    scratch = get_fallback_state(restore_checkpoint_cfg, train_state_initializer, fallback_init_rng)
  return restore(manager, path, restore_checkpoint_cfg, scratch), manager


def _is_custom(checkpointer_cls: Any) -> bool:
  """Whether it is a writer of the user's own; gin wraps a class in a subclass of the same name."""
  return getattr(checkpointer_cls, '__name__', '') != checkpoints.Checkpointer.__name__


def find_first_checkpoint_step(
    checkpoint_steps_index: int, checkpoint_steps: Sequence[int], first_step: int, host_step: int
) -> int:
  """Returns the index, from `checkpoint_steps_index` on, of the first extra step still ahead (or the last)."""
  last = len(checkpoint_steps) - 1
  while checkpoint_steps_index < last and checkpoint_steps[checkpoint_steps_index] <= max(first_step, host_step):
    checkpoint_steps_index += 1
  return checkpoint_steps_index


def find_next_checkpoint_step(
    checkpoint_steps_index: int,
    inner_num_steps: int,
    is_checkpoint_step: bool,
    host_step: int,
    checkpoint_steps: Sequence[int],
    epoch_end_step: int,
    checkpoint_period: int,
    first_step: int,
) -> tuple[int, bool]:
  """Shortens the next stretch of training so that it ends at an extra step to save at.

  Args:
    checkpoint_steps_index: index of the next extra step.
    inner_num_steps: steps that would be trained.
    is_checkpoint_step: returned if there is no extra step in this epoch.
    host_step: the present step.
    checkpoint_steps: the extra steps, ascending.
    epoch_end_step: last step of the epoch.
    checkpoint_period: a multiple of it is saved anyway.
    first_step: first step of the run; nothing is saved at or before it.

  Returns:
    The number of steps to train and whether to save after them.
  """
  if checkpoint_steps_index < len(checkpoint_steps):
    step = checkpoint_steps[checkpoint_steps_index]
    is_saved_anyway = bool(checkpoint_period) and step % checkpoint_period == 0
    if max(first_step + 1, host_step) <= step <= epoch_end_step and not is_saved_anyway:
      return min(inner_num_steps, step - host_step), True
  return inner_num_steps, is_checkpoint_step
