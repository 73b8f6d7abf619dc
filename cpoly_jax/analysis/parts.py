"""What sections of a report are made of: tables, figures that are drawn when they are needed, sentences."""

from __future__ import annotations

import dataclasses
from typing import Any
from collections.abc import Callable, Sequence

import numpy as np

from cpoly_jax.analysis import extraction, statistics


@dataclasses.dataclass(frozen=True)
class Grid:
  """A table: a CSV file, a part of the JSON, and in the report its first `shown` rows (none for 0).

  Attributes:
    name: of the file, letters and underscores.
    title: what it is.
    header: names of the columns.
    rows: texts, numbers, or None.
    shown: rows in the report.
    large: its rows are in the CSV file only.
  """

  name: str
  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Any]]
  shown: int = 300
  large: bool = False


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure, drawn when it is needed; `caption` says how to read it."""

  name: str
  title: str
  caption: str
  draw: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a report."""

  key: str
  title: str
  sentences: Sequence[str]
  drawings: Sequence[Drawing] = ()
  grids: Sequence[Grid] = ()


def matrix(name: str, title: str, corner: str, rows: Sequence[str], columns: Sequence[str], values: np.ndarray) -> Grid:
  """Returns a matrix [m, n] with its labels as a table that the report leaves to the CSV file."""
  return Grid(name, title, (corner, *columns), [(row, *line) for row, line in zip(rows, values.tolist())], shown=0)


def counted(head: int | None) -> int | None:
  """Counts heads from 1, as skills."""
  return None if head is None else head + 1


def by_layer(paths: Sequence[str], values: Sequence[float]) -> dict[str, tuple[list[int], list[float]]]:
  """Returns for each kind of block its layers and the means of the values in them; {} for fewer than two layers."""
  places = [extraction.place(path) for path in paths]
  keys = [(' '.join(filter(None, (stack, rest.split('/')[0].replace('_', ' ')))), layer) for stack, layer, rest in places]
  lines: dict[str, tuple[list[int], list[float]]] = {}
  for (name, layer), value in statistics.means_by(keys, values).items():
    if layer is not None and not np.isnan(value):
      x, y = lines.setdefault(name, ([], []))
      x.append(layer)
      y.append(value)
  return lines if any(len(x) > 1 for x, _ in lines.values()) else {}
