"""C-Poly (arXiv 2312.03248): skills common to all tasks, and skills of each task's own.

Notation: B batch, T tasks, A common skills, b specific skills of a task, W specific skills of all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax.routing.poly import uniform_start
from cpoly_jax.routing.router import ERROR, SampledRouter
from cpoly_jax.skills import SkillGroup
from cpoly_jax.task_index import TaskIndex

LEARNED = 'learned'
FIXED = 'fixed'
GUMBEL = 'gumbel'
SPECIFIC_KINDS = (LEARNED, FIXED, GUMBEL)


def block_diagonal(counts: Sequence[int], on: float = 1., off: float = 0.) -> jax.Array:
  """[T, W] float32 with `on` for each task's own skills and `off` elsewhere, if task t has counts[t] of them."""
  owners = np.repeat(np.arange(len(counts)), counts)
  own = owners[None] == np.arange(len(counts))[:, None]
  return jnp.where(own, jnp.float32(on), jnp.float32(off))


def own_skills(task_ids: jax.Array, counts: Sequence[int], start: int) -> tuple[jax.Array, jax.Array]:
  """Returns the skills of each example's own task.

  Args:
    task_ids: [N] int32.
    counts: skills of each task.
    start: id of the first task's first skill.

  Returns:
    ids [B, b] int32 and weights [B, b] float32 for the largest b of all tasks; what a task has not is id `start`
    of weight 0.
  """
  most = max(counts)
  firsts = jnp.asarray(start + np.cumsum([0, *counts[:-1]]), jnp.int32)
  columns = jnp.arange(most, dtype=jnp.int32)
  present = columns < jnp.take(jnp.asarray(counts, jnp.int32), task_ids, axis=0)[:, None]
  ids = jnp.take(firsts, task_ids, axis=0)[:, None] + columns
  return jnp.where(present, ids, start), present.astype(jnp.float32)


def specific_counts(index: TaskIndex, counts: Mapping[str, int], default: int = 1) -> tuple[int, ...]:
  """Returns b for each task, in the order of the index.

  Args:
    index: the run's tasks.
    counts: b of some tasks, by name.
    default: b of the others.

  Raises:
    ValueError: a name that the index does not have.
  """
  unknown = sorted(set(counts) - set(index.names))
  if unknown:
    raise ValueError(f'specific_counts.counts names {", ".join(unknown)}, which this run does not have: '
                     'write names of its tasks')
  return tuple(counts.get(name, default) for name in index.names)


