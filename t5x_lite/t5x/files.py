"""Small text files in MODEL_DIR, which may lie on a local disk or in a bucket."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator

from etils import epath

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Context in which the error of a full disk, or of a folder that became read-only, says what that means."""
  try:
    yield
  except OSError as e:
    if e.errno not in _FULL + _DENIED:
      raise
    advice = 'Free space' if e.errno in _FULL else 'Make it writable'
    raise OSError(f'Could not write {os.fspath(path)}: {e.strerror}; checkpoints there are intact. {advice}, or set '
                  'MODEL_DIR to another folder, then start the same command again.') from e


def is_remote(path: str) -> bool:
  """Whether the path names a bucket, where a file can be replaced but not appended to."""
  return '://' in os.fspath(path)


def make_dirs(path: str) -> None:
  """Creates a folder and its parents."""
  epath.Path(path).mkdir(parents=True, exist_ok=True)


def check_writable(path: str, setting: str) -> None:
  """Creates a folder and tries to write into it, so that a run does not fail when it first saves.

  Args:
    path: the folder.
    setting: what names it in the configuration, for the message.

  Raises:
    ValueError: one line, where it cannot be written.
  """
  # A name of its own: all processes of a run try at the same time.
  probe = os.path.join(path, f'.write_test_{uuid.uuid4().hex}')
  try:
    make_dirs(path)
    write_text(probe, '')
    remove(probe)
  except OSError as e:
    reason = getattr(e.__cause__ or e, 'strerror', None) or e
    raise ValueError(f'{setting} {path} cannot be written ({reason}): choose another folder.') from e


def write_text(path: str, text: str) -> None:
  """Replaces a file: a reader sees the old text or the new one, never a part."""
  target = epath.Path(path)
  make_dirs(os.path.dirname(path))
  if is_remote(path):
    target.write_text(text)
    return
  temporary = epath.Path(f'{os.fspath(path)}.tmp')
  try:
    with _naming(path):
      temporary.write_text(text)
  except OSError:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise
  temporary.replace(target)


def remove(path: str) -> None:
  """Deletes a file, if it is there."""
  epath.Path(path).unlink(missing_ok=True)


def read_lines(path: str) -> list[str]:
  """Returns the lines of a file with their ends, [] where there is no file."""
  target = epath.Path(path)
  return target.read_text().splitlines(keepends=True) if target.exists() else []


def append_lines(path: str, lines: list[str]) -> None:
  """Appends lines, which end in a newline, and makes sure that they are on disk."""
  if not lines:
    return
  if is_remote(path):
    write_text(path, ''.join(read_lines(path) + lines))
    return
  make_dirs(os.path.dirname(path))
  with _naming(path), open(path, 'a', encoding='utf-8') as f:
    f.writelines(lines)
    f.flush()
    os.fsync(f.fileno())
