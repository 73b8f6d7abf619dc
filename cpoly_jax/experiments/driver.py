"""Runs the runs of a plan, a process each, n at a time.

A run that is done is not run again; one that was stopped or killed goes on from its last checkpoint; one that fails is told in
a line, what needs it is left out, and the others go on. A run that an earlier, killed driver left behind is waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from typing import Any
from collections.abc import Callable, Iterator, Mapping, Sequence

from cpoly_jax.experiments import cpus
from cpoly_jax.experiments import folders
from cpoly_jax.experiments import measures
from cpoly_jax.experiments import progress
from cpoly_jax.experiments.plans import Plan, Run

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 120.  # In which a run that is asked to stop saves.
# Runs share their programs of evaluation and initialisation, also the small ones; a train step's depends on rates and seed.
_COMPILED_ONCE = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5'}
_LEFT_BEHIND = 'still runs, started by an earlier command: waiting for it'


@dataclasses.dataclass
class Outcome:
  """How it ended: runs by name with what to say of them; `stopped` is the signal that ended it, 0 for none."""

  done: list[str] = dataclasses.field(default_factory=list)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  stopped: int = 0

  @property
  def code(self) -> int:
    """Exit code."""
    return 128 + self.stopped if self.stopped else int(bool(self.failed or self.left_out))


@dataclasses.dataclass
class _Running:
  run: Run
  process: subprocess.Popen | None  # None: of an earlier driver.
  lock: int | None
  slot: int
  start: float


class Driver:
  """Runs a plan.

  Attributes:
    outcome: so far.
  """

  def __init__(self, plan: Plan, wanted: Sequence[Run], jobs: int, *, display: progress.Display | None = None,
               environment: Mapping[str, str] | None = None, command: Callable[[Run], Sequence[str]] | None = None,
               on_change: Callable[[], None] = lambda: None):
    """Prepares.

    Args:
      plan: the plan.
      wanted: runs of it, each after what it needs.
      jobs: how many at a time.
      display: where lines go.
      environment: of the runs; None: that of this process.
      command: what a run runs; None: training.
      on_change: called when a run has started or ended.
    """
    self.outcome = Outcome()
    self._plan, self._wanted, self._jobs = plan, list(wanted), jobs
    self._display = display or progress.Display(len(self._wanted))
    self._environment = dict(os.environ if environment is None else environment)
    self._command, self._on_change = command or plan.command, on_change
    self._cpus = cpus.usable()
    self._waiting = list(self._wanted)
    self._running: list[_Running] = []
    self._signal = 0

  def run(self) -> Outcome:
    """Runs all; returns when they have ended, or when a signal asked to stop and they did."""
    with self._signals():
      self._leave_out_done()
      while (self._waiting or self._running) and not self._signal:
        self._end_those_that_ended()
        self._start_those_that_can()
        self._display.status(self._status)
        if self._running:
          time.sleep(_POLL_SECONDS)
      if self._signal:
        self._stop()
    return self.outcome

  def _leave_out_done(self) -> None:
    done = [run for run in self._waiting if run.is_done]
    self._waiting = [run for run in self._waiting if not run.is_done]
    self.outcome.done += [run.name for run in done]
    self._display.ended += len(done)
    before = f', {len(done)} done before' if done else ''
    self._display.line(f'{len(self._wanted)} runs, {self._jobs} at a time{before}; ETA {progress.duration(self._left())}')

  def _start_those_that_can(self) -> None:
    for run in list(self._waiting):
      missing = [need for need in run.needs if need.name not in self.outcome.done]
      bad = next((need for need in missing if need.name in (*self.outcome.failed, *self.outcome.left_out)), None)
      if bad is not None:
        self._waiting.remove(run)
        self.outcome.left_out[run.name] = f'needs {bad.name}'
        self._display.end(f'{run.name}: left out, as it needs {bad.name}')
        self._on_change()
      elif not missing and len(self._running) < self._jobs:
        self._waiting.remove(run)
        try:
          self._plan.settle()
          if run.is_done:
            self._finish(run)
          else:
            self._start(run)
        except (ValueError, OSError) as e:
          self._fail(run, str(e))

  def _start(self, run: Run) -> None:
    folder, start = run.folder, time.monotonic()
    slot = min(set(range(self._jobs)) - {running.slot for running in self._running})
    lock = folder.lock()
    if lock is None:
      self._display.line(f'{run.name} {_LEFT_BEHIND}')
      self._running.append(_Running(run, None, None, slot, start))
      return
    command, own = self._command(run), cpus.share(self._cpus, self._jobs, slot)
    programs = os.path.join(self._plan.out, 'compiled')
    environment = {**cpus.environment(own), **_COMPILED_ONCE, 'JAX_COMPILATION_CACHE_DIR': programs, **self._environment,
                   'PYTHONUNBUFFERED': '1'}
    folder.note(folders.RUNNING, name=run.name, stage=run.stage, command=list(command), jobs=self._jobs, seconds=folder.seconds)
    try:
      with open(folder.path / folders.LOG, 'ab') as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                                   pass_fds=(lock,), start_new_session=True)
    except OSError:
      os.close(lock)
      raise
    folder.note(folders.RUNNING, pid=process.pid)
    cpus.pin(process.pid, own)
    self._running.append(_Running(run, process, lock, slot, start))
    self._display.line(f'started {run.name}: {folder.path}')
    self._on_change()

  def _end_those_that_ended(self) -> None:
    for running in list(self._running):
      if running.process is None:
        lock = running.run.folder.lock()
        if lock is None:
          continue
        os.close(lock)
        self._running.remove(running)
        self._judge_left_behind(running.run)
      elif running.process.poll() is not None:
        self._close(running)
        self._judge(running.run, running.process.returncode)

  def _close(self, running: _Running) -> None:
    """Notes how long a run took, and gives its lock back."""
    self._running.remove(running)
    folder = running.run.folder
    folder.note(folders.STOPPED, seconds=round(folder.seconds + time.monotonic() - running.start, 1),
                exit_code=running.process.returncode)
    os.close(running.lock)

  def _judge(self, run: Run, code: int) -> None:
    try:
      step = measures.last_step(run.folder.path)
    except ValueError as e:
      return self._fail(run, str(e))
    if code:
      how = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
      return self._fail(run, f'{how}: {run.folder.last_line()}')
    if step is not None and run.steps is not None and step < run.steps:
      return self._fail(run, f'stopped at step {step} of {run.steps}; the same command goes on from there')
    run.folder.note(folders.DONE)
    return self._finish(run)

  def _judge_left_behind(self, run: Run) -> None:
    """A run whose exit code nobody saw is done if its results are those of its last step; else it goes on."""
    step = measures.last_step(run.folder.path)
    if step is not None and run.steps is not None and step >= run.steps:
      run.folder.note(folders.DONE)
      self._finish(run)
    else:
      self._waiting.insert(0, run)

  def _finish(self, run: Run) -> None:
    self.outcome.done.append(run.name)
    score = measures.read(run.folder.path, self._plan.spec.metric).score
    scored = '' if score is None else f', score {score:.3f}'
    self._display.end(f'{run.name}: done in {progress.duration(run.folder.seconds)}{scored}; ETA '
                      f'{progress.duration(self._left())}')
    self._on_change()

  def _fail(self, run: Run, why: str) -> None:
    log = ''
    if run.folder is not None and run.folder.path.exists():
      run.folder.note(folders.FAILED, why=why)
      log = f'; log: {run.folder.path / folders.LOG}'
    self.outcome.failed[run.name] = f'{why}{log}'
    self._display.end(f'{run.name}: failed: {why}{log}')
    self._on_change()

  def _left(self) -> float | None:
    waits = {run.name for run in self._waiting} | {running.run.name for running in self._running}
    runs = [run for run in self._wanted if run.name in waits or run.is_done]
    return progress.left(runs, self._jobs, {r.run.name: time.monotonic() - r.start for r in self._running})

  def _status(self) -> str:
    return (f'{self._display.ended} of {self._display.total} ended, {len(self._running)} running, {len(self._waiting)} to go, '
            f'ETA {progress.duration(self._left())}')

  def _stop(self) -> None:
    """Asks all runs to stop, which they do after saving, and kills those that do not."""
    self.outcome.stopped = self._signal
    own = [running for running in self._running if running.process is not None]
    self._display.line(f'{signal.Signals(self._signal).name}: stopping {len(own)} runs, which save first; the same command '
                       'goes on from there')
    for running in own:
      running.process.terminate()
    first, end = self._signal, time.monotonic() + _GRACE_SECONDS
    self._signal = 0
    for running in own:
      while running.process.poll() is None and time.monotonic() < end and not self._signal:  # A second signal: at once.
        time.sleep(_POLL_SECONDS)
      if running.process.poll() is None:
        running.process.kill()
      running.process.wait()
      self._close(running)
    self._signal = first

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    """Within it SIGINT and SIGTERM only ask to stop."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    ask: Callable[[int, Any], None] = lambda number, _: setattr(self, '_signal', number)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
