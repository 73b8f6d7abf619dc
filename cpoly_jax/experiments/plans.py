"""All runs of an experiment: what each is, what it needs first, its command and its folder.

A run is *settled* when its settings are known: those of a tuned system are known when its tuning runs are done. The folder is
named by the run and by a hash of its settings, so other settings have another folder, and a run that is done is found again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence

from cpoly_jax.experiments import arms as arms_lib
from cpoly_jax.experiments import budgets
from cpoly_jax.experiments import checks
from cpoly_jax.experiments import configuring
from cpoly_jax.experiments import folders
from cpoly_jax.experiments import measures
from cpoly_jax.experiments import values
from cpoly_jax.experiments.arms import Arm
from cpoly_jax.experiments.spec import After, MAIN, Spec, TUNE
from cpoly_jax.systems import matching

FIRST, FIRST_CHECKPOINT = '{first}', '{first_checkpoint}'
_RUNS = 'runs'


@dataclasses.dataclass(eq=False)
class Run:
  """One training run.

  Attributes:
    name: of the run, e.g. `poly seed=1`.
    stage: `tune`, `main`, or the name of an `after`.
    arm: what it is a run of.
    seed: RANDOM_SEED.
    gin_files: in order.
    needs: runs that must be done before: the tuning of its arm, or its first run.
    after: the stage, for a run after another.
    tried: settings that a tuning run tries.
    minutes: what the file says it takes.
    bindings: all but MODEL_DIR; settled later for what is tuned.
    chosen: settings that were tuned.
    folder: None until it is settled.
    steps: TRAIN_STEPS.
    batch_size: BATCH_SIZE.
  """

  name: str
  stage: str
  arm: Arm
  seed: int
  gin_files: tuple[str, ...]
  needs: tuple[Run, ...] = ()
  after: After | None = None
  tried: Mapping[str, str] = dataclasses.field(default_factory=dict)
  minutes: float | None = None
  bindings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  folder: folders.Folder | None = None
  steps: int | None = None
  batch_size: int | None = None

  @property
  def is_done(self) -> bool:
    """Whether it has run to its end."""
    return self.folder is not None and self.folder.is_done


@dataclasses.dataclass
class Plan:
  """An experiment's runs.

  Attributes:
    spec: the file.
    out: the folder of all of it, absolute.
    arms: with their budgets.
    matched: by label of an arm, the macro that gave it its budget, and what was found.
    runs: in the order in which they start.
    count: counts parameters.
  """

  spec: Spec
  out: str
  arms: list[Arm]
  matched: Mapping[str, tuple[str, matching.Match]]
  runs: list[Run]
  count: configuring.Counter

  def settle(self) -> None:
    """Settles all runs whose settings are known by now.

    Raises:
      SpecError: two runs are the same.
    """
    for run in self.runs:
      if run.folder is None and (run.stage == TUNE or all(need.is_done for need in run.needs)):
        self._settle(run)
    seen: dict[str, str] = {}
    for run in self.runs:
      if run.folder is not None:
        other = seen.setdefault(run.folder.fingerprint, run.name)
        if other != run.name:
          raise self.spec.error('grid', f'{run.name} is the same run as {other}: leave one of them out')

  def _settle(self, run: Run) -> None:
    first = run.needs[0] if run.after else None
    if run.stage == MAIN and run.needs:
      run.chosen = chosen(run.needs, self.spec.metric)
    run.bindings = _bindings(self.spec, run)
    config = configuring.read(run.gin_files, run.bindings)
    unused = [name for name in run.bindings if re.fullmatch(r'\w+', name) and name not in config.macros]
    if unused:  # Settings of other systems: without them its configuration is the same.
      run.bindings = {name: text for name, text in run.bindings.items() if name not in unused}
      config = configuring.read(run.gin_files, run.bindings)
    fingerprint = config.fingerprint(*([first.folder.fingerprint] if first else []))
    slug = re.sub(r'[^\w.=-]+', '_', f'{run.stage} {run.name}' if run.stage == TUNE else run.name).strip('._')[:80]
    run.folder = folders.Folder(os.path.join(self.out, _RUNS, f'{slug}-{fingerprint[:8]}'), fingerprint)
    run.steps, run.batch_size = config.steps, config.batch_size

  def command(self, run: Run) -> list[str]:
    """Returns the command of a settled run."""
    bindings = _with_first(run) | {'MODEL_DIR': repr(str(run.folder.path))}
    return [sys.executable, '-m', 't5x.train', f'--gin_search_paths={",".join(configuring.SEARCH_PATHS)}',
            *(f'--gin_file={file}' for file in run.gin_files), *values.flags(bindings)]

  def parameters(self, arm: Arm, stage: str = MAIN) -> tuple[int | None, int | None]:
    """Returns (trainable, active) parameters of an arm in a stage; None where they are known only when a run is done."""
    runs = [run for run in self.runs if run.arm is arm and run.stage == stage]
    run = next((run for run in runs if run.is_done), runs[0] if runs else None)
    if run is None:
      return None, None
    try:
      found = self.count(run.gin_files, _with_first(run) if run.folder is not None else _bindings(self.spec, run))
      return found.trainable, found.active
    except ValueError:
      if not run.after:
        raise
      return run.folder.trainable if run.is_done else None, None  # Its network depends on what the first run wrote.

  def others(self) -> list[str]:
    """Returns folders of runs that are none of this plan's: of an earlier version of the file."""
    parent = os.path.join(self.out, _RUNS)
    ours = {os.path.basename(run.folder.path) for run in self.runs if run.folder is not None}
    return sorted(name for name in os.listdir(parent) if name not in ours) if os.path.isdir(parent) else []


