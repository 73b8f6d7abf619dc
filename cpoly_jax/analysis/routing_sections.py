"""The sections on tables of tasks and skills: what they are, and how sharp, sparse and evenly used."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from cpoly_jax.analysis import extraction, figures, parts, statistics, texts
from cpoly_jax.analysis.findings import Findings

NAMES = {extraction.COMMON: 'W_A (common skills)', extraction.SPECIFIC: 'W_B (specific skills)', extraction.ALL: 'Z',
         extraction.WEIGHTS: 'w (weights)'}
_STATISTICS = ('discreteness', 'sparsity', 'usage')


def _mean_over_heads(tables: Iterable[extraction.Table]) -> dict[str, np.ndarray]:
  """Returns the usage [T, k] of each router's table, by path; heads weigh the same skills and are averaged."""
  heads: dict[str, list[np.ndarray]] = {}
  for table in tables:
    heads.setdefault(table.path, []).append(table.values if table.kind == extraction.RELATIVE else table.usage)
  return {path: np.mean(values, axis=0) for path, values in heads.items()}


def _by_stack(tables: dict[str, np.ndarray], rows: Sequence[int],
              columns: Sequence[int]) -> dict[str, dict[tuple[int, str], np.ndarray]]:
  stacks: dict[str, dict[tuple[int, str], np.ndarray]] = {}
  for path, values in tables.items():
    stack, layer, rest = extraction.place(path)
    stacks.setdefault(stack, {})[layer or 0, rest] = values[np.ix_(rows, columns)]
  return stacks


def _columns(found: Findings, table: extraction.Table) -> list[int]:
  """Returns the order of a table's columns: that of the rows if each is some task's own, which makes these a diagonal."""
  owners = found.run.owners[table.start:table.start + table.values.shape[1]].tolist()
  if min(owners) < 0:
    return list(range(len(owners)))
  return sorted(range(len(owners)), key=lambda column: found.order.index(owners[column]))


def _shown_table(found: Findings, tables: Sequence[extraction.Table]) -> tuple[extraction.Table, str]:
  """Returns the table that is drawn in full, and why that one."""
  if len(tables) == 1:
    return tables[0], ''
  if tables[0].kind == extraction.LOGITS:
    return max(tables, key=lambda table: statistics.discreteness(table.usage)), 'The router whose table is most discrete. '
  if tables[0].kind == extraction.RAW and found.borrowed is not None:
    return max(tables, key=lambda table: found.borrowed.by_router[table.path]), 'The router that borrows most. '
  return tables[0], 'The first router. '


def _scale(table: extraction.Table) -> str:
  return {extraction.LOGITS: 'sigmoid(Z)', extraction.RAW: 'weight', extraction.RELATIVE: 'weight'}[table.kind]


def _groups(table: extraction.Table, run: extraction.Run, most: int | None = 12) -> list[tuple[str, int, int, str]]:
  """Returns a line for each subset of skills: the skills, how many, the tasks that use just these, and their names.

  Args:
    table: tasks and skills.
    run: their names.
    most: names that are listed, in short; None for all, in full.
  """
  return [(texts.listed([run.skills[table.start + s] for s in skills], most) or 'none', len(skills), len(tasks),
           texts.listed([run.tasks[t] for t in tasks], most)) for skills, tasks in statistics.partition(table.active).items()]


def _drawings(found: Findings, tables: Sequence[extraction.Table], chosen: extraction.Table, why: str) -> list[parts.Drawing]:
  """Returns the figures of the tables of one name: all of them, and one in full."""
  run, first, letter = found.run, tables[0], tables[0].name.lower()
  columns, averaged = _columns(found, first), _mean_over_heads(tables)
  centre = 0.5 if first.kind == extraction.LOGITS else None
  drawings = []
  if len(averaged) > 1:
    own = run.owners[first.start] >= 0
    drawings.append(parts.Drawing(
        f'routing_{letter}_all', f'{NAMES[first.name]} of all routers',
        'One block for each router, layers from top to bottom. In a block rows are tasks, in the order of the tree below, and '
        f'columns are skills{", in the order of their tasks." if own else "; those of different blocks are different skills."}',
        functools.partial(figures.mosaic, _by_stack(averaged, found.order, columns), _scale(first), centre)))
  values = chosen.values if chosen.kind == extraction.RELATIVE else chosen.usage
  drawings.append(parts.Drawing(
      f'routing_{letter}_one', f'{NAMES[first.name]} of {_where(chosen)}', f'{why}Rows are tasks, in the order of the tree.',
      functools.partial(figures.heat_map, values[np.ix_(found.order, columns)], [run.tasks[t] for t in found.order],
                        [run.skills[first.start + column] for column in columns], row_title='task', column_title='skill',
                        scale=_scale(chosen), centre=centre)))
  return drawings


