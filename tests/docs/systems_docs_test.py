"""docs/systems.md: its commands run, its tables are what the program prints, and it names every file."""

import contextlib
import io
import pathlib
import re
import shlex

from absl.testing import absltest
from absl.testing import parameterized
import gin
from t5x import gin_utils

from cpoly_jax.systems import __main__ as command
from cpoly_jax.systems import configured, counts
from cpoly_jax.t5 import network

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'systems.md').read_text(encoding='utf-8')


def _commands(program):
  """Returns the arguments of each `python -m <program>` in the bash blocks."""
  blocks = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)).replace('\\\n', ' ')
  found = [shlex.split(line) for line in blocks.splitlines()]
  return [tuple(words[3:]) for words in found if words[:3] == ['python', '-m', program]]


def _outputs():
  """Returns (arguments, text) of the commands whose output is in the document."""
  found = re.findall(r'^```bash\n([^\n]*)\n```\n\n<!-- output -->\n(.*?)\n<!-- end -->$', TEXT, re.MULTILINE | re.DOTALL)
  return [(tuple(shlex.split(line)[3:]), output) for line, output in found]


SHOWN = _outputs()


def _print(arguments):
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
    code = command.main(arguments)
  return code, out.getvalue().strip()


class SystemsDocsTest(parameterized.TestCase):

  def test_there_are_commands(self):
    self.assertLen(SHOWN, 2)
    self.assertGreater(len(_commands('cpoly_jax.systems')), 5)
    self.assertGreater(len(_commands('t5x.train')), 5)

  @parameterized.parameters(*((index,) for index in range(len(SHOWN))))
  def test_tables_are_what_is_printed(self, index):
    arguments, shown = SHOWN[index]
    self.assertEqual(_print(arguments), (0, shown))

  @parameterized.parameters(*((arguments,) for arguments in _commands('cpoly_jax.systems')
                              if arguments not in [shown for shown, _ in SHOWN]))
  def test_commands_run(self, arguments):
    code, out = _print(arguments)
    self.assertEqual(code, 0, out)
    self.assertNotEmpty(out)

  @parameterized.parameters(*((arguments,) for arguments in _commands('t5x.train')))
  def test_trainings_are_configured(self, arguments):
    self.addCleanup(gin.clear_config)
    gin.clear_config()
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    with configured.as_training():
      gin_utils.parse_gin_flags([str(ROOT)], files, bindings)  # Checks that nothing is misspelt or missing, too.
    counted = counts.parameters(gin.get_configurable(network.Transformer)())
    self.assertNotEmpty(counted)

  def test_files_exist(self):
    named = set(re.findall(r'gin_configs/[\w/]+\.gin', TEXT))
    self.assertEqual({name for name in named if not (ROOT / name).is_file()}, set())

  @parameterized.parameters('systems', 'skills', 'routing')
  def test_every_file_is_named(self, folder):
    files = {str(path.relative_to(ROOT)) for path in (ROOT / 'gin_configs' / folder).glob('*.gin')}
    self.assertEqual({name for name in files if name not in TEXT}, set())

  def test_macros_exist(self):
    set_somewhere = {name for path in (ROOT / 'gin_configs').rglob('*.gin')
                     for name in re.findall(r'^([A-Z][A-Z_]+) = ', path.read_text(encoding='utf-8'), re.MULTILINE)}
    named = set(re.findall(r'`([A-Z][A-Z]*_[A-Z_]+)\b', TEXT)) | set(re.findall(r'--gin\.([A-Z_]+)=', TEXT))
    self.assertEqual(named - set_somewhere, set())

  @parameterized.parameters(
      ('cpoly', 'NUM_COMMON', 3), ('poly', 'NUM_SKILLS', 8), ('mhr', 'ROUTING_HEADS', 4), ('cgc', 'NUM_COMMON', 3),
      ('moe_lora', 'NUM_COMMON', 8), ('task_moe', 'TOP_K', 2), ('hyper', 'HIDDEN_SIZE', 64))
  def test_defaults(self, system, macro, value):
    section = re.search(rf'^### .*: gin_configs/systems/{system}\.gin$(.*?)^##', TEXT, re.MULTILINE | re.DOTALL)[1]
    self.assertRegex(section, rf'`{macro}`[^`]* ?\({value}\b')
    with configured.configured(system, configured.Request('t5_1_1/tiny', 2)):
      self.assertEqual(configured.macro(macro), value)

  def test_links_lead_to_headings(self):
    headings = {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                for heading in re.findall(r'^#+ (.*)$', TEXT, re.MULTILINE)}
    self.assertEqual({link for link in re.findall(r'\]\(#([^)]*)\)', TEXT) if link not in headings}, set())


if __name__ == '__main__':
  absltest.main()
