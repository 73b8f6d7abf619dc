"""The least time of a step: the slowest of computing, moving bytes to and from memory, and sending bytes to other chips.

The peak numbers are never reached. `MFU` is the share of the peak FLOP/s that is assumed where a likelier time is told, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Sequence

from cpoly_jax.plan.devices import Device
from cpoly_jax.plan.hlo import Collective, Program

MFU = 0.4
COMPUTE = 'compute'
MEMORY = 'memory'
INTERCONNECT = 'interconnect'


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a step.

  Attributes:
    flops: floating-point operations.
    moved: bytes to and from its memory.
    sent: bytes to other devices.
  """

  flops: float
  moved: float
  sent: float

  def seconds(self, device: Device) -> dict[str, float]:
    """Returns the seconds of each part at the device's peak."""
    return {COMPUTE: self.flops / device.flops, MEMORY: self.moved / device.bandwidth,
            INTERCONNECT: self.sent / device.interconnect}

  def least(self, device: Device) -> tuple[str, float]:
    """Returns the slowest part and its seconds: no step takes less."""
    seconds = self.seconds(device)
    slowest = max(seconds, key=lambda part: seconds[part])
    return slowest, seconds[slowest]

  def likely(self, device: Device, mfu: float = MFU) -> float:
    """Returns the seconds if computing runs at the share `mfu` of the peak, and the rest at it."""
    return max({**self.seconds(device), COMPUTE: self.flops / device.flops / mfu}.values())


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What a compiled program does.

  Attributes:
    work: of one device, each round of a loop counted.
    collectives: what it exchanges with others.
    flops_once: XLA's own count, with the body of each loop once.
  """

  work: Work
  collectives: Sequence[Collective]
  flops_once: float

  @property
  def has_loops(self) -> bool:
    """Whether XLA's own count misses rounds of loops with products."""
    return self.work.flops > 1.001 * self.flops_once


def analyse(executable: Any, program: Program) -> Analysis:
  """Returns what a compiled program does: XLA's counts, to which the products of the further rounds of loops are added.

  Args:
    executable: a `jax.stages.Compiled`.
    program: its text, read.
  """
  counts = executable.cost_analysis()
  counts = counts[0] if isinstance(counts, (list, tuple)) else counts
  flops, flops_once, moved, moved_once = program.products()
  collectives = program.collectives
  work = Work(flops=counts.get('flops', 0.) + flops - flops_once,
              moved=counts.get('bytes accessed', 0.) + moved - moved_once, sent=sum(found.sent for found in collectives))
  return Analysis(work, collectives, counts.get('flops', 0.))
