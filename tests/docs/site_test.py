"""The documentation site: its navigation is complete, its links lead somewhere, and mkdocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob('*.md'))
SETTINGS = yaml.safe_load((ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
# Written or inserted text, fenced or indented, is no markup.
_CODE = re.compile(r'^ {0,3}(```+).*?^ {0,3}\1 *$|(?:(?<=\n\n)|\A)(?: {4,}.*\n|[ \t]*\n)+|`[^`\n]*`', re.MULTILINE | re.DOTALL)


def _hook():
  """Returns the module that makes the pages of the reference."""
  spec = importlib.util.spec_from_file_location('api_pages', DOCS / 'api_pages.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def nav_pages(nav) -> list[str]:
  """Returns the pages of a navigation, in its order."""
  if isinstance(nav, str):
    return [nav]
  return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in nav_pages(entry)]


def markup(text: str) -> str:
  """Returns a page without its code."""
  return _CODE.sub('', text)


def links(text: str) -> list[str]:
  """Returns where a page's links lead."""
  return re.findall(r'\[[^\]]*\]\(\s*<?([^)\s>]+)', markup(text))


def anchors(text: str) -> set[str]:
  """Returns the anchors of a page's headings that the site and GitHub name alike."""
  # Of code in a heading both keep the words.
  headings = re.findall(r'^#{1,6} +(.*?) *#*$', re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
  words = [re.sub(r'[^\w\s-]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)).strip().lower() for heading in headings]
  there, here = ({re.sub(pattern, '-', word) for word in words} for pattern in (r'\s', r'[-\s]+'))
  return there & here


def unresolved(page: pathlib.Path, text: str) -> list[str]:
  """Returns the relative links of a page that lead to no file, or to no heading of one."""
  found = []
  for link in links(text):
    if re.match(r'[a-z][a-z0-9+.-]*:', link):
      continue
    path, _, anchor = link.partition('#')
    target = page.parent / path if path else page
    content = text if target == page else target.read_text(encoding='utf-8') if anchor and target.is_file() else ''
    if not target.exists() or anchor and anchor not in anchors(content):
      found.append(link)
  return found


class NavigationTest(absltest.TestCase):

  def test_every_page_is_in_it_once(self):
    listed = nav_pages(SETTINGS['nav'])
    self.assertCountEqual(listed, set(listed), 'a page is twice in the nav of mkdocs.yml')
    missing = sorted(set(PAGES) - set(listed))
    self.assertEmpty(missing, f'add docs/{", docs/".join(missing)} to a group of the nav of mkdocs.yml')

  def test_every_entry_is_a_page(self):
    hook = _hook()
    made = {f'{hook.FOLDER}/{package}.md' for package, _ in hook.packages()}
    listed = nav_pages(SETTINGS['nav'])
    self.assertCountEqual([page for page in listed if page.startswith(f'{hook.FOLDER}/')], made,
                          'the reference in the nav of mkdocs.yml has another list of packages than there are')
    self.assertEmpty(set(listed) - made - set(PAGES), 'these entries of the nav of mkdocs.yml are no pages of docs/')

  def test_each_page_has_one_title(self):
    for page in PAGES:
      text = (DOCS / page).read_text(encoding='utf-8')
      self.assertLen(re.findall(r'^# .+$', markup(text), re.MULTILINE), 1, page)


class LinksTest(parameterized.TestCase):

  @parameterized.parameters(*(f'docs/{page}' for page in PAGES), 'README.md', 'CONTRIBUTING.md')
  def test_they_lead_somewhere(self, page):
    path = ROOT / page
    self.assertEqual(unresolved(path, path.read_text(encoding='utf-8')), [])

  @parameterized.parameters(*PAGES)
  def test_pages_stay_within_the_site(self, page):
    for link in links((DOCS / page).read_text(encoding='utf-8')):
      self.assertFalse(os.path.normpath(os.path.join(os.path.dirname(page), link)).startswith('..'),
                       f'docs/{page} links to {link}, which is not on the site: name the file as code')

  def test_faults_are_seen(self):
    text = '# One\n\n[a](launch.md) [b](nowhere.md) [c](#one) [d](#two) `[e](no.md)` [f](https://x.y) [g](systems.md#no)\n'
    self.assertEqual(unresolved(DOCS / 'index.md', text + '\n    [h](code.md)\n\n```\n[i](code.md)\n```\n'),
                     ['nowhere.md', '#two', 'systems.md#no'])

  def test_anchors(self):
    self.assertEqual(anchors('# C-Poly: gin_configs/a.gin\n## A / B\n```\n# No\n```\n### `MIXING`, and more\n'),
                     {'c-poly-gin_configsagin', 'mixing-and-more'})


class MarkdownTest(parameterized.TestCase):
  """What GitHub shows and Python-Markdown does not."""

  @parameterized.parameters(*PAGES)
  def test_lists_begin_after_an_empty_line(self, page):
    before = ''
    for line in markup((DOCS / page).read_text(encoding='utf-8')).splitlines():
      if re.match(r'[-*] ', line):
        self.assertTrue(not before.strip() or re.match(r'[-*] |\s', before), f'docs/{page}: an empty line before: {line}')
      before = line

  @parameterized.parameters(*PAGES)
  def test_lists_in_lists_are_four_columns_in(self, page):
    for line in markup((DOCS / page).read_text(encoding='utf-8')).splitlines():
      self.assertNotRegex(line, r'^ {1,3}[-*] ', f'docs/{page}')


class ReferenceTest(absltest.TestCase):

  def test_pages(self):
    hook = _hook()
    found = dict(hook.packages())
    self.assertIn('cpoly_jax.routing.poly', found['cpoly_jax.routing'])
    self.assertIn('cpoly_jax.adapters', found['cpoly_jax'])
    self.assertFalse([module for modules in found.values() for module in modules if module.rpartition('.')[2].startswith('_')])
    for package, modules in found.items():
      named = re.findall(r'^::: (\S+)$', hook.page(package, modules), re.MULTILINE)
      self.assertEqual(named, [package, *modules])
      for module in modules:
        self.assertTrue((ROOT / f'{module.replace(".", "/")}.py').is_file(), module)


class BuildTest(absltest.TestCase):

  def test_strict(self):
    absent = [name for name in ('mkdocs', 'material', 'mkdocstrings', 'mkdocstrings_handlers.python')
              if not _importable(name)]
    if absent:
      self.skipTest(f'{", ".join(absent)}: not installed; pip install -e .[docs] builds the site')
    with tempfile.TemporaryDirectory() as folder:
      done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', folder], cwd=ROOT, text=True,
                            capture_output=True, check=False, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
      self.assertEqual(done.returncode, 0, done.stderr[-3000:])
      self.assertNotIn('WARNING', done.stderr)
      reference = pathlib.Path(folder, 'reference', 'cpoly_jax.routing', 'index.html').read_text(encoding='utf-8')
    # Of the docstring of `Router.__call__`: its arguments became a list, its result a section.
    self.assertRegex(reference, r'Parameters:(?s:.*)task_ids(?s:.*)\[N\] int32 rows')
    self.assertIn('Returns:', reference)
    self.assertNotIn('Args:', reference)


def _importable(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False


if __name__ == '__main__':
  absltest.main()
