"""At which steps a run saves, evaluates and summarises: arithmetic on step numbers, checked at the start.

Periods count from the run's first step, not from where a resumed process began, so that a run that was
interrupted anywhere saves and evaluates at the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence

from t5x import files
from t5x import multihost

# Facts of a run that a resumed process must share with the first: {"first_step", "random_seed"}.
RUN_FILE = 'run.json'


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """The steps at which something other than training happens.

  Attributes:
    first_step: step of the state with which the run began.
    total_steps: last step.
    eval_period: steps between evaluations; 0: none but at the end.
    save_period: steps between checkpoints; 0: none.
    gc_period: steps between garbage collections; 0: left to Python.
    stats_period: steps between summaries; 0: the shortest of the other periods.
    checkpoint_steps: further steps at which to save.
  """
  first_step: int
  total_steps: int
  eval_period: int = 0
  save_period: int = 0
  gc_period: int = 0
  stats_period: int = 0
  checkpoint_steps: tuple[int, ...] = ()

  def __post_init__(self):
    periods = {'EVAL_PERIOD': self.eval_period, 'SaveCheckpointConfig.period': self.save_period,
               'train.gc_period': self.gc_period}
    periods = {k: v for k, v in periods.items() if v}
    for name, period in periods.items():
      if period < 0:
        raise ValueError(f'{name}={period} must not be negative.')
    shortest = min(periods.values(), default=0)
    for name, period in periods.items():
      if period % shortest:
        least = min(periods, key=periods.get)
        raise ValueError(f'{name}={period} must be a multiple of {least}={shortest}, e.g. '
                         f'{(period // shortest + 1) * shortest}.')
    if self.total_steps < self.first_step:
      raise ValueError(
          f'TRAIN_STEPS={self.total_steps} lies before step {self.first_step} of the checkpoint that training starts '
          f'from. Steps are absolute: set TRAIN_STEPS above {self.first_step}, or TRAIN_STEPS_RELATIVE.')

  def _is_multiple(self, step: int, period: int) -> bool:
    return bool(period) and step > self.first_step and (step - self.first_step) % period == 0

  def saves_at(self, step: int) -> bool:
    """Whether a checkpoint is due after `step`."""
    return step == self.total_steps or step in self.checkpoint_steps or self._is_multiple(step, self.save_period)

  def evaluates_at(self, step: int) -> bool:
    """Whether an evaluation is due after `step`."""
    return bool(self.eval_period) and (step == self.total_steps or self._is_multiple(step, self.eval_period))

  def collects_at(self, step: int) -> bool:
    """Whether a garbage collection is due after `step`."""
    return self._is_multiple(step, self.gc_period)

  @property
  def summary_period(self) -> int:
    """Steps between two summaries of the training metrics."""
    periods = [p for p in (self.eval_period, self.save_period, self.gc_period) if p]
    return self.stats_period or min(periods, default=self.total_steps - self.first_step)

  def next_stop(self, step: int) -> int:
    """Returns the next step after `step` at which training pauses for anything."""
    stops = [self.total_steps] + [s for s in self.checkpoint_steps if s > step]
    for period in (self.eval_period, self.save_period, self.gc_period, self.summary_period):
      if period:
        stops.append(step + period - (step - self.first_step) % period)
    return min(stops)


def make_plan(first_step: int, start_step: int, total_steps: int, relative_steps: int | None, save_cfg,
              eval_period: int | None, stats_period: int | None, gc_period: int | None) -> RunPlan:
  """Builds the plan of a run from its configuration.

  Args:
    first_step: step with which the run began.
    start_step: step of the state that this process starts from.
    total_steps: last step, absolute.
    relative_steps: where given, replaces `total_steps`: steps after the run's first step.
    save_cfg: SaveCheckpointConfig or None.
    eval_period: see `RunPlan`.
    stats_period: see `RunPlan`.
    gc_period: see `RunPlan`.

  Raises:
    ValueError: where the periods do not fit, or `start_step` lies beyond the last step.
  """
  if relative_steps:
    total_steps = first_step + relative_steps
  if total_steps < start_step:
    raise ValueError(
        f'TRAIN_STEPS={total_steps} lies before step {start_step} of the checkpoint that training starts from. Steps '
        f'are absolute: set TRAIN_STEPS above {start_step}, or TRAIN_STEPS_RELATIVE.')
  steps: Sequence[int] = getattr(save_cfg, 'checkpoint_steps', None) or ()
  return RunPlan(first_step, total_steps, eval_period or 0, getattr(save_cfg, 'period', None) or 0, gc_period or 0,
                 stats_period or 0, tuple(steps))


def read_run(model_dir: str) -> dict[str, int]:
  """Returns what the first process of this run noted, {} where there is nothing."""
  text = ''.join(files.read_lines(os.path.join(model_dir, RUN_FILE)))
  return json.loads(text) if text else {}


def choose_seed(model_dir: str, random_seed: int | None) -> int:
  """Returns the seed of the run: the given one, else the one noted in MODEL_DIR, else a new one from the clock."""
  if random_seed is not None:
    return random_seed
  noted = read_run(model_dir).get('random_seed')
  return multihost.broadcast_int(time.time_ns() // 1000 % 2**31 if noted is None else noted)


def note_run(model_dir: str, first_step: int, random_seed: int) -> None:
  """Writes the facts that a resumed process needs."""
  files.write_text(os.path.join(model_dir, RUN_FILE),
                   json.dumps({'first_step': first_step, 'random_seed': random_seed}) + '\n')
