"""Routing: which skills a task uses, and how much.

Notation: B batch, T tasks, S skills, A common skills, b specific skills per task, tau temperature.

Pure functions carry the mathematics; a router is a linen module that makes the parameters, looks up the rows of
the batch's tasks and calls them. Its result is a list of `SkillGroup`s for an `Inventory`. Noise is drawn from the
rng collection `routing`, needed in training only.
"""

from __future__ import annotations

from typing import Protocol
from collections.abc import Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp

from cpoly_jax.skills import SkillGroup

LEARNED = 'learned'
FIXED = 'fixed'
GUMBEL = 'gumbel'
SPECIFIC_KINDS = (LEARNED, FIXED, GUMBEL)

EPSILON = 1e-12
RNG = 'routing'


def gumbel_sigmoid(logits: jax.Array, noise: jax.Array | None, temperature: float = 1.0) -> jax.Array:
  """A relaxed Bernoulli variable with these logits (Polytropon eq. 2 with 1/tau on the whole argument).

  Args:
    logits: any shape.
    noise: logistic noise of the same shape, log u - log(1 - u) with uniform u; None for the noiseless
      sigmoid(logits) of evaluation, which has no temperature.
    temperature: tau > 0.

  Returns:
    Values in (0, 1) of the logits' shape.
  """
  if noise is None:
    return jax.nn.sigmoid(logits)
  return jax.nn.sigmoid((logits + noise) / temperature)


def normalise(weights: jax.Array) -> jax.Array:
  """Divides by the sum over the last axis (plus 1e-12): rows of skill weights [..., S] that sum to 1."""
  return weights / (jnp.sum(weights, axis=-1, keepdims=True) + EPSILON)


def uniform_start(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
  """Logits ~ Uniform(-1e-3, 1e-3): weights near one half, with ties broken."""
  return jax.random.uniform(key, shape, dtype, -1e-3, 1e-3)


def block_diagonal(num_tasks: int, per_task: int, on: float = 1., off: float = 0.) -> jax.Array:
  """[T, T*b] with `on` for each task's own b skills and `off` elsewhere; the identity for b = 1."""
  own = jnp.repeat(jnp.eye(num_tasks, dtype=jnp.float32), per_task, axis=1)
  return off + (on - off) * own


def own_skills(task_ids: jax.Array, per_task: int, start: int) -> jax.Array:
  """Ids of each task's own skills: [B, b] int32 for task rows [B], if task t's begin at start + t*b."""
  return start + task_ids[:, None] * per_task + jnp.arange(per_task, dtype=task_ids.dtype)


class Router(Protocol):
  """Allocates skills to examples (a linen module)."""

  num_skills: int  # S, a property: the inventory's size.

  def __call__(self, task_ids: jax.Array, *, deterministic: bool) -> list[SkillGroup]:
    """Returns weights for task rows [B]; draws noise from the rng `routing` unless deterministic."""
    ...


class _TaskRouter(nn.Module):
  """What routers by task row share: the rows of a table, and their noise."""

  num_tasks: int
  temperature: float = 1.0

  def _rows(self, name: str, init, columns: int, task_ids: jax.Array) -> jax.Array:
    """Makes the parameter `name` [T, columns] and returns the rows of the batch, [B, columns]."""
    if self.num_tasks < 1:
      raise ValueError(f'{type(self).__name__}.num_tasks = {self.num_tasks}: a router needs a row for each task')
    table = nn_partitioning.param_with_axes(
        name, init, (self.num_tasks, columns), jnp.float32, axes=('task', 'skill'))
    return jnp.take(table, task_ids, axis=0)

  def _sampled(self, logits: jax.Array, deterministic: bool) -> jax.Array:
    """Normalised Gumbel-sigmoid weights [B, k], one draw for each example."""
    noise = None
    if not deterministic:
      if self.temperature <= 0:
        raise ValueError(f'{type(self).__name__}.temperature = {self.temperature}: write a number above 0')
      noise = jax.random.logistic(self.make_rng(RNG), logits.shape, logits.dtype)
    return normalise(gumbel_sigmoid(logits, noise, self.temperature))


class PolyRouter(_TaskRouter):
  """Polytropon (arXiv 2202.13914): logits `common` [T, S], normalised Gumbel-sigmoid.

  Attributes:
    num_tasks: T.
    temperature: tau of the training noise.
    num_skills: S.
  """

  num_skills: int = 8

  @nn.compact
  def __call__(self, task_ids: jax.Array, *, deterministic: bool) -> list[SkillGroup]:
    logits = self._rows('common', uniform_start, self.num_skills, task_ids)
    return [SkillGroup(self._sampled(logits, deterministic))]


class CPolyRouter(_TaskRouter):
  """C-Poly (arXiv 2312.03248): A skills common to all tasks (W_A) and b of each task's own (W_B).

  `common` [T, A] is W_A, routed as in Polytropon. `specific` [T, T*b] is W_B; it starts block-diagonal:
    learned: used as it stands, so that tasks may borrow from each other (the authors' code);
    gumbel: logits that are sampled and normalised as W_A (the paper's text);
    fixed: never learned and no parameter; only own skills are read, so the cost does not grow with T.

  Attributes:
    num_tasks: T.
    temperature: tau of the training noise.
    num_common: A; 0 leaves the common part out.
    num_specific: b; 0 leaves the specific part out (Polytropon).
    specific: `learned`, `fixed` or `gumbel`.
    own_logit: `gumbel` only: logits start at +own_logit for own skills and at -own_logit for others.
  """

  num_common: int = 3
  num_specific: int = 1
  specific: str = LEARNED
  own_logit: float = 4.0

  @property
  def num_skills(self) -> int:
    """S = A + T*b."""
    return self.num_common + self.num_tasks * self.num_specific

  @nn.compact
  def __call__(self, task_ids: jax.Array, *, deterministic: bool) -> list[SkillGroup]:
    if self.specific not in SPECIFIC_KINDS:
      raise ValueError(f'CPolyRouter.specific = {self.specific!r}: write one of {", ".join(SPECIFIC_KINDS)}')
    if self.num_common < 0 or self.num_specific < 0 or not self.num_common + self.num_specific:
      raise ValueError(f'CPolyRouter has A = {self.num_common} common and b = {self.num_specific} specific skills: '
                       'neither may be negative, and one must be above 0')
    groups = []
    if self.num_common:
      logits = self._rows('common', uniform_start, self.num_common, task_ids)
      groups.append(SkillGroup(self._sampled(logits, deterministic)))
    if self.num_specific:
      groups.append(self._specific_group(task_ids, deterministic))
    return groups

  def _specific_group(self, task_ids: jax.Array, deterministic: bool) -> SkillGroup:
    if self.specific == FIXED:
      ids = own_skills(task_ids, self.num_specific, self.num_common)
      return SkillGroup(jnp.ones(ids.shape, jnp.float32), ids=ids)
    on, off = (self.own_logit, -self.own_logit) if self.specific == GUMBEL else (1., 0.)
    start = lambda *_: block_diagonal(self.num_tasks, self.num_specific, on, off)
    weights = self._rows('specific', start, self.num_tasks * self.num_specific, task_ids)
    if self.specific == GUMBEL:
      weights = self._sampled(weights, deterministic)
    return SkillGroup(weights, start=self.num_common)
