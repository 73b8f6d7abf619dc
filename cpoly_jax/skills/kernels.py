"""Skills that are deltas of the whole kernel: dense, and sparse at a fixed random mask.

Notation: S skills, d inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.skills import mixing
from cpoly_jax.skills.groups import SkillGroup

# Parameters of this name are kept, but never trained.
INDICES = 'indices'


class Dense(nn.Module):
  """S deltas `kernel` [S, d, o], zero at the start: the dense skills of Polytropon's reinforcement learning runs.

  Attributes:
    num_skills: S.
    features: o, outputs of the projection.
    axes: logical names of the projection's input and output axis.
    kernel_init: initializer of the deltas.
  """

  num_skills: int
  features: int
  axes: tuple[str, str] = ('embed', 'joined_kv')
  kernel_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup], project: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See `Inventory`."""
    kernel = nn_partitioning.param_with_axes(
        'kernel', self.kernel_init, (self.num_skills, x.shape[-1], self.features), jnp.float32, axes=('skill', *self.axes))
    return project(x) + mixing.mix_kernels(x, groups, kernel)


def random_indices(key: jax.Array, shape: Sequence[int], run: int, features: int) -> jax.Array:
  """Draws which output of each run of neighbours a sparse skill changes.

  Args:
    key: rng.
    shape: [S, d, m], m runs of outputs.
    run: outputs in a run, at most 256.
    features: o; the last run ends there and may be shorter.

  Returns:
    bfloat16 [S, d, m], whole numbers from 0 to below the run's length: exact, and a type that every optimizer and
    every checkpoint format takes, which integers are not.
  """
  lengths = jnp.full((shape[-1],), run).at[-1].set(features - run * (shape[-1] - 1))
  return jnp.floor(jax.random.uniform(key, shape) * lengths).astype(jnp.bfloat16)


def scatter(values: jax.Array, indices: jax.Array, run: int, features: int) -> jax.Array:
  """Writes sparse deltas out as kernels.

  Args:
    values: [S, d, m].
    indices: [S, d, m] as of `random_indices`.
    run: outputs in a run.
    features: o.

  Returns:
    [S, d, o] of values' dtype: in each run of outputs the value stands at its index, and zero elsewhere.
  """
  at = indices[..., None] == jnp.arange(run, dtype=indices.dtype)
  kernels = jnp.where(at, values[..., None], 0)
  return kernels.reshape(*values.shape[:-1], -1)[..., :features]


class SFT(nn.Module):
  """S sparse deltas of the kernel at random fixed positions (LT-SFT, arXiv 2110.07560, as Polytropon uses it).

  Stored sparse: `values` [S, d, m] float32, zero at the start, and `indices` [S, d, m] bfloat16, never trained, with
  m = ceil(density * o). The mask is stratified: one random output in each run of 1 / density neighbours of each row, so
  that its density is exact, an index takes two bytes, and a mix needs neither gather nor scatter.

  Attributes:
    num_skills: S.
    features: o, outputs of the projection.
    axes: logical names of the projection's input and output axis.
    density: share of the kernel that a skill changes, in (0, 1]; 1 / density is rounded to a whole number.
    values_init: initializer of the values.
  """

  num_skills: int
  features: int
  axes: tuple[str, str] = ('embed', 'joined_kv')
  density: float = 0.1
  values_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup], project: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See `Inventory`."""
    if not 1 / 256 <= self.density <= 1:
      raise ValueError(f'SFT.density = {self.density}: write a number from 1/256 to 1')
    run = min(round(1 / self.density), self.features)
    shape = (self.num_skills, x.shape[-1], -(-self.features // run))
    axes = ('skill', *self.axes)
    values = nn_partitioning.param_with_axes('values', self.values_init, shape, jnp.float32, axes=axes)
    indices = nn_partitioning.param_with_axes(
        INDICES, lambda key, shape: random_indices(key, shape, run, self.features), shape, axes=axes)
    kernels = scatter(values, jax.lax.stop_gradient(indices), run, self.features)
    return project(x) + mixing.mix_kernels(x, groups, kernels)
