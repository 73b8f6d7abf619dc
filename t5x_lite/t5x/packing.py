"""Packs several examples into each row: which ones is planned by their lengths alone, window by window of the stream.

The examples of a window are placed longest first, each into the first row with room for it (first-fit decreasing, Johnson
1973). Features whose names begin with `encoder_` share the room of a row, those with `decoder_` have another, and features of
other names (`task_id`, say) have room for a fixed number of examples. Rows look as SeqIO's packing makes them: segment ids
count the examples of a row from 1, 0 is padding, and positions begin at 0 in each segment; so attention, which compares segment
ids, never passes from one example to another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x import example_order
from t5x import example_store

# Examples of the stream that are packed together.
WINDOW = 2048
# Examples in a row for which features without a prefix have room, where the lengths give no other number.
DEFAULT_EXAMPLES = 8

PREFIXES = ('encoder', 'decoder')
# Plans that are kept: a large global batch takes the rows of several windows.
_PLANS = 32
# What random numbers are for; `example_order` uses the first ones.
_ROWS = 3


def first_fit_decreasing(sizes: np.ndarray, capacity: Sequence[int]) -> list[np.ndarray]:
  """Distributes items over as few rows as first-fit decreasing finds.

  Args:
    sizes: [n, k] int, what an item takes of each of k resources; more than the capacity counts as all of it.
    capacity: [k], what a row has of each.

  Returns:
    For each row, the items in it in ascending order. Rows are in the order of their first item.
  """
  capacity = np.asarray(capacity, np.int64)
  sizes = np.minimum(sizes, capacity)
  left = np.empty((len(sizes), len(capacity)), np.int64)
  row_of = np.empty(len(sizes), np.int64)
  used = 0
  # The largest share of any resource decides; a stable order keeps the result the same everywhere.
  for item in np.argsort(-(sizes / capacity).max(axis=1), kind='stable'):
    fits = (left[:used] >= sizes[item]).all(axis=1)
    row = int(fits.argmax()) if fits.any() else used
    if row == used:
      left[used] = capacity
      used += 1
    left[row] -= sizes[item]
    row_of[item] = row
  by_row = np.argsort(row_of, kind='stable')
  rows = np.split(by_row, np.cumsum(np.bincount(row_of, minlength=used))[:-1])
  return sorted(rows, key=lambda items: items[0])


@dataclasses.dataclass(frozen=True)
class RowLayout:
  """What a packed row has room for.

  Attributes:
    groups: prefix -> features of that prefix; the first axis of each has the room that they share.
    measured: prefix -> features whose length is that of an example. Others of the group are cut to it: the decoder's input of a
      padded example holds the last token of the target one place beyond it.
    lengths: prefix -> length of a row.
    others: features without one of the prefixes.
    examples: examples in a row, at most.
  """
  groups: Mapping[str, tuple[str, ...]]
  measured: Mapping[str, tuple[str, ...]]
  lengths: Mapping[str, int]
  others: tuple[str, ...]
  examples: int

  @classmethod
  def of(cls, spec: Mapping[str, tuple[tuple[int, ...], Any]], feature_lengths: Mapping[str, int]) -> RowLayout:
    """Finds the layout.

    Args:
      spec: {feature: (shape, dtype)} of an unpacked row.
      feature_lengths: the run's lengths; one of a feature without a prefix is the number of examples in a row.

    Raises:
      ValueError: features of one prefix have several lengths, none has a prefix, or a number of examples is below 1.
    """
    groups, measured, lengths = {}, {}, {}
    for prefix in PREFIXES:
      names = tuple(name for name in spec if name.startswith(f'{prefix}_') and spec[name][0])
      found = sorted({spec[name][0][0] for name in names})
      if len(found) > 1:
        raise ValueError(f'The features {", ".join(names)} have the lengths {found}, so that examples cannot be packed: '
                         'set utils.DatasetConfig.pack = False.')
      if names:
        groups[prefix], lengths[prefix] = names, found[0]
        tokens = (f'{prefix}_target_tokens', f'{prefix}_input_tokens')
        measured[prefix] = next(((name,) for name in tokens if name in names), names)
    if not groups:
      raise ValueError(f'Of the features {", ".join(spec)} none begins with encoder_ or decoder_, so that examples cannot be '
                       'packed: set utils.DatasetConfig.pack = False.')
    grouped = {name for names in groups.values() for name in names}
    others = tuple(name for name in spec if name not in grouped)
    examples = min((feature_lengths.get(name, DEFAULT_EXAMPLES) for name in others), default=max(lengths.values()))
    if examples < 1:
      raise ValueError(f'A row has room for {examples} examples: give {", ".join(others)} a length of at least 1.')
    return cls(groups, measured, lengths, others, examples)

  def row_spec(self, spec: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns {feature: (shape, dtype)} of a packed row."""
    out = dict(spec)
    for name in self.others:
      shape, dtype = spec[name]
      out[name] = ((self.examples * (shape[0] if shape else 1), *shape[1:]), dtype)
    for prefix, length in self.lengths.items():
      for kind in ('segment_ids', 'positions'):
        out[f'{prefix}_{kind}'] = ((length,), np.dtype(np.int32))
    return out


