"""docs/systems.md: its commands run, its tables are what the program prints, and it names every file."""

import re
import shlex

from absl.testing import absltest
from absl.testing import parameterized
import gin

from cpoly_jax.systems import __main__ as command
from cpoly_jax.systems import configured, counts
from cpoly_jax.t5 import network
from tests.docs import docs_page
from tests.tasks import command_case

PAGE = docs_page.Page('systems')


def _outputs():
  """Returns (arguments, text) of the commands whose output is in the document."""
  found = re.findall(r'^```bash\n([^\n]*)\n```\n\n<!-- output -->\n(.*?)\n<!-- end -->$', PAGE.text, re.MULTILINE | re.DOTALL)
  return [(tuple(shlex.split(line)[3:]), output) for line, output in found]


SHOWN = _outputs()


class SystemsDocsTest(docs_page.DocsTestCase):

  page = PAGE

  def test_there_are_commands(self):
    self.assertLen(SHOWN, 2)
    self.assertGreater(len(PAGE.commands('cpoly_jax.systems')), 5)
    self.assertGreater(len(PAGE.commands('t5x.train')), 5)

  @parameterized.parameters(*((index,) for index in range(len(SHOWN))))
  def test_tables_are_what_is_printed(self, index):
    arguments, shown = SHOWN[index]
    code, out, _ = command_case.run(command.main, *arguments)
    self.assertEqual((code, out.strip()), (0, shown))

  @parameterized.parameters(*((arguments,) for arguments in PAGE.commands('cpoly_jax.systems')
                              if arguments not in [shown for shown, _ in SHOWN]))
  def test_commands_run(self, arguments):
    code, out, _ = command_case.run(command.main, *arguments)
    self.assertEqual(code, 0, out)
    self.assertNotEmpty(out.strip())

  @parameterized.parameters(*((arguments,) for arguments in PAGE.commands('t5x.train')))
  def test_trainings_are_configured(self, arguments):
    self.configure(arguments)
    counted = counts.parameters(gin.get_configurable(network.Transformer)())
    self.assertNotEmpty(counted)

  @parameterized.parameters('systems', 'skills', 'routing')
  def test_every_file_is_named(self, folder):
    files = {str(path.relative_to(docs_page.ROOT)) for path in (docs_page.ROOT / 'gin_configs' / folder).glob('*.gin')}
    self.assertEqual({name for name in files if name not in PAGE.text}, set())

  def test_macros_exist(self):
    self.assertEqual(PAGE.unknown_macros(), set())

  @parameterized.parameters(
      ('cpoly', 'NUM_COMMON', 3), ('poly', 'NUM_SKILLS', 8), ('mhr', 'ROUTING_HEADS', 4), ('cgc', 'NUM_COMMON', 3),
      ('moe_lora', 'NUM_COMMON', 8), ('task_moe', 'TOP_K', 2), ('hyper', 'HIDDEN_SIZE', 64))
  def test_defaults(self, system, macro, value):
    section = re.search(rf'^### .*: gin_configs/systems/{system}\.gin$(.*?)^##', PAGE.text, re.MULTILINE | re.DOTALL)[1]
    self.assertRegex(section, rf'`{macro}`[^`]* ?\({value}\b')
    with configured.configured(system, configured.Request('t5_1_1/tiny', 2)):
      self.assertEqual(configured.macro(macro), value)

  def test_links_lead_to_headings(self):
    headings = {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                for heading in re.findall(r'^#+ (.*)$', PAGE.text, re.MULTILINE)}
    self.assertEqual({link for link in re.findall(r'\]\(#([^)]*)\)', PAGE.text) if link not in headings}, set())


if __name__ == '__main__':
  absltest.main()
