"""A MODEL_DIR that is full, or that became read-only, while a run writes: one line, nothing lost, and the run goes on later."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from t5x import files
from t5x import trainer as trainer_lib

STEPS = 6
NOBODY = 65534


class _Full:
  """No file may grow, which fails in the same calls as a full disk."""

  said, advice = 'File too large', 'Free space'

  def __init__(self, folder):
    del folder
    self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def begin(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

  def end(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


class _ReadOnly:
  """The folder belongs to someone else, or, as root may write everywhere, this process becomes someone else."""

  said, advice = 'Permission denied', 'Make it writable'

  def __init__(self, folder):
    self._is_root = os.geteuid() == 0
    self._folder = folder

  def begin(self):
    if self._is_root:
      os.chmod(self._folder, 0o755)
      os.seteuid(NOBODY)
    else:
      self._set(0o555, 0o444)

  def end(self):
    if self._is_root:
      os.seteuid(0)
    else:
      self._set(0o755, 0o644)

  def _set(self, of_folders, of_files):
    paths = [pathlib.Path(self._folder), *pathlib.Path(self._folder).rglob('*')]
    for path in paths:
      path.chmod(of_folders if path.is_dir() else of_files)


def _record(folder):
  return [json.loads(line) for line in pathlib.Path(folder, 'train/metrics.jsonl').read_text().splitlines()]


class UnwritableTest(parameterized.TestCase):

  @staticmethod
  @functools.cache
  def _whole():
    """The folder and the last state of a run that nothing disturbs."""
    folder = tempfile.mkdtemp()
    return folder, reversal.train_without_evaluation(folder, STEPS)[1]

  @parameterized.parameters(_Full, _ReadOnly)
  @pytest.mark.slow
  def test_a_run_ends_with_one_line_and_goes_on_later(self, kind):
    folder = tempfile.mkdtemp()
    trouble = kind(folder)

    class Trainer(trainer_lib.Trainer):

      def train(self, batch_iter, num_steps, start_step=None):
        future = super().train(batch_iter, num_steps, start_step)
        if start_step == 3:
          self.train_metrics_manager.flush()
          while not os.path.isdir(os.path.join(folder, 'checkpoint_3')):  # Written by threads.
            time.sleep(0.01)
          trouble.begin()
        return future

    try:
      with self.assertRaises(OSError) as error:
        reversal.train_without_evaluation(folder, STEPS, trainer_cls=reversal.trainer(Trainer))
    finally:
      trouble.end()
    message = str(error.exception)
    self.assertNotIn('\n', message)
    self.assertEqual(message, f'Could not write {folder}/train/metrics.jsonl: {kind.said}; checkpoints there are intact. '
                              f'{kind.advice}, or set MODEL_DIR to another folder, then start the same command again.')
    self.assertEqual(sorted(path.name for path in pathlib.Path(folder).glob('checkpoint_*')), ['checkpoint_0', 'checkpoint_3'])
    _, state = reversal.train_without_evaluation(folder, STEPS)
    whole, expected = self._whole()
    self.assertEqual(_record(folder), _record(whole))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.state_dict()), jax.device_get(expected.state_dict()))

  @parameterized.parameters(_Full, _ReadOnly)
  def test_a_text_is_replaced_whole_or_not_at_all(self, kind):
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, 'run.json')
    files.write_text(path, 'old')
    trouble = kind(folder)
    trouble.begin()
    try:
      with self.assertRaisesRegex(OSError, f'Could not write {path}: {kind.said}'):
        files.write_text(path, 'new')
    finally:
      trouble.end()
    self.assertEqual(pathlib.Path(path).read_text(), 'old')
    self.assertEqual(os.listdir(folder), ['run.json'])


class ProbeTest(absltest.TestCase):

  def test_processes_that_probe_one_folder_share_no_file(self):
    folder, written, write_text = tempfile.mkdtemp(), [], files.write_text

    def write(path, text):
      written.append(path)
      write_text(path, text)

    with mock.patch.object(files, 'write_text', write):
      for _ in range(2):
        files.check_writable(folder, 'MODEL_DIR')
    self.assertLen(set(written), 2)
    self.assertEqual(os.listdir(folder), [])


if __name__ == '__main__':
  absltest.main()
