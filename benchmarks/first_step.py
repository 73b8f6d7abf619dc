"""A trainer that reports when its first step is done and ends the process; what `benchmarks.startup` runs.

It works with any provider of `t5x`, so both are stopped at the same place.
"""

from __future__ import annotations

import json
import os
import time

import jax
from t5x import trainer

START_VARIABLE = 'BENCHMARK_STARTED_AT'
REPORT_VARIABLE = 'BENCHMARK_REPORT'


class FirstStepTrainer(trainer.Trainer):
  """Runs one step, writes the seconds since the process was started, and exits."""

  def train(self, batch_iter, num_steps, start_step=None):
    """Never returns."""
    super().train(batch_iter, 1, start_step)
    jax.block_until_ready(self.train_state.params)
    seconds = time.time() - float(os.environ[START_VARIABLE])
    with open(os.environ[REPORT_VARIABLE], 'w', encoding='utf-8') as file:
      json.dump({'seconds': seconds, 'provider': trainer.__file__}, file)
    os._exit(0)
