"""Runs in files, of any router and inventory, for the tests of the analysis: parameters are drawn, or given."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping

from flax import serialization
from flax import traverse_util
import numpy as np

from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import loading
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

QUERIES = '.*attention/query'
CPOLY = functools.partial(routing.CPolyRouter, num_common=2)
LORA = functools.partial(skills.LoRA, rank=2)


def transformer(num_tasks: int, router: Callable = CPOLY, inventory: Callable = LORA, *, granularity: str = 'projection',
                targets: str = QUERIES, layers: int = 2) -> network.Transformer:
  """Returns a network of a few layers of D = 16."""
  config = testing.small_config(num_encoder_layers=layers, num_decoder_layers=layers)
  return network.Transformer(config, Adapter(functools.partial(router, num_tasks=num_tasks), inventory, targets, granularity))


def drawn(model: network.Transformer, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns parameters, flat by name, none of them at its start."""
  rng = np.random.default_rng(seed)

  def draw(name, like):
    if name.endswith('indices'):
      return rng.integers(0, 3, like.shape).astype(like.dtype)
    return np.asarray(4 if name == network.CLOCK else rng.normal(size=like.shape), like.dtype)

  return {name: draw(name, like) for name, like in loading.shapes(model).items()}


def write(folder: str, tasks: tuple[str, ...], model: network.Transformer, steps: tuple[int, ...] = (7,),
          given: Mapping[str, np.ndarray] | None = None) -> str:
  """Writes a MODEL_DIR with checkpoints of all parameters, each drawn anew but for the `given` ones; returns its path."""
  for step in steps:
    params = {**drawn(model, step), **(given or {})}
    content = {'target': traverse_util.unflatten_dict(params, sep='/'), 'state': {'step': np.int32(step)}}
    path = os.path.join(folder, f'checkpoint_{step}')
    os.makedirs(path)
    with open(os.path.join(path, 'checkpoint'), 'wb') as file:
      file.write(serialization.msgpack_serialize({'version': 3, 'optimizer': content}))
  description = {**model_settings.describe(model), 'task_index': TaskIndex(tasks).to_json()}
  model_settings.save(description, folder)
  return folder


def with_batches(tasks: tuple[str, ...], *arguments) -> tuple[CPolyModel, dict, dict]:
  """Returns a model, its parameters, and by task batches of 4 examples; `arguments` as of `transformer`."""
  small = transformer(len(tasks), *arguments, layers=1)
  model = CPolyModel(small, None, None, None, task_index=TaskIndex(tasks))
  params = traverse_util.unflatten_dict(drawn(small), sep='/')
  rng = np.random.default_rng(1)
  batches = {}
  for row, task in enumerate(tasks):
    tokens = rng.integers(2, 16, (2, 4, 5)).astype(np.int32)
    batches[task] = {'encoder_input_tokens': tokens[0], 'decoder_target_tokens': tokens[1],
                     'decoder_input_tokens': np.pad(tokens[1], ((0, 0), (1, 0)))[:, :-1],
                     'decoder_loss_weights': np.ones((4, 5), np.int32), 'task_id': np.full((4, 1), row, np.int32)}
  return model, params, batches
