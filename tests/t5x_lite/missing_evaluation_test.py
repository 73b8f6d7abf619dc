"""An evaluation that a kill prevented, or cut short, is made by the process that goes on, once."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import types

from absl.testing import absltest
from clu import metric_writers
import pytest
import tensorflow as tf

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from t5x import periodic_eval
from t5x import trainer as trainer_lib


def _evaluation(**overrides):
  """The evaluation of a mixture of `rev` and `rev_train_only`, whose training loss is measured on `rev`."""
  model = types.SimpleNamespace(FEATURE_CONVERTER_CLS=None)
  partitioner = types.SimpleNamespace(
      get_data_layout=lambda size: types.SimpleNamespace(batch_size=size, shard_id=0, num_shards=1))
  settings = dict(model=model, partitioner=partitioner, model_dir='', train_eval_cfg=reversal.config('validation'),
                  infer_eval_cfg=reversal.config('validation', name='rev_mix'), eval_steps=1, evaluator_cls=None,
                  train_eval_get_dataset_fn=lambda *args: {'rev': None}, verify_matching_vocabs_fn=None,
                  concurrent_metrics=False, show=print)
  return periodic_eval.PeriodicEvaluation(**{**settings, **overrides})


class MissingTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()

  def _measured(self, *steps):
    writer = metric_writers.create_default_writer(self.folder, collection='training_eval/rev', asynchronous=False)
    for step in steps:
      writer.write_scalars(step, {'loss': 1.0})
    writer.close()

  def _inferred(self, task, *steps):
    path = pathlib.Path(self.folder, 'inference_eval', f'{task}-metrics.jsonl')
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(f'{{"step": {step}, "em": 1.0}}\n' for step in steps))

  def _is_missing(self, step, **overrides):
    return _evaluation(**overrides).is_missing(self.folder, step)

  def test_nothing_was_evaluated(self):
    self.assertTrue(self._is_missing(3))
    self.assertTrue(self._is_missing(3, infer_eval_cfg=None))
    self.assertTrue(self._is_missing(3, train_eval_cfg=None))
    self.assertFalse(self._is_missing(3, train_eval_cfg=None, infer_eval_cfg=None))

  def test_everything_was_evaluated(self):
    self._measured(3, 6)
    self._inferred('rev', 3, 6)
    self.assertFalse(self._is_missing(6))
    # What an earlier mixture left does not count.
    self._inferred('other', 3)
    self.assertFalse(self._is_missing(6))

  def test_a_part_was_evaluated(self):
    self._measured(3)
    self._inferred('rev', 3, 6)
    self.assertTrue(self._is_missing(6))
    self._measured(6)
    self.assertFalse(self._is_missing(6))
    self._inferred('rev_train_only', 3)
    self.assertTrue(self._is_missing(6))


class _KilledTrainer(trainer_lib.Trainer):
  """Ends its process, as far as the run can see, in the evaluation of step 3."""

  def eval(self, batch_iters):
    if int(self.train_state.step) == 3:
      raise RuntimeError('killed')
    return super().eval(batch_iters)


@pytest.mark.slow
class ResumeTest(absltest.TestCase):

  def _curve(self, folder, name):
    return [event.step for path in sorted(pathlib.Path(folder, name).glob('events*'))
            for event in tf.compat.v1.train.summary_iterator(str(path)) for value in event.summary.value
            if value.tag in ('loss', 'em', 'eval/em', 'inference/em')]

  def test_each_evaluation_is_there_once(self):
    whole, killed = tempfile.mkdtemp(), tempfile.mkdtemp()
    with contextlib.redirect_stdout(io.StringIO()):
      reversal.train(whole)
      with self.assertRaisesRegex(RuntimeError, 'killed'):
        reversal.train(killed, trainer_cls=reversal.trainer(_KilledTrainer))
      reversal.train(killed)
    for name in ('training_eval/rev', 'inference_eval/rev'):
      self.assertEqual(self._curve(whole, name), [3, 6], name)
      self.assertEqual(self._curve(killed, name), [3, 6], name)
    path = pathlib.Path('inference_eval', 'rev-metrics.jsonl')
    self.assertEqual((killed / path).read_text(), (whole / path).read_text())


if __name__ == '__main__':
  absltest.main()
