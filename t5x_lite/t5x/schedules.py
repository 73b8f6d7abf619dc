"""Learning rate schedules, written as a product of named factors.

A gin file says `factors = 'constant * linear_warmup * rsqrt_decay'`, and the rate of a step is the
product of the factors at that step, never below a floor.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[int | jax.Array], jax.Array]


def create_learning_rate_scheduler(
  factors: str = 'constant * linear_warmup * rsqrt_decay',
  base_learning_rate: float = 0.5,
  warmup_steps: int = 1000,
  decay_factor: float = 0.5,
  steps_per_decay: int = 20000,
  steps_per_cycle: int = 100000,
  step_offset: int = 0,
  min_learning_rate: float = 1e-8,
) -> Schedule:
  """Returns a schedule: the product of `factors` at a step.

  With s = max(0, step - step_offset) and w = warmup_steps the factors are

    constant: base_learning_rate
    linear_warmup: min(1, s / w)
    linear_decay: base_learning_rate * min(s / w, 1 + decay_factor * (w - s))
    rsqrt_decay: 1 / sqrt(max(s, w))
    rsqrt_normalized_decay: sqrt(w) / sqrt(max(s, w))
    decay_every: decay_factor ** (s // steps_per_decay)
    cosine_decay: (1 + cos(pi * (p mod 1))) / 2, p = max(0, (s - w) / steps_per_cycle)

  Args:
    factors: names of factors, separated by `*`.
    base_learning_rate: the rate that `constant` and `linear_decay` start from.
    warmup_steps: steps of the warm-up; `rsqrt_decay` is flat until then.
    decay_factor: slope of `linear_decay`, ratio of `decay_every`.
    steps_per_decay: how often `decay_every` decays.
    steps_per_cycle: length of a cosine cycle.
    step_offset: the step the schedule counts from, for runs that start from a checkpoint.
    min_learning_rate: the floor of the result.

  Returns:
    A function of the step (int or integer array []) to the learning rate, a float32 array [].

  Raises:
    ValueError: for an unknown factor.
  """
  base, offset, warmup = base_learning_rate, step_offset, warmup_steps
  flat = max(warmup, 1)

  def ramp(s):
    return s / warmup if warmup else jnp.inf  # no warm-up: it is over at step 0

  def cosine(s):
    cycles = jnp.maximum(0.0, (s - warmup) / steps_per_cycle)
    return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0))))

  known = {
    'constant': lambda s: base,
    'linear_warmup': lambda s: jnp.minimum(1.0, ramp(s)),
    'linear_decay': lambda s: base * jnp.minimum(ramp(s), 1.0 + decay_factor * (warmup - s)),
    'rsqrt_decay': lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, flat)),
    'rsqrt_normalized_decay': lambda s: jnp.sqrt(flat / jnp.maximum(s, flat)),
    'decay_every': lambda s: decay_factor ** (s // steps_per_decay),
    'cosine_decay': cosine,
  }
  names = [name.strip() for name in factors.split('*')]
  for name in names:
    if name not in known:
      raise ValueError(
        f'unknown learning rate factor {name!r}: use {", ".join(known)}, separated by *'
      )

  def schedule(step: int | jax.Array) -> jax.Array:
    steps = jnp.maximum(0, jnp.asarray(step) - offset)
    rate = jnp.asarray(1.0, jnp.float32)
    for name in names:
      rate = rate * known[name](steps)
    return jnp.maximum(rate, min_learning_rate).astype(jnp.float32)

  return schedule
