"""Settings of routing that change with the training step."""

from __future__ import annotations

import dataclasses
from typing import Union
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Linear:
  """From `start` to `end` in a straight line over the first `steps` steps, then `end`."""

  start: float
  end: float
  steps: int

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f'a schedule of {self.steps} steps: write 1 or more')

  def __call__(self, step: jax.Array) -> jax.Array:
    """Returns the value at `step`, float32."""
    done = jnp.clip(jnp.asarray(step, jnp.float32) / self.steps, 0., 1.)
    return self.start + (self.end - self.start) * self._progress(done)

  def _progress(self, done: jax.Array) -> jax.Array:
    return done


@dataclasses.dataclass(frozen=True)
class Cosine(Linear):
  """As `Linear`, along half a cosine: slow at both ends."""

  def _progress(self, done: jax.Array) -> jax.Array:
    return (1 - jnp.cos(jnp.pi * done)) / 2


Setting = Union[float, Callable[[jax.Array], jax.Array]]


def ends(setting: Setting) -> tuple[float, ...]:
  """Returns the values that bound a setting, as far as they are known without a step."""
  if isinstance(setting, Linear):
    return setting.start, setting.end
  return () if callable(setting) else (setting,)


def value(setting: Setting, step: jax.Array | None) -> float | jax.Array:
  """Returns a setting at a step.

  Raises:
    ValueError: the setting changes with the step, and no step is known.
  """
  if not callable(setting):
    return setting
  if step is None:
    raise ValueError(f'{setting} changes with the step, which this call does not give')
  return setting(step)
