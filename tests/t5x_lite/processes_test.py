"""Several processes of one run on this machine: what they compute, read and save, how they stop, what they say of a death."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from t5x import gin_utils
from t5x import multihost

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
# Seconds: the heartbeats of these tests, and what no process may take; a machine may be busy.
HEARTBEAT = 60
LIMIT = 1500


def _free_port() -> int:
  with contextlib.closing(socket.socket()) as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _environment(devices: int, **variables) -> dict[str, str]:
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
          'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path])), **variables}


def run(command, processes: int = 1, devices: int = 1, **variables):
  """Runs a command as several processes; returns [(exit code, stdout, stderr)] by process."""
  port, started = _free_port(), []
  for index in range(processes):
    flags = ['--multiprocess_gpu', f'--coordinator_address=localhost:{port}', f'--process_count={processes}',
             f'--process_index={index}', f'--heartbeat_timeout={HEARTBEAT}'] if processes > 1 else []
    # Files, not pipes: a process must never wait for a reader.
    files = [tempfile.TemporaryFile('w+') for _ in range(2)]
    started.append((files, subprocess.Popen([*command, *flags], cwd=ROOT, env=_environment(devices, **variables),
                                            stdout=files[0], stderr=files[1])))
  ended = []
  try:
    for files, process in started:
      code = process.wait(timeout=LIMIT)
      texts = []
      for file in files:
        file.seek(0)
        texts.append(file.read())
      ended.append((code, *texts))
  finally:
    for files, process in started:
      process.kill()
      process.wait()
      for file in files:
        file.close()
  return ended


def _succeeded(ended):
  for index, (code, out, err) in enumerate(ended):
    if code:
      raise AssertionError(f'process {index} ended with {code}:\n{out[-1000:]}\n{err[-4000:]}')
  return ended


def _last_line(text: str) -> str:
  return text.strip().splitlines()[-1]


class ToyTest(parameterized.TestCase):
  """A linear model on the real command line, trainer and loop, without TensorFlow: seconds instead of minutes."""

  def _run(self, processes, **bindings):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    flags = [f'--gin.train.{name}={value!r}' for name, value in {'model_dir': str(folder), **bindings}.items()]
    return folder, run([sys.executable, str(HERE / 'toy_run.py'), *flags], processes, T5X_COMPILATION_CACHE='')

  def test_a_signal_to_one_stops_both_after_the_same_step(self):
    folder, ended = self._run(2, total_steps=1_000_000, signal_name='SIGTERM', signal_process=1, signal_step=5)
    _succeeded(ended)
    stopped = [json.loads((folder / f'ended_{index}.json').read_text()) for index in range(2)]
    self.assertEqual(stopped[0]['step'], stopped[1]['step'])
    self.assertBetween(stopped[0]['step'], 6, 999_999)
    self.assertEqual([end['saved'] for end in stopped], [[stopped[0]['step']]] * 2)
    self.assertIn(f"SIGTERM: stopped at step {stopped[0]['step']}, saved", ended[0][1])
    # Step 1 has the rows 0 to 7 with w = 0, step 2 the rows 8 to 15 with w less by 1e-3 times the gradient of all eight.
    steps = [json.loads(line) for line in (folder / 'train' / 'metrics.jsonl').read_text().splitlines()[:2]]
    np.testing.assert_allclose([step['loss'] for step in steps], [28, 92 * (1 - 1e-3 * 28)], rtol=1e-6)
    self.assertEqual([end['rows'][0] for end in stopped], [[0, 1, 2, 3], [4, 5, 6, 7]])

  @pytest.mark.slow
  def test_an_interrupt_of_one_stops_both(self):
    folder, ended = self._run(2, total_steps=1_000_000, signal_name='SIGINT', signal_process=1, signal_step=5)
    _succeeded(ended)
    stopped = [json.loads((folder / f'ended_{index}.json').read_text()) for index in range(2)]
    self.assertEqual(stopped[0]['step'], stopped[1]['step'])
    self.assertEqual([end['saved'] for end in stopped], [[stopped[0]['step']]] * 2)

  def test_the_other_one_says_why_it_ends(self):
    _, ended = self._run(2, total_steps=1_000_000, signal_name='SIGKILL', signal_process=1, signal_step=5)
    self.assertEqual(ended[1][0], -signal.SIGKILL, ended[1][2][-3000:])
    self.assertNotEqual(ended[0][0], 0)
    for _, _, err in ended:
      self.assertRegex(_last_line(err), r'^error: process [01] of 2 (lost another one|has ended).*start the same command again')
    self.assertRegex(_last_line(ended[0][2]), 'process 0 of 2')


class JoiningTest(parameterized.TestCase):

  @parameterized.parameters(
      # (error, whether it is that of a lost process)
      ('UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer', True),
      ('gs://bucket/file: Connection reset by peer', False),
  )
  def test_lost_processes_are_told_from_other_faults(self, text, is_lost):
    with (mock.patch.object(jax.distributed, 'is_initialized', return_value=True),
          self.assertRaises(ConnectionError if is_lost else ValueError) as caught, multihost.naming_lost_processes()):
      try:
        raise ValueError(text)
      except ValueError as e:
        raise ValueError('could not save') from e if is_lost else ValueError(text)
    self.assertEqual('start the same command again' in str(caught.exception), is_lost)

  @parameterized.named_parameters(
      ('no_port', ('host', 2, 0), 'write host:port, e.g. host:8476'),
      ('index', ('localhost:1', 2, 2), '--process_index=2 must be from 0 to 1'),
  )
  def test_wrong_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      multihost.initialize(*values)

  def test_nobody_tells_who_the_process_is(self):
    clusters = ('SLURM_', 'OMPI_', 'KUBERNETES_')
    clean = {name: value for name, value in _environment(1).items() if not name.startswith(clusters)}
    command = [sys.executable, str(HERE / 'toy_run.py'), "--gin.train.model_dir='unused'", '--multiprocess_gpu',
               '--process_count=2']
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=LIMIT)
    self.assertEqual(done.returncode, 1)
    self.assertRegex(done.stderr, r'\Aerror: [^\n]*: write --coordinator_address=\.\.\. --process_index=\.\.\.\n\Z')

  @parameterized.named_parameters(
      # (what is there, whether it is one of several hosts of a TPU)
      ('no_chips', {'TPU_WORKER_HOSTNAMES': 'a,b'}, [], None, False),
      ('gke', {'TPU_WORKER_HOSTNAMES': 'a,b'}, [__file__], None, True),
      ('gke_one_host', {'TPU_WORKER_HOSTNAMES': 'a'}, [__file__], None, False),
      ('slices', {'MEGASCALE_NUM_SLICES': '2', 'TPU_WORKER_HOSTNAMES': 'a'}, [__file__], None, True),
      ('other_platform', {'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, [__file__], None, False),
      ('vm', {}, [__file__], 'name:0:10.0.0.1,name:1:10.0.0.2', True),
      ('vm_one_host', {}, [__file__], '10.0.0.1', False),
      ('vm_without_metadata', {'TPU_SKIP_MDS_QUERY': '1'}, [__file__], 'a,b', False),
      ('no_server', {}, [__file__], None, False),
  )
  def test_tpu_pod(self, variables, devices, endpoints, expected):
    class Metadata(http.server.BaseHTTPRequestHandler):

      def do_GET(self):
        known = endpoints and self.path.endswith('/instance/attributes/worker-network-endpoints')
        self.send_response(200 if known and self.headers['Metadata-Flavor'] == 'Google' else 404)
        self.end_headers()
        self.wfile.write((endpoints or '').encode())

      def log_message(self, *args):
        del args

    with http.server.HTTPServer(('localhost', 0), Metadata) as server:
      threading.Thread(target=server.serve_forever, daemon=True).start()
      address = f'localhost:{server.server_port}'
      with (mock.patch.dict(os.environ, {'GCE_METADATA_HOST': address, **variables}, clear=True),
            mock.patch.object(multihost, 'TPU_DEVICES', devices),
            mock.patch.object(multihost.importlib.util, 'find_spec', return_value=True)):
        self.assertEqual(multihost.is_tpu_pod(), expected)
      server.shutdown()

  def test_flags_without_the_one_that_joins_are_refused(self):
    values = {'multiprocess_gpu': False, 'coordinator_address': None, 'process_count': 2, 'process_index': 0}
    given = {name: types.SimpleNamespace(value=value) for name, value in values.items()}
    fake = mock.MagicMock(multiprocess_gpu=False, __getitem__=lambda _, name: given[name])
    with mock.patch.object(gin_utils, 'FLAGS', fake), self.assertRaisesRegex(Exception, 'process_index without'):
      gin_utils._join_processes()


@pytest.mark.slow
class SlowJoiningTest(absltest.TestCase):

  def test_slurm_tells(self):
    """As srun starts them: no flag but --multiprocess_gpu, and the variables of Slurm."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
      processes = [subprocess.Popen(
          [sys.executable, str(HERE / 'toy_run.py'), f'--gin.train.model_dir={folder!r}', '--gin.train.total_steps=3',
           '--multiprocess_gpu'], cwd=ROOT, stderr=subprocess.PIPE, text=True,
          env=_environment(1, SLURM_JOB_ID='7', SLURM_STEP_NODELIST='localhost', SLURM_NTASKS='2', SLURM_PROCID=str(index),
                           SLURM_LOCALID=str(index), JAX_COORDINATOR_PORT=str(port))) for index in range(2)]
      for process in processes:
        _, err = process.communicate(timeout=LIMIT)
        self.assertEqual(process.returncode, 0, err)
      rows = [json.loads(pathlib.Path(folder, f'ended_{index}.json').read_text())['rows'][0] for index in range(2)]
      self.assertEqual(rows, [[0, 1, 2, 3], [4, 5, 6, 7]])

  def test_the_others_do_not_come(self):
    done = subprocess.run(
        [sys.executable, str(HERE / 'toy_run.py'), "--gin.train.model_dir='unused'", '--multiprocess_gpu', '--process_count=2',
         '--process_index=0', f'--coordinator_address=localhost:{_free_port()}', '--initialization_timeout=3'], cwd=ROOT,
        env=_environment(1), capture_output=True, text=True, check=False, timeout=LIMIT)
    self.assertNotEqual(done.returncode, 0)
    self.assertRegex(_last_line(done.stderr), 'error: process 0 of 2 did not see all others within 3 s: start every process')


