"""A tiny model with frozen and trainable parameters, for the tests of checkpoints."""

from __future__ import annotations

import functools

from etils import epath
import flax.linen as nn
from flax.linen import partitioning as flax_partitioning
from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x import adafactor
from t5x import checkpoint_state
from t5x import optimizers
from t5x import partitioning
from t5x import restore

SKILLS = ('encoder/skills/a', 'encoder/skills/b')
BASE = ('decoder/out/kernel', 'encoder/base/kernel', 'encoder/norm/scale')


class _Network(nn.Module):
  """Parameters only: x [B, 8] -> [B]."""

  features: int = 16
  skills: bool = True

  @nn.compact
  def __call__(self, x):
    normal = nn.initializers.normal(1.0)
    with_axes = flax_partitioning.param_with_axes

    class Scope(nn.Module):
      """One named group of parameters."""

      specs: tuple

      @nn.compact
      def __call__(self):
        return [with_axes(n, normal, shape, jnp.float32, axes=axes) for n, shape, axes in self.specs]

    class Encoder(nn.Module):
      """Two groups, and the trainable one."""

      features: int
      skills: bool

      @nn.compact
      def __call__(self, x):
        x = x * Scope((('scale', (8,), ('embed',)),), name='norm')()[0]
        y = x @ Scope((('kernel', (8, self.features), ('embed', 'mlp')),), name='base')()[0]
        if self.skills:
          a, b = Scope(
              (('a', (8, 2), ('embed', 'rank')), ('b', (2, self.features), ('rank', 'mlp'))), name='skills')()
          y = y + x @ a @ b
        return y

    class Decoder(nn.Module):
      """One group."""

      features: int

      @nn.compact
      def __call__(self, y):
        return y @ Scope((('kernel', (self.features, 8), ('mlp', 'embed')),), name='out')()[0]

    y = Encoder(self.features, self.skills, name='encoder')(x)
    return Decoder(self.features, name='decoder')(y).sum(-1)


class Model:
  """Has what a `TrainStateInitializer` and the checkpoints ask of a model."""

  def __init__(self, features=16, skills=True, tasks=('rte',)):
    self.module = _Network(features, skills)
    self.tasks = list(tasks)
    self.checked = None

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    del input_types
    return self.module.init(rng, jnp.zeros(input_shapes['x'], jnp.float32))

  def checkpoint_metadata(self):
    return {'tasks': self.tasks}

  def check_checkpoint_metadata(self, metadata):
    self.checked = metadata
    if metadata['tasks'] != self.tasks:
      raise ValueError(f'trained on {metadata["tasks"]}, asked for {self.tasks}')


class FrozenBase(optimizers.OptaxWrapper):
  """AdamW on the skills alone."""

  def __init__(self):
    super().__init__(optax.adamw(1e-2))

  def trainable_mask(self, params):
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: 'skills' in path for path in flat})


@functools.cache
def frozen_base():
  """One object, so that a train step is compiled once for all tests."""
  return FrozenBase()


@functools.cache
def multi_optimizer():
  """Adafactor on the skills alone, None states elsewhere."""
  chosen = traverse_util.ModelParamTraversal(lambda path, _: 'skills' in path)
  return optimizers.MultiOptimizer(((chosen, adafactor.Adafactor()),))


def partitioner():
  devices = jax.device_count()
  rules = partitioning.standard_logical_axis_rules(additional_rules=(('rank', None),))
  return partitioning.PjitPartitioner(num_partitions=2 if devices % 2 == 0 else 1, logical_axis_rules=rules)


def initializer(optimizer=None, model=None):
  """A TrainStateInitializer; `optimizer` None makes inference states."""
  return restore.TrainStateInitializer(
      optimizer, (model or Model()).get_initial_variables, {'x': (4, 8)}, partitioner())


def save_single_file(folder, step, params, dtype=None) -> str:
  """Writes parameters as T5X's smallest checkpoint, one msgpack file; returns the folder of the checkpoint."""
  path = epath.Path(folder) / f'checkpoint_{step}'
  path.mkdir(parents=True)
  params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
  (path / 'checkpoint').write_bytes(serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': params, 'state': {'step': np.int32(step)}}}))
  return str(path)


def flat(state) -> dict[str, np.ndarray]:
  """All leaves of a train state on the host, by flat name."""
  return {k: np.asarray(v) for k, v in checkpoint_state.flatten(state.state_dict()).items()}


def _update(state):
  frozen = sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(state.params))
  grads = jax.tree.map(lambda p: jnp.sin(p.astype(jnp.float32) + state.step) + 1e-3 * frozen, state.params)
  return state.apply_gradient(grads, learning_rate=1e-2)


@functools.cache
def _compiled_update(leaves, treedef):
  axes = jax.tree.unflatten(treedef, leaves)
  return partitioner().partition(
      _update, in_axis_resources=(axes,), out_axis_resources=axes, donate_argnums=(0,))


def train(state, steps: int, copy: bool = True):
  """Makes updates with gradients that depend on the parameters and on the step.

  Args:
    state: a train state.
    steps: how many updates.
    copy: False donates the arrays of `state`, as the trainer does.
  """
  leaves, treedef = jax.tree.flatten(
      partitioner().get_mesh_axes(state), is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
  run = _compiled_update(tuple(leaves), treedef)
  if copy:
    state = jax.tree.map(jnp.copy, state)
  for _ in range(steps):
    state = run(state)
  return state
