"""Tests of schedules against values of the interface's reference implementation."""

from __future__ import annotations

import json

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from t5x import schedules


class SchedulesTest(parameterized.TestCase):
  def test_golden(self):
    golden = json.loads(testing.shared_data('golden/schedules.json').read_text())
    self.assertGreater(len(golden['cases']), 10)
    for case in golden['cases']:
      rtol = 1e-5 if 'cosine' in case['kwargs'].get('factors', '') else 1e-6
      with self.subTest(**case['kwargs']):
        schedule = schedules.create_learning_rate_scheduler(**case['kwargs'])
        for name, convert in (
          ('values_python_int_step', int),
          ('values_int32_array_step', jnp.int32),
        ):
          values = [schedule(convert(step)) for step in golden['steps']]
          self.assertEqual({v.dtype for v in values}, {jnp.dtype('float32')})
          np.testing.assert_allclose(values, case[name], rtol=rtol, atol=1e-10)

  @parameterized.parameters(
    (dict(factors='constant', base_learning_rate=1e-3), 7, 1e-3),
    (dict(factors='constant * linear_warmup', base_learning_rate=1.0, warmup_steps=10), 5, 0.5),
    (dict(factors='rsqrt_decay', warmup_steps=4), 1, 0.5),
    (dict(factors='rsqrt_decay', warmup_steps=4), 16, 0.25),
    (dict(factors='rsqrt_normalized_decay', warmup_steps=4), 16, 0.5),
    (dict(factors='decay_every', decay_factor=0.1, steps_per_decay=10), 25, 0.01),
    (dict(factors='cosine_decay', warmup_steps=0, steps_per_cycle=10), 5, 0.5),
    (
      dict(
        factors='constant*linear_warmup', base_learning_rate=1.0, warmup_steps=10, step_offset=100
      ),
      101,
      0.1,
    ),
    (dict(factors='constant', base_learning_rate=0.0, min_learning_rate=1e-4), 0, 1e-4),
  )
  def test_value(self, kwargs, step, expected):
    schedule = schedules.create_learning_rate_scheduler(**kwargs)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)

  @parameterized.parameters('linear_warmup', 'rsqrt_decay', 'rsqrt_normalized_decay')
  def test_no_warmup(self, factors):
    schedule = schedules.create_learning_rate_scheduler(factors, warmup_steps=0)
    np.testing.assert_allclose(schedule(0), 1.0)

  def test_works_under_jit(self):
    schedule = schedules.create_learning_rate_scheduler()
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(50)), schedule(50), rtol=1e-6)

  def test_unknown_factor(self):
    with self.assertRaisesRegex(ValueError, "unknown learning rate factor 'rsqrt': use constant"):
      schedules.create_learning_rate_scheduler('constant * rsqrt')


if __name__ == '__main__':
  absltest.main()
