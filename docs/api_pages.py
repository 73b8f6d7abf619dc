"""The reference of the site: a page for each public package, with its modules, from their docstrings.

A hook of mkdocs.yml, which makes the pages when the site is built. They are files of the build alone: nothing is written here.
"""

from __future__ import annotations

import pathlib
from typing import Any
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = 'reference'
PUBLIC = ('cpoly_jax', 'tasks')


def packages(root: pathlib.Path = ROOT) -> Iterator[tuple[str, list[str]]]:
  """Yields each public package, e.g. `cpoly_jax.skills`, and its modules without packages inside it, by name.

  Programs (`__main__`) and names that start with an underscore are left out: the first are told of by `--help`.

  Args:
    root: the folder that has the packages.
  """
  for name in PUBLIC:
    for path in sorted((root / name).rglob('__init__.py')):
      package = '.'.join(path.parent.relative_to(root).parts)
      modules = sorted(f'{package}.{file.stem}' for file in path.parent.glob('*.py') if not file.stem.startswith('_'))
      yield package, modules


def page(package: str, modules: list[str]) -> str:
  """Returns the Markdown of a package's page: what the package says of itself, then each module."""
  own = [f'# {package}', f'::: {package}\n    options:\n      members: false\n      show_root_heading: false\n'
                         '      show_root_toc_entry: false']
  return '\n\n'.join([*own, *(f'::: {module}' for module in modules)]) + '\n'


def on_config(config: Any) -> Any:
  """Makes tags inside a text plain text, for pages and docstrings: `checkpoint_<step>` has none (an event of mkdocs).

  HTML that stands on lines of its own, such as a comment, stays.
  """
  from markdown import Extension  # Here: the tests read the nav without mkdocs.

  class PlainTags(Extension):
    """Takes the pattern of inline HTML out."""

    def extendMarkdown(self, md):
      """See `Extension`."""
      md.inlinePatterns.deregister('html')

  config.markdown_extensions.append(PlainTags())
  return config


def on_files(files: Any, config: Any) -> Any:
  """Adds the pages to those of the site (an event of mkdocs)."""
  from mkdocs.structure.files import File
  for package, modules in packages():
    files.append(File.generated(config, f'{FOLDER}/{package}.md', content=page(package, modules)))
  return files
