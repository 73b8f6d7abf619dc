"""Two real processes of one run, one of which gets a batch late: process 0 names it."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import tempfile

from absl.testing import absltest
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LATE_STEP, SECONDS_LATE, SLOW_SECONDS = 10, 30, 6
# `python -m t5x.train`, whose second process waits before a batch.
PROGRAM = f"""
import runpy, sys, time
from t5x import batches
read, calls = batches.BatchIterator.__next__, []
def late(self):
  calls.append(1)
  if len(calls) == {LATE_STEP} and '--process_index=1' in sys.argv:
    time.sleep({SECONDS_LATE})
  return read(self)
batches.BatchIterator.__next__ = late
runpy.run_module('t5x.train', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
class ProcessesTest(absltest.TestCase):

  def test_the_late_process_is_named(self):
    with socket.socket() as s:
      s.bind(('localhost', 0))
      address = f'localhost:{s.getsockname()[1]}'
    folder = tempfile.mkdtemp()
    script = pathlib.Path(folder, 'late.py')
    script.write_text(PROGRAM)
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
                   'T5X_SLOW_SECONDS': str(SLOW_SECONDS),
                   'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), str(ROOT / 't5x_lite'), *sys.path]))}
    flags = ['--gin_file=gin_configs/cpoly_tiny.gin', f"--gin.MODEL_DIR='{folder}/run'", '--gin.TRAIN_STEPS=30',
             '--gin.EVAL_PERIOD=0', '--gin.CHECKPOINT_PERIOD=30', '--gin.STATS_PERIOD=30', '--gin.BATCH_SIZE=16',
             '--gin.EVALUATE_FIRST=False', '--gin.train.infer_eval_dataset_cfg=None', '--gin.train.train_eval_dataset_cfg=None',
             '--multiprocess_gpu', f'--coordinator_address={address}', '--process_count=2']
    processes = [subprocess.Popen([sys.executable, str(script), *flags, f'--process_index={i}'], cwd=ROOT, env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    self.assertEqual([process.returncode for process in processes], [0, 0], outputs)
    lines = [line for line in outputs[0].splitlines() if f'has been at step {LATE_STEP - 1} ' in line]
    self.assertLen(lines, 1, outputs[0])
    self.assertRegex(lines[0], rf'^warning: process 1 on {socket.gethostname()} has been at step {LATE_STEP - 1} for \d+ s, '
                               r'while others are at step 1\d: it waits for its input\.$')
    self.assertNotIn('process 0 on', outputs[0])
    self.assertNotIn('warning: process', outputs[1])


if __name__ == '__main__':
  absltest.main()
