"""Tests of settings that change with the step."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.routing import schedules

setUpModule, tearDownModule = testing.quick_compilation()


class SchedulesTest(parameterized.TestCase):

  @parameterized.parameters((0, 2.), (5, 1.25), (10, .5), (99, .5))
  def test_linear(self, step, expected):
    self.assertAlmostEqual(float(schedules.Linear(2., .5, 10)(step)), expected, places=6)

  @parameterized.parameters((0, 0.), (2.5, (1 - .5 ** .5) / 2), (5, .5), (7.5, (1 + .5 ** .5) / 2), (10, 1.), (11, 1.))
  def test_cosine(self, step, expected):
    self.assertAlmostEqual(float(schedules.Cosine(0., 1., 10)(jnp.float32(step))), expected, places=6)

  def test_under_jit(self):
    rates = jax.jit(jax.vmap(schedules.Linear(1., 0., 4)))(jnp.arange(6.))
    np.testing.assert_allclose(rates, [1., .75, .5, .25, 0., 0.])

  def test_steps_must_be_positive(self):
    with self.assertRaisesRegex(ValueError, 'a schedule of 0 steps: write 1 or more'):
      schedules.Cosine(0., 1., 0)

  def test_ends(self):
    self.assertEqual(schedules.ends(.5), (.5,))
    self.assertEqual(schedules.ends(schedules.Cosine(2., 1., 4)), (2., 1.))
    self.assertEqual(schedules.ends(lambda step: step), ())

  def test_value(self):
    self.assertEqual(schedules.value(.5, None), .5)
    self.assertEqual(float(schedules.value(schedules.Linear(1., 0., 4), jnp.float32(1))), .75)
    with self.assertRaisesRegex(ValueError, r'Linear\(.*\) changes with the step, which this call does not give'):
      schedules.value(schedules.Linear(1., 0., 4), None)


if __name__ == '__main__':
  absltest.main()
