"""What every inventory of skills offers to the adapter.

Notation: B batch, L length, S skills, d inputs and o outputs of the projection.
"""

from __future__ import annotations

from typing import Protocol
from collections.abc import Callable, Sequence

import jax

from cpoly_jax.skills.groups import SkillGroup


class Inventory(Protocol):
  """S skills of one projection: a linen module that is made with `num_skills`, `features` (o) and `axes`.

  Its banks are parameters whose first axis is the skill; they start so that the mix changes nothing.
  """

  def __call__(self, x: jax.Array, groups: Sequence[SkillGroup], project: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the adapted projection of x.

    Args:
      x: [B, L, d].
      groups: the active skills of each example or token; all have the same `segment_ids`.
      project: the frozen projection, [B, L, d] -> [B, L, o].

    Returns:
      [B, L, o] in the dtype of project(x).

    Raises:
      ValueError: the groups' weights make no sense for these skills.
    """
    ...
