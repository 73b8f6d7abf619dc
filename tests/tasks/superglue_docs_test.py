"""docs/superglue.md: its commands are configured as they stand, and its tables say what the code does."""

from __future__ import annotations

import pathlib
import re
import shlex
import sys

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import eval as eval_script
from t5x import gin_utils
from t5x import train as train_script

from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_prompts

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'superglue.md').read_text(encoding='utf-8')
_PROGRAMS = {'t5x.train': train_script, 't5x.eval': eval_script}
# Values for the `letters` table, where fields stand for themselves.
_ROW = {name: name for form in superglue_formats.FORMATS.values() for name in form.columns} | {
    'paragraph': 'paragraph', 'answer': 'answer', 'marked': 'text with *pronoun*', 'span2_text': 'pronoun',
    'span1_text': 'span1'}


def _commands():
  """Returns (program, arguments) of each command in the bash blocks."""
  blocks = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)).replace('\\\n', ' ')
  found = [shlex.split(line) for line in blocks.splitlines()]
  return [(words[2], tuple(words[3:])) for words in found if words[:2] == ['python', '-m']]


def _table(first):
  """Returns the rows of the table whose first heading is `first`, without code marks."""
  lines = TEXT.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith(f'| {first} |'))
  rows = []
  for line in lines[start + 2:]:
    if not line.startswith('|'):
      return rows
    rows.append([cell.strip().strip('`') for cell in line.strip('|').split(' | ')])
  return rows


class SuperGlueDocsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.addCleanup(gin.clear_config)
    gin.clear_config()

  def test_there_are_commands(self):
    self.assertEqual([program for program, _ in _commands()], ['t5x.train', 't5x.eval', 't5x.train'])

  @parameterized.parameters(*zip(_commands(), ('superglue', 'superglue_diagnostics', 'superglue_with_dpr'),
                                 ('letters', 'letters', 't5'), (32, None, None)))
  def test_commands_are_configured(self, command, mixture, style, k):
    program, arguments = command
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    running = sys.modules['__main__']
    self.addCleanup(sys.modules.update, {'__main__': running})
    sys.modules['__main__'] = _PROGRAMS[program]
    gin_utils.parse_gin_flags([str(ROOT)], files, bindings)  # Checks that nothing is misspelt or missing, too.
    self.assertEqual(gin.query_parameter('%MIXTURE_OR_TASK_NAME'), mixture)
    self.assertEqual(superglue_prompts.prompt(), style)
    self.assertEqual(superglue.few_shot(), (k, 0))

  def test_tasks_and_their_fields(self):
    rows = _table('file')
    names = [row[1] for row in rows]
    self.assertEqual(names, [*superglue.TASKS, *superglue.DIAGNOSTICS, superglue.DPR])
    forms = [*superglue_formats.FORMATS.values(), *superglue_formats.DIAGNOSTICS.values(), superglue_formats.DPR]
    for (file, _, fields), form in zip(rows, forms):
      self.assertStartsWith(file, f'{form.folder}/')
      for field in form.fields:
        self.assertRegex(fields, rf'\b{field}\b')

  def test_mixtures(self):
    for name, number, _ in _table('mixture'):
      self.assertLen(seqio.MixtureRegistry.get(name).tasks, int(number))

  def test_letters(self):
    gin.bind_parameter('superglue.prompt.style', 'letters')
    rows = {row[0].lower(): row[1:] for row in _table('task')}
    self.assertSameElements([*rows, 'record'], superglue_formats.FORMATS)
    for task, (shown, targets) in rows.items():
      row = {**_ROW, 'question': 'effect' if task == 'copa' else 'question'}
      self.assertEqual(shown.split('` (')[0], superglue_prompts.inputs(task, row).replace('\n', '⏎'))
      self.assertCountEqual(re.findall(r'\w', targets), superglue.labels(task))

  def test_metrics(self):
    text = TEXT[TEXT.index('## Metrics'):]
    shown = dict(re.findall(r'^\| `(superglue_\w+)` \| (.*?) \|', text, re.MULTILINE))
    self.assertSameElements(shown, [*superglue.TASKS, *superglue.DIAGNOSTICS, superglue.DPR])
    for name, metrics in superglue.superglue_metrics.OFFICIAL_METRICS.items():
      self.assertEqual(shown[name].split(', '), list(metrics))


if __name__ == '__main__':
  absltest.main()
