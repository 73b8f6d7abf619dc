"""One task of a routed model as a plain T5: what a projection's skills do to its inputs is put into its kernel.

With the weights of one task, known in advance, every adapted projection is a linear map, and the image of the identity matrix
under it is its kernel. So each adapter is asked for that image, whatever its router and its inventory are. A router that
reads the projection's inputs gives every token a kernel of its own, and cannot be merged.

Notation: d inputs and o outputs of a projection.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Callable, Mapping

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax.adapters import Adapter, Routed
from cpoly_jax.checkpoints import folders
from cpoly_jax.skills import SkillGroup
from cpoly_jax.t5 import flops
from cpoly_jax.t5 import network

# Where a shared router lies on the way from the top to a projection, by depth.
_LEVELS = (adapters.MODEL, adapters.STACK, adapters.LAYER)


def is_added(name: str) -> bool:
  """Whether a parameter, e.g. `encoder/layers_0/mlp/wo/skills/up`, is one that the plain base does not have."""
  return name == network.CLOCK or not {adapters.SKILLS, adapters.ROUTING}.isdisjoint(name.split('/'))


def plain(transformer: network.Transformer) -> network.Transformer:
  """Returns the network without its adapter."""
  return network.Transformer(transformer.config)


def targets(transformer: network.Transformer) -> list[str]:
  """Returns the paths of the adapted projections.

  Raises:
    ValueError: there is no adapter.
  """
  if transformer.adapter is None:
    raise ValueError('this network has no skills: it is a plain T5 already')
  return [path for path in network.projection_paths(transformer.config) if transformer.adapter.is_target(path)]


def check(transformer: network.Transformer) -> None:
  """Raises ValueError unless a task of this network can be merged."""
  targets(transformer)
  router = transformer.adapter.describe()
  if router.reads_inputs:
    raise ValueError(f'{type(router).__name__} weighs skills for each token, so that a task has no kernels of its own: serve '
                     'the routed model')


class _At(nn.Module):
  """Goes down to the path of a projection, gathers the router that it shares, and calls something there."""

  adapter: Adapter
  left: tuple[str, ...]
  depth: int = 0

  @nn.compact
  def __call__(self, routed: Routed, call: Callable[[Routed], Any]) -> Any:
    if self.adapter.granularity in _LEVELS[self.depth:self.depth + 1]:
      routed = routed.by(self.adapter.router(name=adapters.ROUTING))
    if not self.left:
      return call(routed)
    name, *left = self.left
    return _At(self.adapter, tuple(left), self.depth + 1, name=name)(routed, call)


@dataclasses.dataclass(frozen=True)
class Task:
  """The adapter of one task, projection by projection.

  Attributes:
    transformer: the routed network.
    params: its parameters, flat by name; those of the base may be missing.
    row: the task's routing row.
  """

  transformer: network.Transformer
  params: Mapping[str, Any]
  row: int

  def inside(self, path: str, call: Callable[[Routed], Any]) -> Any:
    """Returns call(routed) as the projection at `path` would, in evaluation, for one example of the task.

    Products are of full float32, on every device.
    """
    step = self.params.get(network.CLOCK)
    routed = Routed(jnp.full((1,), self.row, jnp.int32), True, self.transformer.adapter,
                    None if step is None else jnp.asarray(step, jnp.float32))
    variables = traverse_util.unflatten_dict(
        {name: np.asarray(leaf, np.float32) for name, leaf in self.params.items() if is_added(name) and _serves(name, path)},
        sep='/')
    with jax.default_matmul_precision('float32'):
      return _At(self.transformer.adapter, tuple(path.split('/'))).apply({'params': variables}, routed, call)

  def kernel(self, path: str, kernel: np.ndarray) -> np.ndarray:
    """Returns the kernel [d, o], float32, of what the projection at `path` does to this task's inputs.

    Args:
      path: an adapted projection.
      kernel: the frozen one, [d, o].

    Raises:
      ValueError: the result is not finite: the row is none of the table, or parameters are damaged.
    """
    kernel = jnp.asarray(kernel, jnp.float32)
    identity = jnp.eye(kernel.shape[0], dtype=jnp.float32)[None]
    # Of the identity itself the answer is known, and half of the work.
    project = lambda x: kernel[None] if x is identity else x @ kernel
    adapter = self.transformer.adapter
    merged = self.inside(path, lambda routed: adapter.project(
        identity, routed, project, features=kernel.shape[1], axes=flops.projection_axes(path)))[0]
    if not jnp.isfinite(merged).all():
      raise ValueError(f'{path}: the kernel of routing row {self.row} is not finite: the run has no such row, or it diverged')
    return np.asarray(merged)

  def groups(self, path: str) -> tuple[SkillGroup, ...]:
    """Returns the task's weights of the skills of the projection at `path`."""
    router = self.transformer.adapter.router
    return self.inside(path, lambda routed: routed.groups or tuple(
        router(name=adapters.ROUTING)(routed.task_ids, None, deterministic=True, step=routed.step)))

  def routing_name(self, path: str, leaf: str) -> str:
    """Returns the name of a parameter of the router of the projection at `path`, which may lie above it."""
    granularity = self.transformer.adapter.granularity
    depth = _LEVELS.index(granularity) if granularity in _LEVELS else None
    return '/'.join([*path.split('/')[:depth], adapters.ROUTING, leaf])