class CPolyRouter(SampledRouter):
  """A skills common to all tasks, W_A `common` [T, A], and b of each task's own, W_B `specific` [T, W].

  W_A is routed as in Polytropon. W_B starts block-diagonal (the identity for b = 1):
    learned: used as it stands, so that tasks may borrow from each other (the authors' code);
    gumbel: logits that are sampled and normalised as W_A (the paper's text);
    fixed: never learned and no parameter; only own skills are read, so the cost does not grow with T.

  Attributes:
    num_common: A; 0 leaves the common part out.
    num_specific: b of every task, or one b for each task (see `specific_counts`); 0 leaves the specific part out
      (Polytropon).
    specific: `learned`, `fixed` or `gumbel`.
    own_logit: `gumbel` only: logits start at +own_logit for own skills and at -own_logit for others.
  """

  num_common: int = 3
  num_specific: int | tuple[int, ...] = 1
  specific: str = LEARNED
  own_logit: float = 4.0

  @property
  def counts(self) -> tuple[int, ...]:
    """b of each task."""
    if isinstance(self.num_specific, int):
      return (self.num_specific,) * self.num_tasks
    return tuple(self.num_specific)

  @property
  def num_skills(self) -> int:
    """S = A + W."""
    return self.num_common + sum(self.counts)

  @property
  def active_skills(self) -> int:
    """A and a task's own, if W_B is fixed; all where tasks may borrow."""
    return self.num_common + (max(self.counts) if self.specific == FIXED else sum(self.counts))

  @property
  def reads_own_skills_only(self) -> bool:
    """Whether a task's result depends on no other task's skills or rows, and all have as many skills."""
    return self.reads_own_rows_only and self.specific == FIXED

  @property
  def reads_own_rows_only(self) -> bool:
    """Whether a task's result depends on no other task's rows, so that a step needs those of its batch alone."""
    return self.unknown_task == ERROR and (self.specific != FIXED or len(set(self.counts)) == 1)

  def of_rows(self, rows: int) -> dict[str, int | tuple[int, ...]]:
    """Returns the settings that make this the router of some of its rows, and of their skills if only these are read."""
    if self.reads_own_skills_only:
      return {'num_tasks': rows}
    # Whose a skill is matters to the start of W_B alone: the rows that were taken read all of them.
    return {'num_tasks': rows, 'num_specific': (sum(self.counts), *[0] * (rows - 1))}

  def skills_of_tasks(self, tasks: jax.Array) -> jax.Array:
    """Returns the common skills and the own ones of some tasks, in the order of a run of these tasks alone.

    Args:
      tasks: [U] int32 rows; T stands for no task, and its skills lie beyond all others.

    Returns:
      [A + U*b] int32.
    """
    b = self.counts[0]
    own = self.num_common + tasks[:, None] * b + jnp.arange(b, dtype=jnp.int32)
    return jnp.concatenate([jnp.arange(self.num_common, dtype=jnp.int32), own.reshape(-1)])

  def setup(self):
    self._check()
    if self.num_common:
      self.common = self.table('common', uniform_start, (self.num_common,), ('skill',))
    if sum(self.counts) and self.specific != FIXED:
      start = lambda *_: self._start()
      self.specific_table = self.table('specific', start, (sum(self.counts),), ('skill',))

  def __call__(self, task_ids: jax.Array, x: jax.Array | None = None, *, deterministic: bool,
               step: jax.Array | None = None) -> list[SkillGroup]:
    """See `Router`."""
    groups = []
    if self.num_common:
      logits = self.rows(self.common, task_ids)[:, None]
      groups.append(SkillGroup(self.sampled(logits, task_ids, deterministic, step)))
    if sum(self.counts):
      groups.append(self._specific_group(task_ids, deterministic, step))
    return groups

  def _specific_group(self, task_ids: jax.Array, deterministic: bool, step: jax.Array | None) -> SkillGroup:
    if self.specific == FIXED and self.unknown_task == ERROR:
      ids, weights = own_skills(task_ids, self.counts, self.num_common)
      weights = jnp.where(task_ids[:, None] >= 0, weights, jnp.nan)
      return SkillGroup(weights[:, None], ids=ids)
    # An average over the tasks needs all of their skills, even if each task has only its own.
    table = self._start() if self.specific == FIXED else self.specific_table
    weights = self.rows(table, task_ids)[:, None]
    if self.specific == GUMBEL:
      weights = self.sampled(weights, task_ids, deterministic, step)
    return SkillGroup(weights, start=self.num_common)

  def _start(self) -> jax.Array:
    on, off = (self.own_logit, -self.own_logit) if self.specific == GUMBEL else (1., 0.)
    return block_diagonal(self.counts, on, off)

  def _check(self) -> None:
    if self.specific not in SPECIFIC_KINDS:
      raise ValueError(f'CPolyRouter.specific = {self.specific!r}: write one of {", ".join(SPECIFIC_KINDS)}')
    if len(self.counts) != self.num_tasks:
      raise ValueError(f'CPolyRouter.num_specific has {len(self.counts)} numbers for {self.num_tasks} tasks: write one number '
                       'for all, or one for each')
    if self.num_common < 0 or min(self.counts, default=0) < 0 or not self.num_skills:
      raise ValueError(f'CPolyRouter has A = {self.num_common} common and b = {self.num_specific} specific skills: '
                       'neither may be negative, and one must be above 0')
