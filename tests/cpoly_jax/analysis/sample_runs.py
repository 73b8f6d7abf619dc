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