def _serves(name: str, path: str) -> bool:
  """Whether a skill's or router's parameter can matter to the projection at `path`: it lies there, or above it."""
  owner = name.rpartition(f'/{adapters.SKILLS}/')[0] or name.rpartition(f'{adapters.ROUTING}/')[0].rstrip('/')
  return not owner or path == owner or path.startswith(f'{owner}/')


class Kernel:
  """A projection's kernel with a task's skills in it, not computed yet.

  Attributes:
    shape: [d, o].
    dtype: of the result.
  """

  def __init__(self, task: Task, path: str, dtype: Any):
    self._task, self._path, self._base = task, path, task.params[f'{path}/kernel']
    self.shape, self.dtype = self._base.shape, np.dtype(dtype or self._base.dtype)

  def read(self) -> np.ndarray:
    """Returns the kernel; ValueError if it is not finite."""
    return self._task.kernel(self._path, self._base).astype(self.dtype, copy=False)


def merge_lazily(transformer: network.Transformer, params: Mapping[str, Any], row: int, *,
                 dtype: Any = None) -> dict[str, np.ndarray | Kernel]:
  """Merges one task into the base, each kernel when it is read.

  Args:
    transformer: the routed network.
    params: its parameters, flat by name.
    row: the task's routing row (`TaskIndex.row`).
    dtype: of the kernels that change; None: that of the base.

  Returns:
    The parameters of the plain network, flat by name: those that change as `Kernel`, the others as they are.

  Raises:
    ValueError: nothing is adapted, or the weights are by token.
  """
  check(transformer)
  task = Task(transformer, params, row)
  changed = {f'{path}/kernel': Kernel(task, path, dtype) for path in targets(transformer)}
  return {name: changed.get(name, leaf) for name, leaf in params.items() if not is_added(name)}


def merge(transformer: network.Transformer, params: Mapping[str, Any], row: int, *, dtype: Any = None) -> dict[str, Any]:
  """Merges one task into the base.

  Args:
    transformer: the routed network.
    params: its parameters, nested.
    row: the task's routing row (`TaskIndex.row`).
    dtype: of the result; None: that of the base. bfloat16 rounds the sum of base and skills, and so loses more of the skills
      than of the base.

  Returns:
    The parameters of the plain network, nested; arithmetic is in float32.

  Raises:
    ValueError: nothing is adapted, the weights are by token, or a kernel is not finite.
  """
  leaves = merge_lazily(transformer, traverse_util.flatten_dict(params, sep='/'), row, dtype=dtype)
  return traverse_util.unflatten_dict({name: folders.whole(leaf, dtype) for name, leaf in leaves.items()}, sep='/')
