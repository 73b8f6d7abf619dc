"""The `t5x` interface for fine-tuning encoder-decoders, built on registry packages.

Importing this package costs nothing: a submodule is imported when it is first named, so that
`import t5x; t5x.models.EncoderDecoderModel` works while a tool that needs one file loads only that one.
"""

from __future__ import annotations

import importlib

__version__ = '0.1.0'

# Other names under which a module can be reached.
_ALIASES = {'checkpointing': 'checkpoints'}

_SUBMODULES = frozenset({
    'adafactor', 'checkpoints', 'datasets', 'decoding', 'errors', 'eval', 'examples', 'gin_utils', 'infer',
    'inference', 'losses', 'metrics', 'model_info', 'models', 'multihost', 'optimizers', 'partitioning',
    'precompile', 'progress', 'report', 'restore', 'schedules', 'state_utils', 'train', 'train_state', 'trainer', 'utils',
})


def __getattr__(name: str):
  """Imports the submodule `name` the first time it is asked for (PEP 562)."""
  target = _ALIASES.get(name, name)
  if target not in _SUBMODULES:
    raise AttributeError(f"module 't5x' has no attribute '{name}'")
  return importlib.import_module(f'{__name__}.{target}')


def __dir__() -> list[str]:
  return sorted(_SUBMODULES | set(_ALIASES) | {'__version__'})
