"""Published peak numbers of accelerators, each with its source.

GB and TFLOP are decimal, as the sources have them. A vendor that gives an interconnect's bandwidth for both directions
together is taken to send with half of it.
"""

from __future__ import annotations

import dataclasses
import difflib

GB = 10 ** 9
GIB = 2 ** 30
TERA = 10 ** 12


@dataclasses.dataclass(frozen=True)
class Device:
  """One chip.

  Attributes:
    name: as on the command line.
    flops: peak bfloat16 FLOP/s, dense.
    memory: bytes.
    bandwidth: bytes/s between the chip and its memory.
    interconnect: bytes/s that the chip can send to others of its slice or server, over all its links together.
    source: where these are published.
    topology: dimensions of the network of chips; 0: switched, and no TPU.
  """

  name: str
  flops: float
  memory: int
  bandwidth: float
  interconnect: float
  source: str
  topology: int


DEVICES = {device.name: device for device in (
    Device('v4', 275 * TERA, 32 * GIB, 1200 * GB, 300 * GB,
           'docs.cloud.google.com/tpu/docs/v4; links: 6 x 50 GB/s, arXiv 2304.01433', 3),
    Device('v5e', 197 * TERA, 16 * GB, 819 * GB, 200 * GB, 'docs.cloud.google.com/tpu/docs/v5e', 2),
    Device('v5p', 459 * TERA, 95 * GB, 2765 * GB, 600 * GB, 'docs.cloud.google.com/tpu/docs/v5p', 3),
    Device('v6e', 918 * TERA, 32 * GB, 1638 * GB, 400 * GB, 'docs.cloud.google.com/tpu/docs/v6e', 2),
    Device('a100', 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 'NVIDIA A100 80GB SXM data sheet', 0),
    Device('h100', 989 * TERA, 80 * GB, 3350 * GB, 450 * GB, 'NVIDIA H100 SXM data sheet (half of that with sparsity)', 0),
)}


def device(name: str) -> Device:
  """Returns a device; raises ValueError, with the nearest name, if there is none."""
  if name not in DEVICES:
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
    hint = f'did you mean {near[0]}?' if near else f'write one of {", ".join(DEVICES)}'
    raise ValueError(f'no device is named {name}; {hint}')
  return DEVICES[name]


def topology(chip: Device, number: int) -> str:
  """Returns the name of a slice of TPUs as its compiler has it, e.g. `v5e:8x8`, as near to a cube as can be.

  Raises:
    ValueError: no slice has this many chips.
  """
  if number < 1 or number & (number - 1):
    raise ValueError(f'no slice of {chip.name} has {number} chips: write a power of two')
  twos = number.bit_length() - 1
  # The last dimensions get what is left over: 32 chips are 4x8, or 2x4x4.
  exponents = [(twos + i) // chip.topology for i in range(chip.topology)]
  if chip.topology == 3:
    # A host has 2 x 2 x 1 chips.
    exponents = [1, 1, 0] if twos == 2 else exponents
    if twos < 2:
      raise ValueError(f'no slice of {chip.name} has {number} chips: write a power of two from 4')
  return f'{chip.name}:{"x".join(str(2 ** e) for e in exponents)}'
