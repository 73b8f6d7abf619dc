"""The sections on which tasks are alike, who borrows from whom, how skills differ, where tasks pull
them, and whose routing serves whom."""

from __future__ import annotations

import functools

import numpy as np

from cpoly_jax.analysis import borrowing, conflict, figures, parts, statistics, texts, transfer
from cpoly_jax.analysis.findings import Findings

_MOST_PAIRS = 50
_OVERLAPS = {'pairs': 'all pairs', 'common': 'two common', 'across': 'common and specific', 'specific': 'two specific'}


def _with_diagonal(matrix: np.ndarray, diagonal: np.ndarray | float) -> np.ndarray:
  return np.where(np.eye(len(matrix), dtype=bool), diagonal, matrix)


def alike_section(found: Findings) -> parts.Section | None:
  """Says which tasks are alike; None where nothing is known of tasks."""
  if found.alike is None:
    return None
  tasks, what = found.run.tasks, 'gates' if found.run.gates else 'rows'
  pairs = sorted(zip(*np.triu_indices(len(tasks), 1)), key=lambda pair: -found.alike[pair])
  text = (f'Two tasks are alike where the cosine of their {what} is high. It is taken in each router, where columns mean the '
          'same skills for both, and averaged over the routers. The tree joins what is most alike (average linkage).')
  drawing = parts.Drawing(
      'tree', 'Tree and similarity of tasks',
      'Left: where two branches meet is how unlike they are. Right: the similarities, in the same order.',
      functools.partial(figures.tree, found.linkage, found.alike, found.order, tasks))
  return parts.Section('tasks', 'Which tasks are alike', [text], [drawing], [
      parts.Grid('alike', 'The most alike pairs', ('task', 'other task', 'similarity'),
                 [(tasks[i], tasks[j], found.alike[i, j]) for i, j in pairs[:_MOST_PAIRS]]),
      parts.matrix('similarity', 'Similarity of tasks', 'task', tasks, tasks, found.alike)])


def borrowing_section(found: Findings) -> parts.Section | None:
  """Says who borrows from whom; None where W_B is not learned."""
  lent, tasks = found.borrowed, found.run.tasks
  if lent is None:
    return None
  part = borrowing.shares(lent.taken)
  others = np.where(np.eye(len(part), dtype=bool), 0, part)
  names = [tasks[t] for t in found.order]
  mean = statistics.mean(lent.by_router.values())
  drawings = [parts.Drawing(
      'borrowing', 'Who borrows from whom',
      "Of a task's (row) weights on specific skills, the share that is another task's (column); own skills are left blank.",
      functools.partial(figures.heat_map, _with_diagonal(part, np.nan)[np.ix_(found.order, found.order)], names, names,
                        row_title='borrower', column_title='lender', scale='share of the borrower'))]
  lines = parts.by_layer(list(lent.by_router), list(lent.by_router.values()))
  if lines:
    drawings.append(parts.Drawing('borrowing_layers', 'Borrowing by layer', "Share of W_B's mass off the block diagonal.",
                                  functools.partial(figures.curves, {'borrowed': lines}, 'layer')))
  loans = [(tasks[loan.borrower], tasks[loan.lender], loan.share, loan.weight)
           for loan in borrowing.loans(lent.taken, lent.signed, _MOST_PAIRS)]
  return parts.Section('borrowing', 'Who borrows from whom', [
      f"{100 * mean:.1f} % of W_B's mass lies on other tasks' skills (mean over the routers; 0 at the start of training, or "
      'next to nothing where W_B is sampled).', "A negative weight takes away what the other task's skill does."], drawings, [
          parts.Grid('loans', 'The largest loans', ('borrower', 'lender', 'share of the borrower', 'weight'), loans),
          parts.Grid('borrowing_tasks', 'Each task', ('task', 'borrows', 'lends'),
                     [(task, others[t].sum(), others[:, t].sum()) for t, task in enumerate(tasks)]),
          parts.Grid('borrowing_routers', 'Each router', ('router', 'borrowed'),
                     [(path or 'model', value) for path, value in lent.by_router.items()], shown=0),
          parts.matrix('borrowing', 'Shares of specific weights by owner', 'task', tasks, tasks, part)])


def diversity_section(found: Findings) -> parts.Section:
  """Says how skills differ."""
  run, diverse = found.run, found.diverse
  rows = [(path, *(getattr(overlap, kind) for kind in _OVERLAPS)) for path, overlap in diverse.by_projection.items()]
  means = [statistics.mean(row[1 + i] for row in rows) for i in range(len(_OVERLAPS))]
  sentences = ['Skills are compared by the changes that they make to a kernel: 0 for unrelated skills, 1 for skills that do '
               'the same up to their size, -1 for opposite ones.']
  if len(run.skills) == 1:
    sentences.append('This system has a single skill, so there are no pairs.')
  if run.router == 'HyperRouter':
    sentences.append("In HYPER \"skills\" are the columns that generate a task's adapter.")
  values, drawings = _with_diagonal(diverse.cosine, np.nan), []
  if np.isfinite(values).any():
    drawings.append(parts.Drawing(
        'skills', 'Cosines between skills',
        'Mean over the projections; a skill and itself are left blank.'
        + (' Specific skills have the names of their tasks.' if (run.owners >= 0).any() else ''),
        functools.partial(figures.heat_map, values, run.skills, run.skills, row_title='skill', column_title='skill',
                          scale='cosine', centre=0.)))
  lines = parts.by_layer([row[0] for row in rows], [row[1] for row in rows])
  if lines:
    drawings.append(parts.Drawing('skills_layers', 'Overlap of skills by layer', 'Mean |cosine| over all pairs of skills.',
                                  functools.partial(figures.curves, {'mean |cosine|': lines}, 'layer')))
  return parts.Section('skills', 'How skills differ', sentences, drawings, [
      parts.Grid('skills_summary', 'Mean |cosine|', list(_OVERLAPS.values()), [means]),
      parts.Grid('skills_projections', 'Each projection', ('projection', *_OVERLAPS.values()), rows, shown=0),
      parts.Grid('skills_norms', 'Size of skills', ('skill', 'mean Frobenius norm'),
                 list(zip(run.skills, diverse.norms.tolist()))),
      parts.matrix('skills', 'Cosines between skills', 'skill', run.skills, run.skills, diverse.cosine)])


