"""Tests of `tasks.mixtures`: the rates by hand, counted no earlier than they are asked for."""

from __future__ import annotations

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from tasks import mixtures


def _task(count, splits=('train',)):
  task = mock.Mock(spec=seqio.Task)
  task.configure_mock(name='some', splits=splits)
  task.num_input_examples.return_value = count
  return task


class MixturesTest(parameterized.TestCase):

  def tearDown(self):
    super().tearDown()
    gin.clear_config()

  @parameterized.parameters((None, 900.0), (100, 100.0), (1000, 900.0))
  def test_proportional(self, maximum, expected):
    self.assertEqual(mixtures.proportional_rate(_task(900), maximum=maximum), expected)

  @parameterized.parameters((1.0, None, 900.0), (2.0, None, 30.0), (2.0, 400, 20.0))
  def test_temperature(self, temperature, maximum, expected):
    rate = mixtures.temperature_rate(_task(900), temperature=temperature, maximum=maximum)
    self.assertAlmostEqual(rate, expected)

  def test_equal_asks_nothing(self):
    task = _task(900)
    self.assertEqual(mixtures.equal_rate(task), 1.0)
    task.num_input_examples.assert_not_called()

  def test_gin_sets_the_temperature(self):
    gin.parse_config('tasks.mixtures.temperature_rate.temperature = 1.0')
    self.assertEqual(mixtures.temperature_rate(_task(900)), 900.0)

  def test_gin_with_dynamic_registration(self):
    gin.parse_config('from __gin__ import dynamic_registration\nfrom tasks import mixtures\n'
                     'mixtures.temperature_rate.temperature = 1.0')
    self.assertEqual(mixtures.temperature_rate(_task(900)), 900.0)

  def test_other_split(self):
    task = _task(5, splits=('infer',))
    self.assertEqual(mixtures.proportional_rate(task, split='infer'), 5.0)
    task.num_input_examples.assert_called_once_with('infer')

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, "no split 'train' to count .it has test.; .*equal_"):
      mixtures.proportional_rate(_task(5, splits=('test',)))
    with self.assertRaisesRegex(ValueError, 'does not know how many'):
      mixtures.proportional_rate(_task(None))
    with self.assertRaisesRegex(ValueError, 'maximum is 0'):
      mixtures.proportional_rate(_task(5), maximum=0)
    with self.assertRaisesRegex(ValueError, 'temperature is 0.5'):
      mixtures.temperature_rate(_task(5), temperature=0.5)


if __name__ == '__main__':
  absltest.main()
