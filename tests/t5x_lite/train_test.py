"""Tests of training end to end: files, resuming, stopping, errors that come early."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from t5x import adafactor
from t5x import models
from t5x import run_plan
from t5x import train as train_lib
from t5x import trainer as trainer_lib
from t5x import utils
import seqio

# Files that T5X does not write.
_OWN_FILES = {'results.json', 'results.md', 'run.json', 'train/metrics.jsonl'}


def _files(folder: str) -> set[str]:
  """Relative paths, with what varies from run to run replaced as in the golden listing."""
  paths = (str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob('*') if p.is_file())
  patterns = [(r'/d/[0-9a-f]{32}$', '/d/<32 hex digits>'),
              (r'tfevents\..*\.v2$', 'tfevents.<time>.<host>.<pid>.<n>.v2')]
  for pattern, replacement in patterns:
    paths = [re.sub(pattern, replacement, p) for p in paths]
  return set(paths)


def _record(folder: str) -> list[dict]:
  return [json.loads(line) for line in pathlib.Path(folder, 'train/metrics.jsonl').read_text().splitlines()]


def _tags(folder: str) -> dict[str, list[int]]:
  """{tag: steps} of the event files in a folder."""
  import tensorflow as tf
  found = {}
  for path in sorted(pathlib.Path(folder).glob('events*')):
    for event in tf.compat.v1.train.summary_iterator(str(path)):
      for value in event.summary.value:
        found.setdefault(value.tag, []).append(event.step)
  return found


def _steps(folder: str) -> list[int]:
  return sorted(int(p.name.split('_')[1]) for p in pathlib.Path(folder).glob('checkpoint_*'))


class _StoppedTrainer(trainer_lib.Trainer):
  """Does something after the step `at`, once it was recorded."""

  at = 5

  def happens(self):
    raise RuntimeError('killed')

  def train(self, batch_iter, num_steps, start_step=None):
    shown = self.on_step

    def on_step(step, metrics):
      shown(step, metrics)
      if step == self.at:
        self.happens()

    self.on_step = on_step
    try:
      return super().train(batch_iter, num_steps, start_step)
    finally:
      self.on_step = shown


class _TerminatedTrainer(_StoppedTrainer):

  def happens(self):
    os.kill(os.getpid(), signal.SIGTERM)


class _InterruptedTrainer(_StoppedTrainer):

  def happens(self):
    os.kill(os.getpid(), signal.SIGINT)


class _PreemptedTrainer(_StoppedTrainer):

  def happens(self):
    raise trainer_lib.PreemptionError('the machine goes away')


class LayoutTest(absltest.TestCase):
  """One run of 6 steps, compared with the files of the same run by T5X."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tempfile.mkdtemp()
    cls.out = io.StringIO()
    with contextlib.redirect_stdout(cls.out):
      cls.step, cls.state = reversal.train(cls.folder)

  def test_files_are_those_of_t5x_and_a_few_more(self):
    golden = json.loads(testing.shared_data('golden/cli/listing.json').read_text())['train']['files']
    # This run saves no dataset item; how Orbax spreads arrays over files is its own affair.
    comparable = lambda names: {n for n in names if '/dataset/' not in n and '/d/' not in n and '/metadata/' not in n}
    self.assertEqual(comparable(_files(self.folder)) - _OWN_FILES, comparable(golden))
    self.assertContainsSubset(_OWN_FILES, _files(self.folder))

  def test_event_tags_and_steps_are_those_of_t5x(self):
    golden = json.loads(testing.shared_data('golden/cli/event_tags.json').read_text())
    for name, content in golden.items():
      run, folder = name.split('/', 1)
      if run != 'train':
        continue
      found = _tags(os.path.join(self.folder, os.path.dirname(folder)))
      expected = {tag: value['steps'] for tag, value in content['scalar_style_tensors'].items()}
      self.assertEqual(set(found), set(expected), folder)
      for tag in expected:
        self.assertEqual(found[tag], expected[tag], f'{folder} {tag}')

  def test_example_lines_have_the_keys_of_t5x(self):
    for name in ('rev-000003.jsonl', 'rev-000006.jsonl', 'rev-metrics.jsonl'):
      golden = testing.shared_data('golden/cli/samples/train/inference_eval').joinpath(name).read_text().splitlines()
      mine = pathlib.Path(self.folder, 'inference_eval', name).read_text().splitlines()
      self.assertLen(mine, len(golden))
      for a, b in zip(mine, golden):
        a, b = json.loads(a), json.loads(b)
        self.assertEqual(list(a), list(b))
        if 'input' in b:
          self.assertEqual(list(a['input']), list(b['input']))

  def test_result_and_step(self):
    self.assertEqual(self.step, 6)
    self.assertEqual(int(self.state.step), 6)
    self.assertEqual(_steps(self.folder), [0, 3, 6])
    result = json.loads(pathlib.Path(self.folder, 'results.json').read_text())
    self.assertEqual(result['step'], 6)
    self.assertEqual(set(result['metrics']), {'rev'})
    self.assertIn('em', result['metrics']['rev'])

  def test_every_step_is_recorded_with_its_loss(self):
    record = _record(self.folder)
    self.assertEqual([line['step'] for line in record], [1, 2, 3, 4, 5, 6])
    self.assertTrue(all(3 < line['loss'] / line['target_tokens'] < 15 for line in record), record)
    self.assertTrue(all(line['examples'] == 8 for line in record))

  def test_output_tells_model_progress_and_results(self):
    text = self.out.getvalue()
    for part in ('parameters,', 'GFLOP per step', 'step 6/6', 'target tokens/s', 'eval rev: em', 'Results at step 6'):
      self.assertIn(part, text)
    self.assertLess(len(text.splitlines()), 25)

  def test_a_finished_run_does_nothing_more(self):
    folder = os.path.join(tempfile.mkdtemp(), 'copy')
    shutil.copytree(self.folder, folder)
    before = _files(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      step, _ = reversal.train(folder)
    self.assertEqual(step, 6)
    self.assertIn('Results at step 6', out.getvalue())
    self.assertLen(_record(folder), 6)
    self.assertEqual(_files(folder), before)


class ResumeTest(absltest.TestCase):

  def assertStatesEqual(self, a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a.state_dict()), jax.device_get(b.state_dict()))

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()

  @staticmethod
  @functools.cache
  def _whole(**overrides):
    """The folder and the last state of a run of nine steps that nothing stops."""
    folder = tempfile.mkdtemp()
    _, state = reversal.train_without_evaluation(folder, 9, **overrides)
    return folder, state

  def test_a_killed_run_goes_on_exactly(self):
    whole, state = self._whole()
    with self.assertRaisesRegex(RuntimeError, 'killed'):
      reversal.train_without_evaluation(self.folder, 9, trainer_cls=reversal.trainer(_StoppedTrainer))
    self.assertEqual(_steps(self.folder), [0, 3])
    self.assertEqual([x['step'] for x in _record(self.folder)], [1, 2, 3, 4, 5])
    _, resumed = reversal.train_without_evaluation(self.folder, 9)
    self.assertEqual(_record(self.folder), _record(whole))
    self.assertStatesEqual(resumed, state)

  def test_a_run_without_a_seed_resumes_with_its_own(self):
    # Such a run sets it for the whole process.
    self.addCleanup(jax.config.update, 'jax_default_prng_impl', jax.config.jax_default_prng_impl)
    with self.assertRaises(RuntimeError):
      reversal.train_without_evaluation(self.folder, 9, random_seed=None, trainer_cls=reversal.trainer(_StoppedTrainer))
    seed = run_plan.read_run(self.folder)['random_seed']
    first = _record(self.folder)[:3]
    _, resumed = reversal.train_without_evaluation(self.folder, 9, random_seed=None)
    self.assertEqual(run_plan.read_run(self.folder)['random_seed'], seed)
    self.assertEqual(_record(self.folder)[:3], first)
    whole, state = self._whole(random_seed=seed, use_hardware_rng=True)
    self.assertEqual(_record(self.folder), _record(whole))
    self.assertStatesEqual(resumed, state)

  def test_the_position_in_the_data_can_be_saved_instead(self):
    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=3, save_dataset=True))
    whole, state = self._whole()
    with self.assertRaises(RuntimeError):
      reversal.train_without_evaluation(
          self.folder, 9, trainer_cls=reversal.trainer(_StoppedTrainer), checkpoint_cfg=cfg)
    self.assertTrue(list(pathlib.Path(self.folder, 'checkpoint_3/dataset').glob('train_ds-000-of-001*')))
    _, resumed = reversal.train_without_evaluation(self.folder, 9, checkpoint_cfg=cfg)
    self.assertEqual(_record(self.folder), _record(whole))
    self.assertStatesEqual(resumed, state)

  def test_fine_tuning_starts_its_data_at_the_beginning_and_counts_on(self):
    base, _ = self._whole()
    restore = utils.RestoreCheckpointConfig(path=os.path.join(base, 'checkpoint_9'), mode='specific')
    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=3), restore=restore)
    whole = tempfile.mkdtemp()
    step, state = reversal.train_without_evaluation(whole, 1, relative_steps=6, checkpoint_cfg=cfg)
    self.assertEqual((step, _steps(whole)), (15, [9, 12, 15]))
    trainer_cls = type('_At13', (_StoppedTrainer,), {'at': 13})
    with self.assertRaises(RuntimeError):
      reversal.train_without_evaluation(self.folder, 1, relative_steps=6, checkpoint_cfg=cfg,
                                        trainer_cls=reversal.trainer(trainer_cls))
    step, resumed = reversal.train_without_evaluation(self.folder, 1, relative_steps=6, checkpoint_cfg=cfg)
    self.assertEqual(step, 15)
    self.assertEqual(_record(self.folder), _record(whole))
    self.assertStatesEqual(resumed, state)
    with self.assertRaisesRegex(ValueError, 'TRAIN_STEPS=5 lies before step 9'):
      reversal.train_without_evaluation(tempfile.mkdtemp(), 5, checkpoint_cfg=cfg)


class StopTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()

  def test_sigterm_saves_says_so_and_ends_well(self):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      step, _ = reversal.train_without_evaluation(self.folder, 9, trainer_cls=reversal.trainer(_TerminatedTrainer))
    self.assertEqual((step, _steps(self.folder)), (5, [0, 3, 5]))
    self.assertIn('SIGTERM: stopped at step 5, saved', out.getvalue())
    step, _ = reversal.train_without_evaluation(self.folder, 9)
    # Periods count from the first step of the run, not from where it was stopped.
    self.assertEqual((step, _steps(self.folder)), (9, [0, 3, 5, 6, 9]))

  def test_interrupt_saves_and_is_raised(self):
    with self.assertRaises(KeyboardInterrupt):
      reversal.train_without_evaluation(self.folder, 9, trainer_cls=reversal.trainer(_InterruptedTrainer))
    self.assertEqual(_steps(self.folder), [0, 3, 5])

  def test_preemption_saves_and_is_raised(self):
    with self.assertRaises(trainer_lib.PreemptionError):
      reversal.train_without_evaluation(self.folder, 9, trainer_cls=reversal.trainer(_PreemptedTrainer))
    self.assertEqual(_steps(self.folder), [0, 3, 5])

  def test_an_action_stops_after_a_save(self):
    class Stop(trainer_lib.BaseAction):

      def run(self, train_state, metrics_by_task):
        return int(train_state.step) >= 4 and 'loss' in metrics_by_task['train']

    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=2))
    step, _ = reversal.train_without_evaluation(
        self.folder, 10, actions={'TRAIN': [Stop()]}, concurrent_metrics=False, checkpoint_cfg=cfg)
    self.assertEqual((step, _steps(self.folder)), (4, [0, 2, 4]))

  def test_further_steps_are_saved(self):
    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(checkpoint_steps=[2, 5]))
    reversal.train_without_evaluation(self.folder, 7, checkpoint_cfg=cfg)
    self.assertEqual(_steps(self.folder), [0, 2, 5, 7])


