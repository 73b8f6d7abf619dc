"""The figures of a report: heat maps, trees, curves and bars, with as many labels as can be read.

Each function returns a matplotlib figure; call them inside of `svg.style()`. Colour maps are even in lightness and safe for
people with any colour vision: cividis for amounts, and purple to orange around zero.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster import hierarchy

from cpoly_jax.analysis import svg
from cpoly_jax.analysis import texts

_AMOUNT, _SIGNED = 'cividis', 'PuOr_r'
_WIDTH = 9.  # Inches.
_MOST_LABELS = 64
_LEAST_SPAN = 0.05  # Smaller differences look small.
_MOST_NUMBERS = (40, 20)  # Rows and columns of a heat map whose cells get their numbers written.
_MOST_BLOCK = 100  # Rows and columns of a block of a mosaic that are kept one by one.


def _figure(width: float, height: float) -> Any:
  from matplotlib import figure
  return figure.Figure(figsize=(width, height), layout='constrained')


def _height(rows: int, least: float = 1.8, most: float = 12.) -> float:
  """Inches for as many rows of labels."""
  return float(np.clip(0.2 * rows + 1.2, least, most))


def _colours(values: np.ndarray, centre: float | None = None) -> dict[str, Any]:
  """Returns map and limits: amounts from zero up, or both sides of `centre`, which is 0 where values are negative."""
  known = values[np.isfinite(values)]
  least, greatest = (float(known.min()), float(known.max())) if known.size else (0., 1.)
  if centre is None and least < 0:
    centre = 0.
  if centre is None:
    return {'cmap': _AMOUNT, 'vmin': 0., 'vmax': greatest if greatest > 0 else 1.}
  size = max(_LEAST_SPAN, centre - least, greatest - centre)
  return {'cmap': _SIGNED, 'vmin': centre - size, 'vmax': centre + size}


def _labels(axis: Any, names: Sequence[str], most: int = _MOST_LABELS, **settings: Any) -> None:
  axis.set_ticks(*texts.thin(names, most), **settings)
  axis.set_tick_params(length=0)


def _image(axes: Any, values: np.ndarray, **settings: Any) -> Any:
  image = axes.imshow(np.ma.masked_invalid(values), aspect='auto', interpolation='none', **settings)
  axes.spines[:].set_visible(False)
  return image


def _key(figure: Any, image: Any, axes: Any, scale: str) -> None:
  """Draws the key of the colours, at the top and no longer than need be."""
  shrink = min(1., 2.6 / figure.get_figheight())
  bar = figure.colorbar(image, ax=axes, label=scale, fraction=0.04, pad=0.02, shrink=shrink, anchor=(0., 1.), aspect=16)
  bar.outline.set_visible(False)


def _numbers(axes: Any, image: Any, values: np.ndarray) -> None:
  """Writes the numbers into the cells, dark on light ones and light on dark ones."""
  for (row, column), value in np.ndenumerate(values):
    if np.isfinite(value):
      red, green, blue, _ = image.cmap(image.norm(value))
      dark = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
      text = f'{value:.2f}'.replace('0.', '.', 1) if abs(value) < 1 else f'{value:.1f}'
      axes.text(column, row, text, ha='center', va='center', fontsize=6.5, color='#000000' if dark else '#ffffff')


def heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, row_title: str, column_title: str, scale: str,
             centre: float | None = None) -> Any:
  """Draws a matrix with its labels.

  Args:
    values: [m, n]; NaN is left blank.
    rows: m names.
    columns: n names.
    row_title: what the rows are.
    column_title: what the columns are.
    scale: what the colours mean.
    centre: the value between the two colours; None: colours for amounts, or 0 where there are negative values.
  """
  width = min(_WIDTH, 3.4 + 0.42 * len(columns))
  figure = _figure(width, _height(len(rows)) + (0.8 if max(map(len, columns), default=0) > 3 else 0.2))
  axes = figure.subplots()
  image = _image(axes, values, **_colours(values, centre))
  _labels(axes.yaxis, rows)
  _labels(axes.xaxis, columns, most=48, rotation=90 if max(map(len, columns), default=0) > 3 else 0)
  axes.set(xlabel=column_title, ylabel=row_title)
  if all(size <= most for size, most in zip(values.shape, _MOST_NUMBERS)):
    _numbers(axes, image, values)
  _key(figure, image, axes, scale)
  return figure


def pair(left: np.ndarray, right: np.ndarray, rows: Sequence[str], columns: Sequence[str], titles: tuple[str, str]) -> Any:
  """Draws two 0/1 matrices [m, n] of the same rows and columns side by side."""
  figure = _figure(_WIDTH, _height(len(rows)) + 1)
  for axes, values, title in zip(figure.subplots(1, 2, sharey=True), (left, right), titles):
    _image(axes, values, cmap=_AMOUNT, vmin=0, vmax=1)
    _labels(axes.xaxis, columns, most=40, rotation=90)
    axes.set_title(title)
    axes.set_xlabel('skill')
    _labels(axes.yaxis, rows)
  figure.axes[0].set_ylabel('task')
  return figure


def tree(linkage: np.ndarray, alike: np.ndarray, order: Sequence[int], names: Sequence[str]) -> Any:
  """Draws the tree of tasks, and beside it how alike they are, both in the tree's order."""
  figure = _figure(_WIDTH, _height(len(names), least=3.2) + 0.6)
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
  hierarchy.dendrogram(linkage, ax=left, orientation='left', no_labels=True, color_threshold=0,
                       above_threshold_color=svg.COLOURS[0])
  left.set(xlabel='1 - similarity')
  left.invert_yaxis()
  left.spines['left'].set_visible(False)
  ordered = [names[i] for i in order]
  others = alike[~np.eye(len(alike), dtype=bool)]
  least, most = float(others.min()), float(others.max())
  values = alike[np.ix_(order, order)].copy()
  np.fill_diagonal(values, np.nan)
  image = _image(right, values, cmap=_AMOUNT, vmin=least, vmax=most if most > least else least + 1e-3)
  _labels(right.yaxis, ordered)
  _labels(right.xaxis, ordered, most=48, rotation=90)
  right.set(xlabel='task')
  _key(figure, image, right, 'similarity (mean cosine)')
  return figure


