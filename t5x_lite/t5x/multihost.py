"""What the processes of one run have in common: joining, barriers, equal values, when to stop, and what to say when one dies.

The functions on values are no-ops, or the identity, where there is one process.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from t5x import last_words

# Where the chips of a TPU appear in the file system, by generation.
TPU_DEVICES = ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*')
_METADATA_SECONDS = 5
_AGAIN = 'start the same command again on every host, and it goes on from the last checkpoint'
# A broken connection to another process, as Gloo, NCCL and the coordination service of jax.distributed say it.
_LOST = re.compile(
    r'[^\n]*(Gloo [\w-]+ failed|gloo/transport|stopped sending heartbeats|tasks have crashed|coordination_service'
    r'|Barrier (failed|timed out)|nccl(Remote|System|Internal)Error)[^\n]*')

_last_words: last_words.LastWords | None = None


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


# --------------------------------------------------------------------------------------------------
# Joining, and leaving
# --------------------------------------------------------------------------------------------------


def initialize(coordinator_address: str | None = None, process_count: int | None = None, process_index: int | None = None,
               timeout: int = 300, heartbeat_timeout: int = 100) -> None:
  """Joins the processes of a run; call it before the first computation.

  What is None is found by jax, where it knows the environment: Slurm's, Open MPI's, a Cloud TPU's, Kubernetes'.

  Args:
    coordinator_address: host:port of the first process.
    process_count: number of processes.
    process_index: index of this one.
    timeout: seconds to wait for all of them.
    heartbeat_timeout: seconds after which a silent process counts as dead, and the others end.

  Raises:
    ValueError: something is None that jax does not find, or makes no sense.
  """
  global _last_words
  given = {'coordinator_address': coordinator_address, 'process_count': process_count, 'process_index': process_index}
  if coordinator_address is not None and not re.fullmatch(r'.+:\d+', coordinator_address):
    raise ValueError(f'--coordinator_address={coordinator_address} has no port: write host:port, e.g. '
                     f'{coordinator_address}:8476')
  if process_count is not None and process_index is not None and not 0 <= process_index < process_count:
    raise ValueError(f'--process_index={process_index} must be from 0 to {process_count - 1}: --process_count={process_count}')
  if jax.config.jax_cpu_collectives_implementation is None:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # While on, JAX keeps SIGTERM from ending the process, which only a training loop wants: `share_stop_signal`.
  jax.config.update('jax_enable_preemption_service', False)
  who = 'this process' if process_index is None or process_count is None else f'process {process_index} of {process_count}'
  _last_words = last_words.LastWords(
      f'error: {who} did not see all others within {timeout} s: start every process with the same --coordinator_address and '
      '--process_count, each with its own --process_index, or give a longer --initialization_timeout')
  try:
    jax.distributed.initialize(coordinator_address, process_count, process_index, initialization_timeout=timeout,
                               heartbeat_timeout_seconds=heartbeat_timeout)
  except Exception as e:
    _last_words.withdraw()
    missing = [f'--{name}=...' for name, value in given.items() if value is None]
    if isinstance(e, ValueError) and missing:
      raise ValueError('--multiprocess_gpu: JAX finds no Slurm, Open MPI, Kubernetes or Cloud TPU here that tells who this '
                       f'process is: write {" ".join(missing)}') from e
    if 'Failed to start RPC server' in str(e):
      raise ValueError(f'port {(coordinator_address or "").rpartition(":")[2]} of --coordinator_address is in use on this '
                       'host, the first one: write another port, the same for all processes') from e
    raise
  from jax._src import distributed  # jax.process_index() would start the devices.
  found = distributed.global_state
  _last_words.change(
      f'error: process {found.process_id} of {found.num_processes} has ended: it was killed, or another process died and JAX '
      f'ended this one (what it printed is above); {_AGAIN}')


def leave(clean: bool) -> None:
  """Tells the other processes that this one ends; called once, as the last thing.

  Args:
    clean: all has gone well, so it is worth waiting for the others, who end too.
  """
  if clean and jax.distributed.is_initialized():
    jax.distributed.shutdown()
  if _last_words is not None:
    _last_words.withdraw()


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
  """Context in which the error of a broken connection to another process says what that means.

  Raises:
    ConnectionError: one line.
  """
  try:
    yield
  except Exception as e:
    causes = [e]
    while causes[-1].__cause__ is not None:
      causes.append(causes[-1].__cause__)
    found = next(filter(None, (_LOST.search(str(cause)) for cause in causes)), None)
    if found is None or not jax.distributed.is_initialized():
      raise
    raise ConnectionError(
        f'process {jax.process_index()} of {jax.process_count()} lost another one ({found[0].strip()}): it died or was ended, '
        f'and what it printed says why; {_AGAIN}') from e


# --------------------------------------------------------------------------------------------------
# Stopping together
# --------------------------------------------------------------------------------------------------


def share_stop_signal() -> bool:
  """Lets a SIGTERM that any process gets reach all: from now on it does not end the process.

  Returns:
    Whether there are several processes; else nothing has changed.
  """
  if jax.process_count() == 1 or not jax.distributed.is_initialized():
    return False
  # jax offers this only as a part of `jax.distributed.initialize`, where it would be too early.
  from jax._src import distributed
  if distributed.global_state.preemption_sync_manager is None:
    jax.config.update('jax_enable_preemption_service', True)
    distributed.global_state.initialize_preemption_sync_manager()
  return True


def is_agreed_stop(step: int) -> bool:
  """Whether a signal has reached a process and all have agreed to stop after this step.

  Each process calls it once for each step, in order. It looks at a number that a thread keeps: nothing is sent or waited for
  until a signal comes.
  """
  from jax.experimental import multihost_utils
  return multihost_utils.reached_preemption_sync_point(step)


# --------------------------------------------------------------------------------------------------
# Cloud TPU
# --------------------------------------------------------------------------------------------------


def is_tpu_pod() -> bool:
  """Whether this is one of several hosts of a Cloud TPU, which have to join; looks at no TPU, only at its surroundings.

  GKE tells by variables, a TPU VM by its metadata server, which is asked only where there are TPU chips.
  """
  allowed = (os.environ.get('JAX_PLATFORMS') or 'tpu').split(',')
  if 'tpu' not in allowed or not importlib.util.find_spec('libtpu') or not any(map(glob.glob, TPU_DEVICES)):
    return False
  if int(os.environ.get('MEGASCALE_NUM_SLICES') or 1) > 1:
    return True
  hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES')
  if hosts is None and 'TPU_SKIP_MDS_QUERY' not in os.environ:
    server = os.environ.get('GCE_METADATA_HOST', 'metadata.google.internal')
    request = urllib.request.Request(f'http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints',
                                     headers={'Metadata-Flavor': 'Google'})
    with contextlib.suppress(OSError):  # No server: no pod.
      direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
      hosts = direct.open(request, timeout=_METADATA_SECONDS).read().decode()
  return ',' in (hosts or '')