def conflict_section(found: Findings) -> parts.Section | None:
  """Says whether tasks pull the skills in opposite directions; None where no gradients of several tasks were taken."""
  if found.measured is None or len(found.measured.tasks) < 2:
    return None
  pulls, tasks = found.measured.pulls, found.measured.tasks
  sentences = [f'Gradients of {found.measured.examples} training examples of each task. A negative cosine means that, to first '
               'order, a step for one task harms the other.',
               'Few examples make all cosines small: compare with two halves of one task.']
  drawings, pairs, summary = [], [], []
  order = _measured_order(found)
  names = [tasks[i] for i in order]
  for kind, cosine in pulls.cosine.items():
    between = cosine[np.triu_indices(len(cosine), 1)]
    mean, halves = statistics.mean(between), statistics.mean(pulls.halves[kind])
    what = 'the skills' if kind == 'all' else f'{kind} skills'
    sentences.append(f'On {what}: {100 * conflict.conflicting(cosine):.0f} % of the pairs conflict, mean cosine '
                     f'{texts.shown(mean)}; two halves of one task {texts.shown(halves)}.')
    summary.append((kind, conflict.conflicting(cosine), mean, halves))
    drawings.append(parts.Drawing(
        f'conflict_{kind}', f'Gradients on {what}', 'Cosine of two tasks; on the diagonal of two halves of one task.',
        functools.partial(figures.heat_map, _with_diagonal(cosine, pulls.halves[kind])[np.ix_(order, order)], names, names,
                          row_title='task', column_title='task', scale='cosine', centre=0.)))
    pairs += [(kind, tasks[i], tasks[j], cosine[i, j]) for i, j in zip(*np.triu_indices(len(cosine), 1))]
  return parts.Section('conflict', 'Whether tasks pull in opposite directions', sentences, drawings, [
      parts.Grid('conflict_summary', 'Pairs of tasks',
                 ('skills', 'share that conflicts', 'mean cosine', 'two halves of a task'), summary),
      parts.Grid('conflict', 'The pairs that disagree most', ('skills', 'task', 'other task', 'cosine'),
                 sorted(pairs, key=lambda pair: pair[-1]), shown=_MOST_PAIRS)])


def _measured_order(found: Findings) -> list[int]:
  """Rows of the measured tasks so that like ones are neighbours; last those that are routed as others."""
  tasks = found.measured.tasks
  order = [tasks.index(name) for name in (found.run.tasks[t] for t in found.order) if name in tasks]
  return order + [i for i in range(len(tasks)) if i not in order]


def transfer_section(found: Findings) -> parts.Section | None:
  """Says whose routing serves whom; None where that was not measured, or there is one routing for all."""
  if found.measured is None or np.ptp(found.measured.losses, axis=1).max() < 1e-6:
    return None
  losses, tasks, order = found.measured.losses, found.measured.tasks, _measured_order(found)
  names, own, other = [tasks[i] for i in order], np.diag(losses), transfer.best_other(losses)
  best, rest = losses[np.arange(len(tasks)), other], (losses.sum(axis=1) - own) / (len(tasks) - 1)
  sentences = [
      f'Loss of {found.measured.examples} training examples of each task, in nats for a target token, where they are routed as '
      'another task: what a task would lose without skills and routing of its own.',
      f"With its own routing {texts.shown(own.mean())}, with another task's {texts.shown(rest.mean())} on average, with the "
      f'best other one {texts.shown(best.mean())}; {int(np.sum(best <= own))} of {len(tasks)} tasks do as well with another.']
  drawing = parts.Drawing(
      'transfer', 'Whose routing serves whom',
      "Loss of a task (row) with another task's routing (column), less that with its own.",
      functools.partial(figures.heat_map, _with_diagonal(losses - own[:, None], np.nan)[np.ix_(order, order)], names, names,
                        row_title='examples of', column_title='routed as', scale='nats for a token'))
  return parts.Section('transfer', 'Whose routing serves whom', sentences, [drawing], [
      parts.Grid('transfer_tasks', 'Each task', ('task', 'its own', 'best other', 'with that', 'mean of others'),
                 [(task, own[t], tasks[other[t]], best[t], rest[t]) for t, task in enumerate(tasks)]),
      parts.matrix('transfer', 'Loss by routing', 'examples of', tasks, tasks, losses)])
