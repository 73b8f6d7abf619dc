"""The time of day may jump: nothing that a run measures or shows depends on it."""

from __future__ import annotations

import io
import itertools
import math
import pathlib
import re
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from clu import metrics as clu_metrics
import jax.numpy as jnp

from t5x import metrics as metrics_lib
from t5x import progress as progress_lib
from t5x import training_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where a number of seconds since 1970 is a seed or a part of a name.
NAMES_AND_SEEDS = {'datasets.py', 'legacy_checkpoint.py', 'run_plan.py'}
FORWARDS, BACKWARDS, BACK_AND_FORTH = (
    lambda: map(float, itertools.count(1e9, 1e8)), lambda: map(float, itertools.count(1e9, -1e8)),
    lambda: itertools.cycle([1e9, 0.0, 2e9]))


class ClockTest(parameterized.TestCase):

  def _jumping(self, jumps):
    times = jumps()
    return mock.patch.object(time, 'time', lambda: next(times))

  @parameterized.parameters(FORWARDS, BACKWARDS, BACK_AND_FORTH)
  def test_rates_and_eta(self, jumps):
    stream = io.StringIO()
    with self._jumping(jumps):
      shown = progress_lib.Progress(tempfile.mkdtemp(), 0, 50, 8, 1, stream)
      shown.resume()
      for step in range(1, 41):
        shown(step, {'loss': metrics_lib.AveragePerStep.from_model_output(jnp.float32(2)),
                     'loss_per_nonpadding_target_token': clu_metrics.Average(jnp.float32(2), jnp.float32(5))})
      shown.close()
    lines = stream.getvalue().splitlines()
    self.assertLen(lines, 40)
    for line in lines:
      self.assertRegex(line, r'^step \d+/50  loss 2.0000  [\d.]+[GMk]? examples/s  [\d.]+[GMk]? target tokens/s  '
                             r'ETA 0:0\d:\d\d$')

  @parameterized.parameters(FORWARDS, BACKWARDS, BACK_AND_FORTH)
  def test_summaries(self, jumps):
    with self._jumping(jumps):
      manager = training_metrics.MetricsManager('train')
      for step in range(1, 4):
        manager.start_duration_timer()
        values = manager.write_metrics_summary(
            {'seconds': metrics_lib.Time(), 'rate': metrics_lib.TimeRate.from_model_output(jnp.float32(8)),
             'steps': metrics_lib.StepsPerTime.from_model_output()}, step, 1).result()
        for name, value in values.items():
          self.assertGreater(float(value.value), 0, name)
          self.assertTrue(math.isfinite(value.value), name)
        self.assertLess(float(values['seconds'].value), 1e6)
      manager.close()

  def test_the_time_of_day_is_asked_for_names_and_seeds_only(self):
    found = {path.name for path in (ROOT / 't5x_lite' / 't5x').rglob('*.py')
             if re.search(r'\btime\.time(_ns)?\(|datetime\.(now|today|utcnow)', path.read_text(encoding='utf-8'))}
    self.assertEqual(found - NAMES_AND_SEEDS, set())


if __name__ == '__main__':
  absltest.main()
