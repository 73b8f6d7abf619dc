"""The names of `t5x.utils`, which live in small files of their own; each is imported when first asked for."""

from __future__ import annotations

import importlib

_HOMES = {
    'batches': ('prepare_train_iter',),
    'checkpoints': ('find_checkpoint', 'get_checkpoint_dir', 'get_step_from_checkpoint_dir', 'latest_step'),
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
