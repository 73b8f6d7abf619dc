"""Names as others wrote them, made safe and short for figures, tables and files."""

from __future__ import annotations

import html
import math
from typing import Any
from collections.abc import Sequence

import numpy as np

Cell = str | int | float | None
_DIGITS = 7
_FORMULA = ('=', '+', '-', '@', '\t', '\r')


def printable(text: str) -> str:
  """Returns the text with spaces for white space, and U+FFFD for what cannot be shown: controls, lone surrogates."""
  return ''.join(c if c.isprintable() else ' ' if c.isspace() else '\ufffd' for c in str(text))


def shorten(text: str, most: int) -> str:
  """Returns printable text of at most `most` characters, with an ellipsis in its middle if it is longer."""
  text = printable(text)
  if len(text) <= most:
    return text
  head = (most - 1) // 2
  return f'{text[:head]}…{text[len(text) - (most - 1 - head):]}'


def escape(text: str) -> str:
  """Returns printable text for HTML, inside or outside of attributes."""
  return html.escape(printable(text), quote=True)


def thin(names: Sequence[str], most: int, length: int = 28) -> tuple[list[int], list[str]]:
  """Returns positions and short labels of at most `most` names, evenly spaced."""
  step = max(1, math.ceil(len(names) / most))
  positions = list(range(0, len(names), step))
  return positions, [shorten(names[i], length) for i in positions]


def plain(value: Any) -> Cell:
  """Returns a cell for JSON: NumPy numbers as Python's, 7 digits of floats, None for NaN and infinity."""
  if value is None or isinstance(value, (str, bool)):
    return value
  if isinstance(value, (int, np.integer)):
    return int(value)
  number = float(value)
  return float(f'{number:.{_DIGITS}g}') if math.isfinite(number) else None


def csv_cell(value: Any) -> Cell:
  """Returns a cell for CSV: as of `plain`; a text that a spreadsheet would take for a formula gets an apostrophe."""
  if not isinstance(value, str):
    return plain(value)
  text = printable(value)
  return f"'{text}" if value.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def shown(value: Any) -> str:
  """Returns a cell as people read it: three decimals, thousands apart, `-` for what is not there."""
  value = plain(value)
  if value is None:
    return '-'
  if isinstance(value, float):
    return f'{value:.3f}' if abs(value) < 1000 else f'{value:,.0f}'
  return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)


def listed(names: Sequence[str], most: int | None = 12, length: int = 40) -> str:
  """Joins at most `most` short names with commas, telling how many more there are; None: all of them, in full."""
  if most is None:
    return ', '.join(names)
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(shorten(name, length) for name in names[:most]) + more
