"""Scores from what runs write, and tables from small synthetic runs, with values by hand."""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_experiments  # pylint: disable=g-import-not-at-top
from cpoly_jax.experiments import bootstrap
from cpoly_jax.experiments import measures
from cpoly_jax.experiments import results

STEPS = {'a': {0: {'exact_match': 0., 'f1': 0.2, 'baseline_copy': 1.},
               10: {'exact_match': 0.5, 'f1': 0.7, 'baseline_copy': 1.}},
         'b': {0: {'exact_match': 0.1, 'f1': 0.1}, 10: {'exact_match': 0.9, 'f1': 0.7, 'category': 'text'}}}


class MeasuresTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_one_metric(self):
    sample_experiments.write_run(self.folder, STEPS)
    found = measures.read(self.folder, 'exact_match')
    self.assertEqual(found.final, {'a': 0.5, 'b': 0.9})
    self.assertAlmostEqual(found.score, 0.7)
    self.assertEqual(list(found.curve), [0, 10])
    self.assertAlmostEqual(found.curve[0], 0.05)

  def test_mean_of_metrics_leaves_out_baselines_and_texts(self):
    sample_experiments.write_run(self.folder, STEPS)
    self.assertEqual(measures.read(self.folder).final, {'a': 0.6, 'b': 0.8})

  def test_mixtures_are_no_tasks(self):
    sample_experiments.write_run(self.folder, {**STEPS, 'all': {10: {'exact_match': 0.}}}, step=10, mixture='all')
    self.assertCountEqual(measures.read(self.folder, 'exact_match').final, ['a', 'b'])

  def test_curve_has_the_steps_that_all_tasks_have(self):
    sample_experiments.write_run(self.folder, {'a': STEPS['a'], 'b': {10: STEPS['b'][10]}})
    self.assertEqual(list(measures.read(self.folder, 'f1').curve), [10])

  def test_examples(self):
    sample_experiments.write_run(self.folder, STEPS, examples={1: 5, 2: 6, 10: 7})
    found = measures.read(self.folder)
    self.assertEqual([found.examples_at(step, 4) for step in (1, 2, 10, 20)], [5, 11, 18, 80])
    self.assertIsNone(found.examples_at(20, None))
    self.assertEqual(found.final_loss, 0.1)

  def test_line_that_was_cut(self):
    sample_experiments.write_run(self.folder, STEPS)
    file = self.folder / 'inference_eval' / 'a-metrics.jsonl'
    file.write_text(file.read_text() + '{"step": 2')
    self.assertEqual(measures.read(self.folder).final, {'a': 0.6, 'b': 0.8})
    file.write_text('{"step": 2\n')
    with self.assertRaisesRegex(ValueError, 'a-metrics.jsonl:1 is no JSON'):
      measures.read(self.folder)

  def test_unknown_metric(self):
    sample_experiments.write_run(self.folder, STEPS)
    with self.assertRaisesRegex(ValueError, 'no task has the metric accuracy; there are baseline_copy, exact_match, f1'):
      measures.read(self.folder, 'accuracy')

  def test_nothing_there(self):
    self.assertIsNone(measures.read(self.folder).score)
    self.assertIsNone(measures.last_step(self.folder))

  @parameterized.parameters((0.05, 0), (0.06, 10), (0.7, 10), (0.71, None))
  def test_steps_to(self, score, expected):
    sample_experiments.write_run(self.folder, STEPS)
    self.assertEqual(measures.read(self.folder, 'exact_match').steps_to(score), expected)


class ResultsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with sample_experiments.without_gin():
      cls.plan = sample_experiments.make_plan(sample_experiments.TWO + "RANK = [2]\n")
      finals = {'cpoly RANK=2 seed=0': (0.8, 0.6), 'cpoly RANK=2 seed=1': (1., 0.4), 'poly RANK=2 seed=0': (0.5, 0.7)}
      for run in cls.plan.runs:
        if run.name in finals:
          a, b = finals[run.name]
          sample_experiments.end_run(run, {'a': {2: a / 2, 4: a}, 'b': {2: b / 2, 4: b}})
      cls.stage, = results.stages(cls.plan)

  def test_scores_and_parameters(self):
    cpoly, poly = self.stage.arms
    self.assertEqual((cpoly.arm.label, poly.arm.label), ('cpoly RANK=2', 'poly RANK=2'))
    self.assertEqual(cpoly.score, bootstrap.Estimate(0.7, 0.7, 0.7))
    self.assertEqual((poly.score.mean, poly.score.low), (0.6, None))
    self.assertEqual((len(poly.measured), poly.planned), (1, 2))
    self.assertEqual((cpoly.trainable, cpoly.active), (20, 10))  # 5 letters of cpoly, rank 2.
    self.assertAlmostEqual(cpoly.task('a').mean, 0.9)
    self.assertIsNone(cpoly.task('c'))

  def test_differences_are_paired(self):
    found, = results.differences(self.stage)
    # Seed 0 alone is done for both: poly less cpoly is -0.3 on a and 0.1 on b.
    self.assertEqual((found.label, found.reference, found.seeds, found.tasks, found.better), (
        'poly RANK=2', 'cpoly RANK=2', 1, 2, 1))
    np.testing.assert_allclose([found.estimate.mean, found.estimate.low, found.estimate.high], [-0.1, -0.3, 0.1], atol=1e-12)

  def test_reached(self):
    half, all_of_it = results.reached(self.stage.arms[0], 1., (0.35, 0.75))
    self.assertEqual(half, results.Reached(0.35, 2, 2, 2., 16.))  # Batches of 8.
    self.assertEqual(all_of_it, results.Reached(0.75, 0, 2, None, None))

  def test_median_counts_those_that_never_get_there(self):
    runs = {seed: measures.Measured({'a': {step: 1.}}) for seed, step in ((0, 10), (1, 30))}
    runs[2] = measures.Measured({'a': {50: 0.}})
    one = results.ArmResult(self.stage.arms[0].arm, runs, 3, batch_size=2)
    self.assertEqual(results.reached(one, 1., (0.5,)), [results.Reached(0.5, 2, 3, 30., 60.)])

  def test_front(self):
    points = [(10, 0.5), (20, 0.5), (20, 0.9), (40, 0.8), (5, 0.1), (20, 0.9)]
    self.assertEqual(results.front(points), [True, False, True, False, True, True])


class TuningTest(absltest.TestCase):

  def test_trials(self):
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(sample_experiments.TWO + "[tune]\nseed = 7\n[tune.grid]\nRATE = [1, 2, 3]\n")
      scores = {'cpoly RATE=1': 0.2, 'cpoly RATE=2': 0.6, 'cpoly RATE=3': 0.6, 'poly RATE=1': 0.3}
      for run in plan.runs:
        if run.name in scores:
          self.assertEqual(run.bindings['EVAL_SPLIT'], "'validation'")
          sample_experiments.end_run(run, {'a': {4: scores[run.name]}})
      plan.settle()
      found = results.trials(plan)
    self.assertEqual([(one.label, one.score, one.chosen) for one in found], [
        ('cpoly', 0.2, False), ('cpoly', 0.6, True), ('cpoly', 0.6, False), ('poly', 0.3, False), ('poly', None, False),
        ('poly', None, False)])
    main = {run.name: run for run in plan.runs if run.stage == 'main'}
    self.assertEqual(main['cpoly seed=1'].bindings['RATE'], '2')
    self.assertEqual(main['cpoly seed=1'].bindings['RANDOM_SEED'], '1')
    self.assertIsNone(main['poly seed=0'].folder)


if __name__ == '__main__':
  absltest.main()
