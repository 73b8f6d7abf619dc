"""Adaptation and growth as a person runs them: a short training, held-out tasks, bad input in one line."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FEW = ('--gin.EVALUATE_FIRST=False', '--gin.BATCH_SIZE=8', '--gin.CHECKPOINT_PERIOD=2', '--gin.EVAL_PERIOD=2',
       '--gin.TRAIN_STEPS=2', '--gin.train.infer_eval_dataset_cfg=None', '--gin.train.train_eval_dataset_cfg=None')
HELD_OUT = ("--gin.MIXTURE_OR_TASK_NAME='latent_skills_held_out'", "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 28}",
            '--gin.NUM_SHOTS=4')


def _python(module, *flags):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
  return subprocess.run([sys.executable, '-m', module, *flags], cwd=ROOT, env=environment, capture_output=True, text=True,
                        check=False)


@functools.cache
def _trained() -> str:
  """MODEL_DIR of a run of two steps."""
  run = os.path.join(tempfile.mkdtemp(), 'run')
  done = _python('t5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', f"--gin.MODEL_DIR='{run}'", *FEW)
  assert done.returncode == 0, done.stderr[-3000:]
  return run


def _adapt(trained, model_dir, *flags):
  return _python('t5x.train', '--gin_file=gin_configs/runs/adapt.gin', f"--gin.TRAINED='{trained}'",
                 f"--gin.MODEL_DIR='{model_dir}'", *HELD_OUT, *FEW, *flags)


def _params(path):
  from cpoly_jax.checkpoints import loading
  from flax import traverse_util
  loaded = loading.load(path)
  return loaded.task_index.names, traverse_util.flatten_dict(loaded.params, sep='/')


@pytest.mark.slow
class AdaptTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  @parameterized.parameters('routing', 'routing_and_new_skills', 'all_skills')
  def test_trained_tasks_keep_what_they_had(self, tune):
    adapted = os.path.join(self.folder, 'adapted')
    done = _adapt(_trained(), adapted, f"--gin.TUNE='{tune}'")
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    names, before = _params(_trained())
    grown, after = _params(adapted)
    self.assertEqual(grown[:16], names)
    self.assertLen(grown, 24)
    moved = 0
    for path, value in before.items():
      part = after[path][tuple(map(slice, value.shape))]
      if tune == 'all_skills' and '/skills/' in path:
        moved += part.tobytes() != value.tobytes()
      else:
        self.assertEqual(part.tobytes(), value.tobytes(), path)
    self.assertEqual(moved > 0, tune == 'all_skills')
    self.assertTrue(any(np.abs(value[16:]).max() > 0 for path, value in after.items() if path.endswith('/common')))

  def test_grown_then_trained(self):
    grown = os.path.join(self.folder, 'grown')
    done = _python('cpoly_jax.growth', 'add', _trained(), grown, '--tasks=latent_vaku,latent_wemi')
    self.assertEqual(done.returncode, 0, done.stderr)
    adapted = os.path.join(self.folder, 'adapted')
    done = _adapt(grown, adapted, '--gin.TRAIN_KNOWN_TASKS=True')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    names, after = _params(adapted)
    self.assertEqual(names[:18], (*_params(_trained())[0], 'latent_vaku', 'latent_wemi'))
    self.assertLen(names, 24)
    evaluated = os.path.join(self.folder, 'evaluated')
    done = _python('t5x.eval', '--gin_file=gin_configs/runs/eval_trained.gin', f"--gin.TRAINED='{adapted}'",
                   "--gin.MIXTURE_OR_TASK_NAME='latent_skills'", f"--gin.EVAL_OUTPUT_DIR='{evaluated}'",
                   '--gin.EVALUATOR_NUM_EXAMPLES=2')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertIn('latent_bodu', pathlib.Path(evaluated, 'results.md').read_text())

  def test_dry_run(self):
    done = _adapt(_trained(), os.path.join(self.folder, 'adapted'), '--dry_run')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn(f'reads   checkpoint {_trained()}/checkpoint_2', done.stdout)
    self.assertIn("'latent_skills_held_out_4_shots_0', split train: 32 examples of 8 tasks", done.stdout)
    self.assertEqual(os.listdir(self.folder), [])

  @parameterized.parameters(
      (("--gin.TRAINED='/no/such/run'",), '/no/such/run'),
      (("--gin.TUNE='skills'",), "TUNE = 'skills': write one of routing, routing_and_new_skills, all_skills"),
      (("--gin.MIXTURE_OR_TASK_NAME='latent_skills'",), 'has latent_bodu, .* and 13 more already: adapt to other tasks'),
      (('--gin.NUM_SHOTS=0',), 'NUM_SHOTS = 0: write a whole number of 1 or more'),
      (('--gin.NUM_NEW_SPECIFIC=-1',), '-1 skills of new tasks. own: write whole numbers of 0 or more'),
      (("--gin.MODEL_DIR='RUN'",), 'MODEL_DIR is the folder of TRAINED'))
  def test_bad_input(self, flags, message):
    flags = [flag.replace("'RUN'", f"'{_trained()}'") for flag in flags]
    done = _adapt(_trained(), os.path.join(self.folder, 'adapted'), *flags)
    self.assertEqual(done.returncode, 1, done.stdout[-1000:])
    lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    self.assertLen(lines, 1, done.stderr[-3000:])
    self.assertRegex(lines[0], message)
    self.assertNotIn('Traceback', done.stderr)


if __name__ == '__main__':
  absltest.main()
