"""Lines that tell how an inference goes: examples done of how many, the rate, and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_SECONDS_BETWEEN_LINES = 5.0


class InferProgress:
  """Counts examples and prints a line every few seconds.

  The rate is that since the first batch, whose time is mostly compilation.

  Args:
    name: starts each line.
    total: examples in all, None where it is not known.
    done: examples that an earlier process did.
    stream: where lines go; None: standard output.
    clock: seconds, rising.
  """

  def __init__(self, name: str, total: int | None, done: int = 0, stream: TextIO | None = None,
               clock: Callable[[], float] = time.monotonic):
    self._name, self._total, self._stream, self._clock = name, total, stream, clock
    self._done = self._done_before = done
    self._start = self._last_line = clock()
    if done:
      self._print(f'{self._count()} examples are done already')

  def __call__(self, number: int) -> None:
    """Takes the number of examples of one more batch."""
    now = self._clock()
    if self._done == self._done_before:
      self._first_batch = (now, number)
    self._done += number
    if now - self._last_line >= _SECONDS_BETWEEN_LINES:
      self.show()

  def show(self) -> None:
    """Prints a line."""
    self._last_line = self._clock()
    self._print(f'{self._count()} examples{self._speed()}')

  def _speed(self) -> str:
    if self._done == self._done_before:
      return ''
    start, number = self._first_batch
    counted = self._done - self._done_before - number
    if not counted:
      start, counted = self._start, number
    rate = counted / max(self._clock() - start, 1e-6)
    left = '' if self._total is None else f', ETA {_time(max(self._total - self._done, 0) / rate)}'
    return f', {rate:.3g} examples/s{left}'

  def _count(self) -> str:
    return f'{self._done}' if self._total is None else f'{self._done}/{self._total}'

  def _print(self, text: str) -> None:
    print(f'{self._name}: {text}', file=self._stream or sys.stdout, flush=True)


def _time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
