"""docs/own_data.md: its commands run on a folder as it describes, and its settings are those of the gin file."""

from __future__ import annotations

import os
import re

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from cpoly_jax.systems import configured
from tasks import check
from tasks import own_data
from tasks import show
from tests.docs import docs_page
from tests.tasks import command_case

PAGE = docs_page.Page('own_data')
PROGRAMS = {'tasks.check': check.main, 'tasks.show': show.main}


class OwnDataDocsTest(docs_page.DocsTestCase, command_case.FolderTestCase):

  page = PAGE

  def setUp(self):
    super().setUp()
    self.addCleanup(own_data.unregister)
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(self.folder)
    files = {'sentiment.tsv': 'input\ttarget\tsplit\n' + 'good\tyes\t\nbad\tno\ttrain\n' * 3 + 'fine\tyes\tvalidation\n',
             'qa/train.jsonl': '{"inputs": "1+1", "targets": ["2", "two"]}\n', 'qa/validation.csv': 'input,target\n2+2,4\n'}
    for name, content in files.items():
      self.write(f'my_tasks/{name}', content)

  @parameterized.parameters(*((program, arguments) for program in PROGRAMS for arguments in PAGE.commands(program)))
  def test_commands_run(self, program, arguments):
    code, out, err = command_case.run(PROGRAMS[program], *arguments)
    self.assertEqual((code, err), (0, ''))
    self.assertIn('tasks', out)

  def test_the_training_is_configured(self):
    arguments, = PAGE.commands('t5x.train')
    self.configure(arguments)
    self.assertEqual(configured.macro('TASK_INDEX').names, ('own_data_qa', 'own_data_sentiment'))
    mixture = seqio.get_mixture_or_task(configured.macro('MIXTURE_OR_TASK_NAME'))
    self.assertEqual(mixture.num_input_examples('validation'), 2)

  def test_the_lines_of_gin(self):
    lines, = PAGE.blocks('gin')
    gin.parse_config(f'from __gin__ import dynamic_registration\n{lines}')
    self.assertEqual(configured.macro('MIXTURE_OR_TASK_NAME'), 'own_data')

  def test_settings_are_those_of_the_gin_file(self):
    text = (docs_page.ROOT / 'gin_configs' / 'runs' / 'own_data.gin').read_text(encoding='utf-8')
    macros = dict(re.findall(r'^([A-Z_]+) = (.*)$', text, re.MULTILINE))
    self.assertEqual(macros.pop('MIXTURE_OR_TASK_NAME'), '@own_data.mixture()')
    told = dict(re.findall(r'^\| `([A-Z_]+)` \| `?([^|`]*?)`? \|', PAGE.text, re.MULTILINE))
    self.assertEqual(told, {**macros, 'OWN_DATA': 'must be set'})


if __name__ == '__main__':
  absltest.main()
