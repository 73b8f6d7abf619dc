"""docs/superni.md: its commands are configured runs, its settings exist, and its prompt is the one that is written."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import eval as eval_lib
from t5x import gin_utils
from t5x import train

from cpoly_jax.t5 import network
from cpoly_jax.systems import counts
from tasks import superni_prompts
from tasks import superni_splits
from tests.tasks import superni_case

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'superni.md').read_text(encoding='utf-8')


def _blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [tuple(shlex.split(line)) for line in ''.join(_blocks('bash')).splitlines()]


class SuperNiDocsTest(superni_case.SuperNiTestCase):

  def setUp(self):
    super().setUp()
    gin.clear_config()
    names = [f'task{i}_train' for i in range(100)]
    self.register(names, ['task1_test'], tasks=dict.fromkeys([*names, 'task1_test'], 'not read'))

  def test_there_are_commands(self):
    self.assertLen(COMMANDS, 4)

  @parameterized.parameters(*COMMANDS)
  def test_runs_are_configured(self, *command):
    python, flag, module, *arguments = command
    self.assertEqual((python, flag), ('python', '-m'))
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    # What gin files configure of the program that runs.
    name, entry = {'t5x.train': ('train', train.train), 't5x.eval': ('evaluate', eval_lib.evaluate)}[module]
    with mock.patch.object(sys.modules['__main__'], name, entry, create=True):
      gin_utils.parse_gin_flags([str(ROOT)], files, bindings)  # Checks that nothing is misspelt or missing, too.
    self.assertNotEmpty(counts.parameters(gin.get_configurable(network.Transformer)()))
    mixture = gin.query_parameter('%MIXTURE_OR_TASK_NAME')
    name = mixture if isinstance(mixture, str) else mixture.scoped_configurable_fn()
    self.assertIn(name, seqio.MixtureRegistry.names())

  def test_settings_exist(self):
    blocks = _blocks('python')
    self.assertLen(blocks, 3)
    gin.parse_config('from __gin__ import dynamic_registration\nfrom tasks import records\nfrom tasks import superni_splits\n'
                     + '\n'.join(line for block in blocks for line in block.splitlines() if 'dynamic' not in line))
    self.assertEqual(superni_splits.sizes(), superni_splits.Sizes(1000, 100, 0))
    self.assertEqual(gin.query_parameter('%MIXTURE_OR_TASK_NAME').scoped_configurable_fn(), 'superni_100_tasks_seed_0')

  def test_prompt(self):
    (content,), (prompt,) = _blocks('json'), _blocks('text')
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': content, 'task2_b': 'not read'})
    example, = self.examples('superni_task1_a', 'validation')
    self.assertEqual(example['inputs_pretokenized'].decode() + '\n', prompt)
    self.assertEqual([r.decode() for r in example['references']], json.loads(content)['Instances'][0]['output'])

  def test_options_are_all_there(self):
    section = TEXT[TEXT.index('## Prompts'):TEXT.index('## Scores')]
    for option in superni_prompts.PromptOptions.__dataclass_fields__:
      self.assertIn(f'`{option}`', section)

  def test_files_exist(self):
    named = set(re.findall(r'(?:gin_configs|tests)/[\w/]+\.(?:gin|py)', TEXT))
    self.assertEqual({name for name in named if not (ROOT / name).is_file()}, set())


if __name__ == '__main__':
  absltest.main()
