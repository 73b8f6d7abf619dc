"""Support for the tests of a page of docs/: its commands, tables and names, as they are written."""

from __future__ import annotations

import pathlib
import re
import shlex
import sys
from unittest import mock

from absl.testing import parameterized
import gin
from t5x import eval as eval_lib
from t5x import gin_utils
from t5x import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What gin files configure of the program that runs.
_ENTRIES = {'t5x.train': ('train', train.train), 't5x.eval': ('evaluate', eval_lib.evaluate)}


class Page:
  """A page of docs/.

  Attributes:
    text: all of it.
  """

  def __init__(self, name: str):
    self.text = (ROOT / 'docs' / f'{name}.md').read_text(encoding='utf-8')

  def blocks(self, language: str) -> list[str]:
    """Returns the blocks of code of a language."""
    return re.findall(rf'^```{language}\n(.*?)^```$', self.text, re.MULTILINE | re.DOTALL)

  def lines(self) -> list[list[str]]:
    """Returns the words of each line of the bash blocks; a line ends where no backslash continues it."""
    lines = '\n'.join(self.blocks('bash')).replace('\\\n', ' ').splitlines()
    return [words for words in map(shlex.split, lines) if words]

  def programs(self) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (program, arguments) of each `python -m <program>`."""
    return [(words[2], tuple(words[3:])) for words in self.lines() if words[:2] == ['python', '-m']]

  def commands(self, program: str) -> list[tuple[str, ...]]:
    """Returns the arguments of each `python -m <program>`."""
    return [arguments for name, arguments in self.programs() if name == program]

  def table(self, heading: str) -> list[list[str]]:
    """Returns the rows of the table whose first heading is `heading`, without the marks of code."""
    lines = self.text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {heading} |'))
    rows = []
    for line in lines[start + 2:]:
      if not line.startswith('|'):
        break
      rows.append([cell.strip().strip('`') for cell in re.split(r'\s\|(?=\s)', line.strip('|'))])
    return rows

  def files(self) -> set[str]:
    """Returns the files of the project that the page names."""
    return set(re.findall(r'\b(?:gin_configs|tests|tasks/assets)/[\w/]+\.(?:gin|py|csv)', self.text))

  def unknown_macros(self) -> set[str]:
    """Returns the macros that the page names and no gin file sets."""
    known = {name for path in (ROOT / 'gin_configs').rglob('*.gin')
             for name in re.findall(r'^([A-Z][A-Z_]+) = ', path.read_text(encoding='utf-8'), re.MULTILINE)}
    named = set(re.findall(r'`([A-Z][A-Z]*_[A-Z_]+)\b', self.text)) | set(re.findall(r'--gin\.([A-Z_]+)=', self.text))
    return named - known


class DocsTestCase(parameterized.TestCase):
  """A test of the page `page`, with nothing in gin."""

  page: Page

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)

  def configure(self, arguments, *more, program='t5x.train'):
    """Parses the arguments of a command as its program does, and then the bindings `more`.

    All of them must be gin's, and gin checks that nothing is misspelt or missing.
    """
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    name, entry = _ENTRIES[program]
    with mock.patch.object(sys.modules['__main__'], name, entry, create=True):
      gin_utils.parse_gin_flags([str(ROOT)], files, [*bindings, *more])

  def test_files_exist(self):
    self.assertNotEmpty(self.page.files())
    self.assertEqual({name for name in self.page.files() if not (ROOT / name).is_file()}, set())
