"""Tests of sampling: noise by example and by task, hard values, annealing."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.routing import schedules
from cpoly_jax.routing import functions

setUpModule, tearDownModule = testing.quick_compilation()
KEY = jax.random.PRNGKey(3)
LOGITS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)  # [T, H, k]
TASKS = np.array([0, 3, 3, 1], np.int32)


def _weights(sampling, tasks=TASKS, key=KEY, deterministic=False, step=None):
  tasks = jnp.asarray(tasks)
  key = key if sampling.draws(deterministic) else None
  return np.asarray(sampling.weights(jnp.asarray(LOGITS)[tasks], tasks, key=key, deterministic=deterministic, step=step))


def _soft(tasks=TASKS):
  p = 1 / (1 + np.exp(-LOGITS[tasks].astype(np.float64)))
  return p / p.sum(-1, keepdims=True)


class NoiseTest(parameterized.TestCase):

  @parameterized.parameters('example', 'task')
  def test_draws_are_normalised_and_follow_the_key(self, noise):
    sampling = routing.Sampling(noise=noise)
    first = _weights(sampling)
    np.testing.assert_allclose(first.sum(-1), 1., rtol=1e-5)
    np.testing.assert_array_equal(first, _weights(sampling))
    self.assertGreater(np.abs(first - _weights(sampling, key=jax.random.PRNGKey(4))).max(), .05)
    self.assertGreater(np.abs(first - _soft()).max(), .05)
    # Heads draw on their own: the noise of one is not that of the other.
    self.assertGreater(np.abs((first - _soft())[:, 0] - (first - _soft())[:, 1]).max(), .05)

  def test_by_example_two_examples_of_a_task_differ(self):
    drawn = _weights(routing.Sampling())
    self.assertGreater(np.abs(drawn[1] - drawn[2]).max(), .05)

  def test_by_task_the_examples_of_a_task_share_a_draw_whatever_the_batch(self):
    sampling = routing.Sampling(noise='task')
    drawn = _weights(sampling)
    np.testing.assert_array_equal(drawn[1], drawn[2])
    self.assertGreater(np.abs((drawn - _soft())[0] - (drawn - _soft())[1]).max(), .05)
    other = _weights(sampling, tasks=np.array([1, 2, 4, 4, 0, 3], np.int32))
    np.testing.assert_array_equal(other[5], drawn[1])
    np.testing.assert_array_equal(other[0], drawn[3])
    np.testing.assert_array_equal(other[4], drawn[0])

  def test_by_task_a_hardware_generator_does_the_same(self):
    key = jax.random.key(3, impl='rbg')
    drawn = _weights(routing.Sampling(noise='task'), key=key)
    np.testing.assert_array_equal(drawn[1], drawn[2])
    np.testing.assert_array_equal(_weights(routing.Sampling(noise='task'), tasks=TASKS[1:], key=key)[0], drawn[1])

  def test_none_trains_as_it_evaluates(self):
    np.testing.assert_allclose(_weights(routing.Sampling(noise='none')), _soft(), rtol=1e-5)

  @parameterized.parameters('example', 'task', 'none')
  def test_evaluation_has_no_noise_and_no_temperature(self, noise):
    np.testing.assert_allclose(_weights(routing.Sampling(noise=noise, temperature=.1), deterministic=True), _soft(), rtol=1e-5)

  def test_temperature_divides_logits_and_noise(self):
    tasks = jnp.asarray(TASKS)
    noise = jax.random.logistic(KEY, (4, 2, 3))
    z = 1 / (1 + np.exp(-(LOGITS[TASKS] + np.asarray(noise)) / .5))
    np.testing.assert_allclose(_weights(routing.Sampling(temperature=.5), tasks), z / z.sum(-1, keepdims=True), rtol=1e-4)


class HardTest(absltest.TestCase):

  def test_hard_evaluation(self):
    hard = (LOGITS[TASKS] > 0).astype(np.float64)
    expected = hard / np.maximum(hard.sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(_weights(routing.Sampling(hard_evaluation=True), deterministic=True), expected, rtol=1e-5)
    # It says nothing about training.
    np.testing.assert_array_equal(_weights(routing.Sampling(hard_evaluation=True)), _weights(routing.Sampling()))

  def test_straight_through_training(self):
    sampling = routing.Sampling(straight_through=True)
    noise = jax.random.logistic(KEY, (4, 2, 3))
    hard = (LOGITS[TASKS] + np.asarray(noise) > 0).astype(np.float64)
    np.testing.assert_allclose(_weights(sampling), hard / np.maximum(hard.sum(-1, keepdims=True), 1), rtol=1e-5)
    np.testing.assert_allclose(_weights(sampling, deterministic=True), _soft(), rtol=1e-5)

  def test_straight_through_has_the_gradient_at_the_rounded_values_through_the_soft_ones(self):
    logits = jnp.asarray([[[.3, -.4, .8]]])
    sampling = routing.Sampling(straight_through=True, noise='none')
    slopes = jnp.asarray([1., 2., -3.])
    grad = jax.grad(lambda z: jnp.sum(slopes * sampling.weights(
        z, jnp.zeros(1, jnp.int32), key=None, deterministic=False, step=None)))(logits)
    outer = jax.grad(lambda hard: jnp.sum(slopes * functions.normalise(hard)))(jnp.asarray([[[1., 0., 1.]]]))
    p = jax.nn.sigmoid(logits)
    np.testing.assert_allclose(grad, outer * p * (1 - p), rtol=1e-5)
    self.assertGreater(float(jnp.abs(grad).min()), 0.)


class ScheduleTest(absltest.TestCase):

  def test_temperature_follows_the_step(self):
    sampling = routing.Sampling(temperature=schedules.Linear(2., .5, 10))
    self.assertTrue(sampling.needs_step)
    for step, temperature in ((0, 2.), (5, 1.25), (20, .5)):
      np.testing.assert_allclose(_weights(sampling, step=jnp.float32(step)),
                                 _weights(routing.Sampling(temperature=temperature)), rtol=1e-5)

  def test_uniform_follows_the_step_in_training_and_evaluation(self):
    sampling = routing.Sampling(uniform=schedules.Cosine(0., 1., 10), noise='none')
    self.assertTrue(sampling.needs_step)
    for deterministic in (True, False):
      for step, share in ((0, 0.), (5, .5), (10, 1.)):
        np.testing.assert_allclose(_weights(sampling, step=jnp.float32(step), deterministic=deterministic),
                                   (1 - share) * _soft() + share / 3, rtol=1e-5)

  def test_constant_uniform_share(self):
    self.assertFalse(routing.Sampling(uniform=.25).needs_step)
    np.testing.assert_allclose(_weights(routing.Sampling(uniform=.25), deterministic=True), .75 * _soft() + .25 / 3, rtol=1e-5)

  def test_a_schedule_without_a_step(self):
    with self.assertRaisesRegex(ValueError, 'changes with the step'):
      _weights(routing.Sampling(uniform=schedules.Linear(0., 1., 2)), deterministic=True)


class SettingsTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(noise='batch'), "Sampling.noise = 'batch': write one of example, task, none"),
      (dict(temperature=0.), 'Sampling.temperature = 0.0: write a number above 0'),
      (dict(temperature=-1), 'Sampling.temperature = -1: write a number above 0'),
      (dict(temperature=schedules.Linear(1., 0., 5)), r'Sampling.temperature = Linear\(start=1.0, end=0.0, steps=5\): write'),
      (dict(uniform=schedules.Cosine(0., 2., 5)), r'Sampling.uniform = Cosine\(.*\): write a number from 0 to 1'),
      (dict(uniform=1.5), 'Sampling.uniform = 1.5: write a number from 0 to 1'))
  def test_wrong_settings_are_one_line(self, settings, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      routing.Sampling(**settings)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
