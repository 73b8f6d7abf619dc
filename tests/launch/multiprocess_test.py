"""launch/multiprocess.sh: two processes train as one process with two devices does, and one that fails ends all."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
import numpy as np
import pytest

from tests.launch import machines

FLAGS = ('--gin.TRAIN_STEPS=4', '--gin.EVAL_PERIOD=0', '--gin.CHECKPOINT_PERIOD=4', '--gin.STATS_PERIOD=1',
         '--gin.BATCH_SIZE=16', '--gin.EVALUATE_FIRST=False')


class MultiprocessTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def run_script(self, python, *arguments, **settings):
    """Runs the script in an environment whose interpreter is a script of these lines, and that needs no installation."""
    venv = self.folder / 'venv'
    (venv / 'bin').mkdir(parents=True, exist_ok=True)
    (venv / 'bin' / 'python').write_text(f'#!/usr/bin/env bash\n{python}\n', encoding='utf-8')
    (venv / 'bin' / 'python').chmod(0o755)
    version = subprocess.run([sys.executable, '--version'], capture_output=True, text=True, check=True).stdout
    files = ('setup.py', 't5x_lite/setup.py', 'requirements.txt', 'constraints.txt')
    stamp = version + ''.join((machines.ROOT / name).read_text(encoding='utf-8') for name in files)
    (venv / '.installed').write_text(stamp, encoding='utf-8')
    environment = {**os.environ, 'VENV': str(venv), 'PYTHON': sys.executable, 'LOG_DIR': str(self.folder / 'logs'),
                   'PYTHONPATH': os.pathsep.join([str(machines.ROOT), str(machines.ROOT / 't5x_lite')]), **settings}
    process = subprocess.run(['bash', 'launch/multiprocess.sh', *arguments], env=environment, cwd=machines.ROOT,
                             capture_output=True, text=True, timeout=1500, check=False)
    self.assertNotIn('Installing', process.stdout)
    return process

  def test_one_that_fails_ends_all(self):
    start = time.monotonic()
    process = self.run_script('case "$*" in *process_index=1*) echo reason; exit 3 ;; esac; exec sleep 600',
                              COORDINATOR_PORT='1')
    self.assertLess(time.monotonic() - start, 300)
    self.assertEqual(process.returncode, 1)
    self.assertEqual(process.stderr.splitlines()[0], 'reason')
    self.assertIn('error: process 1 of 2 failed', process.stderr)

  def train(self, name, processes, devices):
    """Trains; returns the loss of each step."""
    process = self.run_script(f'exec {sys.executable} "$@"', '--', *FLAGS, MODEL_DIR=str(self.folder / name),
                              PROCESSES=str(processes), DEVICES_PER_PROCESS=str(devices))
    self.assertEqual(process.returncode, 0, process.stderr)
    lines = (self.folder / name / 'train' / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [row['loss'] for row in map(json.loads, lines) if 'loss' in row]

  @pytest.mark.slow
  def test_losses(self):
    one = self.train('one', 1, 2)
    two = self.train('two', 2, 1)
    self.assertLen(one, 4)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    self.assertNotEqual(one[0], one[-1])
    parts = {path.name for path in (self.folder / 'two' / 'checkpoint_4' / 'state').glob('ocdbt.process_*')}
    self.assertEqual(parts, {'ocdbt.process_0', 'ocdbt.process_1'})


if __name__ == '__main__':
  absltest.main()
