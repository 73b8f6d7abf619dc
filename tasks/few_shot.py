"""Few-shot subsets: k examples of a list, the same ones on every machine for the same seed.

Each candidate gets a hash of the seed and its name, and those with the lowest hashes are taken. So the subset does not
depend on the platform or on library versions, that of a smaller k lies within that of a larger one, and a row with a name of
its own is taken or not whatever the order of the file.
"""

from __future__ import annotations

import collections
import hashlib
from typing import TypeVar
from collections.abc import Callable, Hashable, Sequence

Row = TypeVar('Row')


def sample(rows: Sequence[Row], k: int, seed: int, *, group: Callable[[Row], Hashable] | None = None,
           label: Callable[[Row], Hashable] | None = None) -> list[Row]:
  """Chooses k rows, or k groups of rows, of all or of each label.

  Args:
    rows: the candidates.
    k: how many; where there are fewer, all are taken, so `len(result) == len(rows)` tells that nothing was left out.
    seed: another seed chooses another subset.
    group: gives a row's group, of which all rows or none are taken; it counts once. Groups must be str, int or tuples of
      these. None: every row is its own group, named by its position.
    label: gives a row's class; k are then taken of each, a group counting for the class of its first row.

  Returns:
    The chosen rows in their original order.

  Raises:
    ValueError: k is below 1.
  """
  if k < 1:
    raise ValueError(f'k is {k}; wanted a positive number of examples, or no subset at all')
  keys = list(range(len(rows))) if group is None else [group(row) for row in rows]
  groups_of_label: dict[Hashable, dict[Hashable, None]] = collections.defaultdict(dict)
  label_of_group: dict[Hashable, Hashable] = {}
  for key, row in zip(keys, rows):
    label_of_group.setdefault(key, None if label is None else label(row))
    groups_of_label[label_of_group[key]][key] = None
  chosen = set()
  for groups in groups_of_label.values():
    chosen.update(sorted(groups, key=lambda key: (_rank(seed, key), repr(key)))[:k])
  return [row for key, row in zip(keys, rows) if key in chosen]


def _rank(seed: int, key: Hashable) -> bytes:
  return hashlib.sha256(f'{seed}:{key!r}'.encode()).digest()
