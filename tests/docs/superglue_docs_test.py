"""docs/superglue.md: its commands are configured as they stand, and its tables say what the code does."""

from __future__ import annotations

import re

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_prompts
from tests.docs import docs_page

PAGE = docs_page.Page('superglue')
# Values for the `letters` table, where fields stand for themselves.
_ROW = {name: name for form in superglue_formats.FORMATS.values() for name in form.columns} | {
    'paragraph': 'paragraph', 'answer': 'answer', 'marked': 'text with *pronoun*', 'span2_text': 'pronoun',
    'span1_text': 'span1'}


class SuperGlueDocsTest(docs_page.DocsTestCase):

  page = PAGE

  def test_there_are_commands(self):
    self.assertEqual([program for program, _ in PAGE.programs()], ['t5x.train', 't5x.eval', 't5x.train'])

  @parameterized.parameters(*zip(PAGE.programs(), ('superglue', 'superglue_diagnostics', 'superglue_with_dpr'),
                                 ('letters', 'letters', 't5'), (32, None, None)))
  def test_commands_are_configured(self, command, mixture, style, k):
    program, arguments = command
    self.configure(arguments, program=program)
    self.assertEqual(gin.query_parameter('%MIXTURE_OR_TASK_NAME'), mixture)
    self.assertEqual(superglue_prompts.prompt(), style)
    self.assertEqual(superglue.few_shot(), (k, 0))

  def test_tasks_and_their_fields(self):
    rows = PAGE.table('file')
    names = [row[1] for row in rows]
    self.assertEqual(names, [*superglue.TASKS, *superglue.DIAGNOSTICS, superglue.DPR])
    forms = [*superglue_formats.FORMATS.values(), *superglue_formats.DIAGNOSTICS.values(), superglue_formats.DPR]
    for (file, _, fields), form in zip(rows, forms):
      self.assertStartsWith(file, f'{form.folder}/')
      for field in form.fields:
        self.assertRegex(fields, rf'\b{field}\b')

  def test_mixtures(self):
    for name, number, _ in PAGE.table('mixture'):
      self.assertLen(seqio.MixtureRegistry.get(name).tasks, int(number))

  def test_letters(self):
    gin.bind_parameter('superglue.prompt.style', 'letters')
    rows = {row[0].lower(): row[1:] for row in PAGE.table('task')}
    self.assertSameElements([*rows, 'record'], superglue_formats.FORMATS)
    for task, (shown, targets) in rows.items():
      row = {**_ROW, 'question': 'effect' if task == 'copa' else 'question'}
      self.assertEqual(shown.split('` (')[0], superglue_prompts.inputs(task, row).replace('\n', '⏎'))
      self.assertCountEqual(re.findall(r'\w', targets), superglue.labels(task))

  def test_metrics(self):
    text = PAGE.text[PAGE.text.index('## Metrics'):]
    shown = dict(re.findall(r'^\| `(superglue_\w+)` \| (.*?) \|', text, re.MULTILINE))
    self.assertSameElements(shown, [*superglue.TASKS, *superglue.DIAGNOSTICS, superglue.DPR])
    for name, metrics in superglue.superglue_metrics.OFFICIAL_METRICS.items():
      self.assertEqual(shown[name].split(', '), list(metrics))


if __name__ == '__main__':
  absltest.main()