class PackedStream:
  """Rows of the packed stream; a place in it is {'window', 'row', 'examples'}.

  Args:
    store: the examples.
    order: their order.
    layout: of a row.
    seed: of the order of the rows in a window.
    shuffle: False: rows come in the order of their first examples.
    window: examples that are packed together.
    one_pass: no window holds more than one epoch: each example of a small evaluation split counts once.
  """

  def __init__(self, store: example_store.ExampleStore, order: Callable[[], example_order.ExampleOrder], layout: RowLayout,
               seed: int, shuffle: bool = True, window: int = WINDOW, one_pass: bool = False):
    self._store, self._order, self._layout = store, order, layout
    self._seed, self._shuffle, self._most, self._one_pass = seed, shuffle, window, one_pass
    self.spec = layout.row_spec(store.spec)
    self._plan = functools.lru_cache(maxsize=_PLANS)(self._make_plan)

  @functools.cached_property
  def _window(self) -> int:
    return min(self._most, self._order().num_examples) if self._one_pass else self._most

  @property
  def start(self) -> dict[str, int]:
    """Place of the first row."""
    return {'window': 0, 'row': 0, 'examples': self._window}

  def accepts(self, place: Mapping[str, int]) -> bool:
    """Whether a place was written for windows of the same size."""
    return set(place) == set(self.start) and place['examples'] == self._window

  def _make_plan(self, window: int) -> list[np.ndarray]:
    """Returns the ids of the examples of each row of a window."""
    ids = self._store.ids(*self._order().lookup(window * self._window, self._window))
    sizes = [self._store.lengths(names, ids) for names in self._layout.measured.values()]
    rows = first_fit_decreasing(np.stack([*sizes, np.ones_like(ids)], axis=1),
                                [*self._layout.lengths.values(), self._layout.examples])
    rows = [ids[row] for row in rows]
    if self._shuffle:
      rows = [rows[i] for i in example_order.permutation(len(rows), self._seed, _ROWS, window)]
    return rows

  def skip(self, place: Mapping[str, int], rows: int) -> dict[str, int]:
    """Returns the place that lies some rows after another; plans the windows between, by lengths only."""
    window, row = place['window'], place['row'] + rows
    while row and row >= len(self._plan(window)):
      row -= len(self._plan(window))
      window += 1
    return {**place, 'window': window, 'row': row}

  def read(self, place: Mapping[str, int], first: int, last: int) -> dict[str, np.ndarray]:
    """Returns rows `first` to `last` after a place, {feature: [n, ...]}."""
    place = self.skip(place, first)
    rows, window = list(self._plan(place['window'])[place['row']:]), place['window']
    while len(rows) < last - first:
      window += 1
      rows += self._plan(window)
    return self._build(rows[:last - first])

  def _build(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the features of rows that are given by the ids of their examples."""
    ids = np.concatenate(rows)
    number = np.array([len(row) for row in rows])
    row_of = np.repeat(np.arange(len(rows)), number)
    segment = np.arange(len(ids)) - np.repeat(np.cumsum(number) - number, number)
    out = {name: np.zeros((len(rows), *shape), dtype) for name, (shape, dtype) in self.spec.items()}
    for prefix, names in self._layout.groups.items():
      length = self._store.lengths(self._layout.measured[prefix], ids)
      # Where each example begins in its row: all lengths before it, less those of earlier rows.
      before = np.cumsum(length) - length
      begin = before - before[(np.cumsum(number) - number)[row_of]]
      at, within = _cells(row_of, begin, length)
      out[f'{prefix}_segment_ids'][at] = np.repeat(segment + 1, length)
      out[f'{prefix}_positions'][at] = within
      for name in names:
        # A feature may end before its example does, with zeros that are not stored.
        at, _ = _cells(row_of, begin, np.minimum(self._store.lengths([name], ids), length))
        out[name][at] = self._store.flat(name, ids, length)
    for name in self._layout.others:
      values = self._store.get(name, ids)
      width = values.shape[1] if values.ndim > 1 else 1
      values = values.reshape(len(ids), width, *values.shape[2:])
      out[name].reshape(len(rows), self._layout.examples, *values.shape[1:])[row_of, segment] = values
    return out


def _cells(row: np.ndarray, begin: np.ndarray, length: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
  """Returns the (row, column) of every token of examples, and its position in its example."""
  within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
  return (np.repeat(row, length), np.repeat(begin, length) + within), within