def newest_checkpoint(folder: str) -> str:
  """Returns the path of the last checkpoint of a run; the folder itself where there is none."""
  names = [name for name in os.listdir(folder) if re.fullmatch(r'checkpoint_\d+', name)] if os.path.isdir(folder) else []
  return os.path.join(folder, max(names, key=lambda name: int(name.rpartition('_')[2]))) if names else folder


def chosen(tuning: Sequence[Run], metric: str | None) -> Mapping[str, str]:
  """Returns the settings of the tuning run with the highest score; of equal ones the first.

  Raises:
    ValueError: one of them has no score.
  """
  scores = [measures.read(run.folder.path, metric).score for run in tuning]
  for run, score in zip(tuning, scores):
    if score is None:
      raise ValueError(f'{run.name} has no score in {run.folder.path}: nothing to choose by')
  return tuning[scores.index(max(scores))].tried


def _bindings(spec: Spec, run: Run) -> dict[str, str]:
  """Returns all bindings of a run but MODEL_DIR."""
  seed = {'RANDOM_SEED': str(run.seed)}
  if run.stage == TUNE:
    return values.merged(run.arm.bindings, spec.tune.bindings, {'EVAL_SPLIT': "'validation'"}, run.tried, seed)
  if run.after and run.after.alone:
    return values.merged(run.after.bindings, seed)
  chosen_before = run.needs[0].chosen if run.after else run.chosen
  return values.merged(run.arm.bindings, chosen_before, run.after.bindings if run.after else {}, seed)


def _with_first(run: Run) -> dict[str, str]:
  """The bindings of a settled run, the folder of its first run in its place."""
  if not run.after:
    return dict(run.bindings)
  folder = str(run.needs[0].folder.path)
  checkpoint = newest_checkpoint(folder)
  return {name: text.replace(FIRST_CHECKPOINT, checkpoint).replace(FIRST, folder) for name, text in run.bindings.items()}


def make(spec: Spec, out: str) -> Plan:
  """Makes and checks the plan of a file; nothing is written.

  Args:
    spec: the file.
    out: the folder of the experiment.

  Raises:
    SpecError: a mistake in the file: an unknown system, gin file, macro or setting, an impossible budget, two equal runs.
  """
  count = configuring.Counter()
  arms, matched = arms_lib.arms(spec), {}
  checks.check_arms(spec, arms, count)
  arms, matched = budgets.match(spec, arms, count)
  tuning, main, after = [], [], []
  for arm in arms:
    tried = []
    if spec.tune:
      for texts in itertools.product(*spec.tune.grid.values()):
        setting = dict(zip(spec.tune.grid, texts))
        tried.append(Run(f'{arm.label} {values.named(setting)}', TUNE, arm, spec.tune.seed, arm.gin_files, tried=setting,
                         minutes=spec.tune.minutes_per_run))
    tuning += tried
    for seed in spec.seeds:
      run = Run(f'{arm.label} seed={seed}', MAIN, arm, seed, arm.gin_files, tuple(tried), minutes=spec.minutes_per_run)
      main.append(run)
      after += [Run(f'{arm.label} seed={seed} {stage.name}', stage.name, arm, seed, _after_files(spec, stage, arm), (run,),
                    stage, minutes=stage.minutes_per_run)
                for stage in spec.afters if stage.systems is None or arm.system in stage.systems]
  plan = Plan(spec, os.path.abspath(out), arms, matched, [*tuning, *main, *after], count)
  for stage in spec.afters:
    of = [run for run in after if run.stage == stage.name]
    checks.check_stage(spec, stage, [(run.arm.label, run.gin_files, _bindings(spec, run)) for run in of[::len(spec.seeds)]])
  plan.settle()
  return plan


def _after_files(spec: Spec, stage: After, arm: Arm) -> tuple[str, ...]:
  """Returns the gin files of a run after another."""
  key = next(f'after[{i}]' for i, one in enumerate(spec.afters) if one is stage)
  arms_lib.check_files(spec, f'{key}.gin_files', stage.gin_files)
  if stage.alone:
    return stage.gin_files
  if stage.system is None:
    return (*arm.gin_files, *stage.gin_files)
  return (*arm.base_files, *arms_lib.system_files(spec, f'{key}.system', stage.system), *stage.gin_files)
