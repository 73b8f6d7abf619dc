"""Weights of every form that routers give, for the tests of skills."""

import jax.numpy as jnp
import numpy as np

from cpoly_jax.skills import SkillGroup

B, L, D, O, R, S, A = 3, 4, 6, 8, 2, 7, 3


KERNEL = np.random.default_rng(7).normal(size=(D, O)).astype(np.float32)


def project(x):
  """The frozen projection [B, L, D] -> [B, L, O], in x's dtype."""
  return x @ jnp.asarray(KERNEL, x.dtype)


def inputs(seed=0):
  """x [B, L, D]."""
  return np.random.default_rng(seed).normal(size=(B, L, D)).astype(np.float32)


def bank(*shape, seed=1):
  """A bank [S, *shape]."""
  return np.random.default_rng(seed).normal(size=(S, *shape)).astype(np.float32)


def _weights(*shape, seed=2):
  return jnp.asarray(np.random.default_rng(seed).uniform(.1, 1, size=shape), jnp.float32)


def by_task(heads=1):
  """A common and a specific group."""
  weights = _weights(B, heads, S)
  return [SkillGroup(weights[..., :A]), SkillGroup(weights[..., A:], start=A)]


def by_id():
  """A common group, and skills chosen for each example, one of them twice."""
  ids = jnp.asarray([[3, 4], [5, 6], [6, 6]], jnp.int32)
  return [SkillGroup(_weights(B, 1, A)), SkillGroup(_weights(B, 1, 2, seed=3), ids=ids)]


def by_token():
  """A common group by token."""
  return [SkillGroup(_weights(B, L, S), per_token=True)]


def by_token_and_id():
  """As CGC: a common group, and skills chosen for each example, weighed by token."""
  ids = jnp.asarray([[3, 4], [5, 6], [3, 6]], jnp.int32)
  return [SkillGroup(_weights(B, L, A), per_token=True), SkillGroup(_weights(B, L, 2, seed=3), ids=ids, per_token=True)]


GROUPS = dict(by_task=by_task, heads=lambda: by_task(2), by_id=by_id, by_token=by_token, by_token_and_id=by_token_and_id)
