"""A report as one HTML file that opens offline: no script, no font, no image from elsewhere; its policy forbids them, too."""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

from cpoly_jax.analysis import texts
from cpoly_jax.analysis.parts import Grid, Section

_STYLE = """
:root { color-scheme: light dark; --text: #1b2430; --soft: #5a6676; --paper: #ffffff; --card: #f6f7f9; --line: #d9dee5;
  --accent: #0b67a3; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #a3adba; --paper: #14181e; --card: #1c222a;
  --line: #333c48; --accent: #6cb8ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .6rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); }
nav { margin: 1.4rem 0 0; display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; font-size: .95rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .6rem; margin: 1.5rem 0 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .55rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 1.4rem 0; }
figure h3 { margin-top: 0; }
figure svg { display: block; max-width: 100%; height: auto; margin: .4rem 0; }
.scroll { overflow: auto; max-height: 26rem; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.text { overflow-wrap: anywhere; min-width: 11rem; }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; white-space: nowrap; }
@media print { .scroll { max-height: none; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, subtitle: str, facts: Mapping[str, Any], sections: Sequence[Section], drawn: Mapping[str, str],
         files: Sequence[str]) -> str:
  """Returns the report.

  Args:
    title: of the page.
    subtitle: a line below it.
    facts: by name, shown at the top.
    sections: the parts.
    drawn: SVG elements, by the name of the drawing; a drawing that is not there is left out.
    files: names of the files beside the report.
  """
  parts = [
      '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{texts.escape(_POLICY)}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{texts.escape(title)}</title>', f'<style>{_STYLE}</style>', '</head>', '<body>', '<main>', '<header>',
      f'<h1>{texts.escape(title)}</h1>', f'<p class="soft">{texts.escape(subtitle)}</p>', _facts(facts),
      '<nav aria-label="Sections">', *(f'<a href="#{section.key}">{texts.escape(section.title)}</a>' for section in sections),
      '</nav>', '</header>']
  for section in sections:
    parts += _section(section, drawn)
  parts += ['<h2 id="files">Files</h2>', '<p>All numbers of this report, and its figures, are in the same folder: '
            + ', '.join(f'<a href="{texts.escape(name)}">{texts.escape(name)}</a>' for name in files) + '.</p>',
            '</main>', '</body>', '</html>']
  return '\n'.join(parts) + '\n'


def _facts(facts: Mapping[str, Any]) -> str:
  return '<dl>' + ''.join(f'<div><dt>{texts.escape(name)}</dt><dd>{texts.escape(texts.shown(value))}</dd></div>'
                          for name, value in facts.items()) + '</dl>'


def _section(section: Section, drawn: Mapping[str, str]) -> list[str]:
  parts = [f'<section aria-labelledby="{section.key}">', f'<h2 id="{section.key}">{texts.escape(section.title)}</h2>',
           *(f'<p>{texts.escape(sentence)}</p>' for sentence in section.sentences)]
  for drawing in section.drawings:
    if drawing.name in drawn:
      parts.append(f'<figure><h3>{texts.escape(drawing.title)}</h3>{drawn[drawing.name]}'
                   f'<figcaption>{texts.escape(drawing.caption)}</figcaption></figure>')
  for grid in section.grids:
    if grid.shown and grid.rows:
      parts.append(_table(grid))
  return [*parts, '</section>']


def _table(grid: Grid) -> str:
  """Returns a table; columns of numbers stand to the right."""
  rows = grid.rows[:grid.shown]
  kinds = ['number' if all(not isinstance(row[i], str) for row in rows) else 'text' for i in range(len(grid.header))]
  head = ''.join(f'<th scope="col" class="{kind}">{texts.escape(name)}</th>' for name, kind in zip(grid.header, kinds))
  cells = lambda row: ''.join(f'<td class="{kind}">{texts.escape(texts.shown(cell))}</td>' for cell, kind in zip(row, kinds))
  body = ''.join(f'<tr>{cells(row)}</tr>\n' for row in rows)
  more = len(grid.rows) - len(rows)
  rest = f'<p class="soft">and {more:,} more in {texts.escape(grid.name)}.csv</p>' if more else ''
  return (f'<h3>{texts.escape(grid.title)}</h3>\n<div class="scroll" tabindex="0" role="region" '
          f'aria-label="{texts.escape(grid.title)}"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>{rest}')
