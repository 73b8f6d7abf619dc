"""Checksums of arrays that do not depend on how these are sharded or stored, and of the JSON beside them.

Storage finds a file that was cut, but a value that was altered reads like any other. So each array has two sums modulo 2^32:

    h_i = mix(w_i + 0x9E3779B1 i)        sum_i h_i        sum_i (2 i + 1) h_i

w_i are the bits of the value (or half value, of 8 bytes) at the flat index i of the whole array, and `mix` is a bijection
(the finalizer of MurmurHash3), so that one altered value is found with certainty, and anything else but for a chance of 2^-64.
Whole numbers may be added in any order: each device sums its own shard, and each part that is read has a sum of its own. This
finds damage, not forgery: who can write the file can write its checksums too.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  from t5x.checkpoint_reader import StoredArray

DIGEST = 'digest'
CHECKSUMS = 'checksums'
_STEP, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
# Of values that are mixed at a time, so that they stay in the processor's cache.
_BLOCK = 2**16


def _sums(words, flat, numpy):
  """Returns the two sums of uint32 `words` at the uint32 positions `flat`, of numpy or of jax.numpy."""
  u32 = numpy.uint32
  h = words + flat * u32(_STEP)
  h = (h ^ (h >> u32(16))) * u32(_FIRST)
  h = (h ^ (h >> u32(13))) * u32(_SECOND)
  h = h ^ (h >> u32(16))
  return numpy.stack([numpy.sum(h, dtype=u32), numpy.sum(h * (flat * u32(2) + u32(1)), dtype=u32)])


def sums_of_part(values: np.ndarray, starts: Sequence[int], shape: Sequence[int]) -> np.ndarray:
  """Returns what a part adds to the sums of its array.

  Args:
    values: the part, of any dtype.
    starts: where it begins in each dimension of the array.
    shape: of the array.

  Returns:
    [2] uint32.
  """
  values = np.ascontiguousarray(values).reshape(values.shape)
  sizes, starts, shape = list(values.shape), list(starts), list(shape)
  if values.dtype.itemsize == 8:
    words = values.reshape(-1).view(np.uint32)
    sizes, starts, shape = [*sizes, 2], [*starts, 0], [*shape, 2]
  else:
    words = values.reshape(-1).view(f'u{values.dtype.itemsize}')
  # Runs of values that follow each other in the whole array too, and the place where each run begins.
  run, stride = 1, 1
  while sizes and sizes[-1] == shape[-1]:
    run *= sizes.pop()
    stride *= shape.pop()
    starts.pop()
  if sizes:
    run *= sizes.pop()
    offset = starts.pop() * stride
    stride *= shape.pop()
  else:
    offset = 0
  begins = np.full(1, offset, np.int64)
  while sizes:
    begins = ((np.arange(sizes.pop()) + starts.pop())[:, None] * stride + begins).reshape(-1)
    stride *= shape.pop()
  begins = begins.astype(np.uint32)  # Modulo 2^32, as on a device.
  total = np.zeros(2, np.uint32)
  for first in range(0, words.size, _BLOCK):
    block = words[first:first + _BLOCK].astype(np.uint32)
    flat = np.arange(first, first + block.size)
    if begins.size > 1:
      flat = begins[flat // run] + (flat % run).astype(np.uint32)
    else:
      flat = flat.astype(np.uint32) + begins[0]
    total += _sums(block, flat, np)
  return total


def _sums_on_device(x: jax.Array) -> jax.Array:
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  # 8 bytes become two words, in a last axis.
  bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
  flat, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    flat += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return _sums(words, flat, jnp)


@functools.lru_cache(maxsize=8)
def _compiled(mesh):
  """Returns the sums' program; each shape, dtype and sharding is compiled once."""
  # Replicated, so that each process of a multi-process job sees them.
  out = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(_sums_on_device, out_shardings=out)


def _is_on_host(array: Any) -> bool:
  """Whether this process has all of an array in its own memory.

  Virtual CPU devices are no exception: many programs with collective operations at a time can starve their few threads.
  """
  if not isinstance(array, jax.Array):
    return True
  return array.is_fully_addressable and all(device.platform == 'cpu' for device in array.sharding.device_set)


def _text(sums: np.ndarray) -> str:
  return f'{int(sums[0]):08x}{int(sums[1]):08x}'


