"""TSV and CSV files as records with the numbers of their lines, through the csv module.

The first line names the columns. A field that has the separator, a quote or a line break is in quotes, and its own quotes are
written twice (RFC 4180). All else is an error rather than a guess, because a stray quote can swallow the lines after it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from tasks import records

SEPARATORS = {'.tsv': '\t', '.csv': ','}
_NAMES = {'\t': 'tabs', ',': 'commas', ';': 'semicolons'}


def read_rows(path: epath.Path, required: Sequence[Sequence[str]],
              to_rows: Callable[[Mapping[str, str], str], Iterable[Any]]) -> list[Any]:
  """Reads a table; blank lines are skipped, and bad records as `records.skip_bad_lines` allows.

  Args:
    path: a `.tsv` or `.csv` file. A UTF-8 byte order mark, CRLF and CR are accepted.
    required: columns that must be there, each with the names that it may have.
    to_rows: (column -> field, where) -> the rows of a record; it may raise BadRecord.

  Returns:
    The rows in the order of the file.

  Raises:
    FileNotFoundError: there is no such file.
    BadRecord: a record is not UTF-8, has another number of fields than the header, or `to_rows` refuses it.
    ValueError: no record at all, a fault of the header, a quote that swallows lines, or too many bad records.
  """
  separator = SEPARATORS[path.suffix]
  lines = _quoted_records(path, records.read_bytes(path), separator)
  first = next(lines, None)
  if first is None:
    raise ValueError(f'{path}: the file is empty; its first line names the columns: input, target, and perhaps split and task')
  _, where, header = first
  if isinstance(header, records.BadRecord):
    raise ValueError(str(header))
  header = [name.strip() for name in header]
  _check_header(header, required, where, separator)
  rows: list[Any] = []
  empty = True
  with records.Faults(path, 'records') as faults:
    for place, where, fields in lines:
      empty = False
      with faults.record(place):
        if isinstance(fields, records.BadRecord):
          raise fields
        if len(fields) != len(header):
          raise records.BadRecord(
              f'{where}: {len(fields)} fields, and the header has {len(header)}; put a field that has {_NAMES[separator]}, '
              'quotes or line breaks in quotes')
        rows.extend(list(to_rows(dict(zip(header, fields)), where)))
  if empty:
    raise ValueError(f'{path}: no examples in the file after its header; add some, or remove the file')
  return rows


def _check_header(header: Sequence[str], required: Sequence[Sequence[str]], where: str, separator: str) -> None:
  """Raises ValueError for a column that is missing or there twice."""
  for name in header:
    if header.count(name) > 1:
      raise ValueError(f'{where}: two columns are named {name!r:.60}; rename one of them')
  missing = [names[0] for names in required if not set(names) & set(header)]
  if not missing:
    return
  other = next((sign for sign in _NAMES if len(header) == 1 and sign in header[0]), None)
  remedy = (f'fields are separated by {_NAMES[separator]} here, and this line seems to have {_NAMES[other]}' if other else
            'the first line names the columns: input, target, and perhaps split and task')
  raise ValueError(f"{where}: no column '{missing[0]}' (columns here: {', '.join(map(repr, header)):.100}); {remedy}")


def _quoted_records(path: epath.Path, data: bytes, separator: str) -> Iterator[tuple[str, str, list[str] | records.BadRecord]]:
  """Yields (place, where, fields or fault) of each record that is not blank; a field may have line breaks."""
  # Bytes that are not UTF-8 come through as lone surrogates, so that only their record is bad.
  text = io.StringIO(data.decode('utf-8', 'surrogateescape'), newline='')
  reader = csv.reader(text, delimiter=separator, strict=True)
  limit = csv.field_size_limit(2**31 - 1)  # The module's own is 128 KiB.
  try:
    while True:
      start = reader.line_num + 1
      where = f'{path}:{start}'
      fields: list[str] | records.BadRecord
      try:
        fields = next(reader)
      except StopIteration:
        return
      except csv.Error as e:
        if reader.line_num > start:
          raise ValueError(f'{where}: a quote that opens here does not close its field (lines {start} to {reader.line_num}); '
                           'write quotes inside a quoted field twice') from None
        fields = records.BadRecord(f'{where}: not a valid row ({e}); put the field in quotes and write its own quotes twice')
      else:
        fields = _checked(fields, where)
      if isinstance(fields, records.BadRecord) or any(field.strip() for field in fields):
        yield f'line {start}', where, fields
  finally:
    csv.field_size_limit(limit)


def _checked(fields: list[str], where: str) -> list[str] | records.BadRecord:
  """Returns the fields, or the fault where one of them is not UTF-8."""
  try:
    '\n'.join(fields).encode('utf-8')
  except UnicodeEncodeError as e:
    byte = ord(e.object[e.start]) - 0xdc00  # What `surrogateescape` makes of a byte.
    return records.BadRecord(f'{where}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8')
  return fields
