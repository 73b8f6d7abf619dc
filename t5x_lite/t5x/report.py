"""The end of a run: what each task scored, where everything lies, how long it took.

The table is printed, and written as MODEL_DIR/results.json and MODEL_DIR/results.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from t5x import files

_METRICS_SUFFIX = '-metrics.jsonl'
# Metrics of this prefix are what a trivial answer would score, e.g. copying the input: shown, not counted.
_BASELINE = 'baseline_'
_MAX_TEXT = 60
Metrics = dict[str, float | str]


def scalar(value: Any) -> float | None:
  """Returns a metric value as a float, None for text, histograms and other values without one number."""
  value = getattr(value, 'value', value)
  try:
    return float(value)
  except (TypeError, ValueError):
    return None


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns {name: number} of those metrics that are numbers."""
  return {k: scalar(v) for k, v in metrics.items() if scalar(v) is not None}


def shown(metrics: Mapping[str, Any]) -> Metrics:
  """Returns what a table shows of a task's metrics: numbers, and one-line texts, such as the category of a task."""
  texts = {k: getattr(v, 'textdata', v) for k, v in metrics.items() if scalar(v) is None}
  return scalars(metrics) | {k: v for k, v in texts.items() if isinstance(v, str) and len(v) <= _MAX_TEXT and v.isprintable()}


def read_metrics(inference_dir: str, *, first: bool = False) -> dict[str, tuple[int, Metrics]]:
  """Reads the last (or the first) line of every `<task>-metrics.jsonl`.

  Returns:
    {task: (step, {metric: value})}, as of `shown`.
  """
  found = {}
  for path in sorted(epath.Path(inference_dir).glob('*' + _METRICS_SUFFIX)):
    lines = [line for line in files.read_lines(path) if line.strip()]
    if lines:
      line = json.loads(lines[0 if first else -1])
      step = line.pop('step', -1)
      found[path.name[:-len(_METRICS_SUFFIX)]] = (step, shown(line))
  return found


def task_score(metrics: Mapping[str, float | str]) -> float | None:
  """Returns the mean of a task's numbers, None where it has none; `baseline_...` are references, not scores."""
  scores = [value for name, value in metrics.items() if not name.startswith(_BASELINE) and not isinstance(value, str)]
  return sum(scores) / len(scores) if scores else None


def _mean(values: Iterable[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _cells(metrics: Mapping[str, float | str]) -> str:
  return '  '.join(f'{k} {v}' if isinstance(v, str) else f'{k} {v:.4g}' for k, v in sorted(metrics.items()))


def _apart(metrics: Mapping[str, Any], mixture: str | None) -> tuple[dict[str, Any], Mapping[str, Any]]:
  """Returns what is known of the tasks, and of the mixture: the entry of its name, if it is not the only task's."""
  tasks = dict(metrics)
  return tasks, tasks.pop(mixture) if mixture in tasks and len(tasks) > 1 else {}


def table(metrics: Mapping[str, Mapping[str, float]], first: Mapping[str, tuple[int, Mapping[str, float]]] | None = None,
          mixture: str | None = None) -> list[list[str]]:
  """Returns rows of cells: a head, a row per task, the means where there are several tasks, and the mixture's own numbers.

  Args:
    metrics: {task: {metric: value}}.
    first: (step, metrics) of the earliest evaluation of each task, for a column beside the last one; None: none.
    mixture: the evaluated mixture: what `metrics` has under its name is about all tasks together, e.g. a benchmark's score.
  """
  metrics, summary = _apart(metrics, mixture)
  show = lambda value: '-' if value is None else f'{value:.4g}'
  first = first or {}
  start = f'score at step {min(step for step, _ in first.values())}' if first else ''
  rows = [['task', 'metrics', *([start] if first else []), 'score']]
  scores = {task: task_score(values) for task, values in metrics.items()}
  early = {task: task_score(first[task][1]) for task in metrics if task in first}
  for task in sorted(metrics):
    cells = _cells(metrics[task]) or '-'
    rows.append([task, cells, *([show(early.get(task))] if first else []), show(scores[task])])
  if len(metrics) > 1:
    baselines = sorted({name for values in metrics.values() for name in values if name.startswith(_BASELINE)})
    cells = '  '.join(f'{name} {show(_mean(v.get(name) for v in metrics.values()))}' for name in baselines)
    rows.append(['mean', cells, *([show(_mean(early.values()))] if first else []), show(_mean(scores.values()))])
  before = first[mixture][1] if summary and mixture in first else {}
  rows += [[mixture, name, *([show(before.get(name))] if first else []), show(summary[name])] for name in sorted(summary)]
  return rows


def to_text(rows: list[list[str]]) -> str:
  """Aligns the cells in columns."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join('  '.join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows)


def to_markdown(rows: list[list[str]]) -> str:
  """Returns a Markdown table."""
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  return '\n'.join([line(rows[0]), line(['---'] * len(rows[0]))] + [line(r) for r in rows[1:]])


def write_results(output_dir: str, step: int, metrics: Mapping[str, Mapping[str, float]],
                  facts: Mapping[str, Any], first: Mapping[str, tuple[int, Mapping[str, float]]] | None = None,
                  mixture: str | None = None) -> str:
  """Writes results.json and results.md.

  Args:
    output_dir: MODEL_DIR, or the output folder of an evaluation.
    step: the last step.
    metrics: {task: {metric: value}}.
    facts: further facts, shown one a line: wall time, steps per second and the like.
    first: (step, metrics) of each task's earliest evaluation, where it is not the last one.
    mixture: see `table`.

  Returns:
    The text to print.
  """
  tasks, summary = _apart(metrics, mixture)
  result = {'step': step, 'output_dir': output_dir, 'metrics': tasks, 'mean': _mean(map(task_score, tasks.values())), **facts}
  if summary:
    result['summary'] = {mixture: summary}
  if first:
    result['mean_at_first_evaluation'] = _mean(task_score(values) for _, values in _apart(first, mixture)[0].values())
  rows = table(metrics, first, mixture)
  facts_lines = [f"{k.replace('_', ' ')}: {v:.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')}: {v}"
                 for k, v in facts.items() if not isinstance(v, Mapping)]
  files.write_text(os.path.join(output_dir, 'results.json'), json.dumps(result, indent=2, sort_keys=True) + '\n')
  title = f'# Results at step {step}\n\n'
  body = (to_markdown(rows) + '\n\n') if metrics else ''
  files.write_text(os.path.join(output_dir, 'results.md'),
         title + body + '\n'.join(f'- {line}' for line in facts_lines) + '\n')
  text = [f'Results at step {step} ({output_dir})']
  if metrics:
    text.append(to_text(rows))
  return '\n'.join(text + facts_lines)


def result_line(step: int, task: str, metrics: Mapping[str, float]) -> str:
  """Returns the line that is shown when an evaluation of one task is done."""
  return f'step {step}  eval {task}: ' + (_cells(metrics) or 'no numbers')
