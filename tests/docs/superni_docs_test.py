"""docs/superni.md: its commands are configured runs, its settings exist, and its prompt is the one that is written."""

from __future__ import annotations

import json

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from cpoly_jax.t5 import network
from cpoly_jax.systems import counts
from tasks import superni_prompts
from tasks import superni_splits
from tests.docs import docs_page
from tests.tasks import superni_case

PAGE = docs_page.Page('superni')


class SuperNiDocsTest(docs_page.DocsTestCase, superni_case.SuperNiTestCase):

  page = PAGE

  def setUp(self):
    super().setUp()
    names = [f'task{i}_train' for i in range(100)]
    self.register(names, ['task1_test'], tasks=dict.fromkeys([*names, 'task1_test'], 'not read'))

  def test_there_are_commands(self):
    self.assertLen(PAGE.lines(), 4)
    self.assertLen(PAGE.programs(), 4)

  @parameterized.parameters(*PAGE.programs())
  def test_runs_are_configured(self, program, arguments):
    self.configure(arguments, program=program)
    self.assertNotEmpty(counts.parameters(gin.get_configurable(network.Transformer)()))
    mixture = gin.query_parameter('%MIXTURE_OR_TASK_NAME')
    name = mixture if isinstance(mixture, str) else mixture.scoped_configurable_fn()
    self.assertIn(name, seqio.MixtureRegistry.names())

  def test_settings_exist(self):
    blocks = PAGE.blocks('python')
    self.assertLen(blocks, 3)
    gin.parse_config('from __gin__ import dynamic_registration\nfrom tasks import records\nfrom tasks import superni_splits\n'
                     + '\n'.join(line for block in blocks for line in block.splitlines() if 'dynamic' not in line))
    self.assertEqual(superni_splits.sizes(), superni_splits.Sizes(1000, 100, 0))
    self.assertEqual(gin.query_parameter('%MIXTURE_OR_TASK_NAME').scoped_configurable_fn(), 'superni_100_tasks_seed_0')

  def test_prompt(self):
    (content,), (prompt,) = PAGE.blocks('json'), PAGE.blocks('text')
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': content, 'task2_b': 'not read'})
    example, = self.examples('superni_task1_a', 'validation')
    self.assertEqual(example['inputs_pretokenized'].decode() + '\n', prompt)
    self.assertEqual([r.decode() for r in example['references']], json.loads(content)['Instances'][0]['output'])

  def test_options_are_all_there(self):
    section = PAGE.text[PAGE.text.index('## Prompts'):PAGE.text.index('## Scores')]
    for option in superni_prompts.PromptOptions.__dataclass_fields__:
      self.assertIn(f'`{option}`', section)


if __name__ == '__main__':
  absltest.main()
