"""Tests for t5x.metrics."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp
import numpy as np

from t5x import metrics


class MetricsTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, 15.0),
      ([[1, 0, 1], [0, 0, 1]], 7.0),
      ([False, True], 12.0))
  def test_sum_with_mask(self, mask, expected):
    mask = None if mask is None else jnp.array(mask)
    metric = metrics.Sum.from_model_output(jnp.arange(6.0).reshape(2, 3), mask=mask)
    self.assertEqual(float(metric.compute()), expected)
    self.assertEqual(float(metric.merge(metrics.Sum.empty()).compute()), expected)

  def test_average_per_step(self):
    first = metrics.AveragePerStep.from_model_output(jnp.array([1.0, 2.0]))
    second = metrics.AveragePerStep.from_model_output(jnp.array([6.0]), steps=2)
    merged = first.merge(second)
    self.assertEqual(float(merged.compute()), 3.0)
    self.assertEqual(float(merged.replace_steps(9).compute()), 1.0)
    self.assertEqual(float(metrics.AveragePerStep.empty().merge(second).compute()), 3.0)

  def test_rates(self):
    rate = metrics.TimeRate.from_model_output(numerator=3.0).merge(
        metrics.TimeRate.from_model_output(numerator=5.0))
    steps = metrics.StepsPerTime.from_model_output().merge(
        metrics.StepsPerTime.from_model_output(steps=3))
    self.assertEqual(float(rate.replace_duration(2.0).compute()), 4.0)
    self.assertEqual(float(steps.replace_duration(8.0).compute()), 0.5)
    self.assertEqual(float(metrics.Time().replace_duration(7.0).compute()), 7.0)
    self.assertEqual(float(rate.replace_duration(2.0).compute_value().value), 4.0)

  @parameterized.parameters(
      (metrics.Time(), 'replace_duration'),
      (metrics.TimeRate(numerator=1.0), 'replace_duration'),
      (metrics.StepsPerTime(), 'replace_duration'),
      (metrics.AveragePerStep(steps=None, total=1.0), 'replace_steps'))
  def test_what_is_not_set_raises(self, metric, hint):
    with self.assertRaisesRegex(ValueError, hint):
      metric.compute()

  @parameterized.parameters(
      metrics.Time(), metrics.TimeRate(numerator=1.0), metrics.StepsPerTime())
  def test_merging_after_the_duration_was_set_raises(self, metric):
    with self.assertRaisesRegex(ValueError, 'merge first'):
      metric.merge(metric.replace_duration(1.0))

  def test_set_duration_and_steps_in_a_tree(self):
    tree = {
        'loss': metrics.AveragePerStep.from_model_output(jnp.array(6.0)),
        'time': {'rate': metrics.TimeRate.from_model_output(numerator=8.0)},
        'steps': metrics.StepsPerTime.from_model_output(),
        'sum': metrics.Sum(5.0),
        'accuracy': clu_metrics.Average(total=jnp.float32(1), count=jnp.int32(2)),
    }
    tree = metrics.set_time_metrics_duration(tree, 4.0)
    tree = metrics.set_step_metrics_num_steps(tree, 2)
    values = jax.tree.map(lambda m: float(m.compute()), tree, is_leaf=metrics.is_metric_obj)
    self.assertEqual(
        values, {'loss': 3.0, 'time': {'rate': 2.0}, 'steps': 0.5, 'sum': 5.0, 'accuracy': 0.5})

  def test_metrics_pass_through_jit(self):
    @jax.jit
    def step(x):
      return {'loss': metrics.AveragePerStep.from_model_output(x),
              'rate': metrics.TimeRate.from_model_output(jnp.sum(x)),
              'time': metrics.Time()}

    first, second = step(jnp.ones(3)), step(jnp.ones(3))
    merged = jax.tree.map(
        lambda a, b: a.merge(b), first, second, is_leaf=metrics.is_metric_obj)
    self.assertEqual(float(merged['loss'].compute()), 3.0)
    self.assertEqual(float(merged['rate'].replace_duration(3.0).compute()), 2.0)
    self.assertIsNone(merged['time'].duration)

  def test_shape_obj_to_defined_obj(self):
    shape = jax.eval_shape(lambda: metrics.AveragePerStep.from_model_output(jnp.ones((2, 3))))
    defined = metrics.shape_obj_to_defined_obj(shape)
    self.assertIsInstance(defined, metrics.AveragePerStep)
    np.testing.assert_array_equal(defined.total, np.zeros(()))
    time = metrics.shape_obj_to_defined_obj(jax.eval_shape(metrics.Time))
    self.assertIsNone(time.duration)

  def test_create_metrics_dict(self):
    average = metrics.AveragePerStep.from_model_output(jnp.array(2.0))
    created = metrics.create_metrics_dict({'a': 1.5, 'b': average})
    self.assertIsInstance(created['a'], metrics.Sum)
    self.assertEqual(created['a'].compute(), 1.5)
    self.assertIs(created['b'], average)
    self.assertFalse(metrics.is_metric_obj(1.5))


class AccuracyTest(absltest.TestCase):

  def test_it_is_that_of_argmax_with_ties_and_masked_logits_too(self):
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, size=(40, 6, 5)).astype(np.float32)  # Few values: most rows have ties.
    logits[0, 0], logits[0, 1, :4] = -np.inf, -np.inf
    targets = rng.integers(0, 5, size=(40, 6)).astype(np.int32)
    right = logits.argmax(axis=-1) == targets
    self.assertBetween(right.mean(), .1, .9)
    for mask in (None, (rng.random((40, 6)) < .5).astype(np.float32)):
      values = metrics.compute_base_metrics(jnp.asarray(logits), jnp.asarray(targets), mask, jnp.float32(0))
      self.assertAlmostEqual(float(values['accuracy'].compute()), np.average(right, weights=mask), places=6)


if __name__ == '__main__':
  absltest.main()
