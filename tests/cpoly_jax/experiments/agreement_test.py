"""Known skills in the report of an experiment: routings that have them, one that has not, and runs that cannot be analysed."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(sys.path[0], os.pardir, 'analysis'))
import sample_experiments  # pylint: disable=g-import-not-at-top
import sample_runs
from cpoly_jax import routing
from cpoly_jax.experiments import agreement
from cpoly_jax.experiments import output

TASKS = ('a', 'b', 'c', 'd')
KNOWN = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
TEXT = """
title = 'Known skills'
gin_files = ['gin_configs/cpoly_tiny.gin']
truth = '{truth}'
[grid]
system = ['cpoly', 'poly', 'shared']
seed = [0, 1]
"""


def _with_tables(value):
  """A sample run of Poly, all of whose tables [T, 2] have these logits."""
  model = sample_runs.transformer(len(TASKS), functools.partial(routing.PolyRouter, num_skills=2))
  tables = {name: value.astype(np.float32) for name, like in sample_runs.drawn(model).items() if like.shape == value.shape}
  assert tables
  return model, tables


class AgreementTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    truth = pathlib.Path(tempfile.mkdtemp(), 'known.csv')
    truth.write_text('task,x,y\n' + ''.join(f'{task},{x},{y}\n' for task, (x, y) in zip(TASKS, KNOWN)))
    with sample_experiments.without_gin():
      cls.plan = sample_experiments.make_plan(TEXT.format(truth=truth))
      output.note_plan(cls.plan)
      cls.plan.settle()
      for run in cls.plan.runs:
        sample_experiments.end_run(run, {task: {4: 0.5} for task in TASKS})
        # Poly has the known skills, in both seeds; C-Poly in its first; in its second two tasks are exchanged.
        if run.arm.label == 'poly' or run.seed == 0:
          logits = 8.0 * (2 * KNOWN - 1)
        else:
          logits = 8.0 * (2 * KNOWN[[0, 2, 1, 3]] - 1)
        if run.arm.label != 'shared':
          model, tables = _with_tables(logits)
          sample_runs.write(str(run.folder.path), TASKS, model, given=tables)

  def test_means_over_seeds(self):
    found, notes = agreement.agreements(self.plan)
    self.assertEqual([(one.label, one.seeds) for one in found], [('cpoly', 2), ('poly', 2)])
    crossed, known = (one.estimates for one in found)
    self.assertAlmostEqual(known['correlation'].mean, 1., places=5)
    self.assertAlmostEqual(known['adjusted Rand index'].mean, 1., places=5)
    self.assertEqual(known['F1, best router'].mean, 1.)
    self.assertAlmostEqual(crossed['F1, best router'].mean, (1 + 0.5) / 2)
    # Pairs of tasks: 2 alike and 4 not; of the 2 that the crossed rows make alike none is: correlation -2 * 2 / (2 * 4) = -0.5.
    self.assertAlmostEqual(crossed['correlation'].mean, (1 - 0.5) / 2, places=4)
    self.assertEqual((round(crossed['correlation'].low, 4), round(crossed['correlation'].high, 4)), (-0.5, 1.))
    self.assertLen(notes, 2)
    self.assertRegex(notes[0], '^shared.* is left out: .* is not a checkpoint')

  def test_in_the_report(self):
    page = output.write(self.plan, numbers_only=True)
    rows = json.loads(pathlib.Path(page).with_name('report.json').read_text())['tables']['agreement']['rows']
    self.assertEqual([row[0::2] for row in rows if row[1] == 'correlation'][0][:2], ['poly', 2])
    self.assertEqual([row[0] for row in rows if row[1] == 'correlation'], ['poly', 'cpoly'])
    self.assertIn('Known skills and the routing', pathlib.Path(page).read_text())


if __name__ == '__main__':
  absltest.main()
