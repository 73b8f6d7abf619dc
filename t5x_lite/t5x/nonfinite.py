"""Steps whose loss or gradient is not finite: found and undone on the devices, told by the host a few steps later.

The step itself keeps the old state where its new one would be spoilt. The host learns of it when it reads the report of that
step, which it does once later steps are dispatched, so the loop waits for nothing. All processes read the same report after
the same step, so all of them stop together.

What is done is the model's attribute `nonfinite`:
  `stop` (where it has none): the step and all later ones leave the state alone, and training ends with an error;
  `skip`: the state stays as it was, but the step counts; training ends if a hundred steps in a row are skipped;
  `ignore`: nothing is looked at; the compiled step has no trace of this module.

A model may also have `tasks_of(batch)`, which returns int32 [B, G] numbers of the tasks of each row of a batch, negative where
there is none, and `task_name(number)`.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging
from clu import metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp
import numpy as np

from t5x import state_utils

STOP, SKIP, IGNORE = POLICIES = ('stop', 'skip', 'ignore')
# Under which name the report of a step stands among its metrics.
KEY = 'nonfinite'
# A run that only skips learns nothing any more.
MAX_SKIPPED_IN_A_ROW = 100
# Bits of `Report.kind`.
LOSS, GRADIENT, HALTED = 1, 2, 4
_LISTED = 5
_rows = threading.local()


class NonfiniteError(ValueError):
  """Training cannot go on.

  Attributes:
    step: the step whose loss or gradient is not finite.
    message: what happened and what to do.
  """

  def __init__(self, step: int, message: str):
    super().__init__(message)
    self.step = step
    self.message = message


@flax.struct.dataclass
class Report(clu_metrics.Metric):
  """What a step says of itself.

  Attributes:
    kind: int32 scalar, 0 for a good step, else bits: LOSS, GRADIENT, and HALTED for a step after one that stopped the run.
    steps: int32 scalar, how many steps were not good; merging adds them up.
    rows: [B] bool, which rows of the batch have a loss that is not finite; [0] where the model does not tell.
    tasks: [B, G] int32 as of `tasks_of`; [0, 0] where the model does not tell.
    policy: STOP or SKIP.
  """

  kind: jax.Array
  steps: jax.Array
  rows: jax.Array
  tasks: jax.Array
  policy: str = flax.struct.field(pytree_node=False)

  def merge(self, other: Report) -> Report:
    return self.replace(kind=self.kind | other.kind, steps=self.steps + other.steps)

  def compute(self) -> jax.Array:
    return self.steps


def policy_of(model: Any) -> str:
  """Returns what a model wants.

  Raises:
    ValueError: it is none of POLICIES.
  """
  policy = getattr(model, 'nonfinite', STOP)
  if policy not in POLICIES:
    raise ValueError(f"NONFINITE={policy!r} is not known: write 'stop', 'skip' or 'ignore'.")
  return policy


# On the devices.


def note_rows(loss: jax.Array) -> None:
  """Tells which rows have a loss that is not finite, if a `watching` context is open; loss: [B, L]."""
  found = getattr(_rows, 'found', None)
  if found is not None:
    found.append(~jnp.all(jnp.isfinite(loss), axis=tuple(range(1, loss.ndim))))


@contextlib.contextmanager
def watching() -> Iterator[list[jax.Array]]:
  """Context of one computation of a loss; the list gets what `note_rows` finds in it."""
  before = getattr(_rows, 'found', None)
  _rows.found = []
  try:
    yield _rows.found
  finally:
    _rows.found = before


def report_loss(model: Any, batch: Mapping[str, jax.Array], loss: jax.Array, found: list[jax.Array]) -> dict[str, Report]:
  """Returns {KEY: the report of a loss}, {} if the model wants to ignore it.

  Args:
    model: as in the module's docstring.
    batch: {feature: [B, ...]}.
    loss: [] its loss.
    found: what `watching` found.
  """
  policy = policy_of(model)
  if policy == IGNORE:
    return {}
  rows = found[0] if len(found) == 1 else jnp.zeros(0, bool)
  tasks = model.tasks_of(batch) if hasattr(model, 'tasks_of') else jnp.zeros((0, 0), jnp.int32)
  kind = jnp.where(jnp.isfinite(loss), 0, LOSS).astype(jnp.int32)
  return {KEY: Report(kind, jnp.minimum(kind, 1), rows, tasks, policy)}


def join_microbatches(stacked: Report) -> Report:
  """Returns the report of a batch from that of its n microbatches, whose arrays have a leading axis n."""
  kind = jnp.max(stacked.kind)
  join = lambda x: x.reshape(-1, *x.shape[2:]) if x.size else x[0]
  return Report(kind, jnp.minimum(kind, 1), join(stacked.rows), join(stacked.tasks), stacked.policy)


def guard(metrics: Mapping[str, Any], gradients: Any, old: Any, new: Any) -> tuple[Any, dict[str, Any]]:
  """Undoes an update whose loss or gradient is not finite.

  Where the run is to stop, the step number of the state becomes -1 - step: it marks the state, which no later step changes,
  and tells which step it is of (`unmark`).

  Args:
    metrics: of the step; without a report under KEY nothing is done.
    gradients: those of the trainable parameters.
    old: train state before the step.
    new: train state after it.

  Returns:
    The train state to go on with, and the metrics, all zero where the step was undone so that they do not count.
  """
  report = metrics.get(KEY)
  if report is None:
    return new, dict(metrics)
  finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradients) if jnp.issubdtype(g.dtype, jnp.inexact)]
  kind = report.kind | jnp.where(_all(finite), 0, GRADIENT)
  step = new.step
  if report.policy == STOP:
    halted = old.step < 0
    kind = kind | jnp.where(halted, HALTED, 0)
    step = jnp.where(halted, old.step, jnp.where(kind > 0, -1 - old.step, new.step))
  bad = kind > 0
  # What the update does not touch, as a frozen base, is the same object and stays out of this.
  state = jax.tree.map(lambda was, now: now if now is was else jnp.where(bad, was, now), old, new).replace_step(step)
  counted = jax.tree.map(lambda x: jnp.where(bad, jnp.zeros_like(x), x), {k: v for k, v in metrics.items() if k != KEY})
  return state, {**counted, KEY: report.replace(kind=kind, steps=bad.astype(jnp.int32))}


def _all(flags: list[jax.Array]) -> jax.Array:
  """Returns whether all of a list of bool scalars are true, as one operation."""
  return jnp.all(jnp.stack(flags)) if flags else jnp.bool_(True)


@jax.jit
def _are_finite(arrays: Any) -> list[jax.Array]:
  """Returns a bool for each array of a tree: whether all its values are finite."""
  return [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(arrays)]


def spoilt_parameter(train_state: Any) -> str | None:
  """Returns the name of a trained parameter with a value that is not finite, None if there is none; waits for the devices."""
  trainable, _ = state_utils.partition_params(train_state.params, train_state.trainable_mask)
  arrays = {name: x for name, x in state_utils.flatten_state_dict(trainable).items()
            if x is not None and jnp.issubdtype(x.dtype, jnp.inexact)}
  flags = jax.device_get(_are_finite(arrays))
  return next((name for name, is_finite in zip(sorted(arrays), flags) if not is_finite), None)


@jax.jit
def _unmarked(step: jax.Array) -> jax.Array:
  return jnp.where(step < 0, -1 - step, step)


def unmark(train_state: Any) -> Any:
  """Returns a train state with the number of its last good step, whether or not a later one stopped the run."""
  return train_state.replace_step(_unmarked(train_state.step))


# On the host.


class Reader:
  """Reads the reports of steps and acts on them."""

  def __init__(self, model: Any, tell: Callable[[str], None] | None = None):
    """Creates the reader.

    Args:
      model: as in the module's docstring.
      tell: what takes the line about a skipped step; None: a warning in the log of process 0.
    """
    self.policy = policy_of(model)
    self.tell = tell
    self._name = getattr(model, 'task_name', None)
    self._skipped = 0
    self._in_a_row = 0

  def prefetch(self, metrics: Mapping[str, Any]) -> None:
    """Asks the devices for the report of a step without waiting for it."""
    if KEY in metrics:
      metrics[KEY].kind.copy_to_host_async()

  def read(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Reads the report of a step that has been computed.

    Raises:
      NonfiniteError: the run has to stop.
    """
    kind = int(metrics[KEY].kind) if KEY in metrics else 0
    if not kind:
      self._in_a_row = 0
      return
    what = self._describe(step, kind, metrics[KEY])
    if self.policy == STOP:
      raise NonfiniteError(step, f"{what}. Lower the learning rates or mend the examples, or set NONFINITE = 'skip' to leave "
                                 'such batches out; then start the same command again.')
    self._skipped += 1
    self._in_a_row += 1
    if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
      raise NonfiniteError(step, f'{what}, as those of the {MAX_SKIPPED_IN_A_ROW - 1} steps before it, which were skipped: '
                                 'start from an earlier checkpoint, or with lower learning rates.')
    line = f'{what}: skipped ({self._skipped} so far)'
    if self.tell is not None:
      self.tell(line)
    elif jax.process_index() == 0:
      logging.warning(line)

  def _describe(self, step: int, kind: int, report: Report) -> str:
    """Returns what is not finite at which step, in which tasks."""
    rows, tasks = np.asarray(report.rows), np.asarray(report.tasks)
    if not kind & LOSS:
      return f'The gradient of step {step} is not finite, though its loss is, in a batch of {self._names(tasks)}'
    if not rows.any() or not tasks.size:
      where = f'in a batch of {self._names(tasks)}' if tasks.size else 'in this batch'
      return f'The loss of step {step} is not finite, {where}'
    return (f'The loss of step {step} is not finite in {rows.sum()} of {rows.size} rows of its batch, of '
            f'{self._names(tasks[rows])}')

  def _names(self, tasks: np.ndarray) -> str:
    """Names the tasks of some rows, those with most examples first."""
    counts = collections.Counter(tasks[tasks >= 0].tolist()).most_common()
    if not counts or self._name is None:
      return 'unknown tasks'
    names = [self._name(number) for number, _ in counts]
    more = len(names) - _LISTED
    return ('task ' if len(names) == 1 else 'tasks ') + ', '.join(names[:_LISTED]) + (f' and {more} more' if more > 0 else '')
