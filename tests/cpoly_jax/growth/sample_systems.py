"""Small networks of every system, for the tests of growth: one adapted projection, three tasks."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.checkpoints import loading
from cpoly_jax.t5 import network

TASKS = ('cb', 'copa', 'rte')
MATRIX = ((1., 0., 1.), (0., 1., 0.), (0., 1., 1.))
GROWN_MATRIX = (*MATRIX, (1., 1., 0.), (0., 0., 1.))

ROUTERS = dict(
    learned=functools.partial(routing.CPolyRouter, num_common=2),
    several=functools.partial(routing.CPolyRouter, num_common=2, num_specific=(0, 3, 1)),
    gumbel=functools.partial(routing.CPolyRouter, num_common=2, specific='gumbel'),
    fixed=functools.partial(routing.CPolyRouter, num_common=2, num_specific=2, specific='fixed'),
    private=functools.partial(routing.CPolyRouter, num_common=0, specific='fixed'),
    poly=functools.partial(routing.PolyRouter, num_skills=4),
    mhr=functools.partial(routing.PolyRouter, num_skills=4, num_heads=2),
    expert=functools.partial(routing.ExpertRouter, matrix=MATRIX),
    hyper=functools.partial(routing.HyperRouter, num_skills=4, embedding_size=5, hidden_size=6),
    task_moe=functools.partial(routing.TaskMoERouter, num_skills=4, embedding_size=5),
    mmoe=functools.partial(routing.TokenRouter, num_common=4, per_task=True),
    cgc=functools.partial(routing.TokenRouter, num_common=2, num_specific=2, per_task=True),
    shared=routing.SharedRouter,
    uniform=routing.UniformRouter,
    moe_lora=functools.partial(routing.TokenRouter, num_common=4))


def describe(name: str, num_tasks: int = len(TASKS), **settings) -> dict:
  """Returns the description of a network of the system `name`; `settings` are the router's."""
  mixing = 'factors' if name == 'mhr' else 'products'
  adapter = adapters.Adapter(router=functools.partial(ROUTERS[name], num_tasks=num_tasks, **settings),
                             inventory=functools.partial(skills.LoRA, rank=2, mixing=mixing),
                             targets='encoder/layers_0/attention/query')
  described = model_settings.describe(network.Transformer(testing.small_config(), adapter))
  return {'task_index': {'tasks': list(TASKS)}, **described}


def leaves(description: dict) -> dict[str, np.ndarray]:
  """Returns skills and routing of a network, none of them zero, by T5X name."""
  rng = np.random.default_rng(0)
  return {path: rng.normal(size=leaf.shape).astype(leaf.dtype) for path, leaf in shapes(json.dumps(description)).items()
          if {'skills', 'routing'} & set(path.split('/'))}


@functools.cache
def shapes(described: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the network of a JSON text."""
  return loading.shapes(model_settings.build(json.loads(described)))


def weights(description: dict, values: dict[str, np.ndarray], tasks) -> np.ndarray:
  """Returns the weights of all skills for some rows, [N, H or L, S]."""
  router = model_settings.build(description).adapter.describe()
  rows, x = np.asarray(tasks, np.int32), np.random.default_rng(1).normal(size=(1, 3, 16)).astype(np.float32)
  params = {path.split('/')[-1]: value for path, value in values.items() if '/routing/' in path}
  groups = router.apply({'params': params}, rows, np.repeat(x, len(rows), axis=0), deterministic=True)
  total = np.zeros((*groups[0].weights.shape[:2], router.num_skills), np.float32)
  for group in groups:
    found = np.asarray(jax.device_get(group.weights))
    for n in range(found.shape[0]):
      for i in range(found.shape[-1]):
        total[n, :, group.start + i if group.ids is None else group.ids[n, i]] += found[n, :, i]
  return total
