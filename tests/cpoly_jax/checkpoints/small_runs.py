"""A small base and a run on it, in files, for the tests of what works from files."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import shutil
import tempfile

from flax import traverse_util
import jax
import numpy as np
import seqio
from t5x import checkpoints
from t5x import partitioning
from t5x import utils

from cpoly_jax import model_settings
from cpoly_jax import testing
from cpoly_jax.checkpoints import loading
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import optimizers
from cpoly_jax.training.models import CPolyModel

INDEX = TaskIndex(('cb', 'copa', 'rte'))
SHAPES = {'encoder_input_tokens': (2, 5), 'decoder_input_tokens': (2, 4), 'decoder_target_tokens': (2, 4), 'task_id': (2, 1)}


@functools.cache
def model() -> CPolyModel:
  """A model of one layer each, with skills on three projections, bytes as vocabulary."""
  transformer = network.Transformer(testing.small_config(vocab_size=264),
                                    testing.cpoly_adapter(len(INDEX), targets='.*attention/query'))
  return CPolyModel(transformer, seqio.ByteVocabulary(), seqio.ByteVocabulary(), None, task_index=INDEX)


@functools.cache
def partitioner() -> partitioning.PjitPartitioner:
  rules = partitioning.standard_logical_axis_rules(additional_rules=(('skill', None), ('rank', None), ('task', None)))
  return partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)


@functools.cache
def initializer(optimizer: bool):
  """Makes train states, or states for inference."""
  return utils.TrainStateInitializer(optimizers.GroupedAdamW() if optimizer else None, model().get_initial_variables, SHAPES,
                                     partitioner())


@functools.cache
def _initial() -> dict[str, np.ndarray]:
  """All parameters, flat by name, none of them zero."""
  rng = np.random.default_rng(0)
  return {name: 0.3 * rng.normal(size=like.shape).astype(like.dtype) for name, like in loading.shapes(model().module).items()}


def is_base(name: str) -> bool:
  return not {'skills', 'routing'} & set(name.split('/'))


def base_params(seed: int = 0) -> dict[str, np.ndarray]:
  """Parameters of a base, flat by name; another seed gives another base of the same shapes."""
  rng = np.random.default_rng(seed)
  return {name: value + (0.1 * seed * rng.normal(size=value.shape)).astype(np.float32)
          for name, value in _initial().items() if is_base(name)}


def write_native(folder: str, step: int, params: dict[str, np.ndarray]) -> str:
  """Writes parameters in the format of any t5x; returns the checkpoint's path."""
  from flax import serialization
  path = os.path.join(folder, f'checkpoint_{step}')
  os.makedirs(path)
  content = {'target': traverse_util.unflatten_dict(params, sep='/'), 'state': {'step': np.int32(step)}}
  with open(os.path.join(path, 'checkpoint'), 'wb') as f:
    f.write(serialization.msgpack_serialize({'version': 3, 'optimizer': content}))
  return path


def write_base(folder: str, seed: int = 0) -> str:
  """Writes a base at step 100; returns the checkpoint's path."""
  return write_native(os.path.join(folder, f'base_{seed}'), 100, base_params(seed))


def write_run(folder: str, base: str) -> str:
  """Writes what a run of t5x_lite on a base leaves: skills and routing at step 107; returns MODEL_DIR."""
  model_dir = os.path.join(folder, 'run')
  cfg = utils.RestoreCheckpointConfig(path=base, mode='specific', fallback_to_scratch=True)
  state, manager = utils.create_checkpoint_manager_and_restore(
      initializer(True), partitioner(), cfg, base, jax.random.PRNGKey(0),
      save_checkpoint_cfg=utils.SaveCheckpointConfig(period=1), model_dir=model_dir, use_orbax=True)
  flat = traverse_util.flatten_dict(state.params, sep='/')
  trained = {name: value if is_base(name) else _initial()[name] for name, value in flat.items()}
  state = state.replace_params(traverse_util.unflatten_dict(trained, sep='/'))
  manager.save(state.replace_step(jax.numpy.int32(107)))
  manager.close()
  return model_dir


def write_complete_run(folder: str) -> str:
  """Writes what a run of google-research/t5x leaves: all parameters, and `model.json` beside; returns MODEL_DIR."""
  model_dir = os.path.join(folder, 'complete')
  write_native(model_dir, 107, _initial())
  model_settings.save(model().checkpoint_metadata(), model_dir)
  return model_dir


@dataclasses.dataclass(frozen=True)
class Files:
  """Paths of two bases of the same shapes, and of the MODEL_DIR of a run on the first, whose checkpoint is of step 107."""

  base: str
  other: str
  run: str


@functools.cache
def files() -> Files:
  """Writes them once for all tests, which leave them as they are."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  base = write_base(folder)
  return Files(base, write_base(folder, seed=1), write_run(folder, base))


def logits(params, transformer=None) -> np.ndarray:
  """Logits [2, 4, 264] of two tasks for fixed tokens."""
  rng = np.random.default_rng(5)
  inputs, targets = rng.integers(3, 200, (2, 5), np.int32), rng.integers(3, 200, (2, 4), np.int32)
  return np.asarray(_apply(transformer or model().module, params, inputs, targets))


@functools.partial(jax.jit, static_argnums=0)
def _apply(transformer, params, inputs, targets):
  return transformer.apply({'params': params}, inputs, targets, targets, task_ids=np.array([2, 0]), enable_dropout=False)


def flat(params) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(params, sep='/')


def stored_names(path: str) -> set[str]:
  """Names of the parameters that a checkpoint itself holds."""
  return {name.removeprefix('target/') for name in checkpoints.open_checkpoint(path).arrays if name.startswith('target/')}
