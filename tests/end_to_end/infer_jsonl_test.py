"""A file of questions of mixed tasks: answered as the predictor answers them, whether or not the process is interrupted."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest
from t5x import infer as infer_lib
from t5x import utils

import cpoly_jax
from cpoly_jax import testing
from cpoly_jax.training import trained
from tasks import input_file
from tests.cpoly_jax.checkpoints import small_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
quick, tearDownModule = testing.quick_compilation()
LENGTHS = {'inputs': 16, 'targets': 6}
TASKS = ('rte', 'cb', 'copa')
LINES = [{'id': i, 'task': TASKS[i % 3], 'input': f'question {i}', 'target': 'yes' if i % 2 else 'no'} for i in range(11)]


def setUpModule():
  quick()
  # The same few programs are compiled again and again.
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: jax.config.values[name] for name in names}
  unittest.addModuleCleanup(lambda: [jax.config.update(name, value) for name, value in before.items()])
  jax.config.update('jax_compilation_cache_dir', tempfile.mkdtemp())
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _read(path) -> list[dict]:
  return [json.loads(line) for line in pathlib.Path(path).read_text(encoding='utf-8').splitlines()]


class InferJsonlTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tempfile.mkdtemp()
    cls.run_dir = small_runs.write_run(cls.folder, small_runs.write_base(cls.folder))
    cls.path = os.path.join(cls.folder, 'questions.jsonl')
    pathlib.Path(cls.path).write_text(''.join(json.dumps(line) + '\n' for line in LINES))
    cls.scored = cls._infer('score', tempfile.mkdtemp())[0]
    cls.predictor = cpoly_jax.Predictor(cls.run_dir, lengths=LENGTHS, batch_size=4)

  @classmethod
  def _infer(cls, mode: str, output_dir: str, path: str | None = None, **overrides) -> tuple[str, str]:
    """Answers the file; returns the path of the result and what was printed."""
    model = trained.model(cls.run_dir)
    name = input_file.task(path or cls.path, model, mode=mode, lengths=LENGTHS)
    data = utils.DatasetConfig(mixture_or_task_name=name, task_feature_lengths=LENGTHS, split=input_file.SPLIT, batch_size=4,
                               shuffle=False, seed=0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      infer_lib.infer(**{**dict(
          mode=mode, model=model, dataset_cfg=data, partitioner=small_runs.partitioner(), output_dir=output_dir,
          restore_checkpoint_cfg=utils.RestoreCheckpointConfig(path=trained.checkpoint(cls.run_dir), mode='specific'),
          checkpoint_period=1, write_fn=input_file.write, summarize_config_fn=lambda *_: None), **overrides})
    return os.path.join(output_dir, f'questions-{mode}.jsonl-00000-of-00001'), out.getvalue()

  def test_predictions_are_those_of_the_predictor(self):
    path, told = self._infer('predict_with_aux', tempfile.mkdtemp())
    self.assertIn('questions: 11/11 examples', told)
    lines = _read(path)
    predictions, scores = self.predictor.predict([line['input'] for line in LINES], [line['task'] for line in LINES],
                                                 return_scores=True)
    self.assertEqual(lines, [{**line, 'prediction': prediction, 'scores': found['scores']}
                             for line, prediction, found in zip(LINES, predictions, lines, strict=True)])
    self.assertEqual(list(lines[0]), [*LINES[0], 'prediction', 'scores'])
    np.testing.assert_allclose([line['scores'] for line in lines], scores, rtol=1e-4)

  def test_scores_are_those_of_the_predictor(self):
    lines = _read(self.scored)
    scores = self.predictor.score([line['input'] for line in LINES], [[line['target']] for line in LINES],
                                  [line['task'] for line in LINES])
    np.testing.assert_allclose([line['score'] for line in lines], scores[:, 0], rtol=1e-4)

  def test_interrupted_between_chunks(self):
    interrupted, written = tempfile.mkdtemp(), []

    def write(path, *args):
      if len(written) in (1, 3):
        written.append(None)
        pathlib.Path(path).write_text('{"cut')  # As a kill in the middle of writing may leave it.
        raise KeyboardInterrupt
      written.append(path)
      input_file.write(path, *args)

    for _ in range(2):
      with self.assertRaises(KeyboardInterrupt):
        self._infer('score', interrupted, write_fn=write)
    path, told = self._infer('score', interrupted, write_fn=write)
    self.assertIn('questions: 8/11 examples are done already', told)
    self.assertEqual(pathlib.Path(path).read_bytes(), pathlib.Path(self.scored).read_bytes())

  @pytest.mark.slow
  def test_another_file_does_not_go_on(self):
    other = os.path.join(tempfile.mkdtemp(), 'questions.jsonl')
    pathlib.Path(other).write_text(''.join(json.dumps(line) + '\n' for line in LINES[::-1]))
    with self.assertRaisesRegex(ValueError, 'is of another run .input = .*: remove it'):
      self._infer('score', os.path.dirname(self.scored), path=other)


@pytest.mark.slow
class CommandLineTest(absltest.TestCase):
  """As a person runs it, and kills it."""

  @staticmethod
  @functools.cache
  def _trained():
    folder = tempfile.mkdtemp()
    done = CommandLineTest._start(
        't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', f"--gin.MODEL_DIR='{folder}/run'", '--gin.TRAIN_STEPS=2',
        '--gin.EVAL_PERIOD=2', '--gin.CHECKPOINT_PERIOD=2', '--gin.EVALUATE_FIRST=False', '--gin.BATCH_SIZE=16',
        '--gin.train.infer_eval_dataset_cfg=None', '--gin.train.train_eval_dataset_cfg=None')
    out, _ = done.communicate()
    assert done.returncode == 0, out[-3000:]
    lines = [{'id': i, 'task': ('latent_bodu', 'latent_cifa')[i % 2], 'input': f'bodu: jivi {i} do'} for i in range(300)]
    pathlib.Path(folder, 'questions.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder

  @staticmethod
  def _start(module, *flags):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    return subprocess.Popen([sys.executable, '-m', module, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)

  def _answer(self, output_dir, *flags):
    folder = self._trained()
    return self._start('t5x.infer', '--gin_file=gin_configs/runs/infer_jsonl.gin', f"--gin.CHECKPOINT_PATH='{folder}/run'",
                       f"--gin.INPUT_FILE='{folder}/questions.jsonl'", f"--gin.INFER_OUTPUT_DIR='{output_dir}'",
                       "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 28}", '--gin.BATCH_SIZE=4',
                       '--gin.CHECKPOINT_PERIOD=1', *flags)

  def test_killed_and_started_again(self):
    outputs = tempfile.mkdtemp(), tempfile.mkdtemp()
    for wanted in (2, 5):
      process = self._answer(outputs[1])
      tmp = pathlib.Path(outputs[1], 'tmp-questions-00000-of-00001')
      while process.poll() is None and len(list(tmp.glob('*.COMPLETED'))) < wanted:
        pass
      process.send_signal(signal.SIGKILL)
      process.communicate()
      self.assertEqual(process.returncode, -signal.SIGKILL)
    for output in outputs:
      process = self._answer(output)
      told, _ = process.communicate()
      self.assertEqual(process.returncode, 0, told[-3000:])
    self.assertIn('questions: 300/300 examples', told)
    texts = [pathlib.Path(output, 'questions-predict.jsonl-00000-of-00001').read_bytes() for output in outputs]
    self.assertEqual(texts[0], texts[1])
    self.assertLen(texts[0].splitlines(), 300)

  def test_dry_run(self):
    output = os.path.join(tempfile.mkdtemp(), 'answers')
    told, _ = self._answer(output, '--dry_run').communicate()
    self.assertIn('dry run of infer: nothing is computed or written', told)
    self.assertRegex(told, r'reads   base checkpoint .*checkpoint_\d+\n')
    self.assertIn(f'writes  {output}/questions-predict.jsonl-00000-of-00001', told)
    self.assertFalse(os.path.exists(output))

  def test_bad_line(self):
    file = os.path.join(tempfile.mkdtemp(), 'bad.jsonl')
    pathlib.Path(file).write_text('{"task": "latent_bodo", "input": "a"}\n')
    process = self._answer(tempfile.mkdtemp(), f"--gin.INPUT_FILE='{file}'")
    told, _ = process.communicate()
    self.assertEqual(process.returncode, 1)
    self.assertRegex(told, f"(?m)^error: {file}:1: task 'latent_bodo' has no routing row; did you mean 'latent_bodu'\\?$")


if __name__ == '__main__':
  absltest.main()
