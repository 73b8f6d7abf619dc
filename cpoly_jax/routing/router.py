"""What every router offers to the adapter, and what routers by task share: the rows of a table.

Notation: B batch, L length, T tasks, d inputs of the projection, N examples of the batch: B, or B * G in packed rows of G.
"""

from __future__ import annotations

from typing import Protocol
from collections.abc import Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.routing.sampling import Sampling
from cpoly_jax.skills import SkillGroup

RNG = 'routing'  # The rng collection of the noise, needed in training only.

ERROR = 'error'
AVERAGE = 'average'
UNKNOWN = -1  # The routing row of an example whose task the run does not know.


class Router(Protocol):
  """Allocates skills to examples or tokens: a linen module.

  Attributes:
    num_skills: S, the size of the inventory.
    active_skills: how many skills can have a weight other than zero for one task or token.
    needs_step: some setting changes with the training step.
    reads_inputs: the weights depend on the projection's inputs, so that it cannot be shared between projections.
  """

  num_skills: int
  active_skills: int
  needs_step: bool
  reads_inputs: bool

  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """Returns the weights of the skills.

    Args:
      task_ids: [N] int32 rows; `UNKNOWN` where the task is not known. The examples of a packed row follow each other.
      x: [B, L, d] inputs of the projection; None where the router is shared between projections.
      deterministic: evaluation: no noise. Otherwise it is drawn from the rng collection `RNG`.
      step: float32 scalar, the training step; None if `needs_step` is False.
    """
    ...


class TaskRouter(nn.Module):
  """What routers by task share.

  Attributes:
    num_tasks: T.
    unknown_task: what an unknown task's row is: `error`: NaN, so that nothing of it is taken for a result;
      `average`: the mean of all rows.
  """

  num_tasks: int
  unknown_task: str = ERROR

  needs_step = False
  reads_inputs = False

  @property
  def active_skills(self) -> int:
    """All skills, unless a router knows better."""
    return self.num_skills

  def table(self, name: str, init, shape: Sequence[int], axes: Sequence[str]) -> jax.Array:
    """Makes the parameter `name` [T, *shape], float32; `axes` are the logical names of `shape`."""
    if self.num_tasks < 1:
      raise ValueError(f'{type(self).__name__}.num_tasks = {self.num_tasks}: a router needs a row for each task')
    return nn_partitioning.param_with_axes(name, init, (self.num_tasks, *shape), jnp.float32, axes=('task', *axes))

  def rows(self, table: jax.Array, task_ids: jax.Array) -> jax.Array:
    """Returns the rows of the batch's tasks, [N, ...] of a table [T, ...]."""
    if self.unknown_task not in (ERROR, AVERAGE):
      raise ValueError(f'{type(self).__name__}.unknown_task = {self.unknown_task!r}: write {ERROR} or {AVERAGE}')
    known = task_ids >= 0
    # A row out of bounds is filled with NaN.
    rows = jnp.take(table, jnp.where(known, task_ids, table.shape[0]), axis=0, mode='fill')
    if self.unknown_task == ERROR:
      return rows
    return jnp.where(known.reshape(-1, *[1] * (rows.ndim - 1)), rows, jnp.mean(table, axis=0))


class SampledRouter(TaskRouter):
  """A router by task whose weights are normalised Gumbel-sigmoids.

  Attributes:
    sampling: settings of the noise.
  """

  sampling: Sampling = Sampling()

  @property
  def needs_step(self) -> bool:
    """Whether a setting of `sampling` changes with the step."""
    return self.sampling.needs_step

  def sampled(self, logits: jax.Array, task_ids: jax.Array, deterministic: bool, step: jax.Array | None) -> jax.Array:
    """Returns weights [B, H, k] for the logits [B, H, k] of the batch's tasks."""
    key = self.make_rng(RNG) if self.sampling.draws(deterministic) else None
    return self.sampling.weights(logits, task_ids, key=key, deterministic=deterministic, step=step)
