"""What a run gained on each task against another run, e.g. against SHARED: transfer, from two `results.json`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping

FILE_NAME = 'results.json'
_BASELINE = 'baseline_'  # Metrics that a trivial answer would have.


@dataclasses.dataclass(frozen=True)
class Gain:
  """Scores of one task.

  Attributes:
    task: its name.
    score: of this run.
    other: of the other run.
  """

  task: str
  score: float
  other: float

  @property
  def gain(self) -> float:
    """score - other."""
    return self.score - self.other


def score(metrics: Mapping[str, object]) -> float | None:
  """Returns the mean of a task's numbers, as the results of a run have it; None if it has none.

  Texts, and metrics that begin with `baseline_`, are not scores.
  """
  numbers = [float(value) for name, value in metrics.items()
             if not name.startswith(_BASELINE) and isinstance(value, (int, float)) and math.isfinite(value)]
  return sum(numbers) / len(numbers) if numbers else None


def read(folder: str | os.PathLike) -> dict[str, float]:
  """Reads the score of each task from a MODEL_DIR's `results.json`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  from etils import epath
  file = epath.Path(folder) / FILE_NAME
  if not file.exists():
    raise FileNotFoundError(f'there is no {file}: a run writes it when it ends, and python -m t5x.eval with its OUTPUT_DIR')
  try:
    metrics = json.loads(file.read_text())['metrics']
    scores = {task: score(values) for task, values in metrics.items()}
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise ValueError(f'{file} is damaged: {type(e).__name__} {e}') from None
  return {task: value for task, value in scores.items() if value is not None}


def gains(scores: Mapping[str, float], others: Mapping[str, float]) -> list[Gain]:
  """Compares the tasks that both runs have, the largest gain first.

  Raises:
    ValueError: they share no task.
  """
  found = [Gain(task, value, others[task]) for task, value in scores.items() if task in others]
  if not found:
    raise ValueError(f'the two runs share no evaluated task ({len(scores)} and {len(others)} of other names): compare runs of '
                     'the same mixture')
  return sorted(found, key=lambda gain: (-gain.gain, gain.task))
