"""Bytes of a train state on each device, and of a checkpoint: sums over shapes, dtypes and how these are split.

A device holds of a leaf the sizes of its dimensions divided by those of their mesh axes, so these bytes are exact.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cpoly_jax.plan.train_step import PARAMETERS, State


@dataclasses.dataclass(frozen=True)
class StateBytes:
  """Bytes of a train state, on one device or all of it.

  Attributes:
    frozen: parameters that do not train, in the dtype in which they are kept.
    trainable: parameters that do.
    optimizer: the optimizer's state, and the step.
    gradients: of the parameters that train; they come and go within a step.
  """

  frozen: int
  trainable: int
  optimizer: int
  gradients: int

  @property
  def kept(self) -> int:
    """What is there between two steps."""
    return self.frozen + self.trainable + self.optimizer


def leaf_bytes(leaf: Any, spec: PartitionSpec | None = None, mesh: Mapping[str, int] | None = None) -> int:
  """Returns the bytes of an array on one device.

  Args:
    leaf: has a shape and a dtype.
    spec: mesh axes of its dimensions; None: every device has a copy.
    mesh: sizes of the mesh axes.
  """
  axes = [*(spec or ()), *[None] * len(leaf.shape)]
  sizes = (-(-size // _parts(axis, mesh or {})) for size, axis in zip(leaf.shape, axes))
  return math.prod(sizes) * jnp.dtype(leaf.dtype).itemsize


def _parts(axis: Any, mesh: Mapping[str, int]) -> int:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  return math.prod(mesh[name] for name in names)


def state_bytes(state: State, mesh: Mapping[str, int] | None = None, specs: Mapping[str, Any] | None = None) -> StateBytes:
  """Returns the bytes of a train state.

  Args:
    state: the state.
    mesh: sizes of the mesh axes, for one device; None: one copy of all of it.
    specs: how its leaves are split, in place of the state's own.
  """
  specs = state.specs if specs is None else specs
  cost = {name: leaf_bytes(leaf, None if mesh is None else specs.get(name), mesh) for name, leaf in state.leaves.items()}
  params = state.params
  total = lambda names: sum(cost[name] for name in names)
  trained = [name for name in params if name in state.trainable]
  return StateBytes(frozen=total(params) - total(trained), trainable=total(trained), optimizer=total(cost) - total(params),
                    gradients=total(name for name in trained if jnp.issubdtype(params[name].dtype, jnp.floating)))


def parameter_counts(state: State, group_of: Callable[[str], str]) -> dict[str, int]:
  """Returns {group: parameters}; `group_of` gives the group of a path such as `encoder/.../skills/down`."""
  counts: dict[str, int] = collections.Counter()
  for name, leaf in state.params.items():
    counts[group_of(name.removeprefix(PARAMETERS))] += math.prod(leaf.shape)
  return dict(counts)


def checkpoint_bytes(state: State, dtype: Any = None) -> tuple[int, int]:
  """Returns the bytes of a checkpoint's arrays, before compression.

  Args:
    state: the state.
    dtype: in which floating-point parameters are saved; None: theirs.

  Returns:
    Bytes of what changes (trained parameters, optimizer state, step), and of all with the frozen parameters.
  """
  saved = lambda leaf: jnp.dtype(dtype) if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  size = {name: math.prod(leaf.shape) * jnp.dtype(saved(leaf)).itemsize for name, leaf in state.params.items()}
  optimizer = state_bytes(state).optimizer
  changes = sum(number for name, number in size.items() if name in state.trainable) + optimizer
  return changes, sum(size.values()) + optimizer
