"""Tests of the record of the losses, of what is shown, and of the results table."""

from __future__ import annotations

import io
import json
import pathlib
import re
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from clu import metrics as clu_metrics
import jax.numpy as jnp
import numpy as np
from t5x import metrics as metrics_lib
from t5x import progress
from t5x import report


def _metrics(loss: float, tokens: int = 10, examples: int = 4):
  return {
      'loss': metrics_lib.AveragePerStep(steps=1, total=jnp.float32(loss)),
      'loss_per_nonpadding_target_token': clu_metrics.Average(total=jnp.float32(loss), count=jnp.int32(tokens)),
      'timing/seqs': metrics_lib.Sum(total=jnp.int32(examples)),
      'timing/seconds': metrics_lib.Time(),
  }


def _progress(folder, start=0, total=100, period=10):
  stream = io.StringIO()
  shown = progress.Progress(folder, start, total, 4, period, stream)
  shown.resume()
  return shown, stream


class _Slow:
  """A number on a device, there once `is_ready` says so."""

  def __init__(self, value, is_ready):
    self.value, self.is_ready = value, is_ready

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.value, dtype)


def _record(folder) -> list[dict]:
  lines = pathlib.Path(folder, progress.RECORD_FILE).read_text().splitlines()
  return [json.loads(line) for line in lines]


class ProgressTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()

  def test_every_step_is_recorded(self):
    shown, _ = _progress(self.folder)
    for step in range(1, 51):
      shown(step, _metrics(loss=5.0 * step, tokens=10))
    shown.flush()
    record = _record(self.folder)
    self.assertEqual([line['step'] for line in record], list(range(1, 51)))
    self.assertEqual(record[3], {'step': 4, 'loss': 20.0, 'target_tokens': 10, 'examples': 4})

  def test_a_resumed_run_leaves_neither_gap_nor_duplicate(self):
    shown, _ = _progress(self.folder)
    for step in range(1, 8):
      shown(step, _metrics(1.0))
    shown.flush()
    path = pathlib.Path(self.folder, progress.RECORD_FILE)
    path.write_text(path.read_text() + '{"step": 8, "lo')  # The process was killed while it wrote.
    again, _ = _progress(self.folder, start=5)
    for step in range(6, 10):
      again(step, _metrics(2.0))
    again.close()
    self.assertEqual([(x['step'], x['loss']) for x in _record(self.folder)],
                     [(s, 1.0) for s in range(1, 6)] + [(s, 2.0) for s in range(6, 10)])

  def test_lines_appear_at_the_period_and_tell_loss_and_rates(self):
    shown, stream = _progress(self.folder, total=20, period=10)
    shown._line_time = float('inf')  # No line because time went by.
    for step in range(1, 21):
      shown(step, _metrics(30.0))
      shown._line_time = float('inf')
    shown.flush()
    lines = stream.getvalue().splitlines()
    self.assertLen(lines, 2)
    self.assertStartsWith(lines[0], 'step 10/20  loss 30.0000')
    for part in ('examples/s', 'target tokens/s', 'ETA 0:00:0'):
      self.assertIn(part, lines[0])

  def test_steps_under_way_at_a_stop_do_not_count_in_no_time(self):
    """A stop that waits for nothing, as one for the summaries of training, does not restart the clock of the rates."""
    with mock.patch.object(progress.time, 'monotonic', side_effect=lambda: self.now):
      self.now = 100.0
      shown, stream = _progress(self.folder, total=40, period=10)
      for step in range(1, 21):
        slow = _metrics(1.0)
        slow['loss'] = types.SimpleNamespace(total=_Slow(1.0, lambda done=100.0 + step: self.now >= done))
        shown(step, slow)
        if step == 10:  # Step 8 is done.
          self.now = 108.5
          shown.resume()
      self.now = 120.0
      shown.flush()
      self.now = 500.0  # It evaluates; all is done: that is no time of training.
      shown.resume()
      self.now = 510.0
      shown(21, _metrics(1.0))
      shown.flush()
    lines = stream.getvalue().splitlines()
    # Steps 9 to 20 are read at once: all lines tell the rate of all of them.
    self.assertEqual([' 4 examples/s' in line for line in lines if re.match('step (9|10|20)/', line)], [True] * 3)
    self.assertIn(' 0.4 examples/s', lines[-1])

  def test_metrics_of_another_trainer_are_no_error(self):
    shown, _ = _progress(self.folder)
    shown(1, {'something': clu_metrics.Average(total=jnp.float32(1), count=jnp.int32(1))})
    shown.flush()
    self.assertEqual(_record(self.folder), [{'step': 1}])


