"""An adapter: a router and an inventory around one linear projection.

The T5 network holds one `Adapter` and asks it, for each projection, whether that is a target and what to add to
its output. The parameters that it makes lie beside the projection's kernel:

    encoder/layers_0/attention/query/kernel             frozen base
    encoder/layers_0/attention/query/skills/{down,up}   the inventory
    encoder/layers_0/attention/query/routing/{common,specific}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import jax

from cpoly_jax.routing import Router
from cpoly_jax.skills import Inventory

SKILLS = 'skills'
ROUTING = 'routing'


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Adds routed skills to the projections whose path matches `targets`.

  Attributes:
    router: makes a `Router` when called with `name`; usually a linen class whose settings gin binds.
    inventory: makes an `Inventory` when called with `num_skills`, `features`, `axes` and `name`.
    targets: regular expression that a projection's whole path must match, e.g. `decoder/layers_0/mlp/wo`.
  """

  router: Callable[..., Router]
  inventory: Callable[..., Inventory]
  targets: str = r'.*attention/(query|key|value|out)'

  def __post_init__(self):
    try:
      re.compile(self.targets)
    except re.error as e:
      raise ValueError(f'Adapter.targets = {self.targets!r} is no regular expression: {e}') from None

  def is_target(self, path: str) -> bool:
    """Whether the projection at `path`, e.g. `encoder/layers_0/attention/query`, is adapted."""
    return re.fullmatch(self.targets, path) is not None

  def check_matches(self, paths: Sequence[str]) -> None:
    """Raises ValueError, with examples of paths, if no projection is a target."""
    if not any(map(self.is_target, paths)):
      kinds: dict[str, set[str]] = {}
      for path in paths:
        block, _, name = re.sub(r'layers_\d+', 'layers_0', path).rpartition('/')
        kinds.setdefault(block, set()).add(name)
      known = ', '.join(f'{block}/({"|".join(sorted(names))})' for block, names in sorted(kinds.items()))
      raise ValueError(f'Adapter.targets = {self.targets!r} matches no projection: set ADAPTER_TARGETS to a regular expression '
                       f'that matches some of {known}')

  def delta(self, x: jax.Array, task_ids: jax.Array, *, features: int, axes: tuple[str, str],
            deterministic: bool) -> jax.Array:
    """Returns what the skills add to a projection's output. Call it inside a linen compact method.

    Args:
      x: [B, L, d] the projection's input.
      task_ids: [B] int32, routing rows.
      features: o, the projection's outputs.
      axes: logical names of the kernel's two axes.
      deterministic: no routing noise.

    Returns:
      [B, L, o] in x's dtype.
    """
    router = self.router(name=ROUTING)
    groups = router(task_ids, deterministic=deterministic)
    inventory = self.inventory(num_skills=router.num_skills, features=features, axes=axes, name=SKILLS)
    return inventory(x, groups)
