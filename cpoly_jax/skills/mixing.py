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


def low_rank(x: jax.Array, down: jax.Array, up: jax.Array, members: jax.Array | None = None) -> jax.Array:
  """Returns x @ down @ up with factors of each example's own.

  Packed rows use the factors of their G examples side by side, as one pair of rank G * r, and between the two a token
  keeps the r hidden values of its own example.

  Args:
    x: [B, L, d].
    down: [N, d, r], N = B * G.
    up: [N, r, o].
    members: [B, L, G], as of `SkillGroup.members`; None if each row is one example.

  Returns:
    [B, L, o] in x's dtype.
  """
  down, up = down.astype(x.dtype), up.astype(x.dtype)
  if members is None:
    return jnp.einsum('blr,bro->blo', jnp.einsum('bld,bdr->blr', x, down), up)
  batch, length, per_row = members.shape
  hidden = jnp.einsum('bld,bgdr->blgr', x, down.reshape(batch, per_row, *down.shape[1:])) * members[..., None]
  return jnp.einsum('blr,bro->blo', hidden.reshape(batch, length, -1), up.reshape(batch, -1, up.shape[-1]))


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
  return low_rank(x, sum(g.mix(down, axis=1) for g in groups), sum(g.mix(up, axis=2) for g in groups),
                  groups[0].members(x.dtype))


def mix_group_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """`mix_factors` inside each group, then the sum: the "common part + specific part" of C-Poly (eq. 2).

  The sum of products of rank r is one product whose rank is that of all groups together.
  """
  downs, ups = [g.mix(down, axis=1) for g in groups], [g.mix(up, axis=2) for g in groups]
  return low_rank(x, jnp.concatenate(downs, axis=2), jnp.concatenate(ups, axis=1), groups[0].members(x.dtype))


def mix_products(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """sum_s w_s (x @ down_s @ up_s), as the papers' equations say (Polytropon eq. 3 and 4), by example or by token.

  Shapes as `mix_factors`; groups have one head.
  """
  total = 0.
  for group in groups:
    group = group.by_token()
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
    [B, L, o] in x's dtype. By example this makes N kernels, and in packed rows G copies of the inputs; by token k copies.
  """
  total = 0.
  for group in groups:
    if group.per_token:
      group = group.by_token()
      weighted = group.weights[..., None].astype(x.dtype) * x[:, :, None]
      chosen = group.select(kernels).astype(x.dtype)
      total += jnp.einsum('blkd,kdo->blo' if group.ids is None else 'blkd,bkdo->blo', weighted, chosen)
      continue
    mixed, members = group.mix(kernels, axis=2).astype(x.dtype), group.members(x.dtype)
    if members is None:
      total += jnp.einsum('bld,bdo->blo', x, mixed)
    else:
      own = members[..., None] * x[:, :, None]
      total += jnp.einsum('blgd,bgdo->blo', own, mixed.reshape(*members.shape[::2], *mixed.shape[1:]))
  return total


MIX = {FACTORS: mix_factors, GROUP_FACTORS: mix_group_factors, PRODUCTS: mix_products}
