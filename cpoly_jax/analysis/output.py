"""The folder of an analysis: report.html, analysis.json, a CSV file for each table, an SVG and a PNG for each figure.

Names of files are fixed by what they hold; nothing of a task's name gets into them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from typing import Any
from collections.abc import Sequence

from cpoly_jax.analysis import extraction, report, sections, svg, texts
from cpoly_jax.analysis.findings import Findings
from cpoly_jax.analysis.parts import Grid

REPORT, NUMBERS = 'report.html', 'analysis.json'
_OURS = re.compile(r'[a-z_]+\.csv|figures/[a-z_]+\.(svg|png)')


def write(found: Findings, folder: str | os.PathLike, *, numbers_only: bool = False) -> list[str]:
  """Writes an analysis; an earlier one in the same folder is replaced.

  Args:
    found: the analysis.
    folder: where to, local or a bucket.
    numbers_only: neither figures nor report, so that matplotlib is not needed.

  Returns:
    The files that were written, relative to the folder.

  Raises:
    FileExistsError: the folder has something else in it.
    OSError: it cannot be written.
  """
  from etils import epath
  target = epath.Path(folder)
  parts = sections.sections(found)
  grids = [grid for part in parts for grid in part.grids]
  _clear(target)
  (target / 'figures').mkdir(parents=True, exist_ok=True)
  files = []
  for grid in grids:
    files.append(f'{grid.name}.csv')
    (target / files[-1]).write_text(csv_text(grid))
  drawn = {}
  if not numbers_only:
    with svg.style():
      for drawing in (drawing for part in parts for drawing in part.drawings):
        figure = drawing.draw()
        image = svg.render(figure, 'svg')
        drawn[drawing.name] = svg.inline(image, drawing.name, texts.printable(drawing.title))
        for form, content in (('svg', image), ('png', svg.render(figure, 'png'))):
          files.append(f'figures/{drawing.name}.{form}')
          (target / files[-1]).write_bytes(content)
    title, subtitle = _titles(found)
    (target / REPORT).write_text(report.page(title, subtitle, facts(found), parts, drawn, [NUMBERS, *files]))
  # Last: a folder with it is complete, and one that may be replaced.
  (target / NUMBERS).write_text(json.dumps({
      'format': 1, 'checkpoint': found.run.path, 'facts': {k: texts.plain(v) for k, v in facts(found).items()},
      'tasks': found.run.tasks, 'skills': found.run.skills, 'notes': found.notes,
      'tables': {grid.name: _json(grid) for grid in grids},
      'files': files}, allow_nan=False) + '\n')
  return [*([] if numbers_only else [REPORT]), NUMBERS, *files]


def csv_text(grid: Grid) -> str:
  """Returns a table as CSV; texts that a spreadsheet would take for formulas begin with an apostrophe."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerows([*map(texts.csv_cell, row)] for row in (grid.header, *grid.rows))
  return out.getvalue()


def _json(grid: Grid) -> dict[str, Any]:
  told = {'title': grid.title, 'header': grid.header, 'file': f'{grid.name}.csv'}
  return told if grid.large else told | {'rows': [[*map(texts.plain, row)] for row in grid.rows]}


def facts(found: Findings) -> dict[str, texts.Cell]:
  """Returns what the report says at its top."""
  run = found.run
  sharing = {'projection': 'each projection', 'layer': 'each layer', 'stack': 'each stack', 'model': 'the model'}
  told: dict[str, texts.Cell] = {
      'step': run.step, 'tasks': len(run.tasks), 'skills': len(run.skills), 'common skills': run.num_common,
      'router': run.router, 'inventory': run.inventory, 'a router for': sharing[run.granularity],
      'adapted projections': len(run.projections)}
  newest = max((moment.step for moment in found.moments), default=None)
  for moment in found.moments:
    if moment.step == newest:
      several = len({m.name for m in found.moments}) > 1
      where = f' of {moment.name}' if several else ''
      told |= {f'discreteness{where}': moment.discreteness} if moment.discreteness == moment.discreteness else {}
      if moment.name != extraction.SPECIFIC:
        told |= {f'sparsity{where}': moment.sparsity, f'usage{where}': moment.usage}
      if moment.borrowed == moment.borrowed:
        told['borrowed'] = moment.borrowed
  return told


def summary(found: Findings) -> str:
  """Returns the lines that the command line prints."""
  lines = [f'{found.run.path}']
  lines += [f'  {name}: {texts.shown(value)}' for name, value in facts(found).items()]
  return '\n'.join(lines)


def _titles(found: Findings) -> tuple[str, str]:
  path = found.run.path.rstrip('/')
  run = os.path.basename(os.path.dirname(path)) if os.path.basename(path).startswith('checkpoint_') else os.path.basename(path)
  return f'What {run} learned', f'Routing and skills of {os.path.basename(path)}'


def _clear(target) -> None:
  """Removes the files of an earlier analysis; FileExistsError for a folder that is not empty and has none."""
  if not target.exists() or not any(target.iterdir()):
    return
  if not (target / NUMBERS).exists():
    raise FileExistsError(f'{os.fspath(target)} is not empty and holds no analysis: name another folder with --out')
  try:
    files: Sequence[str] = json.loads((target / NUMBERS).read_text())['files']
  except (ValueError, TypeError, KeyError):
    files = ()
  for name in files:
    if isinstance(name, str) and _OURS.fullmatch(name):
      (target / name).unlink(missing_ok=True)
