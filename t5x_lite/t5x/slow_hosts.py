"""Names what holds up training: a host that is behind or silent, the input, or the devices.

The loop notes what it waits for in a `StepClock`, which costs nothing worth measuring. A thread beside it looks there every few
seconds. With several processes each also puts its note into the key-value store that `jax.distributed` runs anyway, and process
0 compares: all run the same steps, so who is behind is who the others wait for. Only differences of one process's own monotonic
clock are used, so hosts need no common time.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Seconds without a step, or behind the others, before a warning; 0: no watch.
VARIABLE = 'T5X_SLOW_SECONDS'
_DEFAULT_SECONDS = 60.0
# What a process may be waiting for.
INPUT, DEVICE, REST = 'input', 'devices', 'rest'
_SAID = {INPUT: 'it waits for its input', DEVICE: 'it waits for its devices', REST: 'it saves or evaluates'}
# A step is slow that takes this many times the median.
_FACTOR = 10
_STEPS_FOR_A_MEDIAN = 10
# Waiting for the input for more than this part of the time is told; told again after it was below half of it.
_MUCH = 0.5
_PREFIX = 't5x_heartbeat/'
# A store whose process died may not answer: the thread is left behind then.
_SECONDS_TO_END = 5.0


class StepClock:
  """What the loop waits for, since when; written by the loop, read by any thread.

  Attributes:
    note: (what it waits for, steps dispatched, when the present step began), replaced as a whole.
    input_seconds: seconds spent on waiting for the input, of finished waits.
  """

  def __init__(self, now: Callable[[], float] = time.monotonic):
    """Creates a clock at rest; `now` returns seconds that only go forwards."""
    self.now = now
    self.note: tuple[str, int, float] = (REST, 0, now())
    self.input_seconds = 0.0
    self._phase_began = self.note[2]
    self._seconds: collections.deque[float] = collections.deque(maxlen=101)

  def waits(self, what: str, step: int) -> None:
    """Notes that step `step` is about to wait for INPUT (with which it begins) or DEVICE."""
    now = self.now()
    if what == INPUT:
      self.note = (INPUT, step - 1, now)
    else:
      self.input_seconds += now - self._phase_began
      self.note = (what, step - 1, self.note[2])
    self._phase_began = now

  def done(self, step: int) -> None:
    """Notes that a step is dispatched."""
    now = self.now()
    self._seconds.append(now - self.note[2])
    self.note = (DEVICE, step, now)

  def drains(self) -> None:
    """Notes that the loop waits for the devices to finish what is dispatched; `rests` ends it."""
    self.note = (DEVICE, self.note[1], self.now())

  def rests(self) -> None:
    """Notes that no step is due: the time until the next one does not count."""
    self.note = (REST, self.note[1], self.now())

  def waited_for_input(self) -> float:
    """Seconds spent on waiting for the input until now."""
    waiting = self.now() - self._phase_began if self.note[0] == INPUT else 0.0
    return self.input_seconds + max(waiting, 0.0)

  def median(self) -> float | None:
    """Seconds of a step; None before there are enough."""
    seconds = list(self._seconds)
    return statistics.median(seconds) if len(seconds) >= _STEPS_FOR_A_MEDIAN else None


class StepWatch:
  """Tells when a step of this process takes far longer than the others."""

  def __init__(self, clock: StepClock, seconds: float):
    self._clock, self._seconds = clock, seconds
    self._told = None

  def look(self) -> list[str]:
    """Returns a line for a step that is slow and was not told of, else none."""
    what, step, began = self._clock.note
    median = self._clock.median()
    elapsed = self._clock.now() - began
    if what == REST or median is None or self._told == step or elapsed <= max(self._seconds, _FACTOR * median):
      return []
    self._told = step
    hint = {INPUT: 'its batch is not there: look at the storage and the preprocessing of the data',
            DEVICE: 'the devices have not finished: look for a device or a host that hangs'}
    return [f'warning: step {step + 1} has taken {elapsed:.0f} s so far, others {median:.2g} s: {_SAID[what]}; {hint[what]}.']


class HostsWatch:
  """Tells which processes hold up the others, from what each published."""

  def __init__(self, seconds: float):
    """Creates the watch; `seconds`: how long a process may be behind, or silent."""
    self._seconds = seconds
    # By process: (value, when it was first seen).
    self._moved: dict[int, tuple[Any, float]] = {}
    self._heard: dict[int, tuple[Any, float]] = {}
    self._told: set[tuple[str, int]] = set()
    self._window: tuple[float, dict[int, float]] | None = None

  def _since(self, seen: dict[int, tuple[Any, float]], index: int, value: Any, now: float) -> float:
    """Returns for how long a value of a process has been the same."""
    if index not in seen or seen[index][0] != value:
      seen[index] = (value, now)
    return now - seen[index][1]

  def _tell(self, kind: str, index: int, is_so: bool) -> bool:
    """Whether something is to be told: it is so, and was not when it was last looked at."""
    key = (kind, index)
    is_new = is_so and key not in self._told
    (self._told.add if is_so else self._told.discard)(key)
    return is_new

  def look(self, now: float, beats: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Compares the processes.

    Args:
      now: seconds of this process's clock.
      beats: {process: {'host', 'step', 'waits': what for, 'beat': a counter, 'input': seconds}}.

    Returns:
      A line for each process that is behind or silent, or whose input is slow, the first time it is.
    """
    lines = []
    ahead = max((beat['step'] for beat in beats.values()), default=0)
    for index, beat in sorted(beats.items()):
      name = f'process {index} on {beat["host"]}'
      silent = self._since(self._heard, index, beat['beat'], now)
      still = self._since(self._moved, index, beat['step'], now)
      is_silent = silent > self._seconds
      if self._tell('silent', index, is_silent):
        lines.append(f'warning: {name} has not been heard of for {silent:.0f} s; it was at step {beat["step"]}, the first is '
                     f'at step {ahead}: see whether the machine is up.')
      is_behind = beat['step'] < ahead and still > self._seconds
      if self._tell('behind', index, is_behind) and not is_silent:
        lines.append(f'warning: {name} has been at step {beat["step"]} for {still:.0f} s, while others are at step {ahead}: '
                     f'{_SAID[beat["waits"]]}.')
    return lines + self._look_at_input(now, beats)

  def _look_at_input(self, now: float, beats: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each process that waited for its input most of the time since the last look of this kind."""
    inputs = {index: beat['input'] for index, beat in beats.items()}
    if self._window is None:
      self._window = (now, inputs)
    began, before = self._window
    if now - began < self._seconds:
      return []
    self._window = (now, inputs)
    lines = []
    for index, seconds in sorted(inputs.items()):
      share = (seconds - before.get(index, seconds)) / (now - began)
      was_told = ('input', index) in self._told
      if self._tell('input', index, share > (_MUCH / 2 if was_told else _MUCH)):
        where = f'process {index} on {beats[index]["host"]}' if len(beats) > 1 else 'training'
        lines.append(f'warning: {where} waited for its input during {share:.0%} of the last {now - began:.0f} s: the devices '
                     'could do more; cache the tasks, or read them from a faster place.')
    return lines


def _client() -> Any:
  """The key-value store of `jax.distributed`, None where it was not started."""
  from jax._src import distributed  # There is no public name for it.
  return distributed.global_state.client


def seconds_from_environment() -> float:
  """Returns the setting T5X_SLOW_SECONDS.

  Raises:
    ValueError: it is no number of seconds.
  """
  given = os.environ.get(VARIABLE, '')
  try:
    seconds = float(given) if given else _DEFAULT_SECONDS
  except ValueError:
    seconds = -1.0
  if not 0 <= seconds < float('inf'):
    raise ValueError(f'{VARIABLE}={given} is no number of seconds: write e.g. 60, or 0 for no warnings.')
  return seconds


class Heartbeat:
  """A thread that publishes what this process does and, in process 0, tells who is slow; a context."""

  def __init__(self, clock: StepClock, tell: Callable[[str], None]):
    """Creates the thread.

    Args:
      clock: of this process.
      tell: takes the lines of process 0.

    Raises:
      ValueError: T5X_SLOW_SECONDS is no number of seconds.
    """
    self._clock, self._tell = clock, tell
    self._seconds = seconds_from_environment()
    self._index, self._count = jax.process_index(), jax.process_count()
    self._store = _client() if self._count > 1 else None
    self._steps, self._hosts = StepWatch(clock, self._seconds), HostsWatch(self._seconds)
    self._beats = 0
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, name='heartbeat', daemon=True)

  def __enter__(self) -> Heartbeat:
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *exc) -> None:
    self._stop.set()
    if self._thread.is_alive():
      self._thread.join(_SECONDS_TO_END)

  def _run(self) -> None:
    while not self._stop.wait(min(5.0, self._seconds / 4)):
      try:
        self.beat()
      except jax.errors.JaxRuntimeError:
        return  # The store is gone with process 0: what waits for it reports that.

  def beat(self) -> None:
    """Publishes once; in process 0 also compares and tells."""
    self._beats += 1
    what, step, _ = self._clock.note
    mine = {'host': socket.gethostname(), 'step': step, 'waits': what, 'beat': self._beats,
            'input': self._clock.waited_for_input()}
    beats = {self._index: mine}
    if self._store is not None:
      self._store.key_value_set(f'{_PREFIX}{self._index}', json.dumps(mine), allow_overwrite=True)
      if self._index == 0:
        beats |= {int(key.rpartition('/')[2]): json.loads(text) for key, text in self._store.key_value_dir_get(_PREFIX)}
    if self._index == 0:
      lines = self._hosts.look(self._clock.now(), beats)
      # A step is slow here, too, if a host is: that host is to be named.
      if all(beat['step'] >= step for beat in beats.values()):
        lines += self._steps.look()
      for line in lines:
        self._tell(line)
