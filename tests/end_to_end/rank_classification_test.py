"""Both views of evaluation through the command line: while training, by one more gin file, and of its checkpoint."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOTH = '--gin_file=gin_configs/runs/rank_classification.gin'
LABELS = ('entailment', 'contradiction', 'neutral')
STEPS = 2


def _run(module, *flags):
  folder = pathlib.Path(tempfile.mkdtemp())
  (folder / 'CB').mkdir()
  for split, number in (('train', 32), ('val', 9)):
    lines = [{'premise': f'It is {i}.', 'hypothesis': f'It was {i % 5}.', 'label': LABELS[i % 3], 'idx': i}
             for i in range(number)]
    (folder / 'CB' / f'{split}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'SUPERGLUE_DIR': str(folder),
                 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
  done = subprocess.run([sys.executable, '-m', f't5x.{module}', *flags, "--gin.MIXTURE_OR_TASK_NAME='superglue_cb'",
                         '--gin.BATCH_SIZE=8'], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    raise AssertionError(done.stderr[-3000:])
  return done.stdout


@functools.cache
def _trained():
  """Returns (folder, standard output) of a training that is evaluated in both views."""
  folder = tempfile.mkdtemp()
  return folder, _run(
      'train', '--gin_file=gin_configs/cpoly_tiny.gin', BOTH, f"--gin.MODEL_DIR='{folder}'", f'--gin.TRAIN_STEPS={STEPS}',
      f'--gin.EVAL_PERIOD={STEPS}', f'--gin.CHECKPOINT_PERIOD={STEPS}', '--gin.EVALUATE_FIRST=False',
      '--gin.train.train_eval_dataset_cfg=None',
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}")


def _lines(folder, name):
  return [json.loads(line) for line in pathlib.Path(folder, 'inference_eval', name).read_text().splitlines()]


class RankClassificationTest(absltest.TestCase):

  def test_training_shows_both_views(self):
    folder, shown = _trained()
    metrics = json.loads(pathlib.Path(folder, 'results.json').read_text())['metrics']
    self.assertEqual({task: set(values) for task, values in metrics.items()},
                     {task: {'accuracy', 'mean_3class_f1'} for task in ('superglue_cb', 'superglue_cb_rank')})
    self.assertRegex(shown, r'(?m)^superglue_cb_rank +accuracy [\d.]+  mean_3class_f1 [\d.]+ ')
    self.assertRegex(shown, r'(?m)^superglue_cb_both +score_labelled_rank ')

  def test_the_metrics_are_those_of_the_scores(self):
    folder, _ = _trained()
    lines = _lines(folder, f'superglue_cb_rank-{STEPS:06}.jsonl')
    self.assertLen(lines, 27)
    self.assertTrue(all('prediction' not in line for line in lines))  # Nothing was generated.
    right = []
    for first in range(0, 27, 3):
      group = lines[first:first + 3]
      self.assertEqual([line['input']['targets_pretokenized'] for line in group], list(LABELS))
      right.append(max(group, key=lambda line: line['score'])['target']['right'])
    metrics, = _lines(folder, 'superglue_cb_rank-metrics.jsonl')
    self.assertAlmostEqual(metrics['accuracy'], 100 * sum(right) / 9)

  @pytest.mark.slow
  def test_evaluation_of_the_checkpoint_agrees(self):
    folder, _ = _trained()
    output = tempfile.mkdtemp()
    _run('eval', '--gin_file=gin_configs/models/t5_1_1/tiny.gin', '--gin_file=gin_configs/models/bytes.gin',
         '--gin_file=gin_configs/systems/cpoly.gin', '--gin_file=gin_configs/runs/eval.gin', BOTH,
         f"--gin.CHECKPOINT_PATH='{folder}/checkpoint_{STEPS}'", f"--gin.EVAL_OUTPUT_DIR='{output}'",
         "--gin.ACTIVATION_DTYPE='float32'")
    for name in ('superglue_cb_rank-metrics.jsonl', 'superglue_cb-metrics.jsonl'):
      self.assertEqual(_lines(output, name), _lines(folder, name))
    name = f'superglue_cb_rank-{STEPS:06}.jsonl'
    for here, there in zip(_lines(output, name), _lines(folder, name), strict=True):
      self.assertAlmostEqual(here['score'], there['score'], delta=1e-3)


if __name__ == '__main__':
  absltest.main()
