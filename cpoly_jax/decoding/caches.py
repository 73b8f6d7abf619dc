"""The decoder's cache under several beams, without moving it from beam to beam.

After each step of a beam search a hypothesis may go on from another beam. To move the caches along, as T5X does, reads and
writes all of them in each step. A network whose cache has the leaf `ancestors` (`cpoly_jax.t5`) is spared that: the beams of
an example share one cache in which beam i writes column l * n + i at position l, and `ancestors` tells which of the n
columns of a position a hypothesis descends from. What was computed from the inputs is kept once an example.
The caches of other networks are expanded and moved.

Notation: B examples, n beams, L positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from t5x import decoding

from cpoly_jax.t5.layers import ANCESTORS, NOT_YET

# Leaves whose last axis is the position.
_BY_POSITION = frozenset({'cached_key', 'cached_value'})


def expanded(cache: Any, n: int, offset: int = 0) -> Any:
  """Returns the cache of B examples as that of their n beams.

  Args:
    cache: with leaves [B, ...].
    n: beams.
    offset: axis of the batch; 0 where beams share the cache.
  """
  if n > 1 and _is_shared(cache):
    change = {ANCESTORS: lambda x: jnp.full((x.shape[0], n, x.shape[1]), NOT_YET, x.dtype),
              **dict.fromkeys(_BY_POSITION, lambda x: jnp.repeat(x, n, axis=-1))}
    return jax.tree_util.tree_map_with_path(lambda path, x: change[_name(path)](x) if _name(path) in change else x, cache)
  return decoding.cache_map(lambda x: decoding.flat_batch_beam_expand(x, n, offset), cache)


def at(cache: Any, position: jax.Array) -> Any:
  """Returns the cache before a step at `position` []: each hypothesis descends from its own column there."""
  def own(path, x):
    if _name(path) != ANCESTORS or x.ndim < 3:
      return x
    beams = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=x.dtype)[:, None], (*x.shape[:2], 1))
    return jax.lax.dynamic_update_slice_in_dim(x, beams, position, axis=2)
  return jax.tree_util.tree_map_with_path(own, cache)


def reordered(cache: Any, beams: jax.Array, offset: int = 0) -> Any:
  """Returns the cache after hypothesis i of each example has become the continuation of hypothesis beams[:, i].

  Args:
    cache: as of `expanded`.
    beams: [B, n] int32.
    offset: axis of the batch.
  """
  batch, n = beams.shape
  if n == 1:
    return cache
  if _is_shared(cache):
    move = lambda x: jnp.take_along_axis(x, beams[..., None], axis=1)
    return jax.tree_util.tree_map_with_path(lambda path, x: move(x) if _name(path) == ANCESTORS else x, cache)
  rows = (jnp.arange(batch)[:, None] * n + beams).reshape(-1)
  return decoding.cache_map(lambda x: jnp.take(x, rows, axis=offset, mode='clip'), cache)


def _name(path) -> str:
  return jax.tree_util.keystr(path[-1:], simple=True)


def _is_shared(cache: Any) -> bool:
  return any(_name(path) == ANCESTORS for path, _ in jax.tree_util.tree_leaves_with_path(cache))
