"""A whole analysis of a small run with odd names: the page, the files, and the command line."""

from __future__ import annotations

import csv
import functools
import html.parser
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.analysis import __main__ as command
from cpoly_jax.analysis import findings, svg, texts
from tests.tasks import command_case

setUpModule, tearDownModule = testing.quick_compilation()

TASKS = ('<script>alert(1)</script>', '=HYPERLINK("x")', 'a"b\'& ../..', 'x' * 120)
HEADINGS = [
    'Which tasks use which skills', 'How sharp, sparse and evenly used', 'Which tasks are alike', 'Who borrows from whom',
    'How skills differ', 'Compared with the known skills', 'Compared with another run', 'Files']
# Of the query in the first layer: tasks 0 and 1 use common skill 1, task 2 the other one, task 3 none.
QUERY = 'encoder/layers_0/attention/query'
GIVEN = {f'{QUERY}/routing/common': np.array([[9, -9], [9, -9], [-9, 9], [-9, -9]], np.float32)}
TRUTH = {TASKS[0]: ['one'], TASKS[1]: ['one'], TASKS[2]: ['two'], TASKS[3]: ['three']}


class _Page(html.parser.HTMLParser):
  """What a browser would find: elements, texts of headings, cells of tables."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.ids, self.links, self.headings, self.cells, self._open = [], [], [], [], [], None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.links += [value for key, value in attrs.items() if key in ('href', 'xlink:href', 'src')]
    if tag in ('h1', 'h2', 'td'):
      self._open = (self.cells if tag == 'td' else self.headings)
      self._open.append('')

  def handle_endtag(self, tag):
    if tag in ('h1', 'h2', 'td'):
      self._open = None

  def handle_data(self, data):
    if self._open is not None:
      self._open[-1] += data


def _results(folder, scores):
  metrics = {task: {'accuracy': score} for task, score in zip(TASKS, scores)}
  (pathlib.Path(folder) / 'results.json').write_text(json.dumps({'metrics': metrics}))


class ReportTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.run_dir, cls.other, cls.out = folder / 'a <b> run', folder / 'shared', folder / 'out'
    sample_runs.write(str(cls.run_dir), TASKS, sample_runs.transformer(len(TASKS)), (3, 7), GIVEN)
    cls.other.mkdir()
    _results(cls.run_dir, (1., 2., 3., 4.))
    _results(cls.other, (2., 2., 1., 4.))
    (folder / 'truth.json').write_text(json.dumps(TRUTH))
    cls.result = command_case.run(command.main, cls.run_dir, f'--out={cls.out}', f'--truth={folder / "truth.json"}',
                                  f'--against={cls.other}')
    cls.text = (cls.out / 'report.html').read_text(encoding='utf-8') if (cls.out / 'report.html').exists() else ''
    cls.page = _Page(cls.text)
    cls.numbers = json.loads((cls.out / 'analysis.json').read_text()) if cls.text else {}

  def _rows(self, name):
    with open(self.out / f'{name}.csv', newline='', encoding='utf-8') as file:
      return list(csv.DictReader(file))

  def test_program(self):
    code, out, errors = self.result
    self.assertEqual((code, errors), (0, ''))
    self.assertIn('tasks: 4', out)
    self.assertIn(str(self.out / 'report.html'), out)

  def test_headings(self):
    self.assertEqual(self.page.headings, ['What a <b> run learned', *HEADINGS])

  def test_the_page_stands_alone(self):
    self.assertEmpty({'script', 'link', 'iframe', 'img', 'object', 'b'} & set(self.page.tags))
    for link in self.page.links:
      self.assertTrue(link.startswith(('#', 'data:image/png;base64,')) or (self.out / link).is_file(), link[:80])
    self.assertIn("default-src 'none'", self.text.replace('&#x27;', "'"))
    self.assertEmpty(re.findall(r'(?:src|href)="(?:https?:)?//', self.text))

  def test_ids_and_anchors(self):
    self.assertLen(set(self.page.ids), len(self.page.ids))
    self.assertContainsSubset([link[1:] for link in self.page.links if link.startswith('#')], self.page.ids)

  def test_names_are_shown_as_they_are(self):
    for name in TASKS:
      self.assertIn(texts.printable(name), self.page.cells)
    self.assertNotIn('<script', self.text)
    self.assertNotIn('<b>', self.text)

  def test_figures(self):
    files = sorted(path.name for path in (self.out / 'figures').iterdir())
    self.assertLen(files, 2 * self.page.tags.count('figure'))
    self.assertContainsSubset({'tree.svg', 'tree.png', 'borrowing.svg', 'truth.svg', 'gains.svg', 'course.svg'}, files)
    self.assertEqual((self.out / 'figures' / 'tree.png').read_bytes()[:4], b'\x89PNG')

  def test_names_of_files_have_no_names_of_tasks(self):
    files = [str(path.relative_to(self.out)) for path in self.out.rglob('*') if path.is_file()]
    self.assertEmpty([name for name in files if not re.fullmatch(r'(figures/)?[a-z_]+\.(csv|json|html|svg|png)', name)])
    self.assertCountEqual(files, ['report.html', 'analysis.json', *self.numbers['files']])

  def test_the_manual_names_every_file(self):
    manual = (pathlib.Path(__file__).resolve().parents[3] / 'docs' / 'analysis.md').read_text(encoding='utf-8')
    named = set(re.findall(r'`([a-z_]+)(?:\.csv)?`', manual))
    self.assertEmpty({pathlib.Path(name).stem for name in self.numbers['files']} - named)

  def test_csv_has_no_formulas(self):
    cells = [cell for path in self.out.glob('*.csv') for line in csv.reader(open(path, newline='')) for cell in line]
    self.assertIn("'=HYPERLINK(\"x\")", cells)
    self.assertEmpty([cell for cell in cells if re.match(r'[=+@\t]|-(?![\d.])', cell)])

  def test_partition(self):
    rows = [(row['skills'], row['tasks']) for row in self._rows('partition') if (row['router'], row['table']) == (QUERY, 'W_A')]
    self.assertEqual(rows, [('common 1', '2'), ('none', '1'), ('common 2', '1')])

  def test_statistics(self):
    row = next(row for row in self._rows('statistics') if (row['router'], row['table']) == (QUERY, 'W_A'))
    self.assertGreater(float(row['discreteness']), .99)
    self.assertEqual(float(row['sparsity']), 3 / 8)
    self.assertEqual({(row['table'], row['step']) for row in self._rows('summary')},
                     {(name, step) for name in ('W_A (common skills)', 'W_B (specific skills)') for step in ('3', '7')})

  def test_json_has_the_same_numbers(self):
    table = self.numbers['tables']['statistics']
    self.assertEqual([[*map(str, (cell for cell in row if cell is not None))] for row in table['rows']],
                     [[cell for cell in row.values() if cell] for row in self._rows('statistics')])
    self.assertEqual(self.numbers['tasks'], list(TASKS))
    self.assertNotIn('rows', self.numbers['tables']['routing'])

  def test_tables_are_the_checkpoints(self):
    row = next(row for row in self._rows('routing') if (row['router'], row['table'], row['task']) == (QUERY, 'W_A', TASKS[0]))
    self.assertEqual((row['kind'], row['first skill'], row['column 1'], row['column 2'], row['column 3']),
                     ('logits', 'common 1', '9.0', '-9.0', ''))

  def test_gains(self):
    self.assertEqual([(row['task'], row['gain']) for row in self._rows('gains')],
                     [(TASKS[2], '2.0'), ("'" + TASKS[1], '0.0'), (TASKS[3], '0.0'), (TASKS[0], '-1.0')])

  def test_truth(self):
    row = next(row for row in self._rows('truth_routers') if row['router'] == QUERY)
    self.assertGreater(float(row['recall']), .74)  # Both common skills, and a specific one or none for the third.

  def test_again_into_the_same_folder(self):
    out = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'copy'
    shutil.copytree(self.out, out)
    (out / 'mine.txt').write_text('kept')
    code, _, errors = command_case.run(command.main, self.run_dir, f'--out={out}', '--numbers_only')
    self.assertEqual((code, errors), (0, ''))
    self.assertTrue((out / 'mine.txt').exists())
    self.assertFalse((out / 'gains.csv').exists())
    self.assertEmpty([*(out / 'figures').iterdir()])


class MistakesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_refused(self, message, *arguments):
    code, out, errors = command_case.run(command.main, *arguments)
    self.assertEqual((code, out), (1, ''))
    self.assertRegex(errors, f'^error: .*{message}')
    self.assertLen(errors.strip().splitlines(), 1)

  def _run(self, tasks=('a', 'b'), **settings):
    settings = {'layers': 1, **settings}
    return sample_runs.write(str(self.folder / 'run'), tasks, sample_runs.transformer(len(tasks), **settings))

  def test_no_checkpoint(self):
    self.assert_refused('no checkpoint', self.folder / 'nowhere')

  def test_unknown_flag(self):
    self.assert_refused('--trush', 'run', '--trush=x')

  def test_without_matplotlib(self):
    with mock.patch.object(svg.importlib.util, 'find_spec', return_value=None):
      self.assert_refused(r"pip install 'cpoly-jax\[plots\]'", self._run())

  def test_diverged(self):
    path = sample_runs.write(str(self.folder / 'run'), ('a', 'b'), sample_runs.transformer(2, layers=1),
                             given={f'{QUERY}/routing/common': np.full((2, 2), np.nan, np.float32)})
    self.assert_refused('is not finite', path)

  def test_folders_of_others_are_not_touched(self):
    out = self.folder / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('kept')
    self.assert_refused('not empty', self._run(), f'--out={out}', '--numbers_only')
    self.assertEqual([path.name for path in out.iterdir()], ['mine.txt'])

  def test_nothing_to_compare_with_the_truth(self):
    (self.folder / 'truth.csv').write_text('task,x\na,1\nb,1\n')
    router = functools.partial(routing.TokenRouter, num_common=2)
    inventory = functools.partial(skills.LoRA, mixing=skills.PRODUCTS)
    code, _, errors = command_case.run(command.main, self._run(router=router, inventory=inventory), '--numbers_only',
                                       f'--truth={self.folder / "truth.csv"}')
    self.assertEqual(code, 0)
    self.assertRegex(errors, 'nothing to compare')

  def test_no_results(self):
    run = self._run()
    self.assert_refused('results.json', run, f'--against={run}')

  @parameterized.parameters('0', '7', '-2', 'many')
  def test_no_even_number_of_examples(self, number):
    self.assert_refused('no even number of examples', 'run', f'--examples={number}')

  def test_tasks_without_examples(self):
    self.assert_refused('write --examples=64, too', 'run', '--tasks=a')

  def test_one_checkpoint_and_one_task(self):
    run = self._run(('alone',))
    code, _, errors = command_case.run(command.main, f'{run}/checkpoint_7', '--numbers_only')
    self.assertEqual((code, errors), (0, ''))
    self.assertTrue((self.folder / 'run' / 'checkpoint_7_analysis' / 'analysis.json').exists())

  def test_damaged_older_checkpoint_is_told(self):
    run = sample_runs.write(str(self.folder / 'run'), ('a', 'b'), sample_runs.transformer(2, layers=1), (3, 7))
    (self.folder / 'run' / 'checkpoint_3' / 'checkpoint').write_bytes(b'')
    found = findings.analyse(run)
    self.assertLen(found.notes, 1)
    self.assertIn('checkpoint_3 is left out', found.notes[0])
    self.assertEqual({moment.step for moment in found.moments}, {7})


if __name__ == '__main__':
  absltest.main()
