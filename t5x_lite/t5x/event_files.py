"""TensorBoard's event files after a restart: what lies beyond the restored step goes, and is written again by the new process.

TensorBoard would show both otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from etils import epath

EVALUATIONS = ('training_eval', 'inference_eval')


def _records(path: epath.Path) -> Iterator[tuple[int | None, bytes]]:
  """Yields (step, record) of a file; where it ends in what is no event, as one that was cut while written, (None, b'')."""
  import tensorflow as tf  # Only where there is a file: it takes seconds to import.
  try:
    for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
      yield tf.compat.v1.Event.FromString(record).step, record
  except tf.errors.DataLossError:
    yield None, b''


def _paths(folder: str) -> list[epath.Path]:
  """Returns the event files of a folder."""
  path = epath.Path(folder)
  return sorted(p for p in path.iterdir() if p.name.startswith('events.out.tfevents')) if path.is_dir() else []


def steps(folder: str) -> set[int]:
  """Returns the steps of which the event files of a folder tell."""
  return {step for path in _paths(folder) for step, _ in _records(path) if step is not None}


def folders(model_dir: str) -> list[str]:
  """Returns the folders of tasks in which evaluations write event files."""
  below = [p for name in EVALUATIONS if (top := epath.Path(model_dir, name)).is_dir() for p in top.iterdir() if p.is_dir()]
  return sorted(map(os.fspath, below))


def drop_after(folder: str, last_step: int) -> None:
  """Removes the events after `last_step`, and records that were cut, from the event files of a folder.

  Args:
    folder: a folder; may be absent.
    last_step: the last step to keep.
  """
  for path in _paths(folder):
    records = list(_records(path))
    kept = [record for step, record in records if step is not None and step <= last_step]
    if len(kept) < len(records):
      import tensorflow as tf
      # Beside it under a name that TensorBoard does not read, then in its place.
      temporary = path.parent / f'.rewritten.{path.name.rpartition(".")[2]}'
      with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
        for record in kept:
          writer.write(record)
      temporary.replace(path)
