"""The state of a run, as its folder tells it.

A run's folder is its MODEL_DIR. The driver keeps three files in it: `experiment.json` (what it is, how it ended, how long it
took), `experiment.log` (what it printed) and `experiment.lock`. The lock is held by the driver and by the run itself, so it is
free only when both have ended: a driver that starts after another was killed sees which runs still go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
from typing import Any
from collections.abc import Mapping

STATE, LOG, LOCK = 'experiment.json', 'experiment.log', 'experiment.lock'
FORMAT = 1
DONE, FAILED, RUNNING, STOPPED = 'done', 'failed', 'running', 'stopped'


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a file whole or not at all."""
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_name(f'{file.name}.part')
  part.write_text(json.dumps(content, indent=1, allow_nan=False) + '\n')
  os.replace(part, file)


class Folder:
  """The folder of a run.

  Attributes:
    path: of the folder, which need not exist.
    fingerprint: of the run's settings.
  """

  def __init__(self, path: str | os.PathLike, fingerprint: str):
    self.path = pathlib.Path(path)
    self.fingerprint = fingerprint

  def read(self) -> Mapping[str, Any]:
    """Returns what the driver noted; {} if nothing.

    Raises:
      ValueError: it is damaged, or of other settings.
    """
    file = self.path / STATE
    try:
      found = json.loads(file.read_text())
    except FileNotFoundError:
      return {}
    except ValueError as e:
      raise ValueError(f'{file} is damaged ({e}): remove the folder to run it again') from None
    if not isinstance(found, dict) or found.get('fingerprint') != self.fingerprint:
      raise ValueError(f'{file} is of other settings: name another folder with --out')
    return found

  @property
  def is_done(self) -> bool:
    """Whether the run need not run again."""
    return self.read().get('state') == DONE

  @property
  def seconds(self) -> float:
    """Time that its processes took so far."""
    return float(self.read().get('seconds', 0.))

  def note(self, state: str, **facts: Any) -> None:
    """Notes a state, and facts that stay until others of their name come."""
    write_json(self.path / STATE, {**self.read(), 'format': FORMAT, 'fingerprint': self.fingerprint, 'state': state, **facts})

  def lock(self) -> int | None:
    """Takes the lock; returns its file descriptor, None while another process has it."""
    self.path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(descriptor)
      return None
    return descriptor

  @property
  def trainable(self) -> int | None:
    """Parameters that train, as the run's log says; None if it does not say."""
    with contextlib.suppress(FileNotFoundError):
      found = re.search(r'parameters, ([\d,]+) trainable', (self.path / LOG).read_text(errors='replace'))
      return int(found[1].replace(',', '')) if found else None
    return None

  def last_line(self) -> str:
    """Returns the last line of the log that says something: of an error if there is one."""
    try:
      lines = [line.strip() for line in (self.path / LOG).read_text(errors='replace').splitlines()[-200:] if line.strip()]
    except FileNotFoundError:
      return 'it printed nothing'
    errors = [line for line in lines if line.startswith('error:')]
    return (errors or lines or ['it printed nothing'])[-1][:300]
