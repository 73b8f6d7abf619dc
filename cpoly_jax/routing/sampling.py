"""From logits to the weights of skills: noise, temperature, hard values, annealing to uniform.

Notation: B batch, H heads, k skills, tau temperature.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cpoly_jax.routing import functions, schedules

EXAMPLE = 'example'
TASK = 'task'
NONE = 'none'
NOISES = (EXAMPLE, TASK, NONE)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of the Gumbel-sigmoid (Polytropon section 2.2).

  Attributes:
    temperature: tau of the training noise, a number above 0 or a schedule of the step (`routing.schedules`).
    noise: `example`: one draw for each example, as in the reference codes; `task`: one for each task and step;
      `none`: training as evaluation.
    straight_through: training uses values rounded to 0 or 1, with the gradient of the soft ones.
    hard_evaluation: evaluation uses sigmoid(logits) rounded to 0 or 1.
    uniform: share of the weights, from 0 to 1, that is uniform; a number or a schedule of the step. From 0 to 1 it
      anneals the routing away, as multi-head routing's code offers.
  """

  temperature: schedules.Setting = 1.0
  noise: str = EXAMPLE
  straight_through: bool = False
  hard_evaluation: bool = False
  uniform: schedules.Setting = 0.0

  def __post_init__(self):
    if self.noise not in NOISES:
      raise ValueError(f'Sampling.noise = {self.noise!r}: write one of {", ".join(NOISES)}')
    if any(tau <= 0 for tau in schedules.ends(self.temperature)):
      raise ValueError(f'Sampling.temperature = {self.temperature}: write a number above 0')
    if not all(0 <= share <= 1 for share in schedules.ends(self.uniform)):
      raise ValueError(f'Sampling.uniform = {self.uniform}: write a number from 0 to 1')

  @property
  def needs_step(self) -> bool:
    """Whether a setting changes with the step."""
    return callable(self.temperature) or callable(self.uniform)

  def draws(self, deterministic: bool) -> bool:
    """Whether weights are drawn with noise."""
    return not deterministic and self.noise != NONE

  def weights(self, logits: jax.Array, task_ids: jax.Array, *, key: jax.Array | None, deterministic: bool,
              step: jax.Array | None) -> jax.Array:
    """Returns normalised weights.

    Args:
      logits: [B, H, k], those of each example's task.
      task_ids: [N] int32.
      key: rng of the noise; None if nothing is drawn.
      deterministic: evaluation.
      step: float32 scalar, or None if no setting needs it.

    Returns:
      [B, H, k] of the logits' dtype; rows sum to 1.
    """
    soft = functions.gumbel_sigmoid(logits, self._noise(logits, task_ids, key), schedules.value(self.temperature, step))
    if self.hard_evaluation if deterministic else self.straight_through:
      soft = functions.straight_through(soft)
    weights = functions.normalise(soft)
    if callable(self.uniform) or self.uniform:
      weights = functions.towards_uniform(weights, schedules.value(self.uniform, step))
    return weights

  def _noise(self, logits: jax.Array, task_ids: jax.Array, key: jax.Array | None) -> jax.Array | None:
    if key is None:
      return None
    if self.noise == EXAMPLE:
      return jax.random.logistic(key, logits.shape, logits.dtype)
    # A function of the step's key and the task alone: examples of one task share it, whatever the batch.
    # Of a hardware generator (`rbg`) vmap draws for the whole batch from the first key, so the kind is fixed here.
    key = jax.random.key(jax.random.bits(key, (), jnp.uint32), impl='threefry2x32')
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, task_ids.astype(jnp.uint32))
    return jax.vmap(lambda k: jax.random.logistic(k, logits.shape[1:], logits.dtype))(keys)
