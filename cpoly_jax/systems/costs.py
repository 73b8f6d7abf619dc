"""FLOPs that the skills add to a forward pass, as XLA counts them.

Each adapted projection is lowered with and without its adapter, once for each distinct shape; nothing is compiled, run or
allocated. Mixing parameters costs the same for an example, or a batch, however many tokens it has, so the number depends
on the batch and its lengths.

Notation: B batch, L length, d inputs, o outputs.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from cpoly_jax.adapters import PROJECTION, Routed
from cpoly_jax.t5 import flops, layers, network


class _At(nn.Module):
  """A projection at its path in the network, which adapters may ask for."""

  path_left: tuple[str, ...]
  features: int
  axes: tuple[str, str]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, routed: Routed) -> jax.Array:
    name, *rest = self.path_left
    if rest:
      return _At(tuple(rest), self.features, self.axes, self.dtype, name=name)(x, routed)
    return layers.Projection(self.features, self.axes, self.dtype, name=name)(x, routed)


def adapter_forward(net: network.Transformer, batch: int, inputs: int, targets: int) -> float:
  """Counts what the adapter adds to a forward pass without noise, as in evaluation.

  Args:
    net: a network, with or without an adapter.
    batch: B.
    inputs: length of the inputs.
    targets: length of the targets.

  Returns:
    FLOPs for the whole batch; 0 without an adapter. A router that several projections share is left out.
  """
  if net.adapter is None:
    return 0.
  total, known = 0., {}
  for path, (d, o) in flops.projection_shapes(net.config).items():
    if net.adapter.is_target(path):
      axes, length = flops.projection_axes(path), flops.positions(path, inputs, targets)
      key = (d, o, axes, length)
      if key not in known:
        with_adapter, plain = (_forward(net, adapter, path, batch, length, d, o, axes) for adapter in (net.adapter, None))
        known[key] = with_adapter - plain
      total += known[key]
  return total


def _forward(net, adapter, path: str, batch: int, length: int, d: int, o: int, axes: tuple[str, str]) -> float:
  """FLOPs of the projection at `path`, plain if the adapter is None."""
  module = _At(tuple(path.split('/')), o, axes, net.config.dtype)
  key, step = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
  x, task_ids = jax.ShapeDtypeStruct((batch, length, d), net.config.dtype), jax.ShapeDtypeStruct((batch,), jnp.int32)
  groups = None
  if adapter is not None and adapter.granularity != PROJECTION:
    router = adapter.describe()
    shared = lambda key, task_ids, step: router.init_with_output(key, task_ids, None, deterministic=True, step=step)[0]
    groups = tuple(jax.eval_shape(shared, key, task_ids, step))
  routed = lambda task_ids, step, groups: Routed(task_ids, True, adapter, step, groups)
  init = lambda key, x, *rest: module.init(key, x, routed(*rest))['params']
  apply = lambda params, x, *rest: module.apply({'params': params}, x, routed(*rest))
  params = jax.eval_shape(init, key, x, task_ids, step, groups)
  return jax.jit(apply).lower(params, x, task_ids, step, groups).cost_analysis()['flops']
