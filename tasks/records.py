"""Reading JSON and JSON Lines files whose faults are named by file, line and field.

Benchmarks are folders of such files, often copied, cut or converted by hand. A fault in one of them
should cost a minute, not an afternoon: every error here is one line that says where it is and what
to do.
"""

from __future__ import annotations

import json
import os
from typing import Any
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

Fields = Mapping[str, Any] | Sequence[str]


def read_json_lines(path: os.PathLike | str,
                    required_fields: Fields = ()) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the records of a JSON Lines file; blank lines are skipped.

  Args:
    path: the file, local or in a bucket (`gs://...`).
    required_fields: names that every record must have, or a mapping from name to the type (or tuple
      of types) of its value.

  Yields:
    (line number from 1, record).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is not UTF-8, not JSON or not an object, lacks a field or has one of another
      type; or the file has no record at all.
  """
  empty = True
  for number, line in enumerate(_read(path).split(b'\n'), start=1):
    where = f'{os.fspath(path)}:{number}'
    text = _decode(line, where)
    if not text.strip():
      continue
    try:
      record = json.loads(text)
    except json.JSONDecodeError as e:
      raise ValueError(f'{where}: not valid JSON ({e.msg} at column {e.colno}); '
                       'fix or remove the line') from None
    check_fields(record, required_fields, where)
    empty = False
    yield number, record
  if empty:
    raise ValueError(f'{os.fspath(path)}: no examples in the file; wanted one JSON object a line')


def read_json(path: os.PathLike | str, required_fields: Fields = ()) -> dict[str, Any]:
  """Returns the object of a JSON file.

  Args:
    path: the file, local or in a bucket.
    required_fields: as for `read_json_lines`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is empty, not UTF-8, not JSON, not an object, or lacks a field.
  """
  data = _read(path)
  name = os.fspath(path)
  if not data.strip():
    raise ValueError(f'{name}: the file is empty; wanted one JSON object')
  # Decoded line by line, so that a bad byte is reported with its line.
  text = '\n'.join(_decode(line, f'{name}:{number}')
                   for number, line in enumerate(data.split(b'\n'), start=1))
  try:
    record = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(
        f'{name}:{e.lineno}: not valid JSON ({e.msg} at column {e.colno}); fix the file') from None
  check_fields(record, required_fields, name)
  return record


def check_fields(record: Any, required_fields: Fields, where: str) -> None:
  """Checks that `record` is an object with the fields that a reader relies on.

  Args:
    record: a parsed JSON value.
    required_fields: names, or a mapping from name to type (or tuple of types).
    where: start of the message, e.g. `train.jsonl:12`.

  Raises:
    ValueError: it is no object, a field is missing, or a value has another type.
  """
  if not isinstance(record, dict):
    raise ValueError(f'{where}: wanted a JSON object, found {_short(record)}')
  types = required_fields if isinstance(required_fields, Mapping) else {}
  for field in required_fields:
    if field not in record:
      present = ', '.join(sorted(map(str, record))) or 'none'
      raise ValueError(f"{where}: field '{field}' is missing (fields here: {present})")
    kind = types.get(field)
    # bool is a subclass of int, but `true` is not a number in these files.
    if kind and (not isinstance(record[field], kind)
                 or (isinstance(record[field], bool) and kind is int)):
      wanted = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
      raise ValueError(f"{where}: field '{field}' is {_short(record[field])}, wanted {wanted}")


def folder_of(variable: str, layout: str) -> epath.Path | None:
  """Returns the folder that an environment variable names, or None where it is not set.

  Args:
    variable: e.g. `SUPERGLUE_DIR`.
    layout: the files expected in it, for the message.

  Raises:
    FileNotFoundError: the variable names a folder that does not exist.
  """
  value = os.environ.get(variable)
  if not value:
    return None
  folder = epath.Path(value)
  if not folder.is_dir():
    raise FileNotFoundError(
        f'{variable}={value} is not a folder; set {variable} to the folder that holds {layout}')
  return folder


def _read(path: os.PathLike | str) -> bytes:
  try:
    return epath.Path(path).read_bytes()
  except IsADirectoryError:
    raise FileNotFoundError(f'{os.fspath(path)} is a folder; wanted a file') from None
  except FileNotFoundError:
    raise FileNotFoundError(f'no file {os.fspath(path)}; check the folder and its layout') from None


def _decode(line: bytes, where: str) -> str:
  try:
    return line.decode('utf-8')
  except UnicodeDecodeError as e:
    raise ValueError(f'{where}: not UTF-8 (byte 0x{line[e.start]:02x} at column {e.start + 1}); '
                     'save the file as UTF-8') from None


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
