"""The guides: their commands are understood, or run in small; their Python runs; their tables say what the code does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import numpy as np
import pytest
from t5x import dry_run
from t5x import eval as eval_lib

from cpoly_jax import command_line
from cpoly_jax import merge
from cpoly_jax import task_index
from cpoly_jax import testing
from cpoly_jax.analysis import __main__ as analysis
from cpoly_jax.analysis import findings, sections
from cpoly_jax.checkpoints import __main__ as checkpoints
from cpoly_jax.experiments import __main__ as experiments
from cpoly_jax.plan import __main__ as plan
from cpoly_jax.systems import __main__ as systems
from tests.docs import docs_page
from tests.docs import guides_case
from tests.launch import machines
from tests.tasks import command_case

GUIDES = sorted(path.stem for path in (docs_page.ROOT / 'docs' / 'guides').glob('*.md'))
PAGES = {name: docs_page.Page(f'guides/{name}') for name in GUIDES}
# The parsers of programs that gin does not configure.
PARSERS = {'cpoly_jax.analysis': analysis._parser, 'cpoly_jax.checkpoints': checkpoints._parser,
           'cpoly_jax.experiments': experiments._parser, 'cpoly_jax.merge': merge._parser, 'cpoly_jax.plan': plan._parser,
           'cpoly_jax.systems': systems._parser}
# Environment variables, and what is told of other projects.
NOT_MACROS = {'SUPERGLUE_DIR', 'SUPERNI_DIR', 'TFDS_DATA_DIR'}

setUpModule, tearDownModule = testing.quick_compilation()


class CommandsTest(docs_page.DocsTestCase):

  page = PAGES['choosing_a_b_r']

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(docs_page._ENTRIES, {'t5x.precompile': docs_page._ENTRIES['t5x.train']}))

  @parameterized.parameters(*((name, *command) for name in GUIDES for command in PAGES[name].programs()
                              if '--gin_file=softmax.gin' not in command[1]))  # It is in a page: guides_settings_test.py.
  def test_is_understood(self, _, program, arguments):
    if program in docs_page._ENTRIES:
      self.configure([argument for argument in arguments if argument != '--dry_run'], program=program)
      return
    bindings, others = command_line.split_bindings(arguments)
    options = PARSERS[program]().parse_args(others)
    if program == 'cpoly_jax.plan':
      plan._check(options)
    if program == 'cpoly_jax.experiments':
      self.assertTrue((docs_page.ROOT / others[0]).is_file())
    if bindings:
      self.configure([f'--gin_file={file}' for file in options.gin_file] or ['--gin_file=gin_configs/cpoly_small.gin'],
                     *bindings)

  @parameterized.parameters(*GUIDES)
  def test_names_exist(self, name):
    page = PAGES[name]
    known = page.unknown_macros() - NOT_MACROS
    self.assertEqual(known, set())
    files = re.findall(r'`((?:gin_configs|cpoly_jax|tasks|tests|launch|experiments)/[\w/]+\.\w+)`', page.text)
    self.assertEqual([file for file in files if not (docs_page.ROOT / file).is_file()], [])


class LaunchTest(machines.ScriptTestCase):

  def test_pod(self):
    variables, flags = {}, []
    for words in PAGES['pod'].lines():
      if words[0] == 'export':
        variables.update(word.split('=', 1) for word in words[1:])
        continue
      own = {}
      while '=' in words[0]:
        key, value = words.pop(0).split('=', 1)
        own[key] = value
      if words[0] == 'bash':
        printed = self.succeeds(words[1].removeprefix('launch/'), '--dry_run', *words[2:], **{**variables, **own})
        flags.append('-m t5x.train --gin_file=gin_configs/cpoly_xxl.gin' in printed)
    self.assertEqual(flags, [False, False, True, True, False, True])

  def test_first_run(self):
    """What it would start where everything is installed."""
    venv = self.folder / 'venv'
    self.imitate('python', folder=venv / 'bin')
    files = 'setup.py t5x_lite/setup.py requirements.txt constraints.txt'
    told = self.bash(['-c', f'cd {machines.ROOT} && python3 --version && cat {files}']).stdout
    (venv / '.installed').write_text(told, encoding='utf-8')
    lines = [words for words in PAGES['first_run'].lines() if words[:2] == ['bash', 'launch/local.sh']]
    for words in lines:
      self.succeeds('local.sh', *words[2:], VENV=str(venv))
    file = '--gin_file=gin_configs/cpoly_tiny.gin'
    self.assertEqual([call[1:] for call in self.calls()],
                     [['-m', 't5x.train', file], ['-m', 't5x.train', file, '--dry_run'],
                      ['-m', 't5x.train', file, '--gin.TRAIN_STEPS=1000', "--gin.MODEL_DIR='outputs/longer'"]])


class FirstRunTest(guides_case.InFolderTestCase):

  page = PAGES['first_run']

  def test_evaluation(self):
    command, = self.page.commands('t5x.eval')
    self.configure(command, program='t5x.eval')
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      dry_run.tell(eval_lib.evaluate, gin.get_bindings(eval_lib.evaluate))
    told = out.getvalue().splitlines()
    self.assertStartsWith(told[1], 'reads   checkpoint outputs/cpoly_tiny/checkpoint_500')
    self.assertIn("'latent_skills', split test: 1,600 examples of 16 tasks", out.getvalue())
    self.assertIn('writes  outputs/cpoly_tiny_test/inference_eval', told)

  def test_prediction(self):
    names = self.run_blocks()
    self.assertLen(names['answers'], 1)
    self.assertIsInstance(names['answers'][0], str)


class ReportTest(guides_case.InFolderTestCase):

  page = PAGES['read_a_routing_report']

  def test_commands(self):
    tables = ('truth_summary', 'conflict_summary', 'gains')
    for arguments, table in zip(self.page.commands('cpoly_jax.analysis'), tables, strict=True):
      code, _, errors = command_case.run(analysis.main, *arguments, '--numbers_only', '--out=numbers')
      self.assertEqual((code, errors), (0, ''))
      self.assertTrue(pathlib.Path('numbers', f'{table}.csv').is_file())

  def test_figures_and_tables_exist(self):
    found = findings.analyse('outputs/cpoly_tiny', known='tasks/assets/latent_skills.csv', against='outputs/shared',
                             examples=findings.Examples(2))
    parts = sections.sections(found)
    known = {part.name for section in parts for part in (*section.drawings, *section.grids)}
    named = set(re.findall(r'`([a-z]+(?:_[a-z]+)*)`', self.page.text)) - {'borrowed'}
    self.assertGreater(len(named), 9)
    self.assertEqual(named - known, set())
    headings = [re.sub(r'^\d\. |: W_[AB]$', '', heading) for heading in re.findall(r'^## (.*)$', self.page.text, re.MULTILINE)]
    self.assertEqual(headings, [section.title for section in parts])

  def test_examples_of_one_task(self):
    found = findings.analyse('outputs/cpoly_tiny', examples=findings.Examples(2, ['latent_dema']))
    self.assertEqual(found.measured.losses.shape, (1, 1))
    self.assertEmpty({'conflict', 'transfer'} & {section.key for section in sections.sections(found)})

  def test_own_skills_alone(self):
    from cpoly_jax.analysis import truth
    index = task_index.from_mixture('latent_skills', 'tasks')
    match = truth.match(np.eye(len(index), dtype=bool), truth.read('tasks/assets/latent_skills.csv', index).matrix)
    self.assertIn(f'own skills alone, no common ones: {match.f1:.2f} for these tasks', self.page.text)


class ExportTest(guides_case.InFolderTestCase):

  page = PAGES['export_to_hugging_face']

  def _write(self):
    """Runs the commands of the page; the base is that of the small run."""
    for program, arguments in self.page.programs():
      main = {'cpoly_jax.merge': merge.main, 'cpoly_jax.checkpoints': checkpoints.main}[program]
      given = ['base/checkpoint_0' if word == 'cpoly_jax/assets/tiny_base' else word for word in arguments]
      code, out, errors = command_case.run(main, *given)
      told = re.sub(r'.*: \d+/\d+ arrays, .* left\n', '', errors)  # How far it is, on a slow machine.
      self.assertEqual((code, told), (0, ''))
      self.assertStartsWith(out, 'wrote ')
    self.assertContainsSubset({'config.json', 'model.safetensors'}, set(os.listdir('merged_hf')))
    self.assertContainsSubset({'adapter_config.json', 'adapter_model.safetensors'}, set(os.listdir('lora')))

  def test_commands(self):
    self._write()
    self.assertEqual(json.loads(pathlib.Path('lora/adapter_config.json').read_text())['r'], 8)

  @pytest.mark.slow  # Importing torch is.
  def test_python(self):
    from tests.parity import peers  # Loads what may be absent.
    peers.require()
    self._write()
    names = self.run_blocks()
    self.assertEqual(names['merged'], names['same'])
    with peers.torch.no_grad():
      merged, same = (model(**names['inputs'], decoder_input_ids=names['inputs']['input_ids']).logits.numpy()
                      for model in (names['model'], names['adapted']))
    np.testing.assert_allclose(merged, same, atol=1e-5)

if __name__ == '__main__':
  absltest.main()