class ReportTest(absltest.TestCase):

  def test_table_has_scores_of_tasks_and_their_mean(self):
    rows = report.table({'cb': {'accuracy': 80.0, 'f1': 60.0}, 'boolq': {'accuracy': 90.0}})
    self.assertEqual(rows[1:], [['boolq', 'accuracy 90', '90'], ['cb', 'accuracy 80  f1 60', '70'], ['mean', '', '80']])

  def test_files_and_text_agree(self):
    folder = tempfile.mkdtemp()
    text = report.write_results(folder, 7, {'rev': {'em': 12.5}}, {'wall_seconds': 3.0, 'steps_per_second': 2.5})
    result = json.loads(pathlib.Path(folder, 'results.json').read_text())
    self.assertEqual(result['metrics'], {'rev': {'em': 12.5}})
    self.assertEqual((result['mean'], result['step'], result['steps_per_second']), (12.5, 7, 2.5))
    self.assertIn('| rev | em 12.5 | 12.5 |', pathlib.Path(folder, 'results.md').read_text())
    self.assertIn(folder, text)
    self.assertIn('em 12.5', text)

  def test_first_evaluation_stands_beside_the_last_and_baselines_do_not_count(self):
    rows = report.table({'a': {'em': 0.75, 'baseline_copy': 0.25}, 'b': {'em': 0.5, 'baseline_copy': 0.0}},
                        {'a': (0, {'em': 0.0}), 'b': (0, {'em': 0.5})})
    self.assertEqual(rows[0], ['task', 'metrics', 'score at step 0', 'score'])
    self.assertEqual(rows[1], ['a', 'baseline_copy 0.25  em 0.75', '0', '0.75'])
    self.assertEqual(rows[3], ['mean', 'baseline_copy 0.125', '0.25', '0.625'])

  def test_a_mixtures_own_numbers_stand_below_the_tasks_and_count_in_no_mean(self):
    metrics = {'a': {'em': 40.0}, 'b': {'em': 60.0}, 'ab': {'score': 99.0, 'hard': 7.0}}
    rows = report.table(metrics, {'a': (0, {'em': 10.0}), 'ab': (0, {'score': 1.0})}, 'ab')
    self.assertEqual([row[0] for row in rows], ['task', 'a', 'b', 'mean', 'ab', 'ab'])
    self.assertEqual(rows[3:], [['mean', '', '10', '50'], ['ab', 'hard', '-', '7'], ['ab', 'score', '1', '99']])
    # The name of a single task is its own.
    self.assertEqual(report.table({'a': {'em': 4.0}}, None, 'a')[1:], [['a', 'em 4', '4']])
    folder = tempfile.mkdtemp()
    report.write_results(folder, 7, metrics, {}, mixture='ab')
    result = json.loads(pathlib.Path(folder, 'results.json').read_text())
    self.assertEqual((result['mean'], result['summary']), (50.0, {'ab': {'score': 99.0, 'hard': 7.0}}))
    self.assertEqual(sorted(result['metrics']), ['a', 'b'])

  def test_last_line_of_each_task_counts(self):
    folder = tempfile.mkdtemp()
    lines = '{"step": 3, "em": 1.0}\n{"step": 6, "em": 2.0, "note": "x"}\n'
    pathlib.Path(folder, 'rev-metrics.jsonl').write_text(lines)
    self.assertEqual(report.read_metrics(folder), {'rev': (6, {'em': 2.0, 'note': 'x'})})
    self.assertEqual(report.read_metrics(folder, first=True), {'rev': (3, {'em': 1.0})})
    self.assertEqual(report.read_metrics(folder + '/absent'), {})

  def test_text_and_histograms_are_no_numbers(self):
    self.assertEqual(report.scalars({'a': 1, 'b': 'text', 'c': [1, 2]}), {'a': 1.0})

  def test_a_short_text_is_shown_and_counts_in_no_mean(self):
    text = types.SimpleNamespace(textdata='hard')
    metrics = report.shown({'em': 4.0, 'kind': text, 'sample': 'two\nlines', 'long': 'x' * 61, 'curve': [1, 2]})
    self.assertEqual(metrics, {'em': 4.0, 'kind': 'hard'})
    rows = report.table({'a': metrics}, {'a': (0, {'em': 2.0, 'kind': 'hard'})})
    self.assertEqual(rows[1], ['a', 'em 4  kind hard', '2', '4'])
    self.assertEqual(report.result_line(3, 'a', metrics), 'step 3  eval a: em 4  kind hard')


if __name__ == '__main__':
  absltest.main()
