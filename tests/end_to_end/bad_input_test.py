"""Wrong input to the three entry points: exit code 1 and one line that says what to write instead, and no traceback."""

import functools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = '--gin_file=gin_configs/cpoly_tiny.gin'
SYSTEM = ('--gin_file=gin_configs/models/t5_1_1/tiny.gin', '--gin_file=gin_configs/systems/cpoly.gin')
BYTES = '--gin_file=gin_configs/models/bytes.gin'
# Training of a few steps, with nothing but the loop.
FEW = ('--gin.BATCH_SIZE=16', '--gin.EVALUATE_FIRST=False', '--gin.CHECKPOINT_PERIOD=2', '--gin.EVAL_PERIOD=2',
       '--gin.STATS_PERIOD=2', '--gin.train.infer_eval_dataset_cfg=None', '--gin.train.train_eval_dataset_cfg=None')


def _run(module, *flags, devices=1, file_limit=None, **variables):
  """Returns the finished process of `python -m t5x.<module> <flags>`."""
  environment = {k: v for k, v in os.environ.items() if k not in ('SUPERGLUE_DIR', 'T5X_TRACEBACK', 'TFDS_DATA_DIR')}
  environment.update(variables, JAX_PLATFORMS='cpu', XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
                     PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), *sys.path])))
  limit = None
  if file_limit is not None:
    environment['T5X_COMPILATION_CACHE'] = ''  # A limit would leave truncated programs in the user's.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_limit, file_limit))
  return subprocess.run([sys.executable, '-m', f't5x.{module}', *flags], cwd=ROOT, env=environment, capture_output=True,
                        text=True, check=False, timeout=300, preexec_fn=limit)


def _train_flags(model_dir=None, **macros):
  model_dir = model_dir or tempfile.mkdtemp()
  return (TINY, f"--gin.MODEL_DIR='{model_dir}'", *(f'--gin.{name}={value!r}' for name, value in macros.items()))


def _superglue_cb(train, val):
  """Returns a folder with the lines of CB/train.jsonl and CB/val.jsonl."""
  folder = pathlib.Path(tempfile.mkdtemp())
  (folder / 'CB').mkdir()
  for name, lines in (('train', train), ('val', val)):
    (folder / 'CB' / f'{name}.jsonl').write_text(''.join(f'{line}\n' for line in lines))
  return str(folder)


GOOD = json.dumps({'premise': 'It rains.', 'hypothesis': 'It is wet.', 'label': 'entailment', 'idx': 0})


