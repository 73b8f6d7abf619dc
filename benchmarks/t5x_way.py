"""Our train step and train state beside T5X's own way: one-hot embeddings, a float32 base, checkpoints of the whole model.

    python -m benchmarks.t5x_way
    python -m benchmarks.t5x_way --system=poly --rank=1 --rounds=9 --json=t5x_way.json

T5X looks tokens up by a product with one-hot vectors; the same network does so here by a method interceptor, and both steps run
in turns. The state is counted twice for T5X: with optimizer state for what trains only (its MultiOptimizer), and for all
parameters (any other of its optimizers).
"""

from __future__ import annotations

import math
from typing import Any

from absl import app
from absl import flags
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from benchmarks import steady_memory
from benchmarks import train_step
from cpoly_jax.t5 import layers

_SYSTEM = flags.DEFINE_string('system', 'cpoly', 'A file of gin_configs/systems, without .gin.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/small', 'A file of gin_configs/models, without .gin.')
_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_RANK = flags.DEFINE_integer('rank', 4, 'Rank of each skill.')


def one_hot_embedding(call: Any, args: Any, kwargs: Any, context: Any) -> jax.Array:
  """Interceptor: embeds tokens [B, L] as a product with one-hot vectors [B, L, V]; leaves other methods alone."""
  if not (isinstance(context.module, layers.Embed) and context.method_name == '__call__'):
    return call(*args, **kwargs)
  tokens, = args
  table = jnp.asarray(context.module.get_variable('params', 'embedding'), context.module.dtype)
  return jnp.dot(jax.nn.one_hot(tokens, table.shape[0], dtype=table.dtype), table)


def state_bytes(state: Any) -> dict[str, int]:
  """Bytes of a train state: ours with a bfloat16 base, and as T5X has it, with moments for what trains or for all."""
  flat = lambda tree: traverse_util.flatten_dict(tree, sep='/')
  mask = flat(state.trainable_mask)
  sizes = {name: math.prod(leaf.shape) for name, leaf in flat(state.params).items()}
  trained = sum(size for name, size in sizes.items() if mask[name])
  total = sum(sizes.values())
  # AdamW has two moments of each parameter, float32.
  return {'ours': 2 * (total - trained) + 12 * trained, 't5x': 4 * total + 8 * trained, 't5x_all_moments': 12 * total}


def main(argv) -> None:
  del argv
  steady_memory.keep()
  parts = train_step.configured([f'gin_configs/models/{_MODEL.value}.gin', f'gin_configs/systems/{_SYSTEM.value}.gin'],
                                [f'NUM_TASKS = {_TASKS.value}', f'RANK = {_RANK.value}'])
  data = train_step.batch_of(*train_step.shape(), _TASKS.value)
  ours = train_step.compiled('gathered', parts, data, _TASKS.value)
  with nn.intercept_methods(one_hot_embedding):
    theirs = train_step.compiled('one-hot', parts, data, _TASKS.value)
  train_step.alternate([ours, theirs], train_step.ROUNDS.value)
  figures = {'state_bytes': state_bytes(ours.state)}
  print(f'{"embedding":10} {"ms/step":>9} {"ratio":>6} {"GFLOP":>8} {"GB":>7}')
  for step in (ours, theirs):
    ratio = step.median / theirs.median
    figures[step.name] = {'seconds': step.median, 'ratio': ratio, 'flops': step.cost['flops'],
                          'bytes': step.cost['bytes accessed']}
    print(f'{step.name:10} {1e3 * step.median:9.1f} {ratio:6.3f} {step.cost["flops"] / 1e9:8.1f} '
          f'{step.cost["bytes accessed"] / 1e9:7.2f}')
  counts = figures['state_bytes']
  print(f'train state, bfloat16 base: {counts["ours"] / 1e6:.1f} MB; T5X: {counts["t5x"] / 1e6:.1f} MB (ratio '
        f'{counts["ours"] / counts["t5x"]:.3f}), with moments of all parameters {counts["t5x_all_moments"] / 1e6:.1f} MB '
        f'(ratio {counts["ours"] / counts["t5x_all_moments"]:.3f})')
  train_step.write_json(figures)


if __name__ == '__main__':
  app.run(main)
