"""The figures of an experiment: scores with their intervals, learning curves, accuracy over parameters.

Each function returns a matplotlib figure; call them inside of `analysis.svg.style()`. Lines differ by colour and stroke.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

import numpy as np

from cpoly_jax.analysis import svg
from cpoly_jax.analysis import texts
from cpoly_jax.experiments.bootstrap import Estimate

_WIDTH = 9.  # Inches.
_STROKES = ('-', '--', ':')
_LONGEST = 32
_MUCH = 4  # Times as many parameters.


def _figure(height: float) -> Any:
  from matplotlib import figure
  return figure.Figure(figsize=(_WIDTH, height), layout='constrained')


def _look(number: int) -> dict[str, Any]:
  return {'color': svg.COLOURS[number % len(svg.COLOURS)], 'linestyle': _STROKES[number // len(svg.COLOURS) % len(_STROKES)]}


def intervals(names: Sequence[str], estimates: Sequence[Estimate], title: str, *, zero: bool = False) -> Any:
  """Draws a point with its interval for each name, from top to bottom.

  Args:
    names: of the rows.
    estimates: of each.
    title: what the numbers are.
    zero: draw a line at 0.
  """
  figure = _figure(float(np.clip(0.28 * len(names) + 0.9, 1.6, 14)))
  axes = figure.subplots()
  for row, one in enumerate(estimates):
    if one.low is not None:
      axes.plot([one.low, one.high], [row, row], color=svg.COLOURS[0], linewidth=2.2, solid_capstyle='butt')
    axes.plot([one.mean], [row], 'o', color=svg.COLOURS[0], markersize=5.5)
  axes.set_yticks(range(len(names)), [texts.shorten(name, _LONGEST) for name in names])
  axes.tick_params(axis='y', length=0)
  axes.set(xlabel=title, ylim=(len(names) - 0.4, -0.6))
  if zero:
    axes.axvline(0, color=svg.INK, linewidth=0.8)
  axes.grid(axis='x', color=svg.INK, alpha=0.15, linewidth=0.6)
  return figure


def learning(lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]], x_title: str,
             y_title: str) -> Any:
  """Draws for each name (x, mean, lowest, highest) as a line with a band."""
  figure = _figure(3.8 + 0.18 * len(lines) / 3)
  axes = figure.subplots()
  for number, (name, (x, mean, low, high)) in enumerate(lines.items()):
    look = _look(number)
    axes.plot(x, mean, label=texts.shorten(name, _LONGEST), linewidth=1.7, marker='o', markersize=2.5, **look)
    axes.fill_between(x, low, high, color=look['color'], alpha=0.13, linewidth=0)
  axes.set(xlabel=x_title, ylabel=y_title)
  axes.grid(axis='y', color=svg.INK, alpha=0.15, linewidth=0.6)
  figure.legend(loc='outside lower center', ncols=4)
  return figure


def short_number(number: float) -> str:
  """Returns 474k for 474,240 and 1.5M for 1,500,000."""
  for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if number >= size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def _sizes(axes: Any, sizes: Sequence[int]) -> None:
  """Makes the horizontal axis one of numbers of parameters: logarithmic where they differ much."""
  from matplotlib import ticker
  if max(sizes) > _MUCH * min(sizes):
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1., 2., 5.)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  else:
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda number, _: short_number(number)))


def pareto(panels: Mapping[str, Sequence[tuple[str, int, Estimate, bool]]], y_title: str) -> Any:
  """Draws accuracy over parameters: for each panel points (name, parameters, score, on the front)."""
  figure = _figure(4.4)
  for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items()):
    best = sorted((size, score.mean) for _, size, score, on_front in points if on_front)
    axes.plot(*zip(*best), color=svg.INK, alpha=0.45, linewidth=1, zorder=1)
    for name, size, score, on_front in points:
      colour = svg.COLOURS[0 if on_front else 1]
      if score.low is not None:
        axes.plot([size, size], [score.low, score.high], color=colour, linewidth=1.2, alpha=0.7)
      axes.plot([size], [score.mean], 'o' if on_front else 'D', color=colour, markersize=5)
      axes.annotate(texts.shorten(name, 24), (size, score.mean), xytext=(4, 4), textcoords='offset points', fontsize=7)
    _sizes(axes, [size for _, size, _, _ in points])
    axes.margins(x=0.2, y=0.12)
    axes.set_xlabel(title)
    axes.grid(color=svg.INK, alpha=0.12, linewidth=0.6, which='major')
  figure.axes[0].set_ylabel(y_title)
  return figure
