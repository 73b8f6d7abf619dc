"""Each system as a person runs it, `python -m t5x.train` with its gin file after cpoly_tiny.gin, for a few steps."""

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
SYSTEMS = sorted(path.stem for path in (ROOT / 'gin_configs/systems').glob('*.gin'))
# Not a system; those that start from another run's checkpoint have a test of their own.
OTHERS = ('adapter', 'mhr_z', 'mhr_mu')
FEW = ('--gin.TRAIN_STEPS=2', '--gin.EVALUATE_FIRST=False', '--gin.BATCH_SIZE=16', '--gin.CHECKPOINT_PERIOD=2',
       '--gin.EVAL_PERIOD=2', '--gin.EVALUATOR_NUM_EXAMPLES=2')
NEEDS = {'expert': ("--gin.EXPERT_MATRIX='tasks/assets/latent_skills.csv'",),
         'lora': ("--gin.MIXTURE_OR_TASK_NAME='latent_bodu'",)}


def _train(*flags):
  """Trains into a new folder and returns it."""
  folder = tempfile.mkdtemp()
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
  command = [sys.executable, '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', *FEW]
  done = subprocess.run(
      [*command, f"--gin.MODEL_DIR='{folder}/run'", *flags],
      cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    raise AssertionError(done.stderr[-3000:])
  return pathlib.Path(folder, 'run')


def _system(name):
  return f'--gin_file=gin_configs/systems/{name}.gin'


def _skills(run):
  """Returns {name: array} of the skills in a run's last checkpoint."""
  import orbax.checkpoint as ocp
  found = {}
  for state in run.glob('checkpoint_2/*'):
    if (state / '_METADATA').exists():
      tree = ocp.PyTreeCheckpointHandler().restore(state)
      found.update({'/'.join(map(str, path)): np.asarray(leaf) for path, leaf in ocp.tree.to_flat_dict(tree).items()})
  return {name: leaf for name, leaf in found.items() if 'target' in name and '/skills/' in name}


@pytest.mark.slow
class SystemsTest(parameterized.TestCase):

  @parameterized.parameters(*(name for name in SYSTEMS if name not in OTHERS))
  def test_trains_and_evaluates(self, name):
    run = _train(_system(name), *NEEDS.get(name, ()))
    self.assertIn('exact_match', (run / 'results.md').read_text())

  @parameterized.parameters('sft', 'ia3', 'dense')
  def test_other_skills(self, name):
    run = _train(_system('poly'), f'--gin_file=gin_configs/skills/{name}.gin')
    self.assertIn('exact_match', (run / 'results.md').read_text())

  @parameterized.parameters('annealed_temperature', 'annealed_to_uniform', 'ibp', 'entropy', 'sparsity')
  def test_settings_of_the_routing(self, name):
    run = _train(_system('cpoly'), f'--gin_file=gin_configs/routing/{name}.gin')
    self.assertIn('exact_match', (run / 'results.md').read_text())

  def test_steps_on_the_rows_of_a_batch(self):
    run = _train(_system('private'), '--gin_file=gin_configs/runs/task_rows.gin', '--gin.BATCH_SIZE=8')
    self.assertIn('exact_match', (run / 'results.md').read_text())

  def test_adaptation_starts_from_the_skills_of_the_other_run(self):
    trained = _train(_system('mhr'), '--gin.SKILLS_LEARNING_RATE=1e-2')
    new_tasks = ("--gin.MIXTURE_OR_TASK_NAME='latent_skills_held_out'",
                 f"--gin.INITIAL_CHECKPOINT_PATH='{trained}/checkpoint_2'")
    mhr_mu = _train(_system('mhr_mu'), *new_tasks, '--gin.SKILLS_LEARNING_RATE=1e-9')
    before, after = _skills(trained), _skills(mhr_mu)
    self.assertNotEmpty(before)
    self.assertEqual(set(before), set(after))
    for name, skill in before.items():
      np.testing.assert_allclose(after[name], skill, atol=1e-6, err_msg=name)
      self.assertGreater(np.abs(skill).max(), 1e-4, name)  # Not the start of `up`, which is zero.
    mhr_z = _train(_system('mhr_z'), *new_tasks)
    self.assertEmpty(_skills(mhr_z))  # They do not train, so they stay in the first run's checkpoint.


if __name__ == '__main__':
  absltest.main()
