"""Reads tensors of checkpoints into their shardings, in no more memory than the largest of them needs.

Many are read at the same time, as long as all that are in flight fit the budget; a larger one is read alone, and, where its
format is made of chunks, a few chunks at a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import math
import threading
from typing import TYPE_CHECKING, Any
from collections.abc import Iterator, Mapping, Sequence

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  from t5x.checkpoint_reader import StoredArray

_CONCURRENT_TENSORS = 8
# What tensors that are read at the same time may need together; one that is larger is read alone.
_BYTES_IN_FLIGHT = 2**26
# How much of one tensor is decoded at a time.
_BLOCK_BYTES = 2**22
# Of glibc's mallopt: buffers of this size and more are given back to the system when they are freed.
_M_MMAP_THRESHOLD, _LARGE_BUFFER = -3, 2**17


def read_blocks(source, index: Any, dtype: np.dtype | None) -> np.ndarray:
  """Reads a part of an array a few chunks at a time, so that memory holds little more than the result.

  Args:
    source: an open TensorStore.
    index: what selects the part, a tuple of slices.
    dtype: what the values are cast to; None: theirs.
  """
  part = source[index]
  dtype = jnp.dtype(dtype or part.dtype.numpy_dtype)
  rows = part.domain[0] if part.rank else None
  row_bytes = part.size // max(len(rows), 1) * part.dtype.numpy_dtype.itemsize if rows is not None else 0
  # Whole chunks: one that straddles two blocks would be decoded twice.
  chunk = max((source.chunk_layout.read_chunk.shape or (1,))[0], 1) if rows is not None else 1
  step = max(_BLOCK_BYTES // max(row_bytes * chunk, 1), 1) * chunk
  if rows is None or len(rows) <= step:
    return np.asarray(part.read().result()).astype(dtype, copy=False)
  first, last = rows.inclusive_min, rows.exclusive_max
  out = np.empty(part.shape, dtype)
  edges = [first, *range(first - first % chunk + step, last, step), last]
  for start, stop in zip(edges, edges[1:]):
    out[start - first:stop - first] = part[start:stop].read().result()
  return out


@functools.cache
def _free_large_buffers() -> None:
  """Makes the C library give back the buffers of decoded chunks; by itself glibc would soon keep them, for each thread."""
  with contextlib.suppress(OSError, AttributeError, TypeError):  # Another C library.
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BUFFER)


class _Budget:
  """Lets threads hold bytes, together no more than a limit."""

  def __init__(self, limit: int):
    self._left, self._changed = limit, threading.Condition()

  @contextlib.contextmanager
  def holding(self, size: int) -> Iterator[None]:
    """Waits until `size` bytes, at most the limit, are free, and holds them inside the context."""
    with self._changed:
      self._changed.wait_for(lambda: size <= self._left)
      self._left -= size
    try:
      yield
    finally:
      with self._changed:
        self._left += size
        self._changed.notify_all()


def _parts(request: tuple[StoredArray, Any, np.dtype]) -> dict[tuple, tuple[Any, list[jax.Device]]]:
  """Returns the parts of a tensor that this process needs: by (start, stop) of each dimension, index and devices."""
  array, sharding, _ = request
  parts = {}
  for device, index in sharding.addressable_devices_indices_map(array.shape).items():
    place = tuple(s.indices(size)[:2] for s, size in zip(index, array.shape))
    # Replicated devices have the same part: it is read once.
    parts.setdefault(place, (index, []))[1].append(device)
  return parts


def _largest_part(request: tuple[StoredArray, Any, np.dtype]) -> int:
  """Returns the bytes that reading a tensor takes at a time."""
  sizes = (math.prod(stop - start for start, stop in place) for place in _parts(request))
  return max(sizes, default=0) * jnp.dtype(request[2]).itemsize


def _put(part: np.ndarray, device: jax.Device) -> jax.Array:
  """Copies values to a device."""
  array = jax.device_put(part, device)
  if device.platform == 'cpu' and array.unsafe_buffer_pointer() == part.ctypes.data:
    # The CPU backend took the values where they are. It does not own that memory, so that a train step, to which the array is
    # donated, would copy it, and all others at the same time.
    return jnp.copy(array)
  return array


def _tell(arrays: Sequence[StoredArray]) -> None:
  """Prints a line for each checkpoint that arrays are read from: what it is, and how much."""
  for path in dict.fromkeys(array.path for array in arrays) if jax.process_index() == 0 else ():
    found = [array for array in arrays if array.path == path]
    parameters = [array for array in found if not array.name.startswith('state/')]
    dtypes = sorted({array.dtype.name for array in parameters}) or ['no parameters']
    print(f'Reading {path} ({found[0].kind}): {len(found)} arrays, {sum(a.size for a in parameters):,} parameters, '
          f'{" and ".join(dtypes)}', flush=True)


def read_arrays(requests: Mapping[str, tuple[StoredArray, Any, np.dtype]]) -> dict[str, jax.Array]:
  """Reads tensors straight into their shardings; prints a line on what is read from which checkpoint.

  Besides the result, host memory holds what is being read: of a tensor one shard at a time, and all that are in flight
  together no more than the largest shard, or several that are small.

  Args:
    requests: any key to (stored array, `jax.sharding.Sharding`, dtype).

  Returns:
    The same keys to arrays.

  Raises:
    CheckpointReadError: if values are missing or damaged.
    ValueError: the same, in another format.
  """
  _free_large_buffers()
  sizes = {key: _largest_part(request) for key, request in requests.items()}
  budget = _Budget(max(_BYTES_IN_FLIGHT, *sizes.values(), 0))

  def read(key):
    array, sharding, dtype = requests[key]
    shards = []
    with budget.holding(sizes[key]):
      for index, devices in _parts(requests[key]).values():
        part = array.read(index, dtype)
        # Waits, as a device may still copy when the call returns.
        shards += jax.block_until_ready([_put(part, device) for device in devices])
        del part
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

  _tell([array for array, _, _ in requests.values()])
  with concurrent.futures.ThreadPoolExecutor(_CONCURRENT_TENSORS) as pool:
    arrays = dict(zip(requests, pool.map(read, requests)))
  logging.info('Read %d arrays.', len(arrays))
  return arrays
