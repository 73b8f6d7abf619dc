"""Writing weights: a new folder that is there as a whole or not at all, and files of safetensors in it."""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
import time
from typing import Any
from collections.abc import Iterator, Mapping

from etils import epath
import numpy as np

from cpoly_jax.checkpoints import safetensors_files

_ANSWER_SECONDS = 8.

def whole(leaf: Any, dtype: Any = None) -> np.ndarray:
  """Returns all values of a leaf, those in floating point cast.

  Args:
    leaf: an array, a tensor with `read()`, or a lazy one of T5X with `get()`.
    dtype: for values in floating point; None: theirs.
  """
  read = getattr(leaf, 'read', None) or getattr(leaf, 'get', None)
  value = np.asarray(read() if read is not None else leaf)
  cast = dtype is not None and is_floating(value.dtype)
  return value.astype(dtype, copy=False) if cast else value


def is_floating(dtype: Any) -> bool:
  """Whether a dtype is a floating-point one; bfloat16 is, though NumPy does not say so."""
  dtype = np.dtype(dtype)
  return np.issubdtype(dtype, np.floating) or dtype == safetensors_files.DTYPES['BF16']


def exists(path: str | os.PathLike) -> bool:
  """Whether there is something at `path`, local or in a bucket.

  Raises:
    FileNotFoundError: the bucket does not answer within seconds.
  """
  if not safetensors_files.is_remote(path):
    return os.path.exists(path)
  import tensorflow  # noqa: F401  # By which epath reads buckets; its slow import must not eat the deadline.
  answers: queue.SimpleQueue[bool | Exception] = queue.SimpleQueue()

  def ask():
    try:
      answers.put(epath.Path(path).exists())
    except Exception as error:  # The storage clients raise many kinds; all mean the same to the user.
      answers.put(error)

  # The clients retry for minutes. A thread of its own is left behind where Python would wait for one of a pool.
  threading.Thread(target=ask, daemon=True).start()
  try:
    answer = answers.get(timeout=_ANSWER_SECONDS)
  except queue.Empty:
    answer = TimeoutError()
  if isinstance(answer, Exception):
    raise FileNotFoundError(f'cannot reach {os.fspath(path)}: check the network and credentials') from answer
  return answer


def check_new(path: str | os.PathLike) -> None:
  """Raises FileExistsError if there is something at `path`, an empty folder excepted; FileNotFoundError as `exists`."""
  target = epath.Path(path)
  if exists(path) and not (target.is_dir() and not any(target.iterdir())):
    raise FileExistsError(f'{os.fspath(path)} exists and is not overwritten: name a new folder, or remove that one')


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[epath.Path]:
  """Gives a folder to write into, which becomes `path` in the end, or is removed if an error ends the context.

  In a bucket, which cannot rename, it is `path` itself from the start: write last what makes it complete.

  Raises:
    FileExistsError: there is something at `path`.
    OSError: it cannot be made.
  """
  check_new(path)
  final = epath.Path(path)
  remote = safetensors_files.is_remote(path)
  folder = final if remote else epath.Path(f'{os.fspath(final)}.tmp-{int(time.time())}')
  folder.mkdir(parents=True, exist_ok=remote)
  try:
    yield folder
    if not remote:
      if final.exists():
        final.rmdir()  # It is empty.
      folder.rename(final)
  except BaseException:
    with contextlib.suppress(OSError):
      folder.rmtree()
    raise


def save_tensors(tensors: Mapping[str, np.ndarray], path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
  """Writes a file of safetensors that torch's libraries take.

  Args:
    tensors: by name; contiguous.
    path: of the file, local or in a bucket.
    metadata: texts for the header, besides the format.

  Raises:
    OSError: the file cannot be written.
  """
  import safetensors  # Here: reading does without it.
  from safetensors import numpy as safetensors_numpy
  path, header = os.fspath(path), {'format': 'pt', **(metadata or {})}
  with contextlib.ExitStack() as stack:
    local = path
    if safetensors_files.is_remote(path):
      local = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), os.path.basename(path))
    try:
      safetensors_numpy.save_file(dict(tensors), local, header)
      # The library makes a file that only its owner may read; others follow the user's mask.
      mask = os.umask(0o077)
      os.umask(mask)
      os.chmod(local, 0o666 & ~mask)
    except safetensors.SafetensorError as error:
      raise OSError(f'cannot write {local}: {" ".join(str(error).split())}') from error
    if local != path:
      epath.Path(local).copy(path)
