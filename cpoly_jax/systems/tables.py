"""Rows as an aligned table, as Markdown, or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

TABLE = 'table'
CSV = 'csv'
MARKDOWN = 'markdown'
FORMATS = (TABLE, CSV, MARKDOWN)

Cell = str | int | float | None


def render(header: Sequence[str], rows: Sequence[Sequence[Cell]], form: str) -> str:
  """Returns rows as text.

  Args:
    header: names of the columns.
    rows: cells; None is shown as `-` and in CSV left empty. Numbers are right-aligned, and in CSV not rounded.
    form: one of FORMATS.
  """
  if form == CSV:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().rstrip('\n')
  texts = [list(header), *([_text(cell) for cell in row] for row in rows)]
  right = [bool(rows) and all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
  widths = [max(3, *(len(line[i]) for line in texts)) for i in range(len(header))]
  padded = [[cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(line, widths, right)]
            for line in texts]
  if form == TABLE:
    padded.insert(1, ['-' * width for width in widths])
    return '\n'.join('  '.join(line).rstrip() for line in padded)
  padded.insert(1, ['-' * (width - 1) + (':' if to_right else '-') for width, to_right in zip(widths, right)])
  return '\n'.join(f'| {" | ".join(line)} |' for line in padded)


def _text(cell: Cell) -> str:
  if cell is None:
    return '-'
  if isinstance(cell, float):
    return f'{cell:.2f}'
  return f'{cell:,}' if isinstance(cell, int) else cell
