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


def low_rank(x: jax.Array, down: jax.Array, up: jax.Array, scale: float = 1., members: jax.Array | None = None) -> jax.Array:
  """Returns scale * x @ down.T @ up with factors of each example's own.

  `down` has the rank first: its gradient then is the product of a thin matrix and x, which XLA's CPU backend computes
  several times faster than that of x and a thin matrix. The scale is on the r hidden values, which are few.

  Packed rows use the factors of their G examples side by side, as one pair of rank G * r, and between the two a token
  keeps the r hidden values of its own example.

  Args:
    x: [B, L, d].
    down: [N, r, d], N = B * G.
    up: [N, r, o].
    scale: factor of the result.
    members: [B, L, G], as of `SkillGroup.members`; None if each row is one example.

  Returns:
    [B, L, o] in x's dtype.
  """
  batch = x.shape[0]
  down, up = (factor.astype(x.dtype).reshape(batch, -1, factor.shape[-1]) for factor in (down, up))
  hidden = jnp.einsum('bld,brd->blr', x, down) * jnp.asarray(scale, x.dtype)
  if members is not None:
    hidden *= jnp.repeat(members, hidden.shape[-1] // members.shape[-1], axis=-1)
  return jnp.einsum('blr,bro->blo', hidden, up)


def mix_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array, scale: float = 1.) -> jax.Array:
  """scale * x @ (sum_s w_s down_s) @ (sum_s w_s up_s), over the skills of all groups at once.

  What the reference codes of Polytropon, MHR and C-Poly compute: there are cross terms between skills, and
  the output grows with the square of the weights. With H heads (MHR), block h of the inputs of `down` and of the
  outputs of `up` has the weights of head h.

  Args:
    x: [B, L, d].
    groups: weights of the groups, by example.
    down: [S, d, r].
    up: [S, r, o].
    scale: factor of the result.

  Returns:
    [B, L, o].
  """
  return low_rank(x, sum(g.mix(down, axis=1, swapped=True) for g in groups), sum(g.mix(up, axis=2) for g in groups), scale,
                  groups[0].members(x.dtype))


def mix_group_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array,
                      scale: float = 1.) -> jax.Array:
  """`mix_factors` inside each group, then the sum: the "common part + specific part" of C-Poly (eq. 2).

  The sum of products of rank r is one product whose rank is that of all groups together.
  """
  downs, ups = [g.mix(down, axis=1, swapped=True) for g in groups], [g.mix(up, axis=2) for g in groups]
  return low_rank(x, jnp.concatenate(downs, axis=1), jnp.concatenate(ups, axis=1), scale, groups[0].members(x.dtype))


def mix_products(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array, scale: float = 1.) -> jax.Array:
  """scale * sum_s w_s (x @ down_s @ up_s), as the papers' equations say (Polytropon eq. 3 and 4), by example or by token.

  Shapes as `mix_factors`; groups have one head.
  """
  total = 0.
  for group in groups:
    group = group.by_token()
    shared = group.ids is None
    # The rank first, as in `low_rank`.
    d, u = group.select(down).swapaxes(-1, -2).astype(x.dtype), group.select(up).astype(x.dtype)
    hidden = jnp.einsum('bld,krd->blkr' if shared else 'bld,bkrd->blkr', x, d)
    hidden *= (scale * group.weights[..., None]).astype(x.dtype)
    hidden, u = hidden.reshape(*x.shape[:2], -1), u.reshape(*u.shape[:-3], -1, u.shape[-1])
    total += jnp.einsum('blr,ro->blo' if shared else 'blr,bro->blo', hidden, u)
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
