"""Tests of summaries: the evaluator logs and returns a mixture's own numbers beside those of its tasks."""

from __future__ import annotations

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
import seqio
import tensorflow as tf

from tasks import summaries

_FEATURES = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=False) for name in ('inputs', 'targets')}


def _dataset(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  return tf.data.Dataset.from_tensor_slices({'inputs': ['x', 'y'], 'targets': ['a', 'b']})


def _hits(targets, predictions):
  return {'hits': sum(map(str.__eq__, targets, predictions)), 'note': seqio.metrics.Text('said')}


def _register(name):
  seqio.TaskRegistry.add(
      name, source=seqio.FunctionDataSource(_dataset, splits=('validation',)),
      preprocessors=[seqio.preprocessors.tokenize], output_features=_FEATURES, metric_fns=[_hits])


class SummariesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(summaries._summaries))
    names = ('summed_one', 'summed_two')
    for name in names:
      _register(name)
      self.addCleanup(seqio.TaskRegistry.remove, name)
    seqio.MixtureRegistry.add('summed', names, default_rate=1.0)
    self.addCleanup(seqio.MixtureRegistry.remove, 'summed')
    self.folder = tempfile.mkdtemp()

  def evaluate(self, **kwargs):
    """Evaluates predictions 'a', 'c' for the targets 'a', 'b' of both tasks."""
    evaluator = summaries.Evaluator(
        'summed', seqio.EncDecFeatureConverter(pack=False), logger_cls=[seqio.TensorBoardLogger, seqio.JSONLogger],
        log_dir=self.folder, **kwargs)
    predictions = [(i, seqio.ByteVocabulary().encode(text)) for i, text in enumerate('ac')]
    metrics, _ = evaluator.evaluate(compute_metrics=True, step=7, predict_fn=lambda dataset: predictions)
    evaluator.close()
    return metrics

  def test_logged_and_returned_under_the_mixtures_name(self):
    summaries.register('summed', lambda metrics: {'total': -1})
    summaries.register('summed', lambda metrics: {
        'total': np.float32(10 * metrics['summed_one']['hits'] + metrics['summed_two']['hits']),
        'numbers': len(metrics['summed_one'])})
    metrics = self.evaluate().result()
    # One hit each; the text is no number.
    self.assertEqual(metrics['summed'], {'total': 11.0, 'numbers': 1.0})
    self.assertEqual(metrics['summed_two']['hits'], 1)
    line, = pathlib.Path(self.folder, 'summed-metrics.jsonl').read_text().splitlines()
    self.assertEqual(json.loads(line), {'step': 7, 'total': 11.0, 'numbers': 1.0})
    self.assertFalse(list(pathlib.Path(self.folder).glob('summed-000*')))
    event_file, = pathlib.Path(self.folder, 'summed').glob('events*')
    tags = [v.tag for e in tf.compat.v1.train.summary_iterator(str(event_file)) for v in e.summary.value]
    self.assertCountEqual(tags, ['eval/total', 'eval/numbers'])

  def test_without_summary_as_seqio(self):
    self.assertEqual(sorted(self.evaluate().result()), ['summed_one', 'summed_two'])

  def test_a_summary_that_lacks_tasks_is_told_and_costs_no_metrics(self):
    def fail(metrics):
      raise ValueError(f'only {len(metrics)} tasks')

    summaries.register('summed', fail)
    with self.assertLogs(level='WARNING') as logs:
      metrics = self.evaluate(async_compute_metrics=False).result()
    self.assertIn('No summary of summed: only 2 tasks', logs.output[-1])
    self.assertEqual(sorted(metrics), ['summed_one', 'summed_two'])

  def test_other_faults_reach_whoever_waits(self):
    summaries.register('summed', lambda metrics: {'total': metrics['absent']['hits']})
    with self.assertRaisesRegex(KeyError, 'absent'):
      self.evaluate().result()


if __name__ == '__main__':
  absltest.main()
