"""Routers over one inventory that all tasks share: Polytropon, multi-head routing, one skill, the plain average.

Notation: B batch, T tasks, S skills, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cpoly_jax.routing.router import SampledRouter, TaskRouter
from cpoly_jax.skills import SkillGroup


def uniform_start(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """Logits ~ Uniform(-1e-3, 1e-3): weights near one half, with ties broken."""
  return jax.random.uniform(key, shape, dtype, -1e-3, 1e-3)


class PolyRouter(SampledRouter):
  """Polytropon (arXiv 2202.13914): logits `common` [T, S]; with H > 1 multi-head routing (arXiv 2211.03831): [T, H, S].

  Attributes:
    num_skills: S.
    num_heads: H; must divide the inputs and outputs of each adapted projection.
  """

  num_skills: int = 8
  num_heads: int = 1

  def setup(self):
    if self.num_skills < 1 or self.num_heads < 1:
      raise ValueError(f'PolyRouter has S = {self.num_skills} skills and H = {self.num_heads} heads: write 1 or more of each')
    heads, axes = ((self.num_heads,), ('head',)) if self.num_heads > 1 else ((), ())
    self.common = self.table('common', uniform_start, (*heads, self.num_skills), (*axes, 'skill'))

  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    logits = self.rows(self.common, task_ids).reshape(-1, self.num_heads, self.num_skills)
    return [SkillGroup(self.sampled(logits, task_ids, deterministic, step))]


class UniformRouter(TaskRouter):
  """Weight 1/S for each skill and task, without parameters: Polytropon's average, and MHR-mu.

  Attributes:
    num_skills: S.
  """

  num_skills: int = 8

  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    return [SkillGroup(jnp.full((task_ids.shape[0], 1, self.num_skills), 1 / self.num_skills, jnp.float32))]


class SharedRouter(UniformRouter):
  """One skill of weight 1 for all tasks (SHARED).

  Attributes:
    single_task: refuse a run of several tasks: single-task LoRA.
  """

  num_skills: int = 1
  single_task: bool = False

  def setup(self):
    if self.single_task and self.num_tasks > 1:
      raise ValueError(f'this system trains one task and the run has {self.num_tasks}: set MIXTURE_OR_TASK_NAME to one task, '
                       'or use gin_configs/systems/shared.gin')
