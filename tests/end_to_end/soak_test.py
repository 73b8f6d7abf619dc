"""A real run that is killed fifty times, at random moments, ends with the files of one that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl.testing import absltest
import pytest

from t5x import base_checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
KILLS, STEPS, PERIOD, KEEP = 50, 700, 4, 2
SEED = 20240607


def _command(folder):
  """Every step has a summary, so that TensorBoard's curve does not depend on where a run was interrupted."""
  return [sys.executable, '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', f"--gin.MODEL_DIR='{folder}'",
          f'--gin.TRAIN_STEPS={STEPS}', f'--gin.CHECKPOINT_PERIOD={PERIOD}', f'--gin.KEEP_CHECKPOINTS={KEEP}',
          '--gin.STATS_PERIOD=1', '--gin.EVAL_PERIOD=0', '--gin.EVALUATE_FIRST=False', '--gin.BATCH_SIZE=8',
          '--gin.train.infer_eval_dataset_cfg=None', '--gin.train.train_eval_dataset_cfg=None']


def _start(folder):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
                 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
  return subprocess.Popen(_command(folder), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)


def _finish(folder):
  """Runs to the end; returns (output, seconds until the first line about a step)."""
  process, start = _start(folder), time.monotonic()
  lines = [next(line for line in process.stdout if line.startswith(('step ', 'Results')))]
  seconds = time.monotonic() - start
  output, errors = process.communicate()
  if process.returncode:
    raise AssertionError(errors[-3000:])
  return ''.join(lines) + output, seconds


def _kill(folder, number, lines, delay):
  """Starts the run, sends a signal a while after a number of lines about steps, and returns (exit code, errors)."""
  process = _start(folder)
  # Read beside, so that the process never waits for the pipe.
  errors = []
  reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
  reader.start()
  for line in process.stdout if lines else ():
    lines -= line.startswith('step ')
    if not lines:
      break
  time.sleep(delay)
  process.send_signal(number)
  process.stdout.read()
  code = process.wait()
  reader.join()
  process.stdout.close()
  process.stderr.close()
  return code, errors[0]


def _record(folder):
  return [json.loads(line) for line in pathlib.Path(folder, 'train', 'metrics.jsonl').read_text().splitlines()]


def _curves(folder):
  """{tag: [(step, value)]} of the event files, in the order in which they were written, without what is measured in seconds."""
  import tensorflow as tf
  curves = {}
  for path in sorted(pathlib.Path(folder, 'train').glob('events*'), key=lambda p: p.name.split('.')[3]):
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        if value.HasField('tensor') and value.tag != 'config' and not value.tag.startswith('timing/'):
          curves.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
  return curves


def _checkpoints(folder):
  """Reads every array of every finished checkpoint, whose checksums are compared, and returns the steps."""
  steps = []
  for path in pathlib.Path(folder).glob('checkpoint_*'):
    if path.name.removeprefix('checkpoint_').isdigit():
      for array in base_checkpoint.open_checked(str(path)).arrays.values():
        array.read()
      steps.append(int(path.name.removeprefix('checkpoint_')))
  return sorted(steps)


@pytest.mark.slow
class SoakTest(absltest.TestCase):

  def test_nothing_is_lost(self):
    rng = random.Random(SEED)
    whole, killed = tempfile.mkdtemp(), tempfile.mkdtemp()
    _finish(whole)  # Compiles, perhaps.
    _, start_up = _finish(tempfile.mkdtemp())
    start = time.monotonic()
    codes = []
    for i in range(KILLS):
      number = rng.choice([signal.SIGKILL, signal.SIGTERM])
      # A fifth before the first step: while libraries load, the checkpoint is read, the step compiles, old files are mended.
      early = rng.random() < 0.2
      lines, delay = (0, rng.uniform(0, start_up)) if early else (rng.randint(1, 2 * PERIOD), rng.uniform(0, 0.1))
      code, errors = _kill(killed, number, lines, delay)
      # A SIGTERM while the program starts ends it as any other; later it saves and ends well.
      self.assertIn(code, (-number, 0), errors[-3000:])
      codes.append(code)
      steps = _checkpoints(killed)
      print(f'{i + 1}/{KILLS} {number.name} after {lines} lines and {delay:.2f} s: exit code {code}, checkpoints {steps}, '
            f'{time.monotonic() - start:.0f} s', flush=True)
      if steps:
        self.assertLess(steps[-1], STEPS, 'the run ended before all signals were sent: raise STEPS')
    self.assertIn(0, codes)
    self.assertIn(-signal.SIGKILL, codes)
    self.assertIn(f'Results at step {STEPS}', _finish(killed)[0])

    self.assertEqual([line['step'] for line in _record(killed)], list(range(1, STEPS + 1)))
    self.assertEqual(_record(killed), _record(whole))
    expected, found = _curves(whole), _curves(killed)
    self.assertEqual([step for step, _ in expected['loss']], list(range(1, STEPS + 1)))
    self.assertEqual(set(found), set(expected))
    for tag, curve in expected.items():
      self.assertEqual(found[tag], curve, tag)
    self.assertEqual(_checkpoints(killed), _checkpoints(whole))
    self.assertEmpty(list(pathlib.Path(killed).glob('*orbax*')))
    self.assertEmpty(list(pathlib.Path(killed, 'train').glob('.rewritten*')))


if __name__ == '__main__':
  absltest.main()
