"""docs/own_data.md: its commands run on a folder as it describes, and its settings are those of the gin file."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import shlex
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import gin_utils

from cpoly_jax.systems import configured
from tasks import check
from tasks import own_data
from tasks import show

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'own_data.md').read_text(encoding='utf-8')
PROGRAMS = {'tasks.check': check.main, 'tasks.show': show.main}


def _commands(program):
  """Returns the arguments of each `python -m <program>` in the bash blocks."""
  blocks = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)).replace('\\\n', ' ')
  found = [shlex.split(line) for line in blocks.splitlines()]
  return [tuple(words[3:]) for words in found if words[:3] == ['python', '-m', program]]


class OwnDataDocsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    self.addCleanup(own_data.unregister)
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    files = {'sentiment.tsv': 'input\ttarget\tsplit\n' + 'good\tyes\t\nbad\tno\ttrain\n' * 3 + 'fine\tyes\tvalidation\n',
             'qa/train.jsonl': '{"inputs": "1+1", "targets": ["2", "two"]}\n', 'qa/validation.csv': 'input,target\n2+2,4\n'}
    for name, content in files.items():
      path = folder / 'my_tasks' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)

  @parameterized.parameters(*((program, arguments) for program in PROGRAMS for arguments in _commands(program)))
  def test_commands_run(self, program, arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = PROGRAMS[program](list(arguments))
    self.assertEqual((code, err.getvalue()), (0, ''))
    self.assertIn('tasks', out.getvalue())

  def test_the_training_is_configured(self):
    arguments, = _commands('t5x.train')
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    with configured.as_training():
      gin_utils.parse_gin_flags([str(ROOT)], files, bindings)
    self.assertEqual(configured.macro('TASK_INDEX').names, ('own_data_qa', 'own_data_sentiment'))
    mixture = seqio.get_mixture_or_task(configured.macro('MIXTURE_OR_TASK_NAME'))
    self.assertEqual(mixture.num_input_examples('validation'), 2)

  def test_the_lines_of_gin(self):
    lines, = re.findall(r'^```gin\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)
    gin.parse_config(f'from __gin__ import dynamic_registration\n{lines}')
    self.assertEqual(configured.macro('MIXTURE_OR_TASK_NAME'), 'own_data')

  def test_settings_are_those_of_the_gin_file(self):
    text = (ROOT / 'gin_configs' / 'runs' / 'own_data.gin').read_text(encoding='utf-8')
    macros = dict(re.findall(r'^([A-Z_]+) = (.*)$', text, re.MULTILINE))
    self.assertEqual(macros.pop('MIXTURE_OR_TASK_NAME'), '@own_data.mixture()')
    told = dict(re.findall(r'^\| `([A-Z_]+)` \| `?([^|`]*?)`? \|', TEXT, re.MULTILINE))
    self.assertEqual(told, {**macros, 'OWN_DATA': 'must be set'})


if __name__ == '__main__':
  absltest.main()
