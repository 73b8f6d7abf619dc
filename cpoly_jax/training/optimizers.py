"""The optimizer of skills, routing and base: AdamW with a learning rate for each of them.

A parameter belongs to the first of `RULES` whose pattern its path matches. What is frozen has neither gradient nor state
where the provider of t5x honours `trainable_mask`; elsewhere its update is zero. Schedules count from the run's first
step, as optax keeps that count in its own state, so the step of the base's checkpoint does not matter.

Of skills and routing some rows may train alone (`GroupedAdamW.rows`): moments, decay and the gradient's norm are then those of
these rows, and the others keep every bit.
"""

from __future__ import annotations

import functools
import re
from typing import Any
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from t5x import optimizers

from cpoly_jax.training import stacked_updates

SKILLS = 'skills'
ROUTING = 'routing'
BASE = 'base'
CLOCK = 'clock'  # The run's step, for settings of the routing that change with it.
FROZEN = 'frozen'  # Never trained: the positions of sparse skills.
RULES = ((r'clock', CLOCK), (r'(.*/)?skills/indices', FROZEN), (r'(.*/)?routing/.*', ROUTING), (r'(.*/)?skills/.*', SKILLS),
         (r'.*', BASE))


def group_of(path: str) -> str:
  """Returns the group, one of RULES' names, of the parameter at `path`, e.g. `encoder/.../skills/down`."""
  return next(group for pattern, group in RULES if re.fullmatch(pattern, path))


# The rows of the parameter at a path that train: numbers, () for none, None for all.
Rows = Callable[[str], Sequence[int] | None]


def _by_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
  """As `jax.tree.map`, with the path of each leaf, e.g. `encoder/.../skills/down`, as the first argument."""
  return jax.tree_util.tree_map_with_path(
      lambda path, *leaves: function('/'.join(str(getattr(k, 'key', k)) for k in path), *leaves), tree, *others)


def parameter_groups(params: Any, rows: Rows | None = None) -> Any:
  """Returns a tree like `params` with the group of each leaf; `frozen` where none of its rows trains."""
  none = lambda path: rows is not None and rows(path) is not None and not len(rows(path))
  return _by_path(lambda path, _: FROZEN if none(path) else group_of(path), params)


def _put(path: str, leaf: jax.Array, part: jax.Array, rows: Rows) -> jax.Array:
  """Returns a leaf with those of its rows that train from `part`."""
  at = rows(path)
  if at is None:
    return part
  return leaf.at[np.asarray(at)].set(part, unique_indices=True) if len(at) else leaf


def on_rows(transformation: optax.GradientTransformation, rows: Rows) -> optax.GradientTransformation:
  """Returns a transformation that sees some rows of the parameters alone; the update of others is zero.

  Args:
    transformation: its state is that of the rows.
    rows: which rows of a leaf; of one with () it sees the leaf itself, whatever update it makes.
  """
  def take(path, leaf):
    at = rows(path)
    return leaf if at is None or not len(at) else leaf[np.asarray(at)]

  def update(updates, state, params):
    zeros = jax.tree.map(jnp.zeros_like, updates)
    updates, state = transformation.update(_by_path(take, updates), state, _by_path(take, params))
    return _by_path(functools.partial(_put, rows=rows), zeros, updates), state

  return optax.GradientTransformation(lambda params: transformation.init(_by_path(take, params)), update)


def linear_warmup_decay(peak: float, total_steps: int, warmup_ratio: float = 0.06) -> optax.Schedule:
  """Linear from 0 to `peak` over the first part of the steps, then linear to 0 (C-Poly's schedule).

  Args:
    peak: highest learning rate.
    total_steps: steps of the run, counted from its first one.
    warmup_ratio: share of the steps that warms up, in [0, 1).

  Returns:
    A function from the step (an integer or int32 array) to the rate, float32.
  """
  if total_steps < 1 or not 0 <= warmup_ratio < 1:
    raise ValueError(f'a schedule of {total_steps} steps with warmup_ratio {warmup_ratio}: '
                     'write 1 step or more, and a ratio from 0 to below 1')
  warmup = max(1, round(total_steps * warmup_ratio))

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    # The first update already has a rate above 0.
    rising = (step + 1) / warmup
    falling = (total_steps - step) / max(1, total_steps - warmup)
    return peak * jnp.clip(jnp.minimum(rising, falling), 0., 1.)

  return rate


