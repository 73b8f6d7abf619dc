"""Shows how training goes and records the loss of every step, without making the device wait.

The metrics of a step stay on the device until it has computed them; they are read a few steps late. What is
shown lags, what is recorded is complete: `flush` reads all that is due.
"""

from __future__ import annotations

import collections
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from t5x import files
from t5x import nonfinite

# A step that is not finished is waited for only where this many others have been dispatched after it.
_MAX_PENDING = 32
_SECONDS_BETWEEN_LINES = 5.0
# Relative path, in MODEL_DIR, of one JSON line per step.
RECORD_FILE = os.path.join('train', 'metrics.jsonl')


def truncate_record(path: str, last_step: int) -> None:
  """Drops the lines of a JSONL file that lie after `last_step`, and one that was cut while written.

  Args:
    path: file of JSON objects with a "step"; may be absent.
    last_step: the last step to keep.
  """
  lines = files.read_lines(path)
  steps = [_step_of(line) for line in lines]
  kept = [line for line, step in zip(lines, steps) if step is not None and step <= last_step]
  if len(kept) < len(lines):
    files.write_text(path, ''.join(kept))


def _step_of(line: str) -> int | None:
  try:
    return json.loads(line)['step'] if line.endswith('\n') else None
  except (ValueError, KeyError, TypeError):
    return None


def _small(metrics: dict[str, Any]) -> dict[str, Any]:
  """Picks from the metrics of a step what is shown or recorded, still on the device.

  `loss` is T5X's: the sum over target tokens, or divided as the model's loss_normalizing_factor says.
  """
  per_token = metrics.get('loss_per_nonpadding_target_token')
  picked = {'loss': getattr(metrics.get('loss'), 'total', None)}
  if per_token is not None:
    picked['target_tokens'] = per_token.count
  sequences = metrics.get('timing/seqs', metrics.get('timing/seqs_per_second'))
  picked['examples'] = getattr(sequences, 'total', getattr(sequences, 'numerator', None))
  picked[nonfinite.KEY] = getattr(metrics.get(nonfinite.KEY), 'kind', None)
  return {k: v for k, v in picked.items() if v is not None}


def _line(step: int, values: dict[str, Any]) -> dict[str, Any]:
  """The record of one step from its host values; a loss that is not finite, or was not learned from, is None."""
  if values.get(nonfinite.KEY) or not math.isfinite(values.get('loss', 0.0)):
    return {'step': step, 'loss': None}
  kinds = {'loss': float, 'target_tokens': int, 'examples': int}
  return {'step': step, **{name: kind(values[name]) for name, kind in kinds.items() if name in values}}


def _short(number: float) -> str:
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if number >= size:
      return f'{number / size:.1f}{unit}'
  return f'{number:.3g}'


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'


class Progress:
  """A live bar on a terminal, plain lines elsewhere; and the record `train/metrics.jsonl`.

  Attributes:
    last: the newest record read from the device, {} before the first.
  """

  def __init__(self, model_dir: str, start_step: int, total_steps: int, batch_size: int, period: int,
               stream: Any = None):
    """Opens the record, dropping what lies after `start_step`.

    Args:
      model_dir: where the record lives.
      start_step: step of the restored or new state.
      total_steps: last step.
      batch_size: examples per step, used where the metrics do not say.
      period: a plain line is shown at least at every multiple.
      stream: where plain lines go; None: standard output.
    """
    self.last: dict[str, Any] = {}
    self._total = total_steps
    self._start = start_step
    self._batch_size = batch_size
    self._period = period
    self._stream = stream or sys.stdout
    self._pending = collections.deque()
    self._shows = jax.process_index() == 0
    self._record = os.path.join(model_dir, RECORD_FILE)
    self._unwritten = []
    if self._shows:
      truncate_record(self._record, start_step)
    self._bar = None
    if self._shows and stream is None and sys.stderr.isatty():
      import tqdm
      self._bar = tqdm.tqdm(total=total_steps, initial=start_step, unit='step', dynamic_ncols=True)
    self._window_start = self._began = time.monotonic()
    self._window = collections.Counter()
    self._line_time = 0.0
    self._steps_read = 0

  def resume(self) -> None:
    """Starts the clock of the rates: called before a stretch of training, after saving and evaluating.

    Where steps are still under way, nothing has been waited for: the clock runs on, or it would count them in no time.
    """
    self._read_all(self._is_ready)
    if self._pending:
      return
    self._window_start = time.monotonic()
    self._window.clear()
    if not self._steps_read:
      self._began = self._window_start

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the device metrics of one step, and shows those of steps that are done."""
    if not self._shows:
      return
    self._pending.append((step, _small(metrics)))
    self._read_all(lambda: len(self._pending) > _MAX_PENDING or self._is_ready())

  def _is_ready(self) -> bool:
    leaves = jax.tree.leaves(self._pending[0][1])
    return all(x.is_ready() for x in leaves if hasattr(x, 'is_ready'))

  def _read_all(self, is_due: Callable[[], bool]) -> None:
    """Reads steps while they are due, and shows them after all are counted: those read at once were done by now."""
    lines = []
    while self._pending and is_due():
      lines += self._read()
    for line in lines:
      self._show(line)

  def _read(self) -> list[dict[str, Any]]:
    """Records the oldest step; returns its record, none where the step did nothing because the run ends."""
    step, values = self._pending.popleft()
    values = jax.device_get(values)
    if values.get(nonfinite.KEY, 0) & nonfinite.HALTED:
      return []
    line = _line(step, values)
    self.last = line
    self._steps_read += 1
    self._unwritten.append(json.dumps(line) + '\n')
    self._window['examples'] += line.get('examples', self._batch_size)
    self._window['tokens'] += line.get('target_tokens', 0)
    return [line]

  def _show(self, line: dict[str, Any]) -> None:
    step = line['step']
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix_str('  '.join(self._rates(line)), refresh=False)
    elif (step % self._period == 0 or step == self._total
          or time.monotonic() - self._line_time > _SECONDS_BETWEEN_LINES):
      # The whole time since the first step, evaluations included: the honest basis for what is left.
      per_step = (time.monotonic() - self._began) / self._steps_read
      eta = _clock(per_step * (self._total - self.last['step']))
      self.print('  '.join([f'step {step}/{self._total}', *self._rates(line), f'ETA {eta}']))
      self._line_time = time.monotonic()

  def _rates(self, line: dict[str, Any]) -> list[str]:
    elapsed = max(time.monotonic() - self._window_start, 1e-6)
    parts = []
    if line.get('loss', 0.0) is None:
      parts.append('loss not finite')
    elif 'loss' in line:
      parts.append(f"loss {line['loss']:.4f}")
    parts.append(f"{_short(self._window['examples'] / elapsed)} examples/s")
    if self._window['tokens']:
      parts.append(f"{_short(self._window['tokens'] / elapsed)} target tokens/s")
    return parts

  def print(self, text: str) -> None:
    """Writes one line, above the bar where there is one."""
    if not self._shows:
      return
    if self._bar is not None:
      self._bar.write(text)
    else:
      print(text, file=self._stream, flush=True)

  def flush(self) -> None:
    """Waits for all dispatched steps and writes their records to disk."""
    self._read_all(lambda: True)
    files.append_lines(self._record, self._unwritten)
    self._unwritten = []

  def close(self) -> None:
    """Flushes and ends the display."""
    self.flush()
    if self._bar is not None:
      self._bar.close()
