"""The mathematics of routing: pure functions of arrays.

Notation: S skills; `...` any leading axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-12


def gumbel_sigmoid(logits: jax.Array, noise: jax.Array | None, temperature: float | jax.Array = 1.0) -> jax.Array:
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


def straight_through(soft: jax.Array) -> jax.Array:
  """Values in [0, 1] rounded to 0 or 1 (from above one half), with the gradient of the soft ones."""
  return soft + jax.lax.stop_gradient((soft > 0.5).astype(soft.dtype) - soft)


def normalise(weights: jax.Array) -> jax.Array:
  """Divides by the sum over the last axis (plus 1e-12): rows of skill weights [..., S] that sum to 1, or to 0 if all are 0."""
  return weights / (jnp.sum(weights, axis=-1, keepdims=True) + EPSILON)


def top_k(probabilities: jax.Array, k: int | None) -> jax.Array:
  """Keeps the k largest of each row [..., S] and divides by their sum over the skills; all of them if k is None."""
  if k is None:
    return probabilities
  values, ids = jax.lax.top_k(probabilities, k)
  kept = jax.nn.one_hot(ids, probabilities.shape[-1], dtype=probabilities.dtype)
  return normalise(jnp.einsum('...k,...ks->...s', values, kept))


def towards_uniform(weights: jax.Array, share: float | jax.Array) -> jax.Array:
  """Moves rows [..., S] to 1/S each: `share` 0 leaves them, 1 makes them uniform."""
  return (1 - share) * weights + share / weights.shape[-1]
