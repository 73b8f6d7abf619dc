"""Tests of evaluating several tasks in common batches, against one task at a time."""

from __future__ import annotations

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from t5x import joined_tasks


def _dataset(first: int, size: int, width: int = 2):
  import tensorflow as tf
  rows = np.arange(first, first + size, dtype=np.int32)[:, None] * np.ones(width, np.int32)
  return tf.data.Dataset.from_tensor_slices({'x': rows}).enumerate()


def _predict(dataset):
  return [(index, int(example['x'][0]) * 10) for index, example in dataset.as_numpy_iterator()]


def _with_aux(dataset):
  outputs = _predict(dataset)
  return outputs, {'scores': [value / 2 for _, value in outputs], 'deep': {'pairs': [[value, 1] for _, value in outputs]}}


class JoinedTasksTest(parameterized.TestCase):

  @parameterized.product(keep=[True, False], fn=[_predict, _with_aux])
  def test_equals_one_task_at_a_time(self, keep, fn):
    datasets = {'a': _dataset(0, 3), 'none': _dataset(0, 0), 'b': _dataset(100, 1), 'wide': _dataset(7, 2, width=5)}
    joined = joined_tasks.join(datasets, keep)
    self.assertLen(joined, 2)  # Other shapes are not joined.
    for _ in range(2):
      self.assertEqual(joined_tasks.run(joined, fn), {name: fn(dataset) for name, dataset in datasets.items()})

  def test_what_is_kept_is_read_once(self):
    class Counted:
      element_spec = 'one'
      opened = 0

      def as_numpy_iterator(self):
        self.opened += 1
        yield from enumerate([{'x': np.array([4])}, {'x': np.array([5])}])

    for keep, opened in ((True, 1), (False, 2)):
      dataset = Counted()
      joined, = joined_tasks.join({'a': dataset}, keep)
      self.assertEqual([_predict(joined) for _ in range(2)], [[(0, 40), (1, 50)]] * 2)
      self.assertEqual(dataset.opened, opened)

  def test_what_finds_no_room_is_read_again(self):
    datasets = {'small': _dataset(0, 2), 'large': _dataset(5, 6), 'other': _dataset(20, 1)}
    opened = []
    joined, = joined_tasks.join(datasets, keep=True)
    read = joined._read
    with mock.patch.object(joined_tasks, '_MOST_KEPT', 5 * 8), \
         mock.patch.object(joined, '_read', lambda name, dataset: (opened.append(name), read(name, dataset))[1]):
      found = [joined_tasks.run([joined], _predict) for _ in range(2)]
    self.assertEqual(found[0], {name: _predict(dataset) for name, dataset in datasets.items()})
    self.assertEqual(found[0], found[1])
    self.assertEqual(opened, ['small', 'large', 'other', 'large'])

  def test_a_function_without_any_output(self):
    joined, = joined_tasks.join({'a': _dataset(0, 0)}, keep=True)
    self.assertEqual(joined_tasks.run([joined], lambda dataset: list(dataset.as_numpy_iterator())), {'a': []})


if __name__ == '__main__':
  absltest.main()
