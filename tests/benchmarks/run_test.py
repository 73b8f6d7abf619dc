"""Tests of the table of all benchmarks: bars, what is left out, and failures."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from benchmarks import run


class RowTest(parameterized.TestCase):

  @parameterized.parameters((1.1, 1.1, False, 'met'), (1.11, 1.1, False, 'missed'), (1.5, 1.5, True, 'met'),
                            (1.4, 1.5, True, 'missed'), (9., None, False, ''))
  def test_bars(self, value, bar, at_least, verdict):
    self.assertEqual(run.Row('x', value, bar, at_least).verdict, verdict)

  def test_the_first_number_of_tasks_is_the_reference(self):
    figures = [{'specific': 'rows', 'tasks': 8, 'ratio': 1.}, {'specific': 'rows', 'tasks': 1600, 'ratio': 1.2},
               {'specific': 'learned_rows', 'tasks': 8, 'ratio': 1.}, {'specific': 'learned_rows', 'tasks': 100, 'ratio': 1.3}]
    rows = list(run.BENCHMARKS['task_scaling'].rows(figures))
    self.assertEqual([(row.value, row.verdict) for row in rows], [(1.2, 'missed'), (1.3, 'met')])
    self.assertEqual(rows[0].what, 'train step, T = 1600 / T = 8, rows')

  def test_ratios_of_peft(self):
    figures = {'poly': {'seconds': 2., 'ratio': .7, 'flops': 105., 'flops_by_hand': 100., 'seconds_at_matmul_rate': 1.},
               'PEFT eager': {'seconds': 3., 'ratio': 1.}}
    self.assertEqual([(row.value, row.verdict) for row in run.BENCHMARKS['peft_poly'].rows(figures)],
                     [(.7, 'met'), (2., 'missed'), (1.05, 'met')])

  def test_benchmarks_exist(self):
    for name, benchmark in run.BENCHMARKS.items():
      self.assertTrue(pathlib.Path(run.__file__).with_name(f'{benchmark.module}.py').exists(), name)

  def test_what_is_missing_is_named(self):
    benchmark = run.Benchmark('packing', lambda _: iter(()), packages=('no_such_package',), variables=('NO_SUCH_DIR',))
    with mock.patch.dict(os.environ):
      os.environ.pop('NO_SUCH_DIR', None)
      self.assertEqual(benchmark.lacks(), 'needs the package no_such_package, needs NO_SUCH_DIR')

  def test_table(self):
    where = {'cpu': 'a chip', 'cores': 2, 'system': 'Linux', 'python': '3.11', 'versions': {'jax': '1.2'}}
    table = run.markdown({'one': [run.Row('a / b', .8123, .8), run.Row('c', 2., 1.5, True)]}, {'two': 'needs DIR'}, where)
    self.assertIn('| one | a / b | 0.812 | ≤ 0.8 | missed |', table)
    self.assertIn('| one | c | 2 | ≥ 1.5 | met |', table)
    self.assertIn('a chip, 2 cores, Linux, Python 3.11; jax 1.2.\nLeft out: two (needs DIR).', table)


class CommandTest(absltest.TestCase):

  def _run(self, *flags):
    return subprocess.run([sys.executable, '-m', 'benchmarks.run', *flags], capture_output=True, text=True, check=False,
                          cwd=pathlib.Path(run.__file__).parents[1])

  def test_figures_that_are_there_make_a_table(self):
    out = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (out / 'startup.json').write_text(json.dumps({'ratio': .5}))
    done = self._run(f'--out={out}', '--only=startup', '--reuse')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('| startup | start-up / google-research/t5x | 0.5 | ≤ 1 | met |', done.stdout)
    results = json.loads((out / 'results.json').read_text())
    self.assertEqual(results['rows']['startup'][0]['verdict'], 'met')
    self.assertEqual(done.stdout.splitlines()[1:], (out / 'results.md').read_text().splitlines() + [''])

  def test_an_unknown_name(self):
    done = self._run('--only=adaptors')
    self.assertEqual(done.returncode, 1)
    self.assertIn('no benchmark adaptors; there are adapters, ', done.stderr + done.stdout)


if __name__ == '__main__':
  absltest.main()
