"""Small text files in MODEL_DIR, which may lie on a local disk or in a bucket."""

from __future__ import annotations

import os

from etils import epath


def is_remote(path: str) -> bool:
  """Whether the path names a bucket, where a file can be replaced but not appended to."""
  return '://' in os.fspath(path)


def make_dirs(path: str) -> None:
  """Creates a folder and its parents."""
  epath.Path(path).mkdir(parents=True, exist_ok=True)


def write_text(path: str, text: str) -> None:
  """Replaces a file: a reader sees the old text or the new one, never a part."""
  target = epath.Path(path)
  make_dirs(os.path.dirname(path))
  if is_remote(path):
    target.write_text(text)
    return
  temporary = epath.Path(f'{os.fspath(path)}.tmp')
  temporary.write_text(text)
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
  with open(path, 'a', encoding='utf-8') as f:
    f.writelines(lines)
    f.flush()
    os.fsync(f.fileno())
