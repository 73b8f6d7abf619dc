"""What a compiled program says of itself as text: its collectives, its products, and how often its loops go round.

XLA's own cost analysis counts the body of a loop once and no bytes between devices; both are read here from the program of one
device, after the compiler has split it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8,
          'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_OPERATION = re.compile(r' ?([a-z][a-z\-]*)\((.*)$')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Groups of devices: [2,4]<=[8], {{0,1},{2,3}}, or axes of a mesh, mesh['a'=2,'b'=4] {'b'}, perhaps parts of axes, {'b':(1)2}.
_GROUPS = re.compile(r'replica_groups=(?:\[(\d+),(\d+)\]<=|\{\{([\d,]*)\}|mesh\[([^\]]*)\][^{]*\{([^}]*)\})')
_AXIS = re.compile(r"""['"]?(\w+)['"]?(?::\(\d+\)(\d+))?""")

# Bytes that a device sends, of the bytes b that it has in the end, among n devices in a ring.
_SENT = {
    'all-gather': lambda b, n: b * (n - 1) / n,
    'all-reduce': lambda b, n: 2 * b * (n - 1) / n,
    'reduce-scatter': lambda b, n: b * (n - 1),
    'all-to-all': lambda b, n: b * (n - 1) / n,
    'collective-permute': lambda b, n: b,
}


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line of a program: what it makes (as text), what it does, and the rest of the line."""

  shape: str
  operation: str
  rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of a kind in one step.

  Attributes:
    kind: e.g. `all-reduce`.
    number: how often a device takes part.
    sent: bytes that a device sends in all, in a ring.
  """

  kind: str
  number: int
  sent: float


def array_bytes(shape: str) -> int:
  """Returns the bytes of all arrays of a shape as text, e.g. `(f32[2,3]{1,0}, s32[])`: 28."""
  return sum(_BYTES.get(dtype, 0) * math.prod(map(int, filter(None, dims.split(',')))) for dtype, dims in _ARRAY.findall(shape))


class Program:
  """A compiled program.

  Args:
    text: of `jax.stages.Compiled.as_text()`.
  """

  def __init__(self, text: str):
    self._computations: dict[str, dict[str, _Instruction]] = {}
    self._entry = ''
    current: dict[str, _Instruction] = {}
    for line in text.splitlines():
      if not line.startswith(' '):
        header = _COMPUTATION.match(line)
        if header:
          current = self._computations.setdefault(header[2], {})
          self._entry = header[2] if header[1] else self._entry
      elif match := _INSTRUCTION.match(line):
        instruction = _parse(match[2])
        if instruction is not None:
          current[match[1]] = instruction

  @functools.cached_property
  def rounds(self) -> Mapping[str, int]:
    """{computation: how often it runs in a call of the program}."""
    callers = collections.defaultdict(list)
    for name, instructions in self._computations.items():
      for instruction in instructions.values():
        factor = self._trips(instruction) if instruction.operation == 'while' else 1
        for _, called in _CALLED.findall(instruction.rest):
          for one in re.findall(r'[\w.\-]+', called):
            callers[one].append((name, factor))

    @functools.cache
    def rounds(name: str) -> int:
      return int(name == self._entry) + sum(rounds(caller) * factor for caller, factor in callers[name])

    return {name: rounds(name) for name in self._computations}

  def _trips(self, loop: _Instruction) -> int:
    """Returns how often a loop goes round: as told, else the limit of its counter, which in jax starts at 0; else 1."""
    told = _TRIPS.search(loop.rest)
    if told:
      return int(told[1])
    condition = self._computations.get(re.search(r'condition=%?([\w.\-]+)', loop.rest)[1], {})
    for instruction in condition.values():
      if instruction.operation == 'compare' and 'direction=LT' in instruction.rest:
        limit = condition.get(_operands(instruction)[-1])
        if limit is not None and limit.operation == 'constant':
          return int(limit.rest.partition(')')[0])
    return 1

  def _all(self) -> Iterator[tuple[int, Mapping[str, _Instruction], _Instruction]]:
    """Yields (how often it runs, its computation, the instruction) of all that run."""
    for name, instructions in self._computations.items():
      if self.rounds[name]:
        for instruction in instructions.values():
          yield self.rounds[name], instructions, instruction

  @property
  def collectives(self) -> list[Collective]:
    """What a device exchanges with others, most bytes first."""
    number: dict[str, int] = collections.Counter()
    sent: dict[str, float] = collections.Counter()
    for rounds, _, instruction in self._all():
      kind = instruction.operation.removesuffix('-start')
      if kind in _SENT:
        devices = _group_size(instruction.rest)
        if devices > 1 or kind == 'collective-permute':
          number[kind] += rounds
          sent[kind] += rounds * _SENT[kind](array_bytes(_result(instruction)), devices)
    return sorted((Collective(kind, number[kind], sent[kind]) for kind in number), key=lambda found: -found.sent)

  def products(self) -> tuple[float, float, float, float]:
    """Returns what the products of matrices cost.

    Returns:
      FLOPs, FLOPs with the body of each loop once, and bytes that they read and write, in the same two ways.
    """
    flops = once = moved = moved_once = 0.
    for rounds, computation, instruction in self._all():
      if instruction.operation in ('dot', 'convolution'):
        cost = 2. * _elements(instruction.shape) * _contracted(computation, instruction)
        size = array_bytes(instruction.shape) + sum(array_bytes(computation[name].shape) for name in _operands(instruction))
        flops, once, moved, moved_once = flops + rounds * cost, once + cost, moved + rounds * size, moved_once + size
    return flops, once, moved, moved_once


