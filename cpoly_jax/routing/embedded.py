"""Routers that compute a task's weights from an embedding of the task: HyperFormer and Task-MoE.

Notation: B batch, T tasks, S skills, e width of the embedding.
"""

from __future__ import annotations

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.routing import functions
from cpoly_jax.routing.router import TaskRouter
from cpoly_jax.skills import SkillGroup

param_with_axes = nn_partitioning.param_with_axes
_dense_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class HyperRouter(TaskRouter):
  """HYPER: a hyper-network (HyperFormer, arXiv 2106.04489) that makes each task's adapter from its embedding.

  task embedding [T, e] -> linear -> ReLU -> linear -> S numbers -> linear maps, without bias, to the adapter's
  parameters. Those last maps are the inventory's banks: the "skills" are the columns that generate, and the S numbers,
  of any sign and not normalised, weigh them. So LoRA skills give the hyper-network that makes LoRA.

  Attributes:
    num_skills: S, width of the hyper-network's last layer.
    embedding_size: e.
    hidden_size: units between the two linear layers.
  """

  num_skills: int = 8
  embedding_size: int = 64
  hidden_size: int = 64

  @nn.compact
  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    embedding = self.table('embedding', nn.initializers.normal(1.0), (self.embedding_size,), ('task_embed',))
    hidden = nn.relu(self._linear('hidden', self.rows(embedding, task_ids), self.hidden_size, ('task_embed', 'task_hidden')))
    return [SkillGroup(self._linear('weights', hidden, self.num_skills, ('task_hidden', 'skill'))[:, None])]

  def _linear(self, name: str, x: jax.Array, features: int, axes: tuple[str, str]) -> jax.Array:
    kernel = param_with_axes(f'{name}_kernel', _dense_init, (x.shape[-1], features), jnp.float32, axes=axes)
    bias = param_with_axes(f'{name}_bias', nn.initializers.zeros_init(), (features,), jnp.float32, axes=axes[1:])
    return x @ kernel + bias


class TaskMoERouter(TaskRouter):
  """TASK-MOE (arXiv 2110.03742): softmax over the skills from a task embedding, the k largest renormalised over the skills.

  Attributes:
    num_skills: S.
    embedding_size: e.
    top_k: skills of a task, from 2 to S; None for all.
  """

  num_skills: int = 8
  embedding_size: int = 64
  top_k: int | None = 2

  @property
  def active_skills(self) -> int:
    """k."""
    return self.top_k or self.num_skills

  @nn.compact
  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    check_top_k('TaskMoERouter', self.top_k, self.num_skills)
    embedding = self.table('embedding', nn.initializers.normal(1.0), (self.embedding_size,), ('task_embed',))
    gate = param_with_axes('gate', nn.initializers.normal(0.02), (self.embedding_size, self.num_skills), jnp.float32,
                           axes=('task_embed', 'skill'))
    weights = functions.top_k(nn.softmax(self.rows(embedding, task_ids) @ gate), self.top_k)
    return [SkillGroup(weights[:, None])]


def check_top_k(name: str, k: int | None, num_skills: int) -> None:
  """Raises ValueError unless k is None or from 2 to S: one renormalised weight is always 1, and the router never learns."""
  if k is not None and not 2 <= k <= num_skills:
    raise ValueError(f'{name}.top_k = {k} of {num_skills} skills: write a number from 2 to {num_skills}, or None for all; the '
                     'largest weight alone, divided by itself, is always 1 and teaches the router nothing')
