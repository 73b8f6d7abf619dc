"""The report of an experiment with odd names: tables, figures, and nothing of a name that becomes more than text."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import os
import pathlib
import shutil
import sys
import tempfile

from absl.testing import absltest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_experiments  # pylint: disable=g-import-not-at-top
from cpoly_jax.experiments import output

ODD = '<b>a|b"</b>'
TASKS = ('<img src=x onerror=alert(1)>', '=1+1', 'plain_task')
TEXT = f"""
title = 'A <i>title</i>'
question = 'Is a|b | c?'
gin_files = ['gin_configs/cpoly_tiny.gin']
metric = 'exact_match'
fractions = [0.25, 0.5]
[grid]
system = ['cpoly', '{ODD}']
seed = [0, 1]
[variants.'{ODD}']
system = 'poly'
[tune]
seed = 9
[tune.grid]
RATE = ['<x>', 2]
[[after]]
name = '</title>'
bindings = {{X = '{{first}}'}}
"""


class _Page(html.parser.HTMLParser):
  """Elements, and the texts of table cells."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.cells, self.title, self._open = [], [], '', None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self._open = tag
    if tag == 'td':
      self.cells.append('')

  def handle_endtag(self, tag):
    self._open = None

  def handle_data(self, data):
    if self._open == 'td':
      self.cells[-1] += data
    if self._open == 'title':
      self.title += data


class ReportTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(TEXT)
      output.note_plan(plan)
      for _ in range(3):  # Tuning, then first runs, then those after them.
        plan.settle()
        for run in plan.runs:
          if run.folder is not None and not run.is_done:
            score = 0.25 + 0.25 * (run.arm.label == ODD) + 0.1 * (run.seed == 1)
            sample_experiments.end_run(run, {task: {2: score / 2, 4: score} for task in TASKS})
      cls.plan, cls.page = plan, output.write(plan)
    cls.folder = pathlib.Path(plan.out, 'report')
    cls.html = _Page(pathlib.Path(cls.page).read_text())
    cls.markdown = (cls.folder / 'report.md').read_text()

  def test_all_runs_are_done(self):
    self.assertTrue(all(run.is_done for run in self.plan.runs))
    self.assertIn('12 of 12 runs are done.', self.markdown)

  def test_names_are_text_in_the_page(self):
    self.assertNoCommonElements(self.html.tags, ['script', 'img', 'b', 'i', 'iframe', 'link'])
    self.assertContainsSubset([ODD, *TASKS], self.html.cells)
    self.assertEqual(self.html.title, 'A <i>title</i>')
    self.assertIn("default-src 'none'", pathlib.Path(self.page).read_text().replace('&#x27;', "'"))

  def test_figures_are_inside(self):
    self.assertEqual(self.html.tags.count('svg'), 10)  # Five for each of two stages.

  def test_names_are_text_in_markdown(self):
    self.assertNotIn('<', self.markdown)
    row = next(line for line in self.markdown.splitlines() if line.startswith('| &lt;b&gt;a'))
    self.assertEqual(row.replace('\\|', '').count('|'), row.replace('\\|', '').count(' | ') + 2)
    self.assertStartsWith(row, '| &lt;b&gt;a\\|b"&lt;/b&gt; | 2 | 0.550 | 0.500 | 0.600 | ')

  def test_tables(self):
    with open(self.folder / 'main_systems.csv', newline='') as f:
      header, *rows = csv.reader(f)
    self.assertEqual(header, ['system', 'seeds', 'score', '95 % low', '95 % high', 'trainable', 'active'])
    self.assertEqual(rows, [
        [ODD, '2', '0.55', '0.5', '0.6', '32', '16'], ['cpoly', '2', '0.3', '0.25', '0.35', '40', '20']])
    with open(self.folder / 'main_differences.csv', newline='') as f:
      _, row = csv.reader(f)
    self.assertEqual(row, [ODD, 'cpoly', '0.25', '0.25', '0.25', '2', '3', '3'])
    with open(self.folder / 'after1_tasks.csv', newline='') as f:
      self.assertIn("'=1+1", [row[0] for row in csv.reader(f)])  # No formula for a spreadsheet.
    with open(self.folder / 'tuning.csv', newline='') as f:
      self.assertEqual([row[0:2] + row[3:] for row in csv.reader(f)][1:3], [
          ['cpoly', '<x>', 'chosen'], ['cpoly', '2', '']])

  def test_numbers_as_json(self):
    numbers = json.loads((self.folder / 'report.json').read_text())
    self.assertEqual(numbers['facts']['done'], 12)
    reached = {tuple(row[:2]): row[2:] for row in numbers['tables']['main_reached']['rows']}
    self.assertEqual(reached['cpoly', 0.5], [0.5, 0, 2, None, None, None])
    self.assertEqual(reached[ODD, 0.5][-1], None)  # Its reference did not get there.
    (*_, first, _, to_itself), (*_, steps, _, ratio) = (reached[label, 0.25] for label in ('cpoly', ODD))
    self.assertEqual((to_itself, ratio), (1., steps / first))
    self.assertNotEqual(steps, first)
    self.assertContainsSubset(['main_pareto.csv', 'figures/main_curves.svg', 'figures/after1_scores.png'], numbers['files'])

  def test_written_again_without_figures(self):
    out = pathlib.Path(tempfile.mkdtemp(), 'copy')
    shutil.copytree(self.plan.out, out)
    (out / 'report' / 'mine.txt').write_text('kept')
    self.assertNotEmpty(list((out / 'report' / 'figures').iterdir()))
    output.write(dataclasses.replace(self.plan, out=str(out)), numbers_only=True)
    self.assertEmpty(list((out / 'report' / 'figures').iterdir()))
    self.assertTrue((out / 'report' / 'mine.txt').exists())

  def test_plan_file(self):
    output.note_plan(self.plan)
    noted = json.loads(pathlib.Path(self.plan.out, 'plan.json').read_text())
    self.assertEqual(noted['text'], TEXT)
    self.assertLen(noted['runs'], 12)
    run = next(run for run in noted['runs'] if run['name'] == 'cpoly seed=1')
    self.assertEqual((run['chosen'], run['bindings']), ({'RATE': "'<x>'"}, {'RATE': "'<x>'", 'RANDOM_SEED': '1'}))


if __name__ == '__main__':
  absltest.main()
