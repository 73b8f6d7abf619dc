"""Scores and steps of one run, from the files that it wrote; it may still be running, or have ended anywhere.

    inference_eval/<task>-metrics.jsonl    a line for each evaluation, as SeqIO's JSON logger writes them
    train/metrics.jsonl                    a line for each step, where the provider of t5x keeps one
    results.json                           which of the names are mixtures, not tasks
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping

from cpoly_jax.analysis import comparison

_SUFFIX = '-metrics.jsonl'


@dataclasses.dataclass(frozen=True)
class Measured:
  """A run's scores.

  Attributes:
    scores: task -> step -> score.
    examples: training examples up to each recorded step; {} where there is no record.
    final_loss: training loss of the last recorded step.
  """

  scores: Mapping[str, Mapping[int, float]]
  examples: Mapping[int, int] = dataclasses.field(default_factory=dict)
  final_loss: float | None = None

  @property
  def final(self) -> dict[str, float]:
    """The score of each task at its last evaluation."""
    return {task: steps[max(steps)] for task, steps in self.scores.items()}

  @property
  def score(self) -> float | None:
    """The mean of these over the tasks; None without any."""
    final = self.final
    return sum(final.values()) / len(final) if final else None

  @property
  def curve(self) -> dict[int, float]:
    """The mean over the tasks at each step at which all of them were evaluated, in order."""
    steps = sorted(set.intersection(*(set(steps) for steps in self.scores.values()))) if self.scores else []
    return {step: sum(found[step] for found in self.scores.values()) / len(self.scores) for step in steps}

  def steps_to(self, score: float) -> int | None:
    """Returns the first evaluated step whose mean score is at least `score`; None if there is none."""
    return next((step for step, value in self.curve.items() if value >= score - 1e-9), None)

  def examples_at(self, step: int, batch_size: int | None) -> int | None:
    """Returns the training examples up to a step: recorded, or else whole batches; None if neither is known."""
    if step in self.examples:
      return self.examples[step]
    return None if batch_size is None else step * batch_size


def read(folder: str | os.PathLike, metric: str | None = None) -> Measured:
  """Reads what a run wrote.

  Args:
    folder: its MODEL_DIR.
    metric: the metric that is a task's score; None: the mean of its metrics, as in results.json.

  Raises:
    ValueError: a file is damaged, or no task has the metric.
  """
  path = pathlib.Path(folder)
  lines = {file.name[:-len(_SUFFIX)]: _lines(file) for file in sorted((path / 'inference_eval').glob(f'*{_SUFFIX}'))}
  for mixture in _mixtures(path / 'results.json'):
    lines.pop(mixture, None)
  scores, names = {}, set()
  for task, evaluations in lines.items():
    found = {}
    for line in evaluations:
      step = line.pop('step', None)
      names |= {name for name, value in line.items() if isinstance(value, (int, float))}
      value = comparison.score(line if metric is None else {'score': line.get(metric)})
      if type(step) is int and value is not None:
        found[step] = value
    if found:
      scores[task] = found
  if lines and not scores and metric is not None and names:
    raise ValueError(f'{path}: no task has the metric {metric}; there are {", ".join(sorted(names))}')
  examples, total, loss = {}, 0, None
  for line in _lines(path / 'train' / 'metrics.jsonl'):
    if type(line.get('step')) is int and type(line.get('examples')) is int:
      total += line['examples']
      examples[line['step']] = total
    loss = line.get('loss', loss)
  return Measured(scores, examples, loss if isinstance(loss, float) and math.isfinite(loss) else None)


def last_step(folder: str | os.PathLike) -> int | None:
  """Returns the step at which the last process of a run ended, as its results.json says; None where there is none."""
  step = _results(pathlib.Path(folder) / 'results.json').get('step')
  return step if type(step) is int else None


def _results(file: pathlib.Path) -> Mapping[str, object]:
  try:
    found = json.loads(file.read_text())
  except FileNotFoundError:
    return {}
  except ValueError as e:
    raise ValueError(f'{file} is damaged: {e}') from None
  return found if isinstance(found, dict) else {}


def _mixtures(file: pathlib.Path) -> list[str]:
  """Names under which metrics are not those of a task but of all tasks together."""
  summary = _results(file).get('summary')
  return list(summary) if isinstance(summary, dict) else []


def _lines(file: pathlib.Path) -> list[dict[str, object]]:
  """Reads JSON lines; a last one that was cut while it was written is left out."""
  if not file.exists():
    return []
  found, text = [], file.read_text()
  for number, line in enumerate(text.splitlines(), 1):
    try:
      content = json.loads(line)
    except ValueError:
      if number == text.count('\n') + 1:  # No newline: cut.
        break
      raise ValueError(f'{file}:{number} is no JSON') from None
    if isinstance(content, dict):
      found.append(content)
  return found
