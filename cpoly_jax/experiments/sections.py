"""What the report of an experiment says: for each stage scores, differences, tasks, curves and parameters; tuning; all runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from cpoly_jax.analysis import figures as analysis_figures
from cpoly_jax.analysis import texts
from cpoly_jax.analysis.parts import Drawing, Grid, Section
from cpoly_jax.experiments import agreement
from cpoly_jax.experiments import bootstrap
from cpoly_jax.experiments import figures
from cpoly_jax.experiments import results
from cpoly_jax.experiments import values
from cpoly_jax.experiments.plans import Plan
from cpoly_jax.experiments.results import ArmResult, StageResult
from cpoly_jax.experiments.spec import MAIN, Spec

_INTERVAL = '95 % low', '95 % high'


def sections(plan: Plan, stages: Sequence[StageResult]) -> list[Section]:
  """Returns all sections that there is something for."""
  found = []
  for number, stage in enumerate(stages):
    if stage.arms:
      prefix = MAIN if stage.name == MAIN else f'after{number}'  # Names of files have nothing of the stage's name in them.
      title = '' if stage.name == MAIN else f' after {stage.name}'
      parts = (_scores, _differences, _tasks, _curves, _parameters)
      found += [section for part in parts if (section := part(plan.spec, stage, prefix, title)) is not None]
  further = [section for section in (agreement.section(plan), _tuning(plan)) if section is not None]
  return [*found, *further, _runs(plan)]


def _cells(estimate: bootstrap.Estimate | None) -> tuple[float | None, float | None, float | None]:
  return (None, None, None) if estimate is None else (estimate.mean, estimate.low, estimate.high)


def _measure(spec: Spec) -> str:
  return spec.metric or 'mean of the metrics'


def _scores(spec: Spec, stage: StageResult, prefix: str, title: str) -> Section:
  ranked = sorted(stage.arms, key=lambda one: -one.score.mean)
  best = ranked[0]
  first = (f'Score: {_measure(spec)}, mean over {len(stage.tasks)} tasks and over seeds; intervals: 95 % bootstrap over seeds. '
           f'Highest: {best.arm.label}, {best.score.mean:.3f} with {len(best.measured)} seeds.')
  missing = [f'{one.arm.label} ({len(one.measured)} of {one.planned})' for one in stage.arms if len(one.measured) < one.planned]
  sentences = [first, *([f'Not all seeds are done: {texts.listed(missing)}.'] if missing else [])]
  rows = [(one.arm.label, len(one.measured), *_cells(one.score), one.trainable, one.active) for one in ranked]
  estimates = [one.score for one in ranked]
  drawing = Drawing(f'{prefix}_scores', f'Scores{title}', 'Means over seeds with their intervals.', functools.partial(
      figures.intervals, [one.arm.label for one in ranked], estimates, f'score ({_measure(spec)})'))
  return Section(f'{prefix}_scores', f'Scores{title}', sentences, [drawing], [Grid(
      f'{prefix}_systems', 'Systems', ('system', 'seeds', 'score', *_INTERVAL, 'trainable', 'active'), rows)])


def _differences(spec: Spec, stage: StageResult, prefix: str, title: str) -> Section | None:
  del spec
  found = sorted(results.differences(stage), key=lambda one: -one.estimate.mean)
  if not found:
    return None
  sure = [one.label for one in found if one.estimate.low is not None and (one.estimate.low > 0 or one.estimate.high < 0)]
  sentences = ['Score of a system less that of its reference, paired by seed and task; intervals: 95 % bootstrap over seeds '
               'and tasks together.',
               f'The interval leaves out 0 for: {texts.listed(sure)}.' if sure else 'No interval leaves out 0.']
  estimates = [one.estimate for one in found]
  drawing = Drawing(f'{prefix}_differences', f'Differences{title}', 'To the left of 0 the reference is better.',
                    functools.partial(figures.intervals, [one.label for one in found], estimates, 'difference in score',
                                      zero=True))
  header = ('system', 'reference', 'difference', *_INTERVAL, 'seeds', 'tasks', 'tasks better')
  rows = [(one.label, one.reference, *_cells(one.estimate), one.seeds, one.tasks, one.better) for one in found]
  return Section(f'{prefix}_differences', f'Differences{title}', sentences, [drawing], [
      Grid(f'{prefix}_differences', 'Paired differences', header, rows)])


def _tasks(spec: Spec, stage: StageResult, prefix: str, title: str) -> Section | None:
  if len(stage.tasks) < 2:
    return None
  table = np.array([[estimate.mean if (estimate := one.task(task)) else np.nan for one in stage.arms] for task in stage.tasks])
  labels = [one.arm.label for one in stage.arms]
  drawing = Drawing(f'{prefix}_tasks', f'Each task{title}', 'Means over seeds.', functools.partial(
      analysis_figures.heat_map, table, list(stage.tasks), labels, row_title='task', column_title='system',
      scale=_measure(spec)))
  wide = Grid(f'{prefix}_tasks', 'Each task, mean over seeds', ('task', *labels), [
      (task, *line) for task, line in zip(stage.tasks, table.tolist())], shown=300 if len(labels) <= 12 else 0)
  rows = [(one.arm.label, task, len(one.measured), *_cells(one.task(task))) for one in stage.arms for task in stage.tasks]
  header = ('system', 'task', 'seeds', 'score', *_INTERVAL)
  long = Grid(f'{prefix}_task_intervals', 'Each task and system', header, rows, shown=0)
  return Section(f'{prefix}_tasks', f'Each task{title}', [], [drawing], [wide, long])


def _curve(one: ArmResult) -> dict[int, list[float]]:
  """The mean scores of each seed at the steps at which all of them were evaluated."""
  curves = [run.curve for run in one.measured.values()]
  return {step: [curve[step] for curve in curves] for step in curves[0] if all(step in curve for curve in curves)}


def _curves(spec: Spec, stage: StageResult, prefix: str, title: str) -> Section | None:
  curves = {one.arm.label: _curve(one) for one in stage.arms}
  if not any(len(curve) > 1 for curve in curves.values()):
    return None
  lines = {label: (list(curve), *([f(scores) for scores in curve.values()] for f in (np.mean, min, max)))
           for label, curve in curves.items() if curve}
  drawing = Drawing(
      f'{prefix}_curves', f'Learning curves{title}', 'Mean over tasks and seeds; bands go from the lowest seed to the highest.',
      functools.partial(figures.learning, lines, 'step', f'score ({_measure(spec)})'))
  points = [(label, step, len(scores), float(np.mean(scores)), min(scores), max(scores))
            for label, curve in curves.items() for step, scores in curve.items()]
  told = {one.arm.label: results.reached(one, spec.ceiling, spec.fractions) for one in stage.arms}
  reached = []
  for label, found in told.items():
    # A reference that has no run that is done gives no ratio.
    for one, reference in zip(found, told.get(stage.reference[label], [None] * len(found))):
      ratio = one.steps / reference.steps if reference and one.steps and reference.steps else None
      reached.append((label, one.fraction, one.fraction * spec.ceiling, one.seeds, one.of, one.steps, one.examples, ratio))
  sentence = ('Steps and training examples to a share of the ceiling: the first evaluation there, median over seeds; - where '
              f'half of the seeds or more did not get there. The ceiling is {spec.ceiling:g}. The ratio is to the steps of the '
              'system\'s reference.')
  header = ('system', 'share', 'score', 'seeds there', 'seeds', 'steps', 'examples', 'ratio')
  return Section(f'{prefix}_curves', f'Learning curves{title}', [sentence], [drawing], [
      Grid(f'{prefix}_reached', 'Steps to a score', header, reached),
      Grid(f'{prefix}_curves', 'Learning curves', ('system', 'step', 'seeds', 'score', 'lowest', 'highest'), points, shown=0)])


def _parameters(spec: Spec, stage: StageResult, prefix: str, title: str) -> Section | None:
  known = [one for one in stage.arms if one.trainable and one.active]
  if len(known) < 2:
    return None
  panels, rows = {}, []
  kinds = {'trainable parameters': [one.trainable for one in known],
           'active parameters of a task': [one.active for one in known]}
  fronts = []
  for name, sizes in kinds.items():
    fronts.append(results.front([(size, one.score.mean) for size, one in zip(sizes, known)]))
    panels[name] = [(one.arm.label, size, one.score, best) for one, size, best in zip(known, sizes, fronts[-1])]
  say = {True: 'yes', False: 'no'}
  for one, trainable, active in zip(known, *fronts):
    rows.append((one.arm.label, one.score.mean, one.trainable, say[trainable], one.active, say[active]))
  drawing = Drawing(
      f'{prefix}_pareto', f'Accuracy and parameters{title}', 'A circle: no other system has as few parameters and as high a '
      'score. Bars are the intervals over seeds.', functools.partial(figures.pareto, panels, f'score ({_measure(spec)})'))
  header = ('system', 'score', 'trainable', 'on its front', 'active', 'on that front')
  return Section(f'{prefix}_pareto', f'Accuracy and parameters{title}', [], [drawing], [
      Grid(f'{prefix}_pareto', 'Parameters', header, rows)])


def _tuning(plan: Plan) -> Section | None:
  trials = results.trials(plan)
  if not trials:
    return None
  names = list(plan.spec.tune.grid)
  rows = [(one.label, *(values.short(one.values[name]) for name in names), one.score, 'chosen' if one.chosen else '')
          for one in trials]
  count = len(trials) // len(plan.arms)
  return Section('tuning', 'Tuning', [
      f'Each system was tried with the same {count} settings, on seed {plan.spec.tune.seed}, which is not among the results; '
      'the one with the highest score on validation was chosen, of equal ones the first.'], (), [
          Grid('tuning', 'All that was tried', ('system', *names, 'score', 'chosen'), rows)])


def _runs(plan: Plan) -> Section:
  rows = []
  for run in plan.runs:
    noted = run.folder.read() if run.folder is not None else {}
    folder = '' if run.folder is None else f'runs/{run.folder.path.name}'
    rows.append((run.name, run.stage, noted.get('state', 'not started'), noted.get('seconds'), folder, noted.get('why', '')))
  done = sum(row[2] == 'done' for row in rows)
  others = plan.others()
  sentences = [f'{done} of {len(rows)} runs are done.']
  if others:
    sentences.append(f'{len(others)} folders are of other settings, from an earlier version of the file, and do not count.')
  matched = [(label, macro, one.before, one.value, one.count, 100 * one.difference)
             for label, (macro, one) in plan.matched.items()]
  equal = plan.spec.budget.equal if plan.spec.budget else ''
  return Section('runs', 'Runs', sentences, (), [
      Grid('budgets', f'Equal {equal} parameters', ('system', 'macro', 'was', 'is', 'parameters', 'difference %'), matched),
      Grid('runs', 'Runs', ('run', 'stage', 'state', 'seconds', 'folder', 'why'), rows)])