def compute(arrays: Mapping[str, Any]) -> dict[str, str]:
  """Returns the checksum of each array, 16 hexadecimal digits.

  Those on devices are summed there, each shard where it lies, and only the sums are waited for; in a multi-process job all
  processes have to call this.

  Args:
    arrays: by name: numpy arrays, or JAX arrays of any sharding.
  """
  sums = {}
  for name, array in arrays.items():
    if _is_on_host(array):
      sums[name] = sums_of_part(np.asarray(array), (0,) * np.ndim(array), np.shape(array))
    else:
      sums[name] = _compiled(getattr(array.sharding, 'mesh', None))(array)
  return {name: _text(value) for name, value in jax.device_get(sums).items()}


class Summed:
  """A stored array that sums what is read of it.

  It stands for the array in `array_reader.read_arrays`; `total` then tells the checksum of all that was read.

  Attributes:
    array: the stored array, whose values are summed before any cast.
  """

  def __init__(self, array: StoredArray):
    self.array = array
    self._plain = copy.copy(array)
    self._plain.cast_dtype = self._plain.checksum = None
    self._parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

  def __getattr__(self, name: str):
    return getattr(self.array, name)

  def read(self, index: Any = (), dtype: np.dtype | None = None) -> np.ndarray:
    """As `StoredArray.read`, for slices without a step."""
    place = _place(index, self.array.shape)
    values = self._plain.read(index)
    self._parts[place] = sums_of_part(values, [start for start, _ in place], self.array.shape)
    dtype = dtype or self.array.cast_dtype
    return values if dtype is None else values.astype(dtype, copy=False)

  def total(self, wanted: Iterable[tuple[tuple[int, int], ...]] | None = None) -> np.ndarray:
    """Returns the sums [2] uint32 of the parts at the places `wanted`, default all that were read, which may not overlap."""
    parts = self._parts.values() if wanted is None else [self._parts[place] for place in wanted]
    return sum(parts, np.zeros(2, np.uint32))


def _place(index: Any, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
  """Returns (start, stop) of each dimension that a tuple of slices, maybe a shorter one, selects."""
  index = tuple(index) + (slice(None),) * (len(shape) - len(index))
  return tuple(s.indices(size)[:2] for s, size in zip(index, shape))


def read_whole(array: StoredArray, dtype: np.dtype | None = None) -> np.ndarray:
  """Reads an array, cast to `dtype`, and compares it with its checksum.

  Raises:
    checkpoint_reader.CheckpointReadError: the values are not those that were saved, or cannot be read.
  """
  summed = Summed(array)
  values = summed.read(dtype=dtype)
  check({array.name: array}, {array.name: _text(summed.total())})
  return values


def check_read(summed: Mapping[str, Summed], shardings: Mapping[str, jax.sharding.Sharding]) -> None:
  """Compares arrays that were read into their shardings with their checksums; in a multi-process job all processes call this.

  Args:
    summed: any key to the array that was read.
    shardings: how it was read.

  Raises:
    checkpoint_reader.CheckpointReadError: values of some are not those that were saved.
  """
  totals = []
  for key, array in summed.items():
    # A part that several processes have read counts once: for the first of them.
    first: dict[Any, int] = {}
    for device, index in shardings[key].devices_indices_map(tuple(array.shape)).items():
      place = _place(index, array.shape)
      first[place] = min(first.get(place, device.process_index), device.process_index)
    totals.append(array.total(place for place, process in first.items() if process == jax.process_index()))
  if jax.process_count() > 1 and totals:
    from jax.experimental import multihost_utils
    totals = multihost_utils.process_allgather(np.stack(totals)).sum(axis=0, dtype=np.uint32)
  check({key: array.array for key, array in summed.items()}, {key: _text(total) for key, total in zip(summed, totals)})


def check(stored: Mapping[str, StoredArray], actual: Mapping[str, str]) -> None:
  """Raises a CheckpointReadError that names the first arrays whose checksum is not the recorded one."""
  from t5x import checkpoint_reader  # Here: it is above this file.
  wrong = [key for key, array in stored.items() if array.checksum != actual[key]]
  if wrong:
    more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    first = stored[wrong[0]]
    raise checkpoint_reader.CheckpointReadError(
        f'{first.name!r}{more} of {first.path} cannot be trusted, the checkpoint is altered or corrupt: checksum '
        f'{actual[wrong[0]]}, and {first.checksum} when it was saved')


def digest_of_json(content: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of JSON in its canonical form (sorted, no spaces), without its own entry `digest`."""
  # Read back, so that what JSON changes (tuples, keys that are numbers) is the same before and after it was stored.
  plain = json.loads(json.dumps(dict(content)))
  plain.pop(DIGEST, None)
  return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(',', ':')).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns JSON with its `digest`."""
  return {**content, DIGEST: digest_of_json(content)}
