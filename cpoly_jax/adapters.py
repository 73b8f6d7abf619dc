"""An adapter: a router and an inventory around linear projections.

The T5 network holds one `Adapter` and asks it, for each projection, whether that is a target and what its output is.
The parameters that it makes lie beside the projection's kernel:

    encoder/layers_0/attention/query/kernel             frozen base
    encoder/layers_0/attention/query/skills/{down,up}   the inventory
    encoder/layers_0/attention/query/routing/{common,specific}

A coarser `granularity` puts one `routing` in each layer, in each stack, or at the top of the model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from flax import struct
import jax

from cpoly_jax.routing import Router
from cpoly_jax.skills import Inventory, SkillGroup

SKILLS = 'skills'
ROUTING = 'routing'

PROJECTION = 'projection'
LAYER = 'layer'
STACK = 'stack'
MODEL = 'model'
GRANULARITIES = (PROJECTION, LAYER, STACK, MODEL)


@struct.dataclass
class Routed:
  """What every adapted projection of one forward pass needs.

  Attributes:
    task_ids: [N] int32 routing rows, N = B or, in packed rows of G examples, B * G; None if nothing is adapted.
    deterministic: neither dropout nor routing noise.
    adapter: the adapter, or None for the plain base.
    step: float32 scalar, the training step, if the routing needs it.
    groups: weights of a router that several projections share, or None.
    segment_ids: [B, L] int32 of the stack's packed rows, from 1; None if each row is one example.
    memory_segment_ids: in the decoder, those of the encoded inputs.
  """

  task_ids: jax.Array | None
  deterministic: bool = struct.field(pytree_node=False)
  adapter: Adapter | None = struct.field(pytree_node=False, default=None)
  step: jax.Array | None = None
  groups: tuple[SkillGroup, ...] | None = None
  segment_ids: jax.Array | None = None
  memory_segment_ids: jax.Array | None = None

  def of_memory(self) -> Routed:
    """Returns these for the encoded inputs, which the decoder projects to keys and values."""
    return self.replace(segment_ids=self.memory_segment_ids)

  def packed(self, segment_ids: jax.Array | None, memory_segment_ids: jax.Array | None = None) -> Routed:
    """Returns these for a stack's packed rows; the same if each row has one task."""
    if segment_ids is None or self.task_ids is None or self.task_ids.shape[0] == segment_ids.shape[0]:
      return self
    return self.replace(segment_ids=segment_ids, memory_segment_ids=memory_segment_ids)

  def by(self, router: Router | None) -> Routed:
    """Returns these with the weights of a shared router; unchanged if it is None."""
    if router is None:
      return self
    return self.replace(groups=tuple(router(self.task_ids, None, deterministic=self.deterministic, step=self.step)))


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Adapts the projections whose path matches `targets` with routed skills.

  Attributes:
    router: makes a `Router`; usually a linen class whose settings gin binds.
    inventory: makes an `Inventory` when called with `num_skills`, `features`, `axes` and `name`.
    targets: regular expression that a projection's whole path must match, e.g. `decoder/layers_0/mlp/wo`.
    granularity: what shares a router: `projection` (each has its own), `layer`, `stack` (encoder, decoder) or `model`.
  """

  router: Callable[..., Router]
  inventory: Callable[..., Inventory]
  targets: str = r'.*attention/(query|key|value|out)'
  granularity: str = PROJECTION

  def __post_init__(self):
    try:
      re.compile(self.targets)
    except re.error as e:
      raise ValueError(f'Adapter.targets = {self.targets!r} is no regular expression: {e}') from None
    if self.granularity not in GRANULARITIES:
      raise ValueError(f'Adapter.granularity = {self.granularity!r}: write one of {", ".join(GRANULARITIES)}')

  def is_target(self, path: str) -> bool:
    """Whether the projection at `path`, e.g. `encoder/layers_0/attention/query`, is adapted."""
    return re.fullmatch(self.targets, path) is not None

  def describe(self) -> Router:
    """Returns a router that belongs to no network, to ask it for its sizes."""
    return self.router(parent=None)

  def router_of(self, granularity: str) -> Router | None:
    """Makes the router that everything inside a layer, a stack or the model shares; None if it is shared elsewhere."""
    return self.router() if granularity == self.granularity else None

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

  def project(self, x: jax.Array, routed: Routed, project: Callable[[jax.Array], jax.Array], *, features: int,
              axes: tuple[str, str]) -> jax.Array:
    """Returns the adapted projection of x. Call it inside a linen compact method.

    Args:
      x: [B, L, d].
      routed: tasks of the batch.
      project: the frozen projection, [B, L, d] -> [B, L, o].
      features: o.
      axes: logical names of the kernel's two axes.

    Returns:
      [B, L, o] in the dtype of project(x).
    """
    groups = routed.groups
    if groups is None:
      groups = self.router(name=ROUTING)(routed.task_ids, x, deterministic=routed.deterministic, step=routed.step)
    groups = [group.replace(segment_ids=routed.segment_ids) for group in groups]
    inventory = self.inventory(num_skills=self.describe().num_skills, features=features, axes=axes, name=SKILLS)
    return inventory(x, groups, project)
