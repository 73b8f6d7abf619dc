"""What `tasks.show` prints and draws: a table of tasks, histograms of lengths, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cpoly_jax.systems import tables
from tasks import own_data_files
from tasks import own_data_metrics
from tasks import samples

FEATURES = ('inputs', 'targets')
_BINS, _BAR = 10, 50
_MOST_LABELS = 8


@dataclasses.dataclass(frozen=True)
class Shown:
  """What is shown of a task.

  Attributes:
    name: of the task.
    row: of the routing.
    counts: split -> examples; None where the task does not know.
    share: of the mixture's training examples, from 0 to 1; None for a task that is not trained.
    examples: the sample, nothing cut.
  """
  name: str
  row: int
  counts: Mapping[str, int | None]
  share: float | None
  examples: Sequence[samples.Example]

  def lengths(self, feature: str) -> np.ndarray:
    """Tokens of the feature in each example of the sample."""
    return np.array([len(getattr(example, feature)) for example in self.examples], np.int64)

  def labels(self) -> dict[str, int]:
    """Label -> examples of the sample, {} for free text."""
    return own_data_metrics.label_counts([example.target_text] for example in self.examples)


def ordered_splits(splits: Iterable[str]) -> list[str]:
  """Returns the splits, `train`, `validation` and `test` first."""
  known = own_data_files.SPLITS
  return sorted(splits, key=lambda split: (known.index(split) if split in known else len(known), split))


def table(shown: Sequence[Shown], lengths: Mapping[str, int]) -> str:
  """Returns a line for each task and one for all."""
  splits = ordered_splits({key for task in shown for key in task.counts})
  header = ['row', 'task', *splits, 'share', *(f'{feature} {what}' for feature in FEATURES for what in ('50 %', 'max')),
            *(f'{feature} cut' for feature in FEATURES if feature in lengths)]
  everything = dataclasses.replace(shown[0], examples=[example for task in shown for example in task.examples])
  rows = []
  for task in [*shown, everything] if len(shown) > 1 else shown:
    whole = task is everything
    found = [task.lengths(feature) for feature in FEATURES]
    counts = [_total(shown, key) if whole else task.counts.get(key) for key in splits]
    share = sum(one.share or 0. for one in shown) if whole else task.share
    rows.append([None if whole else task.row, 'all' if whole else task.name, *counts, None if share is None else 100 * share,
                 *(int(number) if found[0].size else None for values in found
                   for number in ((_percentile(values, 50), values.max()) if values.size else (0, 0))),
                 *(100 * float(np.mean(values > lengths[feature])) if values.size else None
                   for feature, values in zip(FEATURES, found) if feature in lengths)])
  return tables.render(header, rows, tables.TABLE)


def _total(shown: Sequence[Shown], split: str) -> int | None:
  counts = [task.counts.get(split, 0) for task in shown]
  return None if None in counts else sum(counts)


def histogram(values: np.ndarray, title: str, limit: int | None = None) -> str:
  """Returns a histogram of lengths as text: percentiles, a line of `#` for each bin, and the share beyond `limit`."""
  low, high = int(values.min()), int(values.max())
  edges = np.unique(np.linspace(low, high + 1, min(_BINS, high - low + 1) + 1).astype(int))
  counts, _ = np.histogram(values, bins=edges)
  percentiles = ', '.join(f'{q} % {_percentile(values, q)}' for q in (50, 90, 99))
  cut = '' if limit is None else f'; {100 * float(np.mean(values > limit)):.2f} % longer than {limit}'
  lines = [f'{title}: mean {values.mean():.1f}, {percentiles}, longest {high}{cut}']
  width = len(f'{high:,}')
  for start, end, count in zip(edges, edges[1:], counts):
    bar = '#' * int(np.ceil(_BAR * count / counts.max()))
    lines.append(f'  {start:>{width},} to {end - 1:>{width},} | {bar}{" " if bar else ""}{count:,}')
  return '\n'.join(lines)


def _percentile(values: np.ndarray, share: int) -> int:
  """The smallest length that `share` percent of the examples do not exceed."""
  return int(np.percentile(values, share, method='inverted_cdf'))


def label_lines(shown: Sequence[Shown]) -> list[str]:
  """Returns a line with the labels of each task that has some, the most frequent first."""
  lines = []
  for task in shown:
    labels = task.labels()
    total = sum(labels.values())
    parts = [f'{one_line(label, 30)} {100 * count / total:.1f} %' for label, count in list(labels.items())[:_MOST_LABELS]]
    more = f' and {len(labels) - _MOST_LABELS} more' if len(labels) > _MOST_LABELS else ''
    if labels:
      lines.append(f"  {task.name}: {', '.join(parts)}{more}")
  return lines


def one_line(text: str, most: int | None = None) -> str:
  """Returns the text with its line breaks written as `\\n`, cut to `most` characters."""
  text = text.replace('\\', '\\\\').replace('\n', '\\n').replace('\r', '\\r').replace('\t', '\\t')
  return text if most is None or len(text) <= most else f'{text[:most - 3]}...'


def plot(shown: Sequence[Shown], lengths: Mapping[str, int], path: str) -> None:
  """Draws the lengths of inputs and targets, with a line where they are cut.

  Raises:
    ValueError: matplotlib is not installed or cannot write such a file.
  """
  try:
    from matplotlib import figure  # pylint: disable=g-import-not-at-top
  except ImportError:
    raise ValueError('--plot needs matplotlib; pip install matplotlib') from None
  drawing = figure.Figure(figsize=(9, 3.5), layout='constrained')
  for axes, feature in zip(drawing.subplots(1, len(FEATURES)), FEATURES):
    axes.hist(np.concatenate([task.lengths(feature) for task in shown]), bins=40)
    axes.set(xlabel=f'{feature}: tokens', ylabel='examples of the sample')
    if feature in lengths:
      axes.axvline(lengths[feature], color='tab:red', label=f'cut at {lengths[feature]}')
      axes.legend()
  try:
    drawing.savefig(path)
  except (ValueError, OSError) as e:
    raise ValueError(f'cannot draw into {path}: {e}; write a file whose name ends in .png') from None
