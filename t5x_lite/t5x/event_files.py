"""TensorBoard's event files after a restart: what lies beyond the restored step goes, and is written again by the new process.

TensorBoard would show both otherwise. A file is a sequence of records, each an 8-byte length, its 4-byte checksum, an event and
the event's 4-byte checksum; of an event (a protocol buffer) only the step is looked at. Records are copied as they are.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from etils import epath

EVALUATIONS = ('training_eval', 'inference_eval')
_STEP_FIELD = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns the number at a place and the place after it."""
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 0x7F) << shift
    at, shift = at + 1, shift + 7
    if byte < 0x80:
      return value, at


def _step_of(event: bytes) -> int:
  """Returns the step of a serialised event, 0 where it has none."""
  at = 0
  while at < len(event):
    key, at = _varint(event, at)
    field, kind = key >> 3, key & 7
    if kind == _VARINT:
      value, at = _varint(event, at)
      if field == _STEP_FIELD:
        return value - (1 << 64) if value >> 63 else value
    elif kind == _BYTES:
      length, at = _varint(event, at)
      at += length
    elif kind in (_FIXED32, _FIXED64):
      at += 4 if kind == _FIXED32 else 8
    else:
      break
  return 0


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
  """Yields (step, record) of the content of a file, up to a record that was cut while written."""
  at = 0
  while at + 12 <= len(data):
    length, = struct.unpack_from('<Q', data, at)
    end = at + 12 + length + 4
    if end > len(data):
      return
    try:
      yield _step_of(data[at + 12:end - 4]), data[at:end]
    except IndexError:  # Not an event: what follows cannot be told apart.
      return
    at = end


def _paths(folder: str) -> list[epath.Path]:
  """Returns the event files of a folder."""
  path = epath.Path(folder)
  return sorted(p for p in path.iterdir() if p.name.startswith('events.out.tfevents')) if path.is_dir() else []


def steps(folder: str) -> set[int]:
  """Returns the steps of which the event files of a folder tell."""
  return {step for path in _paths(folder) for step, _ in _records(path.read_bytes())}


def folders(model_dir: str) -> list[str]:
  """Returns the folders of tasks in which evaluations write event files."""
  below = [p for name in EVALUATIONS if (top := epath.Path(model_dir, name)).is_dir() for p in top.iterdir() if p.is_dir()]
  return sorted(map(os.fspath, below))


def drop_after(folder: str, last_step: int) -> None:
  """Removes the events after `last_step`, and records that were cut, from the event files of a folder.

  Args:
    folder: a folder; may be absent.
    last_step: the last step to keep.
  """
  for path in _paths(folder):
    data = path.read_bytes()
    kept = b''.join(record for step, record in _records(data) if step <= last_step)
    if len(kept) < len(data):
      # Beside it under a name that TensorBoard does not read, then in its place.
      temporary = path.parent / f'.rewritten.{path.name.rpartition(".")[2]}'
      temporary.write_bytes(kept)
      temporary.replace(path)