class _FailingRuns(parameterized.TestCase):

  def _fails(self, expected, module, *flags, **kwargs):
    done = _run(module, *flags, **kwargs)
    told = done.stderr[-3000:]
    self.assertEqual(done.returncode, 1, told + done.stdout[-1000:])
    self.assertNotIn('Traceback', done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    self.assertLen(lines, 1, told)
    self.assertRegex(lines[0], expected)
    return done


class BadInputTest(_FailingRuns):

  # The configuration.

  def test_gin_file(self):
    self._fails('gin file gin_configs/cpoly_tin.gin not found.*did you mean gin_configs/cpoly_tiny.gin', 'train',
                '--gin_file=gin_configs/cpoly_tin.gin')

  def test_misspelt_macro(self):
    done = self._fails('no gin file uses the macro TRAIN_STEP; did you mean TRAIN_STEPS', 'train',
                       *_train_flags(TRAIN_STEP=3))
    # The line stands alone: nothing that the libraries write while they are loaded hides it.
    self.assertLen(done.stderr.splitlines(), 1, done.stderr)

  @pytest.mark.slow
  def test_parameter(self):
    self._fails("train has no parameter 'total_step'.*did you mean total_steps", 'train', *_train_flags(),
                '--gin.train.total_step=3')

  def test_task_or_mixture(self):
    self._fails("no task or mixture is named 'latent_skill'; did you mean latent_skills", 'train',
                *_train_flags(MIXTURE_OR_TASK_NAME='latent_skill'))

  @pytest.mark.slow
  def test_feature_lengths(self):
    self._fails('TASK_FEATURE_LENGTHS is not set: give the length of each feature', 'train',
                *_train_flags(TASK_FEATURE_LENGTHS=None))

  @pytest.mark.slow
  def test_more_tasks_than_rows(self):
    self._fails('16 tasks do not fit 3 routing rows: raise NUM_TASKS to 16', 'train', *_train_flags(NUM_TASKS=3))

  @pytest.mark.slow
  def test_adapter_targets(self):
    self._fails("'nothing' matches no projection: set ADAPTER_TARGETS .*encoder/layers_0/attention/", 'train',
                *_train_flags(ADAPTER_TARGETS='nothing'))

  def test_batch_size(self):
    self._fails('[Bb]atch.* 12 is not divisible by .*use a multiple of 8', 'train', *_train_flags(BATCH_SIZE=12), devices=8)

  def test_folder_that_cannot_be_written(self):
    with tempfile.NamedTemporaryFile() as file:
      self._fails(f'MODEL_DIR {file.name}/run cannot be written .*choose another folder', 'train',
                  *_train_flags(f'{file.name}/run'))

  # Vocabularies.

  def test_vocabulary_larger_than_the_embedding(self):
    self._fails('vocabulary has 259 pieces but the embedding 100 rows: raise VOCABULARY_SIZE to 259', 'train',
                *_train_flags(VOCABULARY_SIZE=100))

  @pytest.mark.slow
  def test_vocabulary_of_the_model_is_not_that_of_the_data(self):
    file = pathlib.Path(tempfile.mkdtemp(), 'other.gin')
    file.write_text('from __gin__ import dynamic_registration\nimport seqio\n'
                    'from cpoly_jax.training import models as cpoly_models\n'
                    'cpoly_models.CPolyModel.input_vocabulary = @seqio.ByteVocabulary()\nseqio.ByteVocabulary.extra_ids = 2\n')
    self._fails('input vocabulary of .latent_skills. is .* but that of the model is ByteVocabulary.*261', 'train',
                *_train_flags(), f'--gin_file={file}')

  @pytest.mark.slow
  def test_sentencepiece_model(self):
    self._fails("no SentencePiece model at /nowhere/sp.model: set VOCABULARY_PATH to one, or to 'bytes'", 'train',
                *_train_flags(VOCABULARY_PATH='/nowhere/sp.model'))

  # Data.

  @pytest.mark.slow
  def test_superglue_folder_is_not_set(self):
    self._fails('SUPERGLUE_DIR is not set .*set SUPERGLUE_DIR to a folder with BoolQ/train.jsonl', 'train',
                *_train_flags(MIXTURE_OR_TASK_NAME='superglue'), TFDS_DATA_DIR=tempfile.mkdtemp())

  @pytest.mark.slow
  def test_superglue_folder_is_wrong(self):
    self._fails('SUPERGLUE_DIR=/nowhere is not a folder', 'train', *_train_flags(MIXTURE_OR_TASK_NAME='superglue'),
                SUPERGLUE_DIR='/nowhere')
    self._fails('no file .*/BoolQ/train.jsonl; SUPERGLUE_DIR must name a folder', 'train',
                *_train_flags(MIXTURE_OR_TASK_NAME='superglue'), SUPERGLUE_DIR=tempfile.mkdtemp())

  def test_malformed_line(self):
    folder = _superglue_cb([GOOD, '{"premise": "x", "hypo'], [GOOD])
    self._fails(f'{folder}/CB/train.jsonl:2: not valid JSON .*; fix or remove the line', 'train',
                *_train_flags(MIXTURE_OR_TASK_NAME='superglue_cb'), SUPERGLUE_DIR=folder)

  @pytest.mark.slow
  def test_empty_split(self):
    folder = _superglue_cb([GOOD], [])
    self._fails(f'{folder}/CB/val.jsonl: no examples in the file', 'train',
                *_train_flags(MIXTURE_OR_TASK_NAME='superglue_cb'), SUPERGLUE_DIR=folder)

  # Checkpoints.

  @pytest.mark.slow
  def test_bucket_that_cannot_be_reached(self):
    self._fails('cannot reach gs://no-such-bucket/checkpoint_1: check the network and credentials', 'train',
                *_train_flags(INITIAL_CHECKPOINT_PATH='gs://no-such-bucket/checkpoint_1'))

  def test_absent_checkpoint(self):
    self._fails('There is no checkpoint at /nowhere/checkpoint_7: give the path of a checkpoint_<step> folder', 'train',
                *_train_flags(INITIAL_CHECKPOINT_PATH='/nowhere/checkpoint_7'))

  @pytest.mark.slow
  def test_checkpoint_of_another_size(self):
    self._fails(r'checkpoint_\d+ does not fit the model: .*use the gin file of the same model size', 'train',
                *_train_flags(EMB_DIM=64))

  @parameterized.named_parameters(
      ('eval', 'eval', 'EVAL_OUTPUT_DIR'),
      ('infer', 'infer', 'INFER_OUTPUT_DIR'))
  @pytest.mark.slow
  def test_absent_checkpoint_of(self, module, output):
    self._fails('There is no checkpoint at /nowhere/checkpoint_7', module, *SYSTEM, BYTES,
                f'--gin_file=gin_configs/runs/{module}.gin', f"--gin.{output}='{tempfile.mkdtemp()}'",
                "--gin.CHECKPOINT_PATH='/nowhere/checkpoint_7'", "--gin.MIXTURE_OR_TASK_NAME='latent_skills'",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 28}")


@pytest.mark.slow
class AfterTrainingTest(_FailingRuns):
  """Needs a run of two steps."""

  @staticmethod
  @functools.cache
  def _trained():
    folder = tempfile.mkdtemp()
    done = _run('train', *_train_flags(folder, TRAIN_STEPS=2), *FEW)
    if done.returncode:
      raise AssertionError(done.stderr[-3000:])
    return folder

  def test_folder_of_other_tasks(self):
    self._fails('was trained with another TaskIndex .*Use another MODEL_DIR', 'train',
                *_train_flags(self._trained(), TRAIN_STEPS=4, MIXTURE_OR_TASK_NAME='latent_skills_held_out'), *FEW)

  def test_evaluation_of_tasks_without_a_row(self):
    self._fails('tasks have no routing row: .*; the run routes 16 tasks', 'eval', *SYSTEM, BYTES,
                '--gin_file=gin_configs/runs/eval.gin', f"--gin.EVAL_OUTPUT_DIR='{tempfile.mkdtemp()}'",
                f"--gin.CHECKPOINT_PATH='{self._trained()}/checkpoint_2'", "--gin.ROUTED_MIXTURE='latent_skills'",
                "--gin.MIXTURE_OR_TASK_NAME='latent_skills_held_out'",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 28}")

  def test_full_disk_leaves_the_last_checkpoint(self):
    folder = self._trained()
    # A limit on the size of each file fails in the same calls as a full disk.
    self._fails('Could not save checkpoint_4 in .*: File too large; checkpoint_2 is intact', 'train',
                *_train_flags(folder, TRAIN_STEPS=4), *FEW, file_limit=100_000)
    self.assertTrue(pathlib.Path(folder, 'checkpoint_2').is_dir())
    self.assertEmpty(list(pathlib.Path(folder).glob('checkpoint_4*')))
    self._fails('Could not write .*/model-info.txt: File too large; checkpoints there are intact. Free space', 'train',
                *_train_flags(folder, TRAIN_STEPS=4), *FEW, file_limit=50_000)


if __name__ == '__main__':
  absltest.main()
