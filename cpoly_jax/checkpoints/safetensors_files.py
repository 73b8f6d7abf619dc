"""Reads parts of tensors from safetensors files, local or in a bucket, without more memory than the part.

A file is 8 bytes with the length of a header, the header (JSON: dtype, shape and place of each tensor), and the values, row by
row (github.com/huggingface/safetensors). All of the header is checked against the file's size before a value is read. A large
model is several such files and an index, JSON, that names the file of each tensor.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from typing import Any, BinaryIO
from collections.abc import Iterator, Mapping, Sequence

from etils import epath
import ml_dtypes
import numpy as np

INDEX_SUFFIX = '.safetensors.index.json'
DTYPES = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16), 'I64': np.dtype(np.int64), 'I32': np.dtype(np.int32), 'I16': np.dtype(np.int16),
    'I8': np.dtype(np.int8), 'U64': np.dtype(np.uint64), 'U32': np.dtype(np.uint32), 'U16': np.dtype(np.uint16),
    'U8': np.dtype(np.uint8), 'BOOL': np.dtype(np.bool_)}
# The format's own limit.
_LONGEST_HEADER = 100_000_000
# What is read at a time where values are cast, transposed or left out on the way.
_BLOCK_BYTES = 2**22
# From here on an array has memory pages of its own.
_OWN_PAGES_BYTES = 2**20


def is_remote(path: str | os.PathLike) -> bool:
  """Whether the path names a bucket."""
  return '://' in os.fspath(path)


def dtype_of(name: str) -> np.dtype:
  """Returns the NumPy dtype of a name, e.g. 'bfloat16', which plain NumPy does not know; ValueError for another name."""
  for dtype in DTYPES.values():
    if dtype.name == name:
      return dtype
  raise ValueError(f'{name!r} is no dtype of tensors: write one of {", ".join(d.name for d in DTYPES.values())}')


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
  # The local file without a buffer: what is read is large, and goes straight to where it is wanted.
  file = epath.Path(path).open('rb') if is_remote(path) else open(path, 'rb', buffering=0)
  with file:
    yield file


def _fill(file: BinaryIO, destination: memoryview, path: str) -> None:
  """Reads as many bytes as `destination` has.

  Raises:
    ValueError: the file ends before.
  """
  done = 0
  while done < len(destination):
    if hasattr(file, 'readinto'):
      count = file.readinto(destination[done:])
    else:
      piece = file.read(min(len(destination) - done, _BLOCK_BYTES))
      count = len(piece)
      destination[done:done + count] = piece
    if not count:
      raise ValueError(f'{path} ends too early: it was cut while it was read; copy it again')
    done += count


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """Returns a new array; a large one gives its memory back to the system as soon as it is dropped.

  What the C library allocates it may keep, once for each thread: some hundred MB where a model is read by eight threads.
  """
  dtype = np.dtype(dtype)
  size = math.prod(shape) * dtype.itemsize
  if size < _OWN_PAGES_BYTES or not hasattr(mmap, 'MAP_ANONYMOUS'):
    return np.empty(shape, dtype)
  pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  return np.frombuffer(pages, np.uint8).view(dtype).reshape(shape)


class Tensor:
  """A tensor in a file, not read yet.

  Attributes:
    name: in the file.
    shape: its shape.
    dtype: its dtype there, a NumPy one (bfloat16 is that of `ml_dtypes`).
    path: the file.
  """

  def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype, path: str, offset: int):
    self.name, self.shape, self.dtype, self.path = name, shape, dtype, path
    self._offset = offset

  def read(self, index: Sequence[slice] | slice = (), dtype: Any = None) -> np.ndarray:
    """Returns a part of the tensor, or all of it.

    Args:
      index: a slice without a step for each of the first dimensions.
      dtype: what the values are cast to; None: the file's dtype.

    Raises:
      ValueError: the file ends before, or the index has steps.
    """
    parts = bounds(index, self.shape)
    out = empty([stop - start for start, stop in parts], self.dtype if dtype is None else dtype)
    self.read_into(out, index)
    return out

  def read_into(self, out: np.ndarray, index: Sequence[slice] | slice = ()) -> None:
    """Writes what `read` returns into an array of its shape, of any dtype and strides; needs a few MB besides.

    Args:
      out: filled; e.g. the transposed view of an array.
      index: as for `read`.
    """
    parts = bounds(index, self.shape) or [(0, 1)]
    out = out.reshape(1) if not self.shape else out
    if tuple(out.shape) != tuple(stop - start for start, stop in parts):
      raise ValueError(f'{self.name} {list(self.shape)} at {index} does not fit an array of shape {list(out.shape)}')
    if not out.size:
      return
    inner_shape = self.shape[1:]
    row = math.prod(inner_shape) * self.dtype.itemsize
    (first, last), inner = parts[0], tuple(slice(*part) for part in parts[1:])
    whole = all((s.start, s.stop) == (0, size) for s, size in zip(inner, inner_shape))
    with _opened(self.path) as file:
      file.seek(self._offset + first * row)
      if whole and out.dtype == self.dtype and out.flags.c_contiguous:
        _fill(file, memoryview(out.reshape(-1).view(np.uint8)), self.path)
        return
      rows = max(1, min(_BLOCK_BYTES // row, last - first))
      block = empty((rows, *inner_shape), self.dtype)
      for start in range(0, last - first, rows):
        part = block[:min(rows, last - first - start)]
        _fill(file, memoryview(part.reshape(-1).view(np.uint8)), self.path)
        out[start:start + len(part)] = part[(slice(None), *inner)]

  def __repr__(self) -> str:
    return f'Tensor({self.name!r}, {list(self.shape)}, {self.dtype} in {self.path!r})'


def bounds(index: Sequence[slice] | slice, shape: Sequence[int]) -> list[tuple[int, int]]:
  """Returns the (start, stop) of each dimension that a tuple of slices, maybe a shorter one, selects.

  Raises:
    ValueError: too many slices, something else than a slice, or one with a step.
  """
  index = index if isinstance(index, (tuple, list)) else (index,)
  if len(index) > len(shape) or not all(isinstance(s, slice) and s.step in (None, 1) for s in index):
    raise ValueError(f'{index} selects no part of shape {list(shape)}: give slices without a step')
  found = [s.indices(size)[:2] for s, size in zip(index, shape)]
  return [(a, max(a, b)) for a, b in found] + [(0, size) for size in shape[len(index):]]


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a dict; ValueError where a key comes twice."""
  result = dict(pairs)
  if len(result) < len(pairs):
    raise ValueError('a name comes twice')
  return result


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Returns dtype, shape, begin and end of a header's entry; ValueError if it does not hold together."""
  if not isinstance(entry, Mapping) or not {'dtype', 'shape', 'data_offsets'} <= entry.keys():
    raise ValueError(f'{name!r} lacks one of dtype, shape and data_offsets')
  shape, offsets = entry['shape'], entry['data_offsets']
  dtype = DTYPES.get(entry['dtype']) if isinstance(entry['dtype'], str) else None
  if dtype is None:
    raise ValueError(f'{name!r} has dtype {entry["dtype"]!r}, which is none of {", ".join(DTYPES)}')
  for field in (shape, offsets):
    if not isinstance(field, list) or not all(map(_is_count, field)):
      raise ValueError(f'{name!r} has shape {shape!r} and data_offsets {offsets!r}')
  if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{name!r} of {entry["dtype"]} {shape} has the data_offsets {offsets}')
  return dtype, tuple(shape), offsets[0], offsets[1]


