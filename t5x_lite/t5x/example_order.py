"""Which example stands at a position of the training stream: a function of seed, rates and sizes alone.

The stream of a mixture is endless. It is cut into blocks, in which each task has the share that its rate gives it, in a
shuffled order; each task goes through its examples in an order that is new in every epoch. As nothing is counted while reading,
any position can be looked up at once, by any host.

All random numbers are raw bits of Philox (Salmon et al., 2011), whose stream NumPy guarantees for all versions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Least positions of a block.
BLOCK = 4096
# The first epoch of a task with more examples than `LARGE` goes through pieces of `CHUNK` examples, each shuffled for itself,
# so that it can begin before all examples are read.
LARGE, CHUNK = 8192, 2048

# What random numbers are for, so that no two uses share theirs.
_PHASES, _BLOCKS, _EPOCHS = range(3)


def random_bits(number: int, seed: int, *purpose: int) -> np.ndarray:
  """Returns random uint64 [number] that depend on the seed and on non-negative integers that say what for."""
  return np.random.Philox(np.random.SeedSequence([seed % 2**64, *purpose])).random_raw(number)


def permutation(number: int, seed: int, *purpose: int) -> np.ndarray:
  """Returns a random order of `range(number)`, int64."""
  return np.argsort(random_bits(number, seed, *purpose), kind='stable')


class ExampleOrder:
  """Looks up positions of the stream.

  Up to the end of each block, a task of rate r (rates sum to one) has been drawn floor(n r + phase) times, where n is the
  number of blocks times their nominal size and the phase lies in [0, 1): less than one away from its share, however long the
  stream is. The sum over tasks, hence the length of a block, varies by as much as the phases do.

  Args:
    sizes: examples of each task [T].
    rates: rate of each task [T], at least 0; they need not sum to one.
    seed: of all random choices.
    shuffle: False: examples of a task come in their stored order; tasks are mixed all the same.

  Raises:
    ValueError: a task that is to be drawn has no examples, or no task is to be drawn.
  """

  def __init__(self, sizes: Sequence[int], rates: Sequence[float], seed: int, shuffle: bool = True):
    self.sizes = np.asarray(sizes, np.int64)
    rates = np.asarray(rates, np.float64)
    if rates.shape != self.sizes.shape or (rates < 0).any() or not rates.sum() > 0:
      raise ValueError(f'rates are {rates.tolist()}; give one of at least 0 for each of {len(self.sizes)} tasks, not all 0')
    if (self.sizes[rates > 0] <= 0).any():
      raise ValueError(f'task {np.flatnonzero((rates > 0) & (self.sizes <= 0))[0]} has a rate but no examples')
    self._rates = rates / rates.sum()
    self._seed, self._shuffle = seed, shuffle
    self._block_size = max(BLOCK, 2 * len(rates))
    # A single task needs none: its blocks are then all of one size.
    self._phases = random_bits(len(rates), seed, _PHASES) / 2.0**64 if len(rates) > 1 else np.zeros(1)
    self._orders: dict[int, tuple[int, np.ndarray]] = {}
    self._block = (-1, np.zeros(0, np.int64), np.zeros(0, np.int64))

  @property
  def num_examples(self) -> int:
    """Examples of the tasks that are drawn."""
    return int(self.sizes[self._rates > 0].sum())

  def drawn(self, block: int) -> np.ndarray:
    """Returns how often each task is drawn before a block starts, [T] int64."""
    return np.floor(float(block) * self._block_size * self._rates + np.minimum(self._phases, 1 - 2.0**-53)).astype(np.int64)

  def lookup(self, start: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples at positions `start` to `start + number`.

    Args:
      start: first position, from 0.
      number: how many.

    Returns:
      The task of each position and the index of its example in that task, both [number] int64.
    """
    tasks, indices = [], []
    block = self._block_at(start)
    first = int(self.drawn(block).sum())
    while first < start + number:
      _, of_task, index = self._read(block)
      piece = slice(max(start - first, 0), start + number - first)
      tasks.append(of_task[piece])
      indices.append(index[piece])
      first += len(of_task)
      block += 1
    return np.concatenate([np.zeros(0, np.int64), *tasks]), np.concatenate([np.zeros(0, np.int64), *indices])

  def _block_at(self, position: int) -> int:
    """Returns the block that holds a position; blocks are nearly of one size, so that few are tried."""
    block = position // self._block_size
    while block and self.drawn(block).sum() > position:
      block -= 1
    while self.drawn(block + 1).sum() <= position:
      block += 1
    return block

  def _read(self, block: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns the number of a block, and task and index of each of its positions; the last block is kept."""
    if self._block[0] == block:
      return self._block
    before, after = self.drawn(block), self.drawn(block + 1)
    number = after - before
    tasks = np.repeat(np.arange(len(number)), number)
    tasks = tasks[permutation(len(tasks), self._seed, _BLOCKS, block)]
    # Positions of the first task, then of the second, ...: each in the order of the stream, like a task's draws.
    by_task = np.argsort(tasks, kind='stable')
    indices = np.empty(len(tasks), np.int64)
    indices[by_task] = np.concatenate([
        self._draws(task, before[task], after[task]) for task in np.flatnonzero(number)] or [np.zeros(0, np.int64)])
    self._block = (block, tasks, indices)
    return self._block

  def _draws(self, task: int, first: int, last: int) -> np.ndarray:
    """Returns the examples of draws `first` to `last` of a task."""
    size = self.sizes[task]
    if not self._shuffle:
      return np.arange(first, last) % size
    pieces = []
    for epoch in range(first // size, (last - 1) // size + 1):
      begin = epoch * size
      pieces.append(self._epoch_order(task, epoch)[max(first - begin, 0):last - begin])
    return np.concatenate(pieces)

  def _epoch_order(self, task: int, epoch: int) -> np.ndarray:
    """Returns the order of a task's examples in an epoch; that of its last epoch is kept."""
    kept = self._orders.get(task)
    if kept is not None and kept[0] == epoch:
      return kept[1]
    size = int(self.sizes[task])
    bits = random_bits(size, self._seed, _EPOCHS, task, epoch)
    order = np.argsort(bits, kind='stable')
    if epoch == 0 and size > LARGE:
      order = np.lexsort((bits, np.arange(size) // CHUNK))
    self._orders[task] = (epoch, order)
    return order
