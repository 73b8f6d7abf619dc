"""The names of `t5x.utils`, which live in small files of their own; each is imported when first asked for."""

from __future__ import annotations

import importlib

_HOMES = {
    'batches': ('prepare_train_iter',),
    'checkpoints': ('LegacyCheckpointManager', 'find_checkpoint', 'get_checkpoint_dir',
                    'get_step_from_checkpoint_dir', 'latest_step'),
    'datasets': ('DatasetConfig', 'get_dataset', 'get_training_eval_datasets', 'get_vocabulary',
                 'get_zeros_batch_like_dataset', 'get_zeros_batch_like_spec', 'import_module',
                 'verify_matching_vocabs'),
    'inference': ('get_infer_fn',),
    'model_info': ('log_model_info',),
    'multihost': ('get_local_data', 'multihost_assert_equal', 'set_hardware_rng_ops', 'sync_global_devices'),
    'restore': ('CheckpointConfig', 'RestoreCheckpointConfig', 'SaveCheckpointConfig', 'TrainStateInitializer',
                'create_checkpoint_manager_and_restore',
                'create_orbax_checkpoint_manager', 'find_first_checkpoint_step', 'find_next_checkpoint_step',
                'get_fallback_state', 'get_first_valid_restore_config_and_paths', 'restore'),
    'schedules': ('create_learning_rate_scheduler',),
}
_HOME_OF = {name: f't5x.{home}' for home, names in _HOMES.items() for name in names}
_HOME_OF['TensorBoardLogger'] = 'seqio'


def __getattr__(name: str):
  """Imports the home of `name` (PEP 562)."""
  if name not in _HOME_OF:
    raise AttributeError(f"module 't5x.utils' has no attribute '{name}'")
  return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_HOME_OF})


def round_vocab_size_to_multiple(vocabulary, divisor: int = 128) -> int:
  """Returns the size of a vocabulary rounded up to a multiple of `divisor`."""
  return -(-vocabulary.vocab_size // divisor) * divisor


def flatten_dict_string_keys(tree) -> dict:
  """Flattens nested dictionaries to {'a/b': leaf}; None leaves stay."""
  from flax import traverse_util
  return traverse_util.flatten_dict(tree, sep='/')


def override_params_axes_names(model_variables, params_axes_names_override=()):
  """Gives other axis names to the parameters that a pattern matches.

  Args:
    model_variables: {'params', 'params_axes', ...}.
    params_axes_names_override: (regular expression for the whole parameter name, axis names) pairs; the first
      match counts.

  Returns:
    A copy of the variables with the new names.

  Raises:
    ValueError: where a pattern matches no parameter, or gives the wrong number of axes.
  """
  import re
  import flax
  from flax import traverse_util
  from flax.linen import partitioning
  variables = flax.core.unfreeze(model_variables)
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  unused = {pattern for pattern, _ in params_axes_names_override}
  for name, value in params.items():
    for pattern, names in params_axes_names_override:
      if re.fullmatch(pattern, name):
        if len(names) != value.ndim:
          raise ValueError(f"The axes {names} given for '{name}' by '{pattern}' do not fit its shape {value.shape}.")
        axes[f'{name}_axes'] = partitioning.AxisMetadata(tuple(names))
        unused.discard(pattern)
        break
  if unused:
    raise ValueError(f"No parameter is named like {', '.join(sorted(unused))}.")
  return {**variables, 'params_axes': traverse_util.unflatten_dict(axes, sep='/')}
