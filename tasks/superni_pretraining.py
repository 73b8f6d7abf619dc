"""What a small base for Super-NI is pretrained on: filling gaps in the inputs of the training tasks.

The SeqIO task `pretraining_superni` has windows of those inputs, of which spans are left out as in T5's denoising (arXiv
1910.10683, section 3.1.4), by words, so that it works with any vocabulary:

    inputs   Tom <0> the ball <1> park.
    targets  <0> threw <1> to the

Gaps depend on the window and the data's seed alone. Outputs of the tasks never occur in it.
"""

from __future__ import annotations

import random
from typing import Any
from collections.abc import Iterator, Sequence

import seqio

from tasks import features
from tasks import sources
from tasks import superni_files
from tasks import superni_source
from tasks import superni_splits

# Not `superni_...`: names that begin so are the benchmark's own tasks.
PRETRAINING = 'pretraining_superni'
WINDOW = 24  # Words.
LEFT_OUT = 0.15  # Share of the words.
MEAN_SPAN = 3  # Words.


def windows(text: str, size: int = WINDOW) -> Iterator[list[str]]:
  """Yields the words of a text, `size` at a time; the rest of a text, if it has fewer than half of that, goes with none."""
  words = text.split()
  for start in range(0, len(words), size):
    window = words[start:start + size]
    if len(window) >= min(size // 2, len(words)):
      yield window


def leave_out(words: Sequence[str], rng: random.Random) -> tuple[str, str]:
  """Returns inputs with gaps, and targets that fill them.

  Args:
    words: two or more.
    rng: which spans.
  """
  count = max(1, round(LEFT_OUT * len(words)))
  spans = max(1, round(count / MEAN_SPAN))
  # Cuts make `spans` pieces of the words that are left out, and one piece more of those that stay, the last one maybe empty.
  missing = _pieces(count, spans, rng)
  kept = _pieces(len(words) - count + 1, spans + 1, rng)
  kept[-1] -= 1
  inputs, targets, at = [], [], 0
  for number, (stays, gap) in enumerate(zip(kept, missing)):
    inputs += [*words[at:at + stays], f'<{number}>']
    targets += [f'<{number}>', *words[at + stays:at + stays + gap]]
    at += stays + gap
  return ' '.join([*inputs, *words[at:]]), ' '.join(targets)


def _pieces(total: int, pieces: int, rng: random.Random) -> list[int]:
  """Cuts a number into positive ones, all ways alike."""
  cuts = sorted(rng.sample(range(1, total), pieces - 1))
  return [end - start for start, end in zip([0, *cuts], [*cuts, total])]


class WindowSource(sources.RowSource):
  """Windows of the inputs of all training tasks."""

  def __init__(self):
    super().__init__(PRETRAINING)

  def origin(self) -> str:
    folder = superni_files.folder()
    if folder is None:
      raise superni_source.unset_error()
    return str(folder)

  @property
  def splits(self) -> Sequence[str]:
    return superni_splits.SPLITS[:2]

  def read(self, split: str) -> Sequence[sources.Row]:
    tasks = seqio.MixtureRegistry.get('superni').tasks
    return [{'words': window} for task in tasks for row in task.source.rows(split) for window in windows(row['input'])
            if len(window) > 1]

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    inputs, targets = leave_out(row['words'], random.Random(f'{seed}:{" ".join(row["words"])}'))
    return {'inputs': inputs, 'targets': targets}


seqio.TaskRegistry.add(
    PRETRAINING, source=WindowSource(), preprocessors=features.pipeline(),
    metric_fns=[lambda targets, predictions: {
        'exact_match': sum(t == p for t, p in zip(targets, predictions)) / len(targets)}],
    output_features=features.output_features())
