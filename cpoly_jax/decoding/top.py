"""The best entries of rows as long as a vocabulary, in blocks.

The best k entries lie in the k blocks with the best maxima. So one pass over the row finds the maxima, and what is sorted
are k blocks instead of the row: on XLA's CPU backend several times faster than `jax.lax.top_k`, whose result this is.

Notation: N rows, V entries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 128


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """As `jax.lax.top_k` for rows [N, V], equal entries in their order included.

  Args:
    x: [N, V] floats, none of them NaN.
    k: at most V.

  Returns:
    values [N, k], descending, and their indices [N, k] int32.
  """
  rows, size = x.shape
  blocks = -(-size // BLOCK)
  if blocks <= k:
    return jax.lax.top_k(x, k)
  padded = jnp.pad(x, ((0, 0), (0, blocks * BLOCK - size)), constant_values=-jnp.inf).reshape(rows, blocks, BLOCK)
  _, chosen = jax.lax.top_k(jnp.max(padded, axis=-1), k)
  chosen = jnp.sort(chosen, axis=-1)  # In the order of the row, for equal entries.
  candidates = jnp.take_along_axis(padded, chosen[..., None], axis=1).reshape(rows, k * BLOCK)
  values, at = jax.lax.top_k(candidates, k)
  return values, jnp.take_along_axis(chosen, at // BLOCK, axis=1) * BLOCK + at % BLOCK
