"""Tests of evaluation: files as T5X writes them, which checkpoints, which tasks."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
import jax
import numpy as np
import seqio

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from t5x import eval as eval_lib
from t5x import gin_utils
from t5x import inference
from t5x import utils

_EVALUATOR = functools.partial(seqio.Evaluator, logger_cls=[seqio.TensorBoardLogger, seqio.JSONLogger])


def _evaluate(path: str, mode: str, output_dir: str, name: str = 'rev', **overrides) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    eval_lib.evaluate(**{**dict(
        model=reversal.model(), partitioner=reversal.partitioner(),
        dataset_cfg=reversal.config('validation', name=name),
        restore_checkpoint_cfg=utils.RestoreCheckpointConfig(path=path, mode=mode), output_dir=output_dir,
        summarize_config_fn=gin_utils.summarize_gin_config, inference_evaluator_cls=_EVALUATOR), **overrides})
  return out.getvalue()


def _names(folder: str) -> set[str]:
  names = (str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob('*') if p.is_file())
  return {n.partition('.tfevents')[0] for n in names}


class EvaluateTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model_dir = tempfile.mkdtemp()
    reversal.train_without_evaluation(cls.model_dir, 6)
    cls.checkpoint = os.path.join(cls.model_dir, 'checkpoint_6')

  def setUp(self):
    super().setUp()
    self.output_dir = os.path.join(tempfile.mkdtemp(), 'out')

  def test_files_and_lines_are_those_of_t5x(self):
    text = _evaluate(self.checkpoint, 'specific', self.output_dir)
    golden = json.loads(testing.shared_data('golden/cli/listing.json').read_text())['eval']['files']
    self.assertEqual(_names(self.output_dir) - {'results.json', 'results.md'},
                     {n.partition('.tfevents')[0] for n in golden})
    samples = testing.shared_data('golden/cli/samples/eval')
    for name in ('rev-000006.jsonl', 'rev-metrics.jsonl'):
      mine = pathlib.Path(self.output_dir, 'inference_eval', name).read_text().splitlines()
      theirs = samples.joinpath('inference_eval', name).read_text().splitlines()
      self.assertEqual([list(json.loads(x)) for x in mine], [list(json.loads(x)) for x in theirs])
    self.assertEqual(pathlib.Path(self.output_dir, 'eval.rev.ckpt').read_text(), self.checkpoint)
    self.assertIn('Results at step 6', text)

  def test_mode_all_leaves_out_what_was_evaluated(self):
    done = os.path.join(self.output_dir, 'eval.rev.ckpt')
    _evaluate(self.model_dir, 'all', self.output_dir)
    paths = [os.path.join(self.model_dir, f'checkpoint_{s}') for s in (0, 3, 6)]
    self.assertEqual(pathlib.Path(done).read_text().splitlines(), paths)
    lines = pathlib.Path(self.output_dir, 'inference_eval/rev-metrics.jsonl').read_text().splitlines()
    self.assertEqual([json.loads(x)['step'] for x in lines], [0, 3, 6])
    pathlib.Path(done).write_text('\n'.join(paths[:2]))
    _evaluate(self.model_dir, 'all', self.output_dir)
    again = pathlib.Path(self.output_dir, 'inference_eval/rev-metrics.jsonl').read_text().splitlines()
    self.assertEqual([json.loads(x)['step'] for x in again], [0, 3, 6, 6])
    self.assertIn('Every checkpoint was evaluated before', _evaluate(self.model_dir, 'all', self.output_dir))

  def test_latest_checkpoint_and_scores(self):
    _evaluate(self.model_dir, 'latest', self.output_dir, 'rev_scored')
    line, = pathlib.Path(self.output_dir, 'inference_eval/rev_scored-metrics.jsonl').read_text().splitlines()
    line = json.loads(line)
    self.assertEqual((line['step'], set(line)), (6, {'step', 'em', 'log_likelihood'}))
    self.assertLess(line['log_likelihood'], -5)

  def test_tasks_that_cannot_be_evaluated_are_named(self):
    with self.assertLogs(level='WARNING') as logs:
      _evaluate(self.checkpoint, 'specific', self.output_dir, 'rev_mix')
    self.assertIn("No split 'validation', skipped: rev_train_only", ' '.join(logs.output))
    with self.assertRaisesRegex(ValueError, "No task of 'rev_no_metrics' has .* a metric"):
      _evaluate(self.checkpoint, 'specific', self.output_dir, 'rev_no_metrics')

  def test_training_metrics_are_written_on_demand(self):
    _evaluate(self.checkpoint, 'specific', self.output_dir, training_evaluator_cls=reversal.trainer())
    self.assertIn('training_eval/rev/events.out', _names(self.output_dir))

  def test_missing_checkpoint(self):
    with self.assertRaisesRegex(FileNotFoundError, 'checkpoint_7'):
      _evaluate(os.path.join(self.model_dir, 'checkpoint_7'), 'specific', self.output_dir)

  def test_metrics_are_those_of_the_model_on_each_example(self):
    """The padded batches of the evaluator against one example at a time."""
    model, partitioner = reversal.model(), reversal.partitioner()
    cfg = reversal.config('validation', batch_size=3)
    evaluator = eval_lib.InferenceEvaluator(cfg, None, model, partitioner)
    self.assertEqual(evaluator.model_feature_shapes['encoder_input_tokens'], (3, 12))
    initializer = utils.TrainStateInitializer(None, model.get_initial_variables, evaluator.model_feature_shapes,
                                              partitioner, evaluator.model_feature_types)
    state = initializer.from_scratch(jax.random.PRNGKey(1))
    dataset = evaluator.evaluator.cached_model_datasets['rev']
    score = inference.get_infer_fn(model.score_batch, 3, initializer.train_state_axes, partitioner)
    scores = score(dataset, state)
    self.assertEqual([i for i, _ in scores], list(range(reversal.VALIDATION_SIZE)))
    for i, example in dataset.as_numpy_iterator():
      alone = model.score_batch(state.params, {k: v[None] for k, v in example.items()})
      np.testing.assert_allclose(scores[i][1], alone[0], atol=1e-4)
    predict = inference.get_infer_fn(model.predict_batch_with_aux, 3, initializer.train_state_axes, partitioner)
    predictions, aux = predict(dataset, state)
    self.assertLen(predictions, reversal.VALIDATION_SIZE)
    self.assertLen(aux['scores'], reversal.VALIDATION_SIZE)
    self.assertIsInstance(aux['scores'][0], float)
    evaluator.close()


class InferFnTest(absltest.TestCase):

  def test_all_features_rng_and_order_reach_the_step(self):
    import tensorflow as tf
    partitioner = reversal.partitioner()
    seen = []

    def step(params, batch, rng):
      seen.append(set(batch))
      return batch['task_id'] + params, {'key': jax.numpy.broadcast_to(rng[None], (4, 2)), 'id': batch['task_id']}

    state = type('State', (), {})
    fn = inference.get_infer_fn(step, 4, None, _Fake(partitioner))
    ds = tf.data.Dataset.from_tensor_slices({'task_id': np.arange(10, dtype=np.int32), 'x': np.zeros((10, 3))})
    state.params, state.flax_mutables = 100, {}
    outputs, aux = fn(ds.enumerate(), state, rng=jax.random.PRNGKey(3))
    self.assertEqual([(i, int(x)) for i, x in outputs], [(i, 100 + i) for i in range(10)])
    self.assertEqual(aux['id'], list(range(10)))
    self.assertEqual(seen, [{'task_id', 'x'}] * 3)
    self.assertEqual(aux['key'][0], aux['key'][3])
    self.assertNotEqual(aux['key'][0], aux['key'][4])
    self.assertEqual(fn(ds.take(0).enumerate(), state), [])


class _Fake:
  """A partitioner that does not compile, so that any object can be a train state."""

  def __init__(self, partitioner):
    self.get_data_layout = partitioner.get_data_layout
    self.data_partition_spec = partitioner.data_partition_spec
    self.shard_batch = lambda batch: batch

  def partition(self, fn, in_axis_resources, out_axis_resources):
    return fn


if __name__ == '__main__':
  absltest.main()
