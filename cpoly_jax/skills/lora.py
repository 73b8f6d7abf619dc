"""Low-rank skills (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.skills import mixing
from cpoly_jax.skills.groups import SkillGroup


def uniform_fan_in(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """Uniform in +-sqrt(1/d) for a bank [S, d, r]: PEFT's Kaiming-uniform start of LoRA's first factor."""
  bound = shape[-2] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class LoRA(nn.Module):
  """S pairs of factors `down` [S, d, r] and `up` [S, r, o]; what they add is scaled by alpha / r.

  `up` is zero at the start, so that the adapted model equals the base.

  Attributes:
    num_skills: S.
    features: o, outputs of the projection.
    axes: logical names of the projection's input and output axis.
    rank: r.
    alpha: numerator of the scale; 1 as in the reference codes.
    mixing: one of `mixing.MIXINGS`.
    down_init: initializer of `down`.
    up_init: initializer of `up`; zero, for the identity at the start.
  """

  num_skills: int
  features: int
  axes: tuple[str, str] = ('embed', 'joined_kv')
  rank: int = 4
  alpha: float = 1.0
  mixing: str = mixing.GROUP_FACTORS
  down_init: nn.initializers.Initializer = uniform_fan_in
  up_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup], project: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See `Inventory`."""
    self._check(groups)
    in_axis, out_axis = self.axes
    down = nn_partitioning.param_with_axes(
        'down', self.down_init, (self.num_skills, x.shape[-1], self.rank), jnp.float32,
        axes=('skill', in_axis, 'rank'))
    up = nn_partitioning.param_with_axes(
        'up', self.up_init, (self.num_skills, self.rank, self.features), jnp.float32,
        axes=('skill', 'rank', out_axis))
    return project(x) + mixing.MIX[self.mixing](x, groups, down, up, self.alpha / self.rank)

  def _check(self, groups: Sequence[SkillGroup]) -> None:
    if self.mixing not in mixing.MIX:
      raise ValueError(f'LoRA.mixing = {self.mixing!r}: write one of {", ".join(mixing.MIXINGS)}')
    if self.rank < 1:
      raise ValueError(f'LoRA.rank = {self.rank}: write 1 or more')
    if self.mixing != mixing.PRODUCTS and any(g.per_token for g in groups):
      raise ValueError(f'LoRA.mixing = {self.mixing!r} makes one pair of factors for each example, but this router weighs '
                       f"skills for each token: set MIXING = '{mixing.PRODUCTS}'")
    if self.mixing == mixing.PRODUCTS and any(g.heads > 1 for g in groups):
      raise ValueError("LoRA.mixing = 'products' adds whole skills, but multi-head routing mixes blocks of their factors: set "
                       f"MIXING = '{mixing.FACTORS}'")