STEPS = 8


@pytest.mark.slow
class TrainingTest(absltest.TestCase):
  """`python -m t5x.train` on the task of reversal.py."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.parent = pathlib.Path(tempfile.mkdtemp())
    cls.whole = cls.parent / 'whole'
    _succeeded(cls.train(cls.whole))
    cls.losses = cls.losses_of(cls.whole)

  @classmethod
  def train(cls, folder, *flags, **kwargs):
    command = [sys.executable, '-m', 't5x.train', '--gin_file=tests/t5x_lite/reversal.gin', f'--gin.MODEL_DIR={str(folder)!r}',
               f'--gin.TRAIN_STEPS={STEPS}', '--gin.CHECKPOINT_PERIOD=2', *flags]
    return run(command, T5X_COMPILATION_CACHE=str(cls.parent / 'cache'), **kwargs)

  @staticmethod
  def losses_of(folder):
    lines = (folder / 'train' / 'metrics.jsonl').read_text().splitlines()
    return [(line['step'], line['loss']) for line in map(json.loads, lines)]

  def assert_same_curve(self, folder):
    steps, losses = zip(*self.losses_of(folder))
    self.assertEqual(steps, tuple(range(1, STEPS + 1)))
    np.testing.assert_allclose(losses, [loss for _, loss in self.losses], rtol=1e-5)

  @staticmethod
  def read_by(folder, process):
    """Returns the inputs of each step that a process has read, [steps][rows] of tuples."""
    lines = (folder / f'read_{process}.jsonl').read_text().splitlines()
    return [list(map(tuple, json.loads(line))) for line in lines]

  def test_the_curve_falls(self):
    self.assertLess(self.losses[-1][1], self.losses[0][1])

  def test_two_processes_train_as_one(self):
    folder = self.parent / 'two'
    _succeeded(self.train(folder, processes=2))
    self.assert_same_curve(folder)
    parts = {path.name for path in (folder / f'checkpoint_{STEPS}' / 'state').glob('ocdbt.process_*')}
    self.assertEqual(parts, {'ocdbt.process_0', 'ocdbt.process_1'})
    one, first, second = self.read_by(self.whole, 0), self.read_by(folder, 0), self.read_by(folder, 1)
    self.assertEqual([len(one), len(first), len(second)], [STEPS] * 3)
    for whole, rows_0, rows_1 in zip(one, first, second):
      self.assertEqual((len(rows_0), len(rows_1)), (4, 4))
      self.assertEqual(whole, rows_0 + rows_1)  # Complete, and each row is read by one process only.

  def test_killed_process_ends_all_and_the_run_goes_on(self):
    folder = self.parent / 'killed'
    ended = self.train(folder, "--gin.recording.Trainer.signal_name='SIGKILL'", '--gin.recording.Trainer.signal_process=1',
                       '--gin.recording.Trainer.signal_step=5', processes=2)
    self.assertEqual(ended[1][0], -signal.SIGKILL, ended[1][2][-3000:])
    self.assertNotEqual(ended[0][0], 0)
    self.assertRegex(_last_line(ended[0][2]), r'^error: process 0 of 2 .*start the same command again on every host')
    self.assertFalse((folder / f'checkpoint_{STEPS}').exists())
    _succeeded(self.train(folder, processes=2))
    self.assert_same_curve(folder)

  def test_signal_to_one_saves_and_the_run_goes_on(self):
    folder = self.parent / 'signal'
    period = '--gin.CHECKPOINT_PERIOD=1000000'
    ended = _succeeded(self.train(
        folder, '--gin.TRAIN_STEPS=1000000', period, "--gin.recording.Trainer.signal_name='SIGTERM'",
        '--gin.recording.Trainer.signal_process=1', '--gin.recording.Trainer.signal_step=3',
        '--gin.recording.Trainer.pause=0.2', processes=2))
    self.assertRegex(ended[0][1], r'SIGTERM: stopped at step \d+, saved')
    step = int(ended[0][1].split('SIGTERM: stopped at step ')[1].split(',')[0])
    self.assertTrue((folder / f'checkpoint_{step}').is_dir())
    self.assertEqual([s for s, _ in self.losses_of(folder)], list(range(1, step + 1)))
    _succeeded(self.train(folder, f'--gin.TRAIN_STEPS={step + 1}', period, processes=2))
    self.assertEqual([s for s, _ in self.losses_of(folder)], list(range(1, step + 2)))

  def test_one_run_on_four_meshes(self):
    folder = self.parent / 'meshes'
    _succeeded(self.train(folder, '--gin.TRAIN_STEPS=2'))
    _succeeded(self.train(folder, '--gin.TRAIN_STEPS=4', devices=8))
    _succeeded(self.train(folder, '--gin.TRAIN_STEPS=6', '--gin.NUM_PARTITIONS=4', devices=8))
    _succeeded(self.train(folder, '--gin.NUM_PARTITIONS=2', processes=4, devices=2))
    self.assert_same_curve(folder)
    info = (folder / 'model-info.txt').read_text()
    self.assertIn("partition spec (None, 'model')", info)


if __name__ == '__main__':
  absltest.main()
