"""docs/adapt_and_grow.md: its commands parse, its macros exist, and its defaults are those of the gin file."""

from __future__ import annotations

import ast

from absl.testing import absltest
import gin

from cpoly_jax.growth import __main__ as growth
from tests.docs import docs_page


class AdaptAndGrowTest(docs_page.DocsTestCase):

  page = docs_page.Page('adapt_and_grow')

  def test_macros_exist(self):
    self.assertEqual(self.page.unknown_macros(), set())

  def test_commands(self):
    trained = [command for command in self.page.commands('t5x.train') if len(command) > 1]
    self.assertLen(trained, 2)
    for command in trained:
      gin.clear_config()
      self.configure(command)
    (evaluated,) = self.page.commands('t5x.eval')
    gin.clear_config()
    self.configure(evaluated, program='t5x.eval')
    grown = [command for command in self.page.commands('cpoly_jax.growth') if command]
    self.assertLen(grown, 4)
    for command in grown:
      options = growth._parser().parse_args(command)
      self.assertNotEmpty(growth._names(options.tasks))
      growth._numbers(getattr(options, 'num_specific', None))

  def test_defaults(self):
    self.configure(self.page.commands('t5x.train')[-1])
    told = {}
    for names, defaults, _ in self.page.table('macro'):
      told.update(zip([name.strip('` ') for name in names.split(',')], ast.literal_eval(f'[{defaults.strip("`")}]')))
    self.assertLen(told, 11)
    given = {'TRAIN_KNOWN_TASKS': True}  # By the command.
    for name, default in told.items():
      self.assertEqual(gin.query_parameter(f'%{name}'), given.get(name, default), name)


if __name__ == '__main__':
  absltest.main()