def _where(table: extraction.Table) -> str:
  return (table.path or 'the whole model') + ('' if table.head is None else f', head {table.head + 1}')


def routing_section(found: Findings) -> parts.Section:
  """Says which tasks use which skills, as far as that is known."""
  run, title = found.run, 'Which tasks use which skills'
  if run.reads_inputs:
    more = ('Each task has gates of its own; how alike they are is shown below.' if run.gates else
            'All tasks share its gates, so that a checkpoint alone says nothing about tasks; skills are compared below.')
    return parts.Section('routing', title, [
        f'{run.router} weighs skills for each token, so that there is no table of tasks and skills to show. {more}'])
  drawings, grids = [], []
  groups = ('skills', 'number of skills', 'tasks', 'names')
  for name in run.table_names:
    tables = run.named(name)
    chosen, why = _shown_table(found, tables)
    drawings += _drawings(found, tables, chosen, why)
    title_of_groups = f'Tasks by the skills that they use: {NAMES[name]} of {_where(chosen)}'
    grids.append(parts.Grid(f'partition_{name.lower()}', title_of_groups, groups, _groups(chosen, run)))
  widest = max(table.values.shape[1] for table in run.tables)
  place = lambda table: (table.path or 'model', table.name, parts.counted(table.head))
  columns = [f'column {i + 1}' for i in range(widest)]
  grids += [
      parts.Grid('routing', 'All tables', ('router', 'table', 'head', 'kind', 'first skill', 'task', *columns), [
          (*place(table), table.kind, run.skills[table.start], task, *row, *[None] * (widest - len(row)))
          for table in run.tables for task, row in zip(run.tasks, table.values.tolist())], shown=0, large=True),
      parts.Grid('partition', 'Tasks by the skills that they use', ('router', 'table', 'head', *groups), [
          (*place(table), *group) for table in run.tables for group in _groups(table, run, most=None)], shown=0, large=True)]
  return parts.Section('routing', title, [
      'A task uses a skill if sigmoid(Z), or its entry of W_B, is above one half; of other weights, if it is above half of the '
      "task's largest."], drawings, grids)


def statistics_section(found: Findings) -> parts.Section | None:
  """Says how sharp, sparse and evenly used the tables are, by layer and in the course of training; None without tables."""
  if not found.rows:
    return None
  drawings = []
  for name in found.run.table_names:
    rows = [row for row in found.rows if row.table.name == name]
    panels = {key: parts.by_layer([row.table.path for row in rows], [getattr(row, key) for row in rows]) for key in _STATISTICS}
    if any(panels.values()):
      drawings.append(parts.Drawing(
          f'layers_{name.lower()}', f'{NAMES[name]} by layer', 'Means over the projections of a layer.',
          functools.partial(figures.curves, {key: lines for key, lines in panels.items() if lines}, 'layer')))
  if len({moment.step for moment in found.moments}) > 1:
    drawings.append(parts.Drawing('course', 'The course of training', 'Means over all routers at every kept checkpoint.',
                                  functools.partial(figures.curves, _course(found), 'step')))
  means = [(NAMES[moment.name], None if moment.step < 0 else moment.step,
            *(getattr(moment, key) for key in (*_STATISTICS, 'borrowed'))) for moment in found.moments]
  each = [(row.table.path or 'model', row.table.name, parts.counted(row.table.head),
           *(getattr(row, key) for key in _STATISTICS)) for row in found.rows]
  return parts.Section('statistics', 'How sharp, sparse and evenly used', [
      'Discreteness: 1 less the mean entropy of sigmoid(Z) in bits; 0 for a routing that is undecided, as at the start of '
      'training, 1 for a routing of zeros and ones.',
      'Sparsity: the share of the skills that a task uses. Usage: the entropy of how much all tasks together use each skill, '
      'over its greatest possible value; 1 if all skills are used alike.'], drawings, [
          parts.Grid('summary', 'Means over all routers', ('table', 'step', *_STATISTICS, 'borrowed'), means),
          parts.Grid('statistics', 'Each router', ('router', 'table', 'head', *_STATISTICS), each)])


def _course(found: Findings) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
  """Returns for each statistic, and each table's name, the steps and the values."""
  panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
  for key in (*_STATISTICS, 'borrowed'):
    for moment in found.moments:
      if not np.isnan(getattr(moment, key)):
        x, y = panels.setdefault(key, {}).setdefault(NAMES[moment.name], ([], []))
        x.append(moment.step)
        y.append(getattr(moment, key))
  return panels
