"""Rematerialisation: which values of a layer's forward pass are kept for its backward pass, and which are computed again.

    none      all of them are kept: the fastest step
    minimal   results of products with kernels are kept; attention weights, norms, activations and skills are computed again
    full      only the layer's input is kept, so each layer runs forward twice

These are the names and the meanings of T5X's and MaxText's `remat_policy`. No policy changes results, but for rounding.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Callable

import jax

NONE = 'none'
MINIMAL = 'minimal'
FULL = 'full'

# What `jax.checkpoint` may keep.
_KEPT = {MINIMAL: jax.checkpoint_policies.dots_with_no_batch_dims_saveable, FULL: jax.checkpoint_policies.nothing_saveable}
_CHEAP = frozenset(('convert_element_type', 'sharding_constraint', 'transpose', 'reshape', 'broadcast_in_dim'))
POLICIES = (NONE, *_KEPT)


def _all_but_cheap(primitive: Any, *_, **__) -> bool:
  """Keeps everything but copies in another type or layout: without this a scan would keep all cast weights of its layers."""
  return primitive.name not in _CHEAP


def rematerialised(function: Callable, policy: str, *, in_scan: bool = False) -> Callable:
  """Returns `function` with the policy of its backward pass.

  Args:
    function: of arrays; it may close over others.
    policy: one of `POLICIES`.
    in_scan: the function is the body of a `jax.lax.scan`, which by itself keeps XLA from merging both computations.

  Raises:
    ValueError: an unknown policy.
  """
  if policy not in POLICIES:
    raise ValueError(f'remat_policy = {policy!r}: write one of {", ".join(POLICIES)}')
  if policy == NONE and not in_scan:
    return function
  return jax.checkpoint(function, policy=_KEPT.get(policy, _all_but_cheap), prevent_cse=not in_scan)
