"""What several processes of one run must agree on: barriers, equal values, the kind of random numbers.

Every function is a no-op, or the identity, where there is one process.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def sync_global_devices(name: str) -> None:
  """Waits until every process has reached the barrier `name`."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices(name)


def multihost_assert_equal(values: Any, fail_message: str = '') -> None:
  """Raises where a pytree of numbers differs between processes.

  Args:
    values: pytree of arrays or numbers, small ones.
    fail_message: what to tell the user.

  Raises:
    AssertionError: with `fail_message`, in every process.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    multihost_utils.assert_equal(values, fail_message)


def broadcast_int(value: int) -> int:
  """Returns the value that process 0 passed, in every process."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    value = int(multihost_utils.broadcast_one_to_all(np.int32(value)))
  return value


def set_hardware_rng_ops() -> None:
  """Uses the accelerator's own random bits: fast, stable for one mesh, different from threefry's."""
  jax.config.update('jax_default_prng_impl', 'unsafe_rbg')


def get_local_data(x: Any) -> Any:
  """Returns the pytree with each global array replaced by the shard that this process holds first."""
  def local(leaf):
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
  return jax.tree.map(local, x)


def initialize(coordinator_address: str, process_count: int, process_index: int, timeout: int) -> None:
  """Joins the processes of a GPU run, each of which was started with its own `process_index`."""
  jax.distributed.initialize(coordinator_address, process_count, process_index,
                             initialization_timeout=timeout)