def _parse(text: str) -> _Instruction | None:
  """Splits what follows `=`, e.g. `f32[2]{0} add(%a, %b), metadata={}`."""
  depth = 0
  for end, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if letter == ' ' and not depth:
      match = _OPERATION.match(text[end:])
      return match and _Instruction(text[:end], match[1], match[2])
  return None


def _group_size(rest: str) -> int:
  match = _GROUPS.search(rest)
  if not match:
    return 1
  if match[4] is not None:
    sizes = {name: int(number) for name, number in re.findall(r"""['"]?(\w+)['"]?=(\d+)""", match[4])}
    return math.prod(int(axis[2] or sizes[axis[1]]) for axis in _AXIS.finditer(match[5]))
  return int(match[2]) if match[2] else len(match[3].split(','))


def _result(instruction: _Instruction) -> str:
  """The shape of what a collective ends with; one that is only started has its operands' shapes before that."""
  shape = instruction.shape
  if instruction.operation not in ('all-gather-start', 'collective-permute-start') or not shape.startswith('('):
    return shape
  parts = _split(shape[1:-1])
  return parts[1] if len(parts) > 1 else shape


def _split(text: str) -> list[str]:
  """Splits at commas outside of brackets."""
  parts, depth = [''], 0
  for letter in text:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return parts


def _elements(shape: str) -> int:
  return math.prod(_dims(shape))


def _dims(shape: str) -> Sequence[int]:
  match = _ARRAY.search(shape)
  return [int(size) for size in match[2].split(',') if size] if match else []


def _operands(instruction: _Instruction) -> list[str]:
  return re.findall(r'%([\w.\-]+)', instruction.rest.split(')')[0])


def _contracted(computation: Mapping[str, _Instruction], instruction: _Instruction) -> int:
  """Elements that a product sums over for each element of its result."""
  operands = [_dims(computation[name].shape) for name in _operands(instruction)]
  if instruction.operation == 'dot':
    match = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.rest)
    return math.prod(operands[0][int(i)] for i in match[1].split(',') if i) if match else 1
  # TPUs have their products as convolutions: sums over the input features of the kernel and over its window, except for those
  # dimensions of it that only make a batch of products, which are padded to their whole size or dilated by it.
  labels = re.search(r'dim_labels=\w+_(\w+)->', instruction.rest)
  window = re.search(r'window=\{([^}]*)\}', instruction.rest)
  summed = operands[1][labels[1].index('i')] if labels else 1
  told = dict(field.split('=') for field in window[1].split()) if window else {}
  sizes = told.get('size', '').split('x') if told else []
  for i, width in enumerate(map(int, sizes)):
    padded = 'pad' in told and told['pad'].split('x')[i] == f'{width - 1}_{width - 1}'
    dilated = 'lhs_dilate' in told and told['lhs_dilate'].split('x')[i] == str(width)
    summed *= 1 if padded or dilated else width
  return summed
