"""docs/crossfit.md: its commands are configured as they stand, and its tables say what the code does."""

from __future__ import annotations

import inspect
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from tasks import crossfit
from tasks import crossfit_metrics
from tests.docs import docs_page
from tests.tasks import command_case

PAGE = docs_page.Page('crossfit')
COMMANDS = PAGE.commands('t5x.train')


class CrossFitDocsTest(docs_page.DocsTestCase, command_case.FolderTestCase):

  page = PAGE

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(os.environ, {crossfit.VARIABLE: str(self.folder)}))

  def test_there_are_commands(self):
    self.assertLen(COMMANDS, 4)

  @parameterized.parameters(*((i, *command) for i, command in enumerate(zip(COMMANDS, (120, 1, 1, 2)))))
  def test_commands_are_configured(self, _, arguments, number):
    for part in ('train', 'test'):
      self.write(f'anli/anli_{part}.tsv', 'a\tb\n')
    self.configure(arguments)
    name = gin.query_parameter('%MIXTURE_OR_TASK_NAME')
    name = name if isinstance(name, str) else name.scoped_configurable_fn()
    self.assertLen(seqio.get_subtasks(seqio.get_mixture_or_task(name)), number)

  def test_mixtures(self):
    for name, number, *_ in PAGE.table('mixture')[:-1]:
      self.assertLen(seqio.MixtureRegistry.get(name).tasks, int(number))

  def test_metrics(self):
    tasks = crossfit.task_table().values()
    rows = PAGE.table('metric')
    self.assertCountEqual([row[0] for row in rows], crossfit_metrics.METRICS)
    for metric, number, number_test, name, _ in rows:
      self.assertEqual(int(number), sum(task.metric == metric for task in tasks))
      self.assertEqual(int(number_test), sum(task.metric == metric and task.partition == 'test' for task in tasks))
      self.assertEqual(name, crossfit_metrics.METRICS[metric].__name__)

  def test_settings(self):
    from tasks import records
    modules = {'crossfit': crossfit, 'crossfit_metrics': crossfit_metrics, 'records': records}
    for setting, default, _ in PAGE.table('setting'):
      module, function, parameter = setting.split('.')
      signature = inspect.signature(inspect.unwrap(getattr(modules[module], function)))
      self.assertEqual(repr(signature.parameters[parameter].default), default)

  def test_there_are_files(self):
    self.assertGreater(len(PAGE.files()), 3)


if __name__ == '__main__':
  absltest.main()
