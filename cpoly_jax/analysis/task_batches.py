"""Training examples of each task of a run, as its own config.gin describes them: tasks, lengths, prompts and splits.

Nothing is read but what training reads; gin is empty again afterwards.
"""

from __future__ import annotations

import importlib
import os
from typing import Any
from collections.abc import Collection, Mapping

from etils import epath
import numpy as np

_DRAWN_FROM = 1000


def read(model_dir: str | os.PathLike, model: Any, examples: int,
         only: Collection[str] = ()) -> dict[str, Mapping[str, np.ndarray]]:
  """Reads a batch of each task.

  Args:
    model_dir: the folder of a run.
    model: its `CPolyModel`, whose converter pads the examples and tells their routing rows.
    examples: N of each task, drawn (by seed 0) from its first 1,000 of training; a task with fewer repeats them.
    only: names of the tasks to read; none for all.

  Returns:
    By task, in the order of the mixture: {feature: [N, ...]}.

  Raises:
    FileNotFoundError: the run has no config.gin, or its data is not there.
    ValueError: `only` names another task.
  """
  import gin
  import seqio
  from cpoly_jax.systems import configured as run
  from t5x import gin_utils
  file = epath.Path(model_dir) / 'config.gin'
  if not file.exists():
    raise FileNotFoundError(f'{file} is not there, which tells the data of the run: give the MODEL_DIR of a training run')
  gin.clear_config()
  try:
    with run.as_training():
      gin_utils.parse_gin_flags(['.', str(run.ROOT)], [os.fspath(file)], [], finalize_config=False)
    importlib.import_module(run.macro('MIXTURE_OR_TASK_MODULE'))
    lengths = run.macro('TASK_FEATURE_LENGTHS')
    tasks = {task.name: task for task in seqio.get_subtasks(seqio.get_mixture_or_task(run.macro('MIXTURE_OR_TASK_NAME')))}
    if unknown := sorted(set(only) - set(tasks)):
      raise ValueError(f'the run has no task {unknown[0]}; it has {", ".join(tasks)}')
    return {name: _batch(task, model, lengths, examples) for name, task in tasks.items() if not only or name in only}
  finally:
    gin.clear_config()


def _batch(task: Any, model: Any, lengths: Mapping[str, int], examples: int) -> Mapping[str, np.ndarray]:
  data = task.get_dataset(sequence_length=lengths, split='train', shuffle=False).take(_DRAWN_FROM)
  data = data.shuffle(_DRAWN_FROM, seed=0).repeat()
  return next(model.FEATURE_CONVERTER_CLS(pack=False)(data, lengths).batch(examples).as_numpy_iterator())
