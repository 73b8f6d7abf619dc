"""A trainer whose steps touch only the rows of the tasks in their batch, so that a step does not grow with the tasks.

Notation: B examples, T tasks, U <= B tasks of a batch, S skills.

A batch of U tasks is a batch of a run with U tasks: the step takes their rows of routing and of its optimizer state out, trains
on these, and puts them back in place. Where each task reads nothing but its own skills and the common ones, so it does with
skills; where tasks may borrow, all skills train in each step. What the batch does not use keeps its value and its moments
("lazy" AdamW; the ordinary trainer lets the momentum of a row go on).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from t5x import trainer

from cpoly_jax.adapters import ROUTING, SKILLS, Adapter
from cpoly_jax.training.features import ROUTED_TASK_ID, TASK_ID


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows that a batch uses.

  Attributes:
    tasks: [U] int32 different task rows; those beyond the batch's tasks are T, which no table has.
    skills: [S'] int32 skills of these tasks; those of no task lie beyond all banks. None: all skills.
  """

  tasks: jax.Array
  skills: jax.Array | None

  def _ids(self, path: Any) -> jax.Array | None:
    """The rows of a leaf of the train state, None if it has no rows by task."""
    # The module that the leaf belongs to; optimizer state has the names of its groups before it.
    owner = str(getattr(path[-2], 'key', '')) if len(path) > 1 else ''
    return {SKILLS: self.skills, ROUTING: self.tasks}.get(owner)

  def take(self, state: Any) -> Any:
    """Returns a train state with these rows only."""
    take = lambda leaf, ids: leaf if ids is None else jnp.take(leaf, ids, axis=0, mode='clip')
    return jax.tree_util.tree_map_with_path(lambda path, leaf: take(leaf, self._ids(path)), state)

  def put(self, state: Any, rows: Any) -> Any:
    """Returns `state` with the leaves of `rows` in the place of these rows, and all other leaves from `rows`."""
    put = lambda leaf, new, ids: new if ids is None else leaf.at[ids].set(new, mode='drop', unique_indices=True)
    return jax.tree_util.tree_map_with_path(lambda path, leaf, new: put(leaf, new, self._ids(path)), state, rows)


def rows_of(adapter: Adapter, batch: Mapping[str, jax.Array]) -> tuple[Rows, dict[str, jax.Array]]:
  """Returns the rows that a batch uses, and the batch with its tasks counted within them.

  Args:
    adapter: its router must read its own rows only.
    batch: has `task_id` [B, 1] int32.
  """
  router = adapter.describe()
  ids = batch[TASK_ID][:, 0]
  tasks, within = jnp.unique(ids, return_inverse=True, size=ids.shape[0], fill_value=router.num_tasks)
  return Rows(tasks, router.skills_of_tasks(tasks) if router.reads_own_skills_only else None), {
      **batch, TASK_ID: within.reshape(-1, 1).astype(jnp.int32), ROUTED_TASK_ID: batch[TASK_ID]}


def train_with_rows(train_state: Any, batch: Mapping[str, jax.Array], learning_rate: jax.Array, dropout_rng: jax.Array,
                    model: Any, num_microbatches: int | None, **kwargs) -> tuple[Any, Any]:
  """As `t5x.trainer.train_with_lr`, touching only the rows of the batch's tasks.

  Raises:
    ValueError: the model's tasks read more than their own rows.
  """
  adapter = getattr(model.module, 'adapter', None)
  router = None if adapter is None else adapter.describe()
  if not getattr(router, 'reads_own_rows_only', False):
    raise ValueError('this trainer needs C-Poly or PRIVATE, with tasks that read only their own rows: set UNKNOWN_TASK = '
                     "'error' and, where SPECIFIC = 'fixed', one NUM_SPECIFIC for all tasks, or leave "
                     'gin_configs/runs/task_rows.gin out')
  size = batch[TASK_ID].shape[0]
  if router.num_tasks <= size:
    return trainer.train_with_lr(train_state, batch, learning_rate, dropout_rng, model, num_microbatches, **kwargs)
  rows, batch = rows_of(adapter, batch)
  new, metrics = trainer.train_with_lr(rows.take(train_state), batch, learning_rate, dropout_rng, _with_tasks(model, size),
                                       num_microbatches, **kwargs)
  return rows.put(train_state, new), metrics


class TaskRowsTrainer(trainer.Trainer):
  """T5X's trainer with `train_with_rows`, for C-Poly and PRIVATE."""

  @functools.cached_property
  def _partitioned_train_step(self) -> Callable[..., Any]:
    def train_step(train_state, batch):
      return train_with_rows(
          train_state, batch, self._learning_rate_fn(train_state.step), self._get_step_rng(train_state.step), self._model,
          self._num_microbatches, weight_metrics_computer=self._weight_metrics_computer,
          data_partition_spec=self._partitioner.data_partition_spec)

    return self._partitioner.partition(
        train_step, in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
        out_axis_resources=(self._train_state_axes, None), donate_argnums=(0,))


def _with_tasks(model: Any, num_tasks: int) -> Any:
  """A copy of the model whose routing has `num_tasks` rows."""
  adapter = model.module.adapter
  smaller = copy.copy(model)
  router = functools.partial(adapter.router, **adapter.describe().of_rows(num_tasks))
  smaller.module = model.module.clone(adapter=dataclasses.replace(adapter, router=router))
  return smaller
