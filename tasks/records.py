"""Reading files of records whose faults are named by file, line and field, and may be skipped up to a limit.

Benchmarks are folders of such files, often copied, cut or converted by hand. A fault in one of them
should cost a minute, not an afternoon: every error here is one line that says where it is and what
to do. Where a few bad records matter less than the run, `records.skip_bad_lines.limit = N` in gin
skips at most N of each file, and one warning says how many and where; nothing is dropped silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from typing import Any
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from absl import logging
from etils import epath
import gin

Fields = Mapping[str, Any] | Sequence[str]
Row = Any
_MAX_PLACES = 10  # Named in a warning.
_UTF_8_BOM = b'\xef\xbb\xbf'
_UTF_16_BOMS = (b'\xff\xfe', b'\xfe\xff')


class BadRecord(ValueError):
  """The fault of one line or record, which the rest of the file does not depend on."""


@gin.configurable(module='tasks.records')
def skip_bad_lines(limit: int = 0) -> int:
  """Returns how many bad records of each file may be skipped; with 0 the first one is an error.

  Raises:
    ValueError: `limit` is no number of records.
  """
  if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
    raise ValueError(f'records.skip_bad_lines.limit is {limit!r}; set it to 0 or a positive whole number')
  return limit


@dataclasses.dataclass(frozen=True)
class Fault:
  """A bad record: the file, the place in it (`line 4`), and the whole message, which names both."""
  path: str
  place: str
  message: str


_collectors: list[list[Fault]] = []


@contextlib.contextmanager
def collecting() -> Iterator[list[Fault]]:
  """While it is open, bad records of all files are skipped whatever the limit, and listed in what it returns."""
  faults: list[Fault] = []
  _collectors.append(faults)
  try:
    yield faults
  finally:
    _collectors.remove(faults)


class Faults:
  """Counts the bad records of one file against the limit, and reports the skipped ones when the file ends.

      with Faults(path) as faults:
        for number, line in ...:
          with faults.record(f'line {number}'):  # A BadRecord raised in here is counted.
            rows.extend(parse(line))

  Args:
    path: the file.
    unit: what a record is, in the plural, for the messages.

  Raises:
    BadRecord: the limit is 0 and a record is bad.
    ValueError: more records are bad than the limit allows, or all of them are.
  """

  def __init__(self, path: os.PathLike | str, unit: str = 'lines'):
    self._path = os.fspath(path)
    self._unit = unit
    self._limit = skip_bad_lines()
    self._total = 0
    self._skipped: list[Fault] = []

  def __enter__(self) -> Faults:
    return self

  def __exit__(self, kind, error, trace) -> None:
    if kind is not None or not self._skipped or _collectors:
      return
    if len(self._skipped) == self._total:
      raise ValueError(f'{self._path}: all {self._total} {self._unit} are bad: {self._places()}; fix the file')
    logging.warning('skipped %d of %d %s of %s: %s', len(self._skipped), self._total, self._unit, self._path, self._places())

  @contextlib.contextmanager
  def record(self, place: str) -> Iterator[None]:
    """Skips what is left of the block where it raises BadRecord and the limit allows it.

    Args:
      place: of the record in the file, e.g. `line 4`.
    """
    self._total += 1
    try:
      yield
    except BadRecord as e:
      fault = Fault(self._path, place, str(e))
      if _collectors:
        _collectors[-1].append(fault)
      elif not self._limit:
        raise
      elif len(self._skipped) == self._limit:
        raise ValueError(f'{e}; records.skip_bad_lines.limit = {self._limit} had allowed {self._places()}') from None
      self._skipped.append(fault)

  def _places(self) -> str:
    places = [f'{fault.place} ({self._reason(fault)})' for fault in self._skipped[:_MAX_PLACES]]
    more = len(self._skipped) - len(places)
    return ', '.join(places) + (f' and {more} more' if more else '')

  def _reason(self, fault: Fault) -> str:
    """The message without its place, details and remedy."""
    text = fault.message.removeprefix(self._path).lstrip(': ')
    text = re.sub(rf'^({re.escape(fault.place)}|\d+): ', '', text)
    return _short(re.split(r'; | \(', text)[0], 80, str)


def read_rows(path: os.PathLike | str, required_fields: Fields,
              to_rows: Callable[[dict[str, Any], str], Iterable[Row]]) -> list[Row]:
  """Reads a JSON Lines file; blank lines are skipped, and bad ones as `skip_bad_lines` allows.

  Args:
    path: the file, local or in a bucket (`gs://...`). A UTF-8 byte order mark and CRLF are accepted.
    required_fields: names that every record must have, or a mapping from name to the type (or tuple
      of types) of its value.
    to_rows: (record, where) -> the rows of a line; `where` is the start of messages, `train.jsonl:12`.
      It may raise BadRecord; then the line gives no row at all.

  Returns:
    The rows in the order of the lines.

  Raises:
    FileNotFoundError: there is no such file.
    BadRecord: a line is not UTF-8, not JSON or not an object, lacks a field or has one of another
      type, or `to_rows` refuses it.
    ValueError: the file has no record at all, is saved as UTF-16, or has too many bad lines.
  """
  rows: list[Row] = []
  empty = True
  with Faults(path) as faults:
    for number, line in enumerate(read_bytes(path).split(b'\n'), start=1):
      if not line.strip():
        continue
      empty = False
      where = f'{os.fspath(path)}:{number}'
      with faults.record(f'line {number}'):
        record = _parse(decode(line, where), where, 'fix or remove the line')
        check_fields(record, required_fields, where)
        rows.extend(list(to_rows(record, where)))
  if empty:
    raise ValueError(f'{os.fspath(path)}: no examples in the file; wanted one JSON object a line')
  return rows


def read_json(path: os.PathLike | str, required_fields: Fields = ()) -> dict[str, Any]:
  """Returns the object of a JSON file.

  Args:
    path: the file, local or in a bucket.
    required_fields: as for `read_rows`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is empty, not UTF-8, not JSON, not an object, or lacks a field.
  """
  data = read_bytes(path)
  name = os.fspath(path)
  if not data.strip():
    raise ValueError(f'{name}: the file is empty; wanted one JSON object')
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    # Line by line, so that the bad byte is reported with its line.
    text = '\n'.join(decode(line, f'{name}:{number}') for number, line in enumerate(data.split(b'\n'), start=1))
  record = _parse(text, name, 'fix the file')
  check_fields(record, required_fields, name)
  return record


def check_fields(record: Any, required_fields: Fields, where: str) -> None:
  """Checks that `record` is an object with the fields that a reader relies on.

  Args:
    record: a parsed JSON value.
    required_fields: names, or a mapping from name to type (or tuple of types).
    where: start of the message, e.g. `train.jsonl:12`.

  Raises:
    BadRecord: it is no object, a field is missing, a value has another type, or a number is beyond the
      32 bits that data sets keep of it.
  """
  if not isinstance(record, dict):
    raise BadRecord(f'{where}: wanted a JSON object, found {_short(record)}')
  types = required_fields if isinstance(required_fields, Mapping) else {}
  for field in required_fields:
    if field not in record:
      present = ', '.join(sorted(map(str, record))) or 'none'
      raise BadRecord(f"{where}: field '{field}' is missing (fields here: {_short(present, 200, str)})")
    kind = types.get(field)
    # bool is a subclass of int, but `true` is not a number in these files.
    if kind and (not isinstance(record[field], kind)
                 or (isinstance(record[field], bool) and kind is int)):
      wanted = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
      raise BadRecord(f"{where}: field '{field}' is {_short(record[field])}, wanted {wanted}")
    if kind is int and not -2**31 <= record[field] < 2**31:
      raise BadRecord(f"{where}: field '{field}' is {_short(record[field])}, wanted an int of 32 bits")


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


def read_bytes(path: os.PathLike | str) -> bytes:
  """Returns the bytes of a file of UTF-8 text, without a byte order mark.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is saved as UTF-16.
  """
  name = os.fspath(path)
  try:
    data = epath.Path(path).read_bytes()
  except IsADirectoryError:
    raise FileNotFoundError(f'{name} is a folder; wanted a file') from None
  except FileNotFoundError:
    raise FileNotFoundError(f'no file {name}; check the folder and its layout') from None
  # Without its mark, UTF-16 shows by every other byte of the first characters being 0.
  if data.startswith(_UTF_16_BOMS) or (len(data) > 3 and sorted(map(bool, data[:4])) == [False, False, True, True]):
    raise ValueError(f'{name}: saved as UTF-16; save the file as UTF-8')
  return data.removeprefix(_UTF_8_BOM)


def decode(line: bytes, where: str) -> str:
  """Decodes a line or field; raises BadRecord, naming the byte, where it is not UTF-8."""
  try:
    return line.decode('utf-8')
  except UnicodeDecodeError as e:
    raise BadRecord(f'{where}: not UTF-8 (byte 0x{line[e.start]:02x} at column {e.start + 1}); '
                    'save the file as UTF-8') from None


def _parse(text: str, where: str, remedy: str) -> Any:
  """Parses JSON whose text can be encoded again; raises BadRecord."""
  try:
    value = json.loads(text)
  except json.JSONDecodeError as e:
    # A line has its number in `where`; in a whole file the error knows it.
    place = where if e.lineno == 1 and re.search(r':\d+$', where) else f'{where}:{e.lineno}'
    raise BadRecord(f'{place}: not valid JSON ({e.msg} at column {e.colno}); {remedy}') from None
  except RecursionError:
    raise BadRecord(f'{where}: not usable JSON (nested too deeply); {remedy}') from None
  except ValueError:
    raise BadRecord(f'{where}: not usable JSON (a number of thousands of digits); {remedy}') from None
  if '\\ud' in text or '\\uD' in text:
    try:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError:
      raise BadRecord(f'{where}: not usable JSON (half of a surrogate pair, \\ud800 to \\udfff); {remedy}') from None
  return value


def _short(value: Any, most: int = 40, to_text: Callable[[Any], str] = repr) -> str:
  text = ' '.join(to_text(value).split())  # On one line, whatever the value.
  return text if len(text) <= most else f'{text[:most - 3]}...'
