"""`python -m t5x.train --gin_file=gin_configs/cpoly_tiny.gin` as a person runs it, with few steps: files, resume, sharding."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 12


def _command(model_dir, *flags):
  few = (f'--gin.TRAIN_STEPS={STEPS}', '--gin.EVALUATE_FIRST=False', '--gin.BATCH_SIZE=16',
         '--gin.SKILLS_LEARNING_RATE=5e-3', '--gin.STATS_PERIOD=4',
         '--gin.CHECKPOINT_PERIOD=4', '--gin.EVAL_PERIOD=12', '--gin.train.infer_eval_dataset_cfg=None',
         '--gin.train.train_eval_dataset_cfg=None')
  return [sys.executable, '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', f"--gin.MODEL_DIR='{model_dir}'",
          *few, *flags]


def _environment(devices=1):
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
          'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}


def _train(model_dir, *flags, devices=1):
  done = subprocess.run(_command(model_dir, *flags), cwd=ROOT, env=_environment(devices), capture_output=True, text=True,
                        check=False)
  if done.returncode:
    raise AssertionError(done.stderr[-3000:])
  return done.stdout


def _losses(model_dir):
  lines = pathlib.Path(model_dir, 'train', 'metrics.jsonl').read_text().splitlines()
  return [(line['step'], line['loss']) for line in map(json.loads, lines)]


@functools.cache
def _whole_run():
  """Returns (folder, standard output) of a run that nothing disturbed."""
  folder = tempfile.mkdtemp()
  return folder, _train(folder)


class FilesTest(absltest.TestCase):

  def test_losses_of_every_step_fall(self):
    losses = _losses(_whole_run()[0])
    self.assertEqual([step for step, _ in losses], list(range(1, STEPS + 1)))
    self.assertLess(np.mean([loss for _, loss in losses[-3:]]), 0.9 * losses[0][1])

  def test_folder(self):
    folder = pathlib.Path(_whole_run()[0])
    names = {path.name for path in folder.iterdir()}
    self.assertContainsSubset({'config.gin', 'model-info.txt', 'task_index.json', 'train', 'results.json', 'results.md',
                               f'checkpoint_{STEPS}'}, names)
    self.assertLen(json.loads((folder / 'task_index.json').read_text())['tasks'], 16)

  def test_checkpoint_holds_what_trains(self):
    checkpoint = pathlib.Path(_whole_run()[0], f'checkpoint_{STEPS}')
    stored = sum(path.stat().st_size for path in checkpoint.rglob('*') if path.is_file())
    names = ''.join(path.read_text(errors='ignore') for path in checkpoint.rglob('_METADATA'))
    self.assertIn('skills', names)
    self.assertNotIn('kernel', names)
    sizes = [line.split(' size ')[1].split()[0] for line in
             pathlib.Path(_whole_run()[0], 'model-info.txt').read_text().splitlines()
             if line.startswith('Variable ') and ('/skills/' in line or '/routing/' in line) and 'param_states' not in line]
    self.assertLessEqual(stored, 1.2 * 3 * 4 * sum(map(int, sizes)) + 1e6)

  def test_output_tells_the_sizes_and_where_results_are(self):
    folder, output = _whole_run()
    self.assertRegex(output, r'model: [\d,]+ parameters, [\d,]+ trainable')
    self.assertIn(f'Results at step {STEPS} ({folder})', output)

  @pytest.mark.slow
  def test_finished_run_is_not_repeated(self):
    folder, _ = _whole_run()
    before = _losses(folder)
    self.assertIn(f'Results at step {STEPS}', _train(folder))
    self.assertEqual(_losses(folder), before)


class ResumeTest(parameterized.TestCase):

  def _kill_and_resume(self, lines_before_the_kill):
    folder = tempfile.mkdtemp()
    process = subprocess.Popen(_command(folder), cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)
    self.addCleanup(process.stdout.close)
    seen = 0
    for line in process.stdout:
      seen += line.startswith('step ')
      if seen == lines_before_the_kill:
        break
    process.send_signal(signal.SIGKILL)
    self.assertEqual(process.wait(), -signal.SIGKILL)
    _train(folder)
    self.assertEqual(_losses(folder), _losses(_whole_run()[0]))

  def test_killed_run_goes_on_exactly(self):
    self._kill_and_resume(2)

  @pytest.mark.slow
  def test_killed_at_other_moments(self):
    for lines in (1, 3):
      self._kill_and_resume(lines)

  def test_sigterm_saves_and_exits_with_0(self):
    folder = tempfile.mkdtemp()
    process = subprocess.Popen(_command(folder, '--gin.TRAIN_STEPS=100000', '--gin.CHECKPOINT_PERIOD=100000',
                                        '--gin.EVAL_PERIOD=100000'),
                               cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
    for line in process.stdout:
      if line.startswith('step '):
        break
    time.sleep(1)
    process.terminate()
    output, errors = process.communicate()
    self.assertEqual(process.returncode, 0, errors[-2000:])
    self.assertRegex(output, r'SIGTERM: stopped at step \d+, saved')
    step = int(output.split('SIGTERM: stopped at step ')[1].split(',')[0])
    self.assertTrue(pathlib.Path(folder, f'checkpoint_{step}').is_dir())


class ShardedTest(parameterized.TestCase):

  def test_eight_devices_equal_one(self):
    self._equals_one_device(num_partitions=4)

  @pytest.mark.slow
  def test_data_parallel_equals_one(self):
    self._equals_one_device(num_partitions=1)

  def _equals_one_device(self, num_partitions):
    folder = tempfile.mkdtemp()
    _train(folder, f'--gin.NUM_PARTITIONS={num_partitions}', devices=8)
    np.testing.assert_allclose([loss for _, loss in _losses(folder)], [loss for _, loss in _losses(_whole_run()[0])],
                               rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