def _read_header(path: str) -> tuple[dict[str, Any], int, int]:
  """Returns the header, where the values begin, and the file's size; ValueError if it is not a header."""
  size = epath.Path(path).stat().length
  with _opened(path) as file:
    if size < 8:
      raise ValueError(f'it has {size} bytes')
    buffer = bytearray(8)
    _fill(file, memoryview(buffer), path)
    length = int.from_bytes(buffer, 'little')
    if length > min(size - 8, _LONGEST_HEADER):
      raise ValueError(f'its header would have {length} bytes, and the file has {size}')
    buffer = bytearray(length)
    _fill(file, memoryview(buffer), path)
  try:
    header = json.loads(buffer.decode('utf-8'), object_pairs_hook=_pairs)
  except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
    raise ValueError('its header is not JSON') from None
  if not isinstance(header, dict):
    raise ValueError('its header is not a JSON object')
  return header, 8 + length, size


def open_file(path: str | os.PathLike) -> dict[str, Tensor]:
  """Returns the tensors of a file by name; reads its header only.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is truncated or altered: one line that says what does not hold.
  """
  path = os.fspath(path)
  if not epath.Path(path).is_file():
    raise FileNotFoundError(f'there is no file {path}')
  try:
    header, begin, size = _read_header(path)
    header.pop('__metadata__', None)
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
      if start != end:
        raise ValueError(f'{name!r} begins at {start}, and the values before it end at {end}')
      end = stop
    if begin + end != size:
      raise ValueError(f'its values would end at {begin + end}, and it has {size} bytes')
  except ValueError as error:
    raise ValueError(f'{path} is not a whole safetensors file: {error}') from None
  return {name: Tensor(name, shape, dtype, path, begin + start) for name, (dtype, shape, start, _) in entries.items()}


def metadata(path: str | os.PathLike) -> dict[str, str]:
  """Returns the texts that the writer of a file put into its header; {} if there are none.

  Raises:
    FileNotFoundError, ValueError: as `open_file`.
  """
  open_file(path)  # Checks it.
  found = _read_header(os.fspath(path))[0].get('__metadata__', {})
  return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def open_sharded(index: str | os.PathLike) -> dict[str, Tensor]:
  """Returns the tensors of several files by name.

  Args:
    index: their index, `<name>.safetensors.index.json`; the files lie beside it.

  Raises:
    FileNotFoundError: one of the files is absent.
    ValueError: the index is none, names a file elsewhere, or does not agree with the files.
  """
  index = os.fspath(index)
  try:
    files = json.loads(epath.Path(index).read_text())['weight_map']
    if not all(isinstance(text, str) for item in files.items() for text in item):
      raise TypeError
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    raise ValueError(f'{index} is not an index of safetensors files: it needs a "weight_map" of names to file names') from None
  folder, tensors = os.path.dirname(index), {}
  for file in sorted(set(files.values())):
    if '/' in file or '\\' in file or not file.endswith('.safetensors'):
      raise ValueError(f'{index} names the file {file!r}: only a .safetensors file beside the index is read')
    for name, tensor in open_file(os.path.join(folder, file)).items():
      if files.get(name) != file:
        raise ValueError(f'{index} does not say that {name!r} is in {file}')
      tensors[name] = tensor
  for name, file in files.items():
    if name not in tensors:
      raise ValueError(f'{index} says that {name!r} is in {file}, where it is not')
  return tensors