def _count_steps() -> optax.GradientTransformation:
  """Adds 1 to each parameter at each step, whatever its gradient."""
  return optax.GradientTransformation(lambda params: optax.EmptyState(),
                                      lambda updates, state, params=None: (jax.tree.map(jnp.ones_like, updates), state))


class GroupedAdamW(optimizers.OptaxWrapper):
  """AdamW with rates of their own for skills, for routing ("dual speed") and for the base, which is frozen by default.

  Args:
    skills_learning_rate: a rate or a schedule (`linear_warmup_decay`); None freezes the skills (MHR-z).
    routing_learning_rate: the same for routing; METHOD's dual speed wants it higher.
    base_learning_rate: the same for the base; a rate makes it full fine-tuning.
    weight_decay: of skills.
    routing_weight_decay: of routing.
    base_weight_decay: of the base.
    max_grad_norm: bound of the gradient's global norm over all that trains; None for no bound.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    rows: of a path of the parameters, which of its rows train: numbers, () for none, None for all; they are rows of skills
      or of tasks. None: all of all. Skills and routing are then in every checkpoint as a whole, and keep their dtype.
    stack_layers: update all layers of a stack together (`stacked_updates`), which compiles faster; not where `rows` or the base
      train.

  Raises:
    ValueError: every rate is None.
  """

  def __init__(self, skills_learning_rate: float | Callable | None = 1e-3,
               routing_learning_rate: float | Callable | None = 1e-2, base_learning_rate: float | Callable | None = None,
               weight_decay: float = 0., routing_weight_decay: float = 0.,
               base_weight_decay: float = 0., max_grad_norm: float | None = 1.0, b1: float = 0.9, b2: float = 0.999,
               eps: float = 1e-8, rows: Rows | None = None, stack_layers: bool = False):
    rates = {SKILLS: (skills_learning_rate, weight_decay), ROUTING: (routing_learning_rate, routing_weight_decay),
             BASE: (base_learning_rate, base_weight_decay)}
    trained = {group: optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=decay)
               for group, (rate, decay) in rates.items() if rate is not None}
    if not trained:
      raise ValueError('nothing would train: give GroupedAdamW a learning rate for the skills, the routing or the base')
    zero = {group: optax.set_to_zero() for group in (SKILLS, ROUTING, BASE, CLOCK, FROZEN)}
    groups = functools.partial(parameter_groups, rows=rows)
    steps = []
    if max_grad_norm is not None:
      # What does not train must not count in the norm.
      steps += [optax.multi_transform(zero | {group: optax.identity() for group in trained}, groups),
                optax.clip_by_global_norm(max_grad_norm)]
    steps.append(optax.multi_transform(zero | trained | {CLOCK: _count_steps()}, groups))
    chain = optax.chain(*steps)
    if stack_layers and rows is None and base_learning_rate is None:
      chain = stacked_updates.by_stack(chain)
    super().__init__(chain if rows is None else on_rows(chain, rows))
    self._trained = frozenset(trained)
    self._rows = rows

  def apply_gradient(self, hyper_params, params, state, grads):
    """As T5X's; rows that do not train are copied, as adding zero may change a bit of -0 and of very small numbers."""
    new, state = super().apply_gradient(hyper_params, params, state, grads)
    if self._rows is None:
      return new, state
    take = lambda path, leaf: leaf if self._rows(path) is None else leaf[np.asarray(self._rows(path), np.int32)]
    return _by_path(functools.partial(_put, rows=self._rows), params, _by_path(take, new)), state

  def trainable_mask(self, params: Any) -> Any:
    """Returns a tree like `params`: True where something changes, and with `rows` for all skills and routing.

    Raises:
      ValueError: the network has no parameter of any group that trains.
    """
    groups = parameter_groups(params, self._rows)
    if not self._trained & set(jax.tree.leaves(groups)):
      raise ValueError(f'the network has no parameters of {" or ".join(sorted(self._trained))}, so nothing would train: give '
                       'network.Transformer an adapter, or GroupedAdamW a base_learning_rate')
    # What is not trained is taken for a part of the base, in the base's dtype: of skills that would not keep every bit.
    kept = (CLOCK, *((SKILLS, ROUTING) if self._rows is not None else ()))
    return _by_path(lambda path, group: group in self._trained or group_of(path) in kept, groups)
