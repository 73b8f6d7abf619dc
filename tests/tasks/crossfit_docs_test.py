"""docs/crossfit.md: its commands are configured as they stand, and its tables say what the code does."""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import shlex
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import gin_utils

from cpoly_jax.systems import configured
from tasks import crossfit
from tasks import crossfit_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'crossfit.md').read_text(encoding='utf-8')


def _commands():
  """Returns the arguments of each `python -m t5x.train` in the bash blocks."""
  blocks = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)).replace('\\\n', ' ')
  found = [shlex.split(line) for line in blocks.splitlines()]
  return [tuple(words[3:]) for words in found if words[:3] == ['python', '-m', 't5x.train']]


def _table(first):
  """Returns the rows of the table whose first heading is `first`."""
  lines = TEXT.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith(f'| {first} |'))
  rows = []
  for line in lines[start + 2:]:
    if not line.startswith('|'):
      return rows
    rows.append([cell.strip().strip('`') for cell in line.strip('|').split('|')])
  return rows


class CrossFitDocsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.addCleanup(gin.clear_config)
    gin.clear_config()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {crossfit.VARIABLE: str(self.folder)}))

  def test_there_are_commands(self):
    self.assertLen(_commands(), 4)

  @parameterized.parameters(*((i, *command) for i, command in enumerate(zip(_commands(), (120, 1, 1, 2)))))
  def test_commands_are_configured(self, _, arguments, number):
    (self.folder / 'anli').mkdir()
    for part in ('train', 'test'):
      (self.folder / 'anli' / f'anli_{part}.tsv').write_text('a\tb\n')
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    with configured.as_training():
      gin_utils.parse_gin_flags([str(ROOT)], files, bindings)  # Checks that nothing is misspelt or missing, too.
    name = gin.query_parameter('%MIXTURE_OR_TASK_NAME')
    name = name if isinstance(name, str) else name.scoped_configurable_fn()
    self.assertLen(seqio.get_subtasks(seqio.get_mixture_or_task(name)), number)

  def test_mixtures(self):
    for name, number, *_ in _table('mixture')[:-1]:
      self.assertLen(seqio.MixtureRegistry.get(name).tasks, int(number))

  def test_metrics(self):
    tasks = crossfit.task_table().values()
    rows = _table('metric')
    self.assertCountEqual([row[0] for row in rows], crossfit_metrics.METRICS)
    for metric, number, number_test, name, _ in rows:
      self.assertEqual(int(number), sum(task.metric == metric for task in tasks))
      self.assertEqual(int(number_test), sum(task.metric == metric and task.partition == 'test' for task in tasks))
      self.assertEqual(name, crossfit_metrics.METRICS[metric].__name__)

  def test_settings(self):
    from tasks import records
    modules = {'crossfit': crossfit, 'crossfit_metrics': crossfit_metrics, 'records': records}
    for setting, default, _ in _table('setting'):
      module, function, parameter = setting.split('.')
      signature = inspect.signature(inspect.unwrap(getattr(modules[module], function)))
      self.assertEqual(repr(signature.parameters[parameter].default), default)

  def test_files_exist(self):
    named = set(re.findall(r'\b(?:gin_configs|tests|tasks/assets)/[\w/]+\.(?:gin|py|csv)', TEXT))
    self.assertGreater(len(named), 3)
    self.assertEqual({name for name in named if not (ROOT / name).is_file()}, set())


if __name__ == '__main__':
  absltest.main()
