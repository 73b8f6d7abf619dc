"""Whether routings find the skills that tasks are known to have: the measures of cpoly_jax.analysis, over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from cpoly_jax.analysis import findings
from cpoly_jax.analysis import statistics
from cpoly_jax.analysis.parts import Grid, Section
from cpoly_jax.experiments import bootstrap
from cpoly_jax.experiments.plans import Plan
from cpoly_jax.experiments.spec import MAIN

# What is told of each run, as in the report of cpoly_jax.analysis.
MEASURES = ('correlation', 'adjusted Rand index', 'F1, best router', 'discreteness', 'borrowed share of W_B')


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The runs of one system.

  Attributes:
    label: of the arm.
    seeds: runs that are done and have rows of several tasks.
    estimates: by measure, the mean over seeds; those that are defined for it.
  """

  label: str
  seeds: int
  estimates: Mapping[str, bootstrap.Estimate]


def measure(found: findings.Findings) -> dict[str, float]:
  """Returns the measures of one run, those that are not defined left out."""
  values = {'discreteness': statistics.mean(row.discreteness for row in found.rows)}
  if found.borrowed is not None:
    values['borrowed share of W_B'] = statistics.mean(found.borrowed.by_router.values())
  if found.compared is not None:
    values['correlation'] = found.compared.correlation
    values['adjusted Rand index'] = found.compared.mean_rand
    values['F1, best router'] = found.compared.best[1].f1 if found.compared.best else math.nan
  return {name: value for name, value in values.items() if math.isfinite(value)}


def agreements(plan: Plan) -> tuple[list[Agreement], list[str]]:
  """Analyses the newest checkpoint of each first run that is done; systems without a routing of tasks are left out.

  Returns:
    What was found, and a note for each run that cannot be analysed.
  """
  found, notes = [], []
  for arm in plan.arms:
    measured = []
    for run in plan.runs:
      if run.arm is arm and run.stage == MAIN and run.is_done:
        try:
          measured.append(measure(findings.analyse(run.folder.path, known=plan.spec.truth)))
        except (ValueError, FileNotFoundError) as e:  # Diverged, without skills of tasks, or no checkpoint was kept.
          notes.append(f'{run.name} is left out: {str(e).splitlines()[0]}')
    measured = [values for values in measured if 'correlation' in values]
    if measured:
      found.append(Agreement(arm.label, len(measured), {
          name: bootstrap.mean([values[name] for values in measured]) for name in MEASURES
          if all(name in values for values in measured)}))
  return found, notes


def section(plan: Plan) -> Section | None:
  """Returns what the report says; None where the file names no known matrix, or nothing is done."""
  if not plan.spec.truth:
    return None
  found, notes = agreements(plan)
  rows = []
  for one in sorted(found, key=lambda one: -one.estimates['correlation'].mean):
    for name in (name for name in MEASURES if name in one.estimates):
      estimate = one.estimates[name]
      rows.append((one.label, name, one.seeds, estimate.mean, estimate.low, estimate.high))
  if not rows and not notes:
    return None
  sentences = [
      'Correlation of the similarities of tasks in their routing and in their known skills; adjusted Rand index of the two '
      'trees, cut into 2 to T - 1 clusters, mean; F1 of the skills of the best router, matched one to one. Means over seeds, '
      'after training. A system that is given the matrix has 1 by construction.', *notes]
  header = ('system', 'measure', 'seeds', 'mean', '95 % low', '95 % high')
  return Section('agreement', 'Known skills and the routing', sentences, (), [
      Grid('agreement', 'Known skills and the routing', header, rows)])
