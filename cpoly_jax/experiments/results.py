"""The runs of an experiment together: systems, tasks, differences, steps to a score, the front of accuracy over parameters.

Only what is there counts: a run that has not ended is left out, and how many there are is told.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from cpoly_jax.experiments import arms as arms_lib
from cpoly_jax.experiments import bootstrap
from cpoly_jax.experiments import measures
from cpoly_jax.experiments.arms import Arm
from cpoly_jax.experiments.measures import Measured
from cpoly_jax.experiments.plans import Plan
from cpoly_jax.experiments.spec import MAIN, TUNE


@dataclasses.dataclass(frozen=True)
class ArmResult:
  """The runs of an arm in one stage.

  Attributes:
    arm: the arm.
    measured: by seed, those that are done and have scores.
    planned: how many seeds there are to be.
    batch_size: BATCH_SIZE.
    trainable, active: parameters; None if unknown.
    chosen: the settings that were tuned.
  """

  arm: Arm
  measured: Mapping[int, Measured]
  planned: int
  batch_size: int | None = None
  trainable: int | None = None
  active: int | None = None
  chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def score(self) -> bootstrap.Estimate:
    """The mean over seeds of the mean over tasks."""
    return bootstrap.mean([run.score for run in self.measured.values()])

  def task(self, name: str) -> bootstrap.Estimate | None:
    """The mean over seeds of one task; None where no run has it."""
    found = [run.final[name] for run in self.measured.values() if name in run.final]
    return bootstrap.mean(found) if found else None


@dataclasses.dataclass(frozen=True)
class StageResult:
  """One stage.

  Attributes:
    name: `main`, or of an `after`.
    arms: those with a run that is done.
    tasks: names of all tasks, sorted.
    reference: by label, the label of the arm that one is compared with.
  """

  name: str
  arms: Sequence[ArmResult]
  tasks: Sequence[str]
  reference: Mapping[str, str]

  def by_label(self, label: str) -> ArmResult | None:
    """Returns an arm; None if it has no run that is done."""
    return next((one for one in self.arms if one.arm.label == label), None)


@dataclasses.dataclass(frozen=True)
class Difference:
  """An arm less its reference, on the seeds and tasks that both have.

  Attributes:
    label: of the arm.
    reference: label of the other one.
    estimate: mean over seeds and tasks.
    seeds, tasks: how many.
    better: tasks whose mean is higher.
  """

  label: str
  reference: str
  estimate: bootstrap.Estimate
  seeds: int
  tasks: int
  better: int


@dataclasses.dataclass(frozen=True)
class Reached:
  """When an arm reached a share of the ceiling.

  Attributes:
    fraction: of the ceiling.
    seeds: runs that reached it.
    of: runs.
    steps: median over all runs of the first evaluated step there; None where half of them or more did not get there.
    examples: the same in training examples.
  """

  fraction: float
  seeds: int
  of: int
  steps: float | None
  examples: float | None


@dataclasses.dataclass(frozen=True)
class Trial:
  """A setting that was tried for an arm: its score (None: not done) and whether it was chosen."""

  label: str
  values: Mapping[str, str]
  score: float | None
  chosen: bool


def stages(plan: Plan) -> list[StageResult]:
  """Reads what all done runs wrote.

  Raises:
    ValueError: a file is damaged.
  """
  return [_stage(plan, name) for name in (MAIN, *(after.name for after in plan.spec.afters))]


def _stage(plan: Plan, name: str) -> StageResult:
  found = []
  for arm in plan.arms:
    runs = [run for run in plan.runs if run.arm is arm and run.stage == name]
    measured = {}
    for run in runs:
      if run.is_done and (one := measures.read(run.folder.path, plan.spec.metric)).scores:
        measured[run.seed] = one
    if measured:
      settled = next(run for run in runs if run.seed in measured)
      found.append(ArmResult(arm, measured, len(runs), settled.batch_size, *plan.parameters(arm, name), settled.chosen))
  tasks = sorted({task for one in found for run in one.measured.values() for task in run.final})
  return StageResult(name, found, tasks, {
      one.arm.label: arms_lib.reference(plan.spec, one.arm, plan.arms).label for one in found})


def differences(stage: StageResult) -> list[Difference]:
  """Compares each arm with its reference, where both have runs with the same seed."""
  found = []
  for one in stage.arms:
    other = stage.by_label(stage.reference[one.arm.label])
    if other is None or other is one:
      continue
    seeds = [seed for seed in one.measured if seed in other.measured]
    runs = [(one.measured[seed].final, other.measured[seed].final) for seed in seeds]
    tasks = [task for task in stage.tasks if all(task in final for pair in runs for final in pair)]
    if seeds and tasks:
      table = np.array([[ours[task] - theirs[task] for task in tasks] for ours, theirs in runs])
      found.append(Difference(one.arm.label, other.arm.label, bootstrap.paired(table), len(seeds), len(tasks),
                              int((table.mean(axis=0) > 0).sum())))
  return found


def reached(one: ArmResult, ceiling: float, fractions: Sequence[float]) -> list[Reached]:
  """Returns for each share of the ceiling when an arm's runs reached it."""
  found = []
  for fraction in fractions:
    runs = list(one.measured.values())
    steps = [run.steps_to(fraction * ceiling) for run in runs]
    examples = [None if step is None else run.examples_at(step, one.batch_size) for run, step in zip(runs, steps)]
    unknown = any(n is None and step is not None for n, step in zip(examples, steps))
    known = None if unknown else _median(examples)
    found.append(Reached(fraction, sum(step is not None for step in steps), len(steps), _median(steps), known))
  return found


def _median(values: Sequence[int | None]) -> float | None:
  """The median, None counting as more than any number."""
  found = statistics.median(float('inf') if value is None else float(value) for value in values)
  return None if found == float('inf') else found


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
  """Returns which points no other one dominates: as few parameters or fewer, and as high a score or higher, and not the same.

  Args:
    points: (parameters, score) of each.
  """
  return [not any((n <= size and score >= value) and (n, score) != (size, value) for n, score in points)
          for size, value in points]


def trials(plan: Plan) -> list[Trial]:
  """Returns all that was tried in tuning."""
  found = []
  for run in plan.runs:
    if run.stage == TUNE:
      score = measures.read(run.folder.path, plan.spec.metric).score if run.is_done else None
      settled = next((other for other in plan.runs if other.arm is run.arm and other.stage == MAIN and other.chosen), None)
      found.append(Trial(run.arm.label, run.tried, score, settled is not None and dict(settled.chosen) == dict(run.tried)))
  return found
