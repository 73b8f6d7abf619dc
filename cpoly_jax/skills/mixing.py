"""The mathematics of mixing skills.

Notation: B batch, L length, S skills, d inputs, o outputs, r rank.

Mixing LoRA skills has three meanings (see `MIXINGS`), which agree for one active skill of weight 1 and differ
otherwise. Kernels and vectors are mixed linearly, so for them the three are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cpoly_jax.skills.groups import SkillGroup

FACTORS = 'factors'
GROUP_FACTORS = 'group_factors'
PRODUCTS = 'products'
MIXINGS = (FACTORS, GROUP_FACTORS, PRODUCTS)


def low_rank(x: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
  """Returns x @ down @ up with factors of each example's own.

  Args:
    x: [B, L, d].
    down: [B, d, r].
    up: [B, r, o].

  Returns:
    [B, L, o] in x's dtype.
  """
  hidden = jnp.einsum('bld,bdr->blr', x, down.astype(x.dtype))
  return jnp.einsum('blr,bro->blo', hidden, up.astype(x.dtype))


def mix_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """x @ (sum_s w_s down_s) @ (sum_s w_s up_s), over the skills of all groups at once.

  What the reference codes of Polytropon, MHR and C-Poly compute: there are cross terms between skills, and
  the output grows with the square of the weights. With H heads (MHR), block h of the inputs of `down` and of the
  outputs of `up` has the weights of head h.

  Args:
    x: [B, L, d].
    groups: weights of the groups, by example.
    down: [S, d, r].
    up: [S, r, o].

  Returns:
    [B, L, o].
  """
  return low_rank(x, sum(g.mix(down, axis=1) for g in groups), sum(g.mix(up, axis=2) for g in groups))


def mix_group_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """`mix_factors` inside each group, then the sum: the "common part + specific part" of C-Poly (eq. 2).

  The sum of products of rank r is one product whose rank is that of all groups together.
  """
  downs, ups = [g.mix(down, axis=1) for g in groups], [g.mix(up, axis=2) for g in groups]
  return low_rank(x, jnp.concatenate(downs, axis=2), jnp.concatenate(ups, axis=1))


def mix_products(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """sum_s w_s (x @ down_s @ up_s), as the papers' equations say (Polytropon eq. 3 and 4), by example or by token.

  Shapes as `mix_factors`; groups have one head.
  """
  total = 0.
  for group in groups:
    shared = group.ids is None
    d, u = group.select(down).astype(x.dtype), group.select(up).astype(x.dtype)
    hidden = jnp.einsum('bld,kdr->blkr' if shared else 'bld,bkdr->blkr', x, d)
    hidden *= group.weights[..., None].astype(x.dtype)
    total += jnp.einsum('blkr,kro->blo' if shared else 'blkr,bkro->blo', hidden, u)
  return total


def mix_kernels(x: jax.Array, groups: Sequence[SkillGroup], kernels: jax.Array) -> jax.Array:
  """x @ (sum_s w_s kernel_s); with H heads, block h of the outputs has the weights of head h.

  Args:
    x: [B, L, d].
    groups: weights of the groups, by example or by token.
    kernels: [S, d, o].

  Returns:
    [B, L, o] in x's dtype. By example this makes B kernels; by token B * L * k copies of the inputs.
  """
  total = 0.
  for group in groups:
    if group.per_token:
      weighted = group.weights[..., None].astype(x.dtype) * x[:, :, None]
      chosen = group.select(kernels).astype(x.dtype)
      total += jnp.einsum('blkd,kdo->blo' if group.ids is None else 'blkd,bkdo->blo', weighted, chosen)
    else:
      total += jnp.einsum('bld,bdo->blo', x, group.mix(kernels, axis=2).astype(x.dtype))
  return total


MIX = {FACTORS: mix_factors, GROUP_FACTORS: mix_group_factors, PRODUCTS: mix_products}