class EarlyErrorsTest(parameterized.TestCase):

  def _error(self, **overrides) -> str:
    folder = overrides.pop('model_dir', tempfile.mkdtemp())
    with self.assertRaises(ValueError) as error:
      reversal.train_without_evaluation(folder, **overrides)
    self.assertNotIn('\n', str(error.exception))
    if os.path.isdir(folder):
      self.assertEqual(_steps(folder), [])
    return str(error.exception)

  def test_vocabulary(self):
    vocabulary = seqio.ByteVocabulary(extra_ids=3)
    model = models.EncoderDecoderModel(reversal.transformer(), vocabulary, vocabulary, adafactor.Adafactor())
    self.assertIn('input vocabulary', self._error(model=model))

  def test_task(self):
    self.assertIn('did you mean rev', self._error(train_dataset_cfg=reversal.config('train', name='revv')))

  def test_split(self):
    self.assertIn("'rev' has a split 'valid'", self._error(infer_eval_dataset_cfg=reversal.config('valid')))

  def test_periods(self):
    self.assertIn('EVAL_PERIOD=4 must be a multiple', self._error(eval_period=4))

  def test_steps(self):
    self.assertIn('TRAIN_STEPS=-1', self._error(total_steps=-1))

  def test_several_checkpoints(self):
    restore = utils.RestoreCheckpointConfig(path=['/a', '/b'], mode='specific')
    self.assertIn('one path', self._error(checkpoint_cfg=utils.CheckpointConfig(restore=restore)))
    restore = utils.RestoreCheckpointConfig(path='/a', mode='all')
    self.assertIn('mode', self._error(checkpoint_cfg=utils.CheckpointConfig(restore=restore)))

  def test_model_dir_that_cannot_be_written(self):
    path = os.path.join(tempfile.mkdtemp(), 'file')
    pathlib.Path(path).write_text('')
    self.assertIn('cannot be written', self._error(model_dir=os.path.join(path, 'model')))

  def test_the_model_may_check_the_mixture(self):
    model = reversal.model()

    def check_mixture(mixture_or_task):
      raise ValueError(f'no row for {mixture_or_task.name}')

    model.check_mixture = check_mixture
    self.assertEqual(self._error(model=model), 'no row for rev')


