"""(IA)^3 (arXiv 2205.05638): skills that scale the inputs or the outputs of a projection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.skills.groups import SkillGroup


class IA3(nn.Module):
  """S vectors `scale` [S, n], zero at the start; their mix plus 1 multiplies n activations.

  The paper scales keys and values, which are outputs of their projections (n = o), and the hidden units of the
  feed-forward block, which are inputs of `wo` (n = d).

  Attributes:
    num_skills: S.
    features: o, outputs of the projection.
    axes: logical names of the projection's input and output axis.
    input_targets: regular expression of the projections, by whole path, whose inputs are scaled.
    scale_init: initializer of the vectors.
  """

  num_skills: int
  features: int
  axes: tuple[str, str] = ('embed', 'joined_kv')
  input_targets: str = r'.*/wo'
  scale_init: nn.initializers.Initializer = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup], project: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """See `Inventory`."""
    of_inputs = re.fullmatch(self.input_targets, '/'.join(self.path[:-1])) is not None
    size, axis = (x.shape[-1], self.axes[0]) if of_inputs else (self.features, self.axes[1])
    bank = nn_partitioning.param_with_axes('scale', self.scale_init, (self.num_skills, size), jnp.float32, axes=('skill', axis))
    scale = (1 + sum(group.mix_vectors(bank) for group in groups)).astype(x.dtype)
    return project(x * scale) if of_inputs else project(x) * scale
