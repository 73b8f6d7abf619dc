"""What a person sees while runs go on: a line when one starts or ends, what is left, and on a terminal a line that lives."""

from __future__ import annotations

import sys
import time
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from cpoly_jax.experiments.plans import Run

_SECONDS_BETWEEN = 1.


def duration(seconds: float | None) -> str:
  """Returns `1:02:03`, `2:03`; `?` for None."""
  if seconds is None:
    return '?'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def expected(runs: Sequence[Run], jobs: int | None = None) -> Callable[[Run], float | None]:
  """Returns what says how many seconds a run takes: as the done ones of its stage, as the file says, or as all done ones.

  Args:
    runs: all of an experiment.
    jobs: count only runs that went on beside as many others; None: all.
  """
  took: dict[str, list[float]] = {}
  for run in runs:
    if run.is_done and (jobs is None or run.folder.read().get('jobs') == jobs):
      took.setdefault(run.stage, []).append(run.folder.seconds)
  mean = lambda seconds: sum(seconds) / len(seconds) if seconds else None
  of_all = mean([seconds for stage in took.values() for seconds in stage])
  said = lambda run: of_all if run.minutes is None else 60 * run.minutes
  return lambda run: mean(took[run.stage]) if run.stage in took else said(run)


def left(runs: Sequence[Run], jobs: int, elapsed: Mapping[str, float]) -> float | None:
  """Returns the seconds that all runs which are not done will take; None where one is unknown.

  Args:
    runs: all of an experiment.
    jobs: runs at a time.
    elapsed: by name, seconds that running ones took so far.
  """
  rest, seconds = [run for run in runs if not run.is_done], expected(runs, jobs)
  times = [seconds(run) for run in rest]
  if None in times:
    return None
  total = sum(max(0., time - elapsed.get(run.name, 0.)) for run, time in zip(rest, times))
  return total / max(1, min(jobs, len(rest)))


class Display:
  """Lines of a driver.

  Attributes:
    total: runs that are wanted.
    ended: those that are done or failed.
  """

  def __init__(self, total: int, stream: Any = None):
    self.total, self.ended = total, 0
    self._stream = stream or sys.stderr
    self._live = bool(getattr(self._stream, 'isatty', lambda: False)())
    self._shown, self._last = '', 0.

  def line(self, text: str) -> None:
    """Shows a line that stays."""
    self._clear()
    print(text, file=self._stream, flush=True)

  def end(self, text: str) -> None:
    """Shows how a run ended, with the number of those that have."""
    self.ended += 1
    self.line(f'[{self.ended}/{self.total}] {text}')

  def status(self, text: Callable[[], str]) -> None:
    """Shows a line that the next one replaces; on a terminal only, once a second."""
    if self._live and time.monotonic() - self._last > _SECONDS_BETWEEN:
      self._clear()
      self._shown, self._last = text(), time.monotonic()
      self._stream.write(self._shown)
      self._stream.flush()

  def _clear(self) -> None:
    if self._shown:
      self._stream.write('\r' + ' ' * len(self._shown) + '\r')
      self._shown = ''
