"""Which CPUs a run gets, where several run at a time: each as many, and different ones as far as there are enough."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence


def usable() -> list[int]:
  """Returns the CPUs that this process may use."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))


def share(cpus: Sequence[int], jobs: int, slot: int) -> list[int]:
  """Returns the CPUs of run number `slot` of `jobs`."""
  return list(cpus[slot::jobs]) if jobs <= len(cpus) else [cpus[slot % len(cpus)]]


def environment(own: Sequence[int]) -> dict[str, str]:
  """Returns the variables by which libraries take as many threads: OpenMP's, and XLA's (NPROC)."""
  return dict.fromkeys(('OMP_NUM_THREADS', 'NPROC'), str(len(own)))


def pin(pid: int, own: Sequence[int]) -> None:
  """Keeps a process that has just started, and the threads that it will start, to its CPUs, where the system can do that."""
  if hasattr(os, 'sched_setaffinity'):
    with contextlib.suppress(OSError):  # It ended at once.
      os.sched_setaffinity(pid, own)
