"""Reads the first training batch of a mixture in a new process and prints the seconds; what `benchmarks.input` runs.

The time runs from the configuration to the batch: libraries are imported and tasks are registered before it.
"""

from __future__ import annotations

import json
import sys
import time
from unittest import mock

import seqio
import tensorflow as tf
from t5x import batches
from t5x import datasets

import tasks  # noqa: F401  (it registers)
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import features


def open_data(mixture: str, batch: int, inputs: int, targets: int, pack: bool = False) -> tuple[batches.BatchIterator, int]:
  """Opens the training data of a mixture.

  Args:
    mixture: its SeqIO name.
    batch: B.
    inputs: Li.
    targets: Lt.
    pack: several examples in a row.

  Returns:
    The batches, and the number of tasks.
  """
  names = tuple(task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(mixture)))
  cfg = datasets.DatasetConfig(mixture, {'inputs': inputs, 'targets': targets}, 'train', batch, shuffle=True, seed=0, pack=pack)
  return batches.BatchIterator(datasets.get_dataset(cfg, 0, 1, features.converter_for(TaskIndex(names)))), len(names)


def main(mixture: str, kind: str, *shape: str) -> None:
  """Prints {"seconds": ...}; `kind` is `indexed` or `streamed`."""
  tf.constant(0)  # TensorFlow sets itself up at its first operation.
  limit = mock.patch.object(datasets, 'in_memory_limit', return_value=0)
  start = time.perf_counter()
  if kind == 'streamed':
    limit.start()
  next(open_data(mixture, *map(int, shape))[0])
  print(json.dumps({'seconds': time.perf_counter() - start}), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
