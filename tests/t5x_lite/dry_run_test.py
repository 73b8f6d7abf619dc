"""Tests of --dry_run: what each entry point would read and write, checked, and nothing done."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoint_testing  # pylint: disable=g-import-not-at-top
import reversal
from t5x import dry_run
from t5x import eval as eval_lib
from t5x import infer as infer_lib
from t5x import train as train_lib
from t5x import utils


class DryRunTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model_dir = tempfile.mkdtemp()
    for step in (0, 3):
      checkpoint_testing.save_single_file(cls.model_dir, step, {'any': np.zeros(1, np.float32)})

  def setUp(self):
    super().setUp()
    self.folder = os.path.join(tempfile.mkdtemp(), 'out')

  def _report(self, fn, **arguments) -> list[str]:
    """Runs `fn` as the flag does."""
    with mock.patch.object(sys.modules[fn.__module__], fn.__name__, fn):  # Put back after the test.
      told = dry_run.instead_of(fn)
      self.assertIs(getattr(sys.modules[fn.__module__], fn.__name__), told)
      self.assertEqual(inspect.signature(told), inspect.signature(fn))
      out = io.StringIO()
      with contextlib.redirect_stdout(out):
        told(model=reversal.model(), partitioner=reversal.partitioner(), **arguments)
    self.assertFalse(os.path.exists(self.folder))
    return out.getvalue().splitlines()

  def _inference(self, **overrides):
    return {'dataset_cfg': reversal.config('validation'), 'output_dir': self.folder,
            'restore_checkpoint_cfg': utils.RestoreCheckpointConfig(path=self.model_dir, mode='latest'), **overrides}

  def _training(self, **overrides):
    return {'train_dataset_cfg': reversal.config('train'), 'train_eval_dataset_cfg': None,
            'infer_eval_dataset_cfg': reversal.config('validation', task_feature_lengths=None), 'model_dir': self.folder,
            'checkpoint_cfg': utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=5)),
            'trainer_cls': reversal.trainer(), 'total_steps': 20, 'eval_steps': 2, 'eval_period': 10, 'random_seed': 0,
            'summarize_config_fn': None, **overrides}

  def test_infer(self):
    lines = self._report(infer_lib.infer, mode='score', checkpoint_period=1, num_shards=2, **self._inference())
    self.assertEqual(lines, [
        'dry run of infer: nothing is computed or written',
        f'reads   checkpoint {self.model_dir}/checkpoint_3',
        "reads   dataset 'rev', split validation: an unknown number of examples of task rev, batches of 8, lengths: inputs 12, "
        'targets 12',
        f'writes  {self.folder}: config.gin, model-info.txt',
        f'writes  {self.folder}/rev-score.jsonl-00000-of-00002'])

  def test_eval(self):
    lines = self._report(eval_lib.evaluate, **self._inference(
        restore_checkpoint_cfg=utils.RestoreCheckpointConfig(path=self.model_dir, mode='all')))
    self.assertEqual([line for line in lines if 'checkpoint' in line],
                     [f'reads   checkpoint {self.model_dir}/checkpoint_{step}' for step in (0, 3)])
    self.assertEqual(lines[-1], f'writes  {self.folder}/inference_eval')

  def test_train(self):
    lines = self._report(train_lib.train, **self._training())
    self.assertEqual(lines[1], 'reads   no checkpoint: training starts from new parameters')
    self.assertIn('infer_eval_dataset', lines[3])
    self.assertEqual(lines[-2:], [f'writes  {self.folder}/checkpoint_<step>: every 5 steps, up to step 20',
                                  f'writes  {self.folder}/inference_eval: every 10 steps'])

  def test_training_that_goes_on_tells_its_own_checkpoint(self):
    before = sorted(os.listdir(self.model_dir))
    lines = self._report(train_lib.train, **self._training(model_dir=self.model_dir))
    self.assertEqual(lines[1], f'reads   checkpoint {self.model_dir}/checkpoint_3')
    self.assertEqual(sorted(os.listdir(self.model_dir)), before)

  @parameterized.parameters(
      (dict(dataset_cfg=reversal.config('validation', name='rew')), "no task or mixture 'rew': did you mean rev"),
      (dict(dataset_cfg=reversal.config('validation', task_feature_lengths=None)), 'TASK_FEATURE_LENGTHS is not set'),
      (dict(restore_checkpoint_cfg=utils.RestoreCheckpointConfig(path='/nowhere/checkpoint_7', mode='specific')),
       'There is no checkpoint at /nowhere/checkpoint_7'))
  def test_mistakes_are_those_of_the_command(self, overrides, told):
    with self.assertRaisesRegex((ValueError, FileNotFoundError), told):
      self._report(infer_lib.infer, mode='score', checkpoint_period=1, **self._inference(**overrides))


if __name__ == '__main__':
  absltest.main()