class PlanTest(absltest.TestCase):

  def test_stops_lie_at_all_periods_and_steps(self):
    plan = run_plan.RunPlan(10, 40, eval_period=12, save_period=6, stats_period=5, checkpoint_steps=(17,))
    stops, step = [], 10
    while step < 40:
      step = plan.next_stop(step)
      stops.append(step)
    self.assertEqual(stops, [15, 16, 17, 20, 22, 25, 28, 30, 34, 35, 40])
    self.assertEqual([s for s in stops if plan.saves_at(s)], [16, 17, 22, 28, 34, 40])
    self.assertEqual([s for s in stops if plan.evaluates_at(s)], [22, 34, 40])

  def test_actions_run_for_their_mode_only(self):
    seen = []

    class Note(trainer_lib.BaseAction):

      def run(self, train_state, metrics_by_task):
        seen.append((train_state, metrics_by_task))
        return True

    actions = {trainer_lib.ActionMode.TRAIN: [Note()]}
    self.assertFalse(train_lib.run_actions('INFER_EVAL', actions, 'state', {}))
    self.assertTrue(train_lib.run_actions(trainer_lib.ActionMode.TRAIN, actions, 'state', {'train': 1}))
    self.assertEqual(seen, [('state', {'train': 1})])


if __name__ == '__main__':
  absltest.main()
