"""A router that weighs skills for each token: MoE-LoRA, MMoE and CGC/PLE.

Notation: B batch, L length, T tasks, A common skills, b specific skills of each task, d inputs of the projection.
"""

from __future__ import annotations

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.routing import functions
from cpoly_jax.routing.cpoly import own_skills
from cpoly_jax.routing.embedded import check_top_k
from cpoly_jax.routing.router import AVERAGE, TaskRouter
from cpoly_jax.skills import SkillGroup


def _thin_first(gates: jax.Array) -> jax.Array:
  """Returns gates [..., d, S] as [..., S, d], and keeps XLA from undoing it: their gradient is several times faster so.

  It then is the product of the thin matrix and x, as that of `skills.mixing.low_rank`.
  """
  return jax.lax.optimization_barrier(gates.swapaxes(-1, -2))


class TokenRouter(TaskRouter):
  """Softmax over the skills from the projection's inputs.

    MoE-LoRA (MoLoRA, arXiv 2309.05444): one `gate` [d, A] for all tasks, no specific skills;
    MMoE (KDD 2018): a gate of each task's own, [T, d, A], over common skills;
    CGC/PLE (RecSys 2020): a gate of each task's own, [T, d, A + b], over common skills and the task's own.

  Attributes:
    num_common: A.
    num_specific: b; only with a gate of each task's own.
    per_task: each task has a gate of its own.
    top_k: skills of a token, from 2 to A + b; None for all (soft merging).
    gate_init: initializer of the gates.
  """

  num_common: int = 8
  num_specific: int = 0
  per_task: bool = False
  top_k: int | None = None
  gate_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

  reads_inputs = True

  @property
  def num_skills(self) -> int:
    """S = A + T*b."""
    return self.num_common + self.num_tasks * self.num_specific

  @property
  def active_skills(self) -> int:
    """A + b, or k."""
    return self.top_k or self.num_common + self.num_specific

  @nn.compact
  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    gated = self.num_common + self.num_specific
    self._check(gated, x)
    # With own skills the columns of a gate are not the inventory, and are not split as it is.
    axes = ('embed', 'gated' if self.num_specific else 'skill')
    if self.per_task:
      gate = self.table('gate', self.gate_init, (x.shape[-1], gated), axes)
      gates = _thin_first(self.rows(gate, task_ids).astype(x.dtype)).reshape(x.shape[0], -1, gated, x.shape[-1])
      # A packed row's tokens have weights from the gates of all of its examples; SkillGroup.by_token picks their own.
      logits = jnp.einsum('bld,bgsd->bgls', x, gates).reshape(-1, x.shape[1], gated)
    else:
      gate = nn_partitioning.param_with_axes('gate', self.gate_init, (x.shape[-1], gated), jnp.float32, axes=axes)
      logits = jnp.einsum('bld,sd->bls', x, _thin_first(gate.astype(x.dtype)))
    weights = functions.top_k(nn.softmax(logits.astype(jnp.float32)), self.top_k)
    groups = []
    if self.num_common:
      groups.append(SkillGroup(weights[..., :self.num_common], per_token=True))
    if self.num_specific:
      ids, _ = own_skills(task_ids, (self.num_specific,) * self.num_tasks, self.num_common)
      groups.append(SkillGroup(weights[..., self.num_common:], ids=ids, per_token=True))
    return groups

  def _check(self, gated: int, x: jax.Array | None) -> None:
    if x is None:
      raise ValueError('TokenRouter weighs skills by the inputs of each projection, so projections cannot share one: set '
                       "ROUTER_GRANULARITY = 'projection'")
    if self.num_common < 0 or self.num_specific < 0 or not gated:
      raise ValueError(f'TokenRouter has {self.num_common} common and {self.num_specific} specific skills: neither may be '
                       'negative, and one must be above 0')
    if self.num_specific and not self.per_task:
      raise ValueError('TokenRouter.num_specific needs a gate of each task\'s own: set TokenRouter.per_task = True')
    if self.num_specific and self.unknown_task == AVERAGE:
      raise ValueError("an unknown task has no skills of its own: set UNKNOWN_TASK = 'error', or TokenRouter.num_specific = 0")
    check_top_k('TokenRouter', self.top_k, gated)
