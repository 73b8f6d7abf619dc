"""The ranked view of any mixture: of those of its tasks whose targets turn out to be label words.

    from tasks import rank_labels
    EVAL_MIXTURE_OR_TASK_NAME = @rank_labels.mixture()
    rank_labels.mixture.of = %MIXTURE_OR_TASK_NAME

which `gin_configs/runs/rank_classification.gin` does. The choices of such a task are all its targets in training and
validation; a task is left out where these are many or hardly repeat, as they do in free text (`own_data_metrics`). So a task
whose rows have options of their own is left out too: register it by `rank_classification.add_task`.
"""

from __future__ import annotations

import importlib
from typing import Any
from collections.abc import Mapping, Sequence

import gin
import seqio

from tasks import mixtures
from tasks import own_data_metrics
from tasks import rank_classification
from tasks import sources
from tasks import summaries


class LabelWords:
  """The label words of a source's rows, () for free text; called like the choices of `rank_classification.add_task`."""

  def __init__(self, source: sources.RowSource):
    self._source = source
    self._words: dict[str, tuple[str, ...]] = {}

  def __call__(self, row: sources.Row | None = None, example: Mapping[str, Any] | None = None) -> Sequence[str]:
    """Returns the words in alphabetical order; they are the same for all rows, and found anew when the rows' origin changes."""
    del row, example
    origin = self._source.origin()
    if origin not in self._words:
      found = [right_answers(None, self._source.to_example(row, split, 0)) for split in ('train', 'validation')
               if split in self._source.splits for row in self._source.rows(split)]
      self._words[origin] = tuple(sorted(own_data_metrics.label_counts(found)))
    return self._words[origin]


def right_answers(row: sources.Row | None, example: Mapping[str, Any]) -> Sequence[str]:
  """Returns an example's references, none where they are hidden, or its target where it has no references."""
  del row
  return list(example['references']) if 'references' in example else [example['targets']]


@gin.configurable(module='tasks.rank_labels')
def mixture(of: str, module: str | None = None) -> str:
  """Registers `<of>_both`: the tasks of a mixture, and beside each that has label words its ranked task, `<task>_rank`.

  Where these exist already, as for SuperGLUE, they are used. The mixture's summary has that of `of`, and the mean scores of
  the tasks that both views have, `score_labelled` and `score_labelled_rank`.

  Args:
    of: a mixture or task.
    module: a module to import first, which registers it.

  Returns:
    The name of the new mixture, for EVAL_MIXTURE_OR_TASK_NAME.

  Raises:
    ValueError: nothing has the name `of`, or no task of it has label words.
  """
  if module:
    importlib.import_module(module)
  name = f'{of}_both'
  if name in seqio.MixtureRegistry.names():
    return name
  if of not in {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}:
    raise ValueError(f'rank_labels.mixture.of is {of!r}, but no task or mixture has this name')
  tasks = sorted(seqio.get_subtasks(seqio.get_mixture_or_task(of)), key=lambda task: task.name)
  ranked = []
  for task in tasks:
    if f'{task.name}_rank' not in seqio.TaskRegistry.names():
      words = LabelWords(task.source) if isinstance(task.source, sources.RowSource) else None
      if words is None or len(words()) < 2:
        continue
      rank_classification.add_task(f'{task.name}_rank', task.name, words, golds=right_answers)
    ranked.append(task.name)
  if not ranked:
    raise ValueError(f'no task of {of!r} has label words to rank: their targets are free text')
  seqio.MixtureRegistry.add(name, [(task.name, mixtures.proportional_rate) for task in tasks] +
                            [(f'{task}_rank', mixtures.equal_rate) for task in ranked])
  summaries.register(name, lambda metrics: _summary(of, [task.name for task in tasks], ranked, metrics))
  return name


def _summary(of: str, tasks: Sequence[str], ranked: Sequence[str],
             metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  def score(suffix: str) -> float:
    means = [sum(values) / len(values) for values in (metrics[f'{task}{suffix}'].values() for task in ranked)]
    return sum(means) / len(means)

  if missing := [task for task in ranked if not metrics.get(task) or not metrics.get(f'{task}_rank')]:
    raise ValueError(f'no metrics of both views of {missing[0]}')
  own = summaries.summarize(of, {task: metrics[task] for task in tasks if task in metrics})
  return {**own, 'score_labelled': score(''), 'score_labelled_rank': score('_rank')}
