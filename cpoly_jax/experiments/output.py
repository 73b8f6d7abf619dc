"""The folder of a report: report.html, report.md, a CSV file for each table, an SVG and a PNG for each figure, report.json.

Names of files are fixed by what they hold; nothing of a system's or task's name gets into them.
"""

from __future__ import annotations

import html
import json
import os
import pathlib
import re
from typing import Any
from collections.abc import Mapping, Sequence

from cpoly_jax.analysis import output as analysis_output
from cpoly_jax.analysis import report
from cpoly_jax.analysis import svg
from cpoly_jax.analysis import texts
from cpoly_jax.analysis.parts import Grid, Section
from cpoly_jax.experiments import folders
from cpoly_jax.experiments import results
from cpoly_jax.experiments import sections
from cpoly_jax.experiments.plans import Plan

FOLDER, PAGE, MARKDOWN, NUMBERS = 'report', 'report.html', 'report.md', 'report.json'
_OURS = re.compile(r'\w+\.csv|figures/\w+\.(svg|png)')


def write(plan: Plan, *, numbers_only: bool = False) -> str:
  """Writes the report of the runs that are done; an earlier one is replaced.

  Args:
    plan: the experiment.
    numbers_only: no figures, for which matplotlib is needed.

  Returns:
    The path of the report.

  Raises:
    ValueError: a file of a run is damaged.
    OSError: it cannot be written.
  """
  target = pathlib.Path(plan.out, FOLDER)
  parts = sections.sections(plan, results.stages(plan))
  _clear(target)
  (target / 'figures').mkdir(parents=True, exist_ok=True)
  files, drawn = [], {}
  for grid in _grids(parts):
    files.append(f'{grid.name}.csv')
    (target / files[-1]).write_text(analysis_output.csv_text(grid))
  if not numbers_only:
    with svg.style():
      for drawing in (drawing for part in parts for drawing in part.drawings):
        figure = drawing.draw()
        image = svg.render(figure, 'svg')
        drawn[drawing.name] = svg.inline(image, drawing.name, texts.printable(drawing.title))
        for form, content in (('svg', image), ('png', svg.render(figure, 'png'))):
          files.append(f'figures/{drawing.name}.{form}')
          (target / files[-1]).write_bytes(content)
  told = facts(plan)
  (target / MARKDOWN).write_text(markdown(plan, parts, set(drawn)))
  (target / PAGE).write_text(report.page(plan.spec.title, plan.spec.question, told, parts, drawn, [NUMBERS, MARKDOWN, *files]))
  folders.write_json(target / NUMBERS, {
      'format': folders.FORMAT, 'title': plan.spec.title, 'facts': told, 'files': files,
      'tables': {grid.name: {'header': grid.header, 'rows': [[*map(texts.plain, row)] for row in grid.rows]}
                 for grid in _grids(parts)}})
  return str(target / PAGE)


def _grids(parts: Sequence[Section]) -> list[Grid]:
  return [grid for part in parts for grid in part.grids if grid.rows]


def facts(plan: Plan) -> dict[str, Any]:
  """Returns what stands at the top of the report."""
  seconds = sum(run.folder.seconds for run in plan.runs if run.folder is not None)
  return {'systems': len(plan.arms), 'seeds': len(plan.spec.seeds), 'runs': len(plan.runs),
          'done': sum(run.is_done for run in plan.runs), 'hours of runs': seconds / 3600}


def markdown(plan: Plan, parts: Sequence[Section], drawn: set[str]) -> str:
  """Returns the report as Markdown; names are escaped, so that they stay text."""
  lines = [f'# {_text(plan.spec.title)}', '', _text(plan.spec.question), '']
  lines += [', '.join(f'{name}: {texts.shown(value)}' for name, value in facts(plan).items()), '']
  for part in parts:
    lines += [f'## {_text(part.title)}', '', *(line for sentence in part.sentences for line in (_text(sentence), ''))]
    lines += [line for drawing in part.drawings if drawing.name in drawn
              for line in (f'![{_text(drawing.title)}](figures/{drawing.name}.svg)', '', _text(drawing.caption), '')]
    lines += [line for grid in part.grids if grid.rows and grid.shown for line in (*_table(grid), '')]
  return '\n'.join(lines).rstrip() + '\n'


def _text(text: str) -> str:
  return re.sub(r'([\\`*_\[\]|#])', r'\\\1', html.escape(texts.printable(text), quote=False))


def _table(grid: Grid) -> list[str]:
  kinds = ['---:' if all(not isinstance(row[i], str) for row in grid.rows) else '---' for i in range(len(grid.header))]
  line = lambda cells: f'| {" | ".join(cells)} |'
  rows = grid.rows[:grid.shown]
  more = [f'and {len(grid.rows) - len(rows):,} more in {grid.name}.csv'] if len(rows) < len(grid.rows) else []
  return [f'### {_text(grid.title)}', '', line(map(_text, grid.header)), line(kinds),
          *(line([_text(texts.shown(cell)) for cell in row]) for row in rows), *more]


def _clear(target: pathlib.Path) -> None:
  """Removes the files of an earlier report."""
  try:
    files: Mapping[str, Any] = json.loads((target / NUMBERS).read_text())['files']
  except (OSError, ValueError, TypeError, KeyError):
    files = ()
  for name in files:
    if isinstance(name, str) and _OURS.fullmatch(name):
      (target / name).unlink(missing_ok=True)


def note_plan(plan: Plan) -> None:
  """Writes plan.json: the file as it is, each system's parameters, each run's settings and folder.

  Raises:
    FileExistsError: the folder holds something else.
  """
  out = pathlib.Path(plan.out)
  file = out / 'plan.json'
  if out.is_dir() and any(out.iterdir()) and not file.exists():
    raise FileExistsError(f'{out} is not empty and holds no experiment: name another folder with --out')
  parameters = {arm.label: plan.parameters(arm) for arm in plan.arms}
  folders.write_json(file, {
      'format': folders.FORMAT, 'file': os.path.basename(plan.spec.path), 'text': plan.spec.text,
      'systems': {label: {'trainable': trainable, 'active': active} for label, (trainable, active) in parameters.items()},
      'runs': [{'name': run.name, 'stage': run.stage, 'system': run.arm.label, 'seed': run.seed,
                'gin_files': list(run.gin_files), 'bindings': dict(run.bindings), 'chosen': dict(run.chosen),
                'needs': [need.name for need in run.needs],
                'folder': None if run.folder is None else run.folder.path.name,
                'fingerprint': None if run.folder is None else run.folder.fingerprint} for run in plan.runs]})
