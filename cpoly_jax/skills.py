"""Skill inventories: banks of small modules, and how a weighted mix of them is applied to a batch.

Notation: B batch, L length, S skills, k skills in a group, d inputs, o outputs, r rank.

A router says for each example which skills are active and how much, as one or more `SkillGroup`s (C-Poly
has two: common and specific). An `Inventory` holds S skills of one projection and returns the output that
the mix adds to it. Mixing LoRA skills has three meanings (see `MIXINGS`), which agree for one active skill of
weight 1 and differ otherwise.
"""

from __future__ import annotations

from typing import Protocol
from collections.abc import Sequence

from flax import linen as nn
from flax import struct
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

FACTORS = 'factors'
GROUP_FACTORS = 'group_factors'
PRODUCTS = 'products'
MIXINGS = (FACTORS, GROUP_FACTORS, PRODUCTS)


@struct.dataclass
class SkillGroup:
  """Weights of k skills for each example.

  Attributes:
    weights: [B, k] float32.
    ids: [B, k] int32, the skills that the weights belong to, or None for the k skills from `start` on.
    start: first skill of the group if `ids` is None.
  """

  weights: jax.Array
  ids: jax.Array | None = None
  start: int = struct.field(pytree_node=False, default=0)

  def select(self, bank: jax.Array) -> jax.Array:
    """Returns the group's part of a bank [S, ...]: [k, ...], or [B, k, ...] if chosen by `ids`."""
    if self.ids is not None:
      return jnp.take(bank, self.ids, axis=0)
    return jax.lax.slice_in_dim(bank, self.start, self.start + self.weights.shape[-1], axis=0)

  def mix(self, bank: jax.Array) -> jax.Array:
    """Returns sum_k weights[b, k] * bank[k]: [B, ...] of a bank [S, ...]."""
    subscripts = 'bk,k...->b...' if self.ids is None else 'bk,bk...->b...'
    return jnp.einsum(subscripts, self.weights.astype(bank.dtype), self.select(bank))


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
  the output grows with the square of the weights.

  Args:
    x: [B, L, d].
    groups: weights of the groups.
    down: [S, d, r].
    up: [S, r, o].

  Returns:
    [B, L, o].
  """
  return low_rank(x, sum(g.mix(down) for g in groups), sum(g.mix(up) for g in groups))


def mix_group_factors(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """`mix_factors` inside each group, then the sum: the "common part + specific part" of C-Poly (eq. 2)."""
  return sum(mix_factors(x, [g], down, up) for g in groups)


def mix_products(x: jax.Array, groups: Sequence[SkillGroup], down: jax.Array, up: jax.Array) -> jax.Array:
  """sum_s w_s (x @ down_s @ up_s), as the papers' equations say (Polytropon eq. 3 and 4). Shapes as `mix_factors`."""
  total = 0.
  for group in groups:
    shared = group.ids is None
    d, u = group.select(down).astype(x.dtype), group.select(up).astype(x.dtype)
    hidden = jnp.einsum('bld,kdr->blkr' if shared else 'bld,bkdr->blkr', x, d)
    hidden = hidden * group.weights[:, None, :, None].astype(x.dtype)
    total += jnp.einsum('blkr,kro->blo' if shared else 'blkr,bkro->blo', hidden, u)
  return total


_MIX = {FACTORS: mix_factors, GROUP_FACTORS: mix_group_factors, PRODUCTS: mix_products}


def uniform_fan_in(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """Uniform in +-sqrt(1/d) for a bank [S, d, r]: PEFT's Kaiming-uniform start of LoRA's first factor."""
  bound = shape[-2] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class Inventory(Protocol):
  """S skills of one projection (a linen module)."""

  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup]) -> jax.Array:
    """Returns what the mix adds to the projection's output: [B, L, o] for inputs x [B, L, d]."""
    ...


class LoRA(nn.Module):
  """Low-rank skills (arXiv 2106.09685): `down` [S, d, r], `up` [S, r, o], output scaled by alpha / r.

  `up` is zero at the start, so that the adapted model equals the base.

  Attributes:
    num_skills: S.
    features: o, outputs of the projection.
    axes: logical names of the projection's input and output axis.
    rank: r.
    alpha: numerator of the scale; 1 as in the reference codes.
    mixing: one of `MIXINGS`.
    down_init: initializer of `down`.
    up_init: initializer of `up`; zero, for the identity at the start.
  """

  num_skills: int
  features: int
  axes: tuple[str, str] = ('embed', 'joined_kv')
  rank: int = 4
  alpha: float = 1.0
  mixing: str = GROUP_FACTORS
  down_init: nn.initializers.Initializer = uniform_fan_in
  up_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup]) -> jax.Array:
    if self.mixing not in _MIX:
      raise ValueError(f'LoRA.mixing = {self.mixing!r}: write one of {", ".join(MIXINGS)}')
    if self.rank < 1:
      raise ValueError(f'LoRA.rank = {self.rank}: write 1 or more')
    in_axis, out_axis = self.axes
    down = nn_partitioning.param_with_axes(
        'down', self.down_init, (self.num_skills, x.shape[-1], self.rank), jnp.float32,
        axes=('skill', in_axis, 'rank'))
    up = nn_partitioning.param_with_axes(
        'up', self.up_init, (self.num_skills, self.rank, self.features), jnp.float32,
        axes=('skill', 'rank', out_axis))
    return _MIX[self.mixing](x, groups, down, up) * jnp.asarray(self.alpha / self.rank, x.dtype)