def mosaic(stacks: Mapping[str, Mapping[tuple[int, str], np.ndarray]], scale: str, centre: float | None = None) -> Any:
  """Draws the tables of many routers: a block for each, layers from top to bottom, projections from left to right.

  Args:
    stacks: for each stack (layer, projection) -> [T, k].
    scale: what the colours mean.
    centre: as of `heat_map`.
  """
  grids = {stack: (sorted({layer for layer, _ in tables}), list(dict.fromkeys(kind for _, kind in tables)))
           for stack, tables in stacks.items()}
  everything = np.concatenate([table.ravel() for tables in stacks.values() for table in tables.values()])
  settings = _colours(everything, centre)
  deepest = max(len(layers) for layers, _ in grids.values())
  figure = _figure(_WIDTH, float(np.clip(1.1 * deepest + 1.9, 3, 14)))
  panels = figure.subplots(1, len(grids), squeeze=False, width_ratios=[len(kinds) for _, kinds in grids.values()])[0]
  image = None
  for axes, (stack, (layers, kinds)) in zip(panels, grids.items()):
    tasks, skills = next(iter(stacks[stack].values())).shape
    high, wide = tasks + max(1, round(0.06 * tasks)), skills + max(0.25, 0.1 * skills)
    interpolation = 'none' if max(tasks, skills) <= _MOST_BLOCK else 'auto'  # More would make files large, and not be seen.
    for (layer, kind), table in stacks[stack].items():
      x, y = kinds.index(kind) * wide, layers.index(layer) * high
      image = axes.imshow(table, extent=(x, x + skills, y + tasks, y), aspect='auto', interpolation=interpolation, **settings)
    axes.set(xlim=(0, len(kinds) * wide), ylim=(len(layers) * high, 0), title=stack or 'model')
    axes.set_xticks([i * wide + skills / 2 for i in range(len(kinds))], [kind or 'all' for kind in kinds], rotation=90)
    axes.set_yticks([i * high + tasks / 2 for i in range(len(layers))], layers)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
  panels[0].set_ylabel('layer')
  _key(figure, image, list(panels), scale)
  return figure


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_title: str) -> Any:
  """Draws lines: for each panel, by the name of a line, its x and y values, which are from 0 to 1."""
  figure = _figure(_WIDTH, 2.9)
  names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
  for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
    for name, (x, y) in lines.items():
      number = names.index(name)
      axes.plot(x, y, color=svg.COLOURS[number % len(svg.COLOURS)], marker='osD^vP'[number % 6], markersize=4, linewidth=1.6,
                label=name)
    axes.set_title(title)
    axes.set_xlabel(x_title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis='y', color=svg.INK, alpha=0.15, linewidth=0.6)
    low, high = axes.dataLim.intervaly
    if high - low < _LEAST_SPAN:  # Centred, but not beyond 0 and 1, between which all of these are.
      low = min(max((low + high - _LEAST_SPAN) / 2, -0.002), 1.002 - _LEAST_SPAN)
      axes.set_ylim(low, low + _LEAST_SPAN)
  handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
  if len(handles) > 1:
    figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=min(4, len(handles)))
  return figure


def bars(names: Sequence[str], values: Sequence[float], title: str) -> Any:
  """Draws a bar for each name from top to bottom, those below zero in another colour."""
  figure = _figure(_WIDTH, _height(len(names)))
  axes = figure.subplots()
  colours = [svg.COLOURS[0] if value >= 0 else svg.COLOURS[1] for value in values]
  axes.barh(range(len(names)), values, color=colours, height=0.7)
  _labels(axes.yaxis, names)
  axes.set(xlabel=title, ylim=(len(names) - 0.4, -0.6))
  axes.axvline(0, color=svg.INK, linewidth=0.8)
  axes.grid(axis='x', color=svg.INK, alpha=0.15, linewidth=0.6)
  return figure
