"""Tests of the order of examples: shares, epochs, seeds, random access."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from t5x import example_order


def _lookup(order, start, number):
  tasks, indices = order.lookup(start, number)
  return np.stack([tasks, indices], axis=1)


class SharesTest(parameterized.TestCase):

  @parameterized.parameters([[1, 1]], [[5, 3, 0.25, 0.01]], [[1.0] * 100 + [50.0]])
  def test_each_task_has_its_share_at_the_end_of_every_block(self, rates):
    order = example_order.ExampleOrder([10] * len(rates), rates, seed=1)
    shares = np.array(rates) / np.sum(rates)
    for block in range(1, 40):
      self.assertLess(np.abs(order.drawn(block) - block * example_order.BLOCK * shares).max(), 1 + 1e-6)
    for block in (1, 2, 7):
      drawn = order.drawn(block)
      np.testing.assert_array_equal(np.bincount(_lookup(order, 0, drawn.sum())[:, 0], minlength=len(rates)), drawn)

  def test_blocks_follow_each_other_without_gaps(self):
    order = example_order.ExampleOrder([10] * 7, np.arange(1, 8), seed=1)
    self.assertEqual(order.drawn(0).sum(), 0)
    self.assertTrue((np.diff([order.drawn(b) for b in range(50)], axis=0) >= 0).all())

  def test_a_rate_of_zero_is_never_drawn(self):
    order = example_order.ExampleOrder([10, 0, 10], [1, 0, 3], seed=1)
    np.testing.assert_array_equal(np.unique(_lookup(order, 0, 9000)[:, 0]), [0, 2])
    self.assertEqual(order.num_examples, 20)

  def test_tasks_are_mixed_within_a_block(self):
    tasks = _lookup(example_order.ExampleOrder([10, 10], [1, 1], seed=1), 0, 4000)[:, 0]
    # A fair coin changes sides 2000 times, with a deviation of 32.
    self.assertBetween((np.diff(tasks) != 0).sum(), 1800, 2200)


class EpochsTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 5000)
  def test_every_example_once_in_each_epoch(self, size):
    order = example_order.ExampleOrder([size, 3], [2, 1], seed=5)
    stream = _lookup(order, 0, 3 * 4 * size + 20)
    indices = stream[stream[:, 0] == 0, 1]
    epochs = [indices[i * size:(i + 1) * size] for i in range(4)]
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size > 3:
      self.assertFalse(any((a == b).all() for i, a in enumerate(epochs) for b in epochs[:i]))

  def test_without_shuffling_examples_keep_their_order(self):
    stream = _lookup(example_order.ExampleOrder([7, 5], [1, 1], seed=1, shuffle=False), 0, 100)
    for task, size in enumerate((7, 5)):
      indices = stream[stream[:, 0] == task, 1]
      np.testing.assert_array_equal(indices, np.arange(len(indices)) % size)

  def test_the_first_epoch_of_a_large_task_goes_piece_by_piece(self):
    size, chunk = example_order.LARGE + 100, example_order.CHUNK
    order = example_order.ExampleOrder([size], [1], seed=1)
    first, second = _lookup(order, 0, size)[:, 1], _lookup(order, size, size)[:, 1]
    np.testing.assert_array_equal(first // chunk, np.arange(size) // chunk)
    self.assertTrue((first[:chunk] != np.arange(chunk)).any())
    np.testing.assert_array_equal(np.sort(second), np.arange(size))
    self.assertGreater(second[:chunk].max(), 2 * chunk)


class SeedTest(absltest.TestCase):

  def _order(self, seed):
    return example_order.ExampleOrder([50, 20], [1, 2], seed)

  def test_the_same_seed_gives_the_same_order_and_another_one_another(self):
    first = _lookup(self._order(1), 0, 5000)
    np.testing.assert_array_equal(_lookup(self._order(1), 0, 5000), first)
    self.assertTrue((_lookup(self._order(2), 0, 5000)[:, 1] != first[:, 1]).any())

  def test_any_position_is_that_of_reading_from_the_start(self):
    whole = _lookup(self._order(1), 0, 20_000)
    order = self._order(1)
    for start, number in ((19_000, 1000), (0, 1), (4095, 2), (4096, 1), (7777, 9000), (5, 0)):
      np.testing.assert_array_equal(_lookup(order, start, number), whole[start:start + number])

  def test_bits_are_those_of_philox_for_ever(self):
    # The known answer of Random123 for Philox4x64-10, counter and key 0; NumPy counts up before it draws.
    bits = np.random.Philox(key=[0, 0], counter=[2**64 - 1] * 4).random_raw(4)
    self.assertEqual([hex(b) for b in bits],
                     ['0x16554d9eca36314c', '0xdb20fe9d672d0fdc', '0xd7e772cee186176b', '0x7e68b68aec7ba23b'])
    # Should these change, so would the order of every run that is resumed.
    np.testing.assert_array_equal(example_order.permutation(6, 7, 1), [1, 4, 3, 2, 5, 0])
    np.testing.assert_array_equal(_lookup(example_order.ExampleOrder([4, 3], [1, 1], 7), 0, 6),
                                  [[0, 0], [0, 3], [1, 1], [0, 1], [0, 2], [0, 3]])


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(([3, 0], [1, 1], 'task 1 has a rate but no examples'), ([3], [0], 'rates are'),
                            ([3, 3], [1, -1], 'rates are'), ([3, 3], [1], 'rates are'))
  def test_what_cannot_be_drawn_is_told(self, sizes, rates, message):
    with self.assertRaisesRegex(ValueError, message):
      example_order.ExampleOrder(sizes, rates, 1)


if __name__ == '__main__':
  absltest.main()
