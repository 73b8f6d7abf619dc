"""Figures as SVG and PNG: files that stand alone, and SVG inside of a page that takes the page's colours.

Figures are drawn with one ink and one paper colour, so that in a page the ink can become the colour of its text and the paper
nothing: the same figure is readable on light and on dark pages. Texts stay texts, and are escaped by the XML writer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import warnings
from typing import Any
from collections.abc import Iterator
from xml.etree import ElementTree

INK = '#1b2430'
PAPER = '#fefefe'
# Okabe and Ito's colours, which people with any colour vision tell apart; those readable on light and dark come first.
COLOURS = ('#0f86cf', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_SVG, _XLINK = 'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'
_SETTINGS = {
    'axes.edgecolor': INK, 'axes.facecolor': PAPER, 'axes.labelcolor': INK, 'axes.linewidth': 0.6, 'axes.spines.right': False,
    'axes.spines.top': False, 'axes.titlesize': 10, 'axes.titleweight': 'bold', 'axes.labelsize': 9,
    'figure.facecolor': PAPER, 'font.family': 'DejaVu Sans', 'font.size': 9, 'legend.frameon': False, 'legend.fontsize': 8,
    'savefig.facecolor': PAPER, 'svg.fonttype': 'none', 'svg.hashsalt': 'analysis', 'text.color': INK, 'text.parse_math': False,
    'xtick.color': INK, 'xtick.labelsize': 8, 'ytick.color': INK, 'ytick.labelsize': 8}


def check_installed() -> None:
  """Raises ValueError, with the remedy in one line, where matplotlib is absent."""
  if importlib.util.find_spec('matplotlib') is None:
    raise ValueError("figures need matplotlib: pip install 'cpoly-jax[plots]', or add --numbers_only")


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Within it figures are made and saved in one style. Names are never taken for mathematics."""
  import matplotlib
  with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph .* missing from')  # The reader's own fonts have it, or show a box.
    warnings.filterwarnings('ignore', message='Attempting to set identical low and high')  # A tree of equal tasks.
    yield


def render(figure: Any, form: str) -> bytes:
  """Returns a figure as `svg` or `png`; the same figure gives the same SVG."""
  buffer = io.BytesIO()
  if form == 'svg':
    figure.savefig(buffer, format='svg', dpi=150, metadata={'Date': None, 'Creator': None})
  else:
    figure.savefig(buffer, format='png', dpi=150)
  return buffer.getvalue()


def inline(svg: bytes, name: str, title: str) -> str:
  """Returns an SVG as an element of a page.

  Args:
    svg: of `render`.
    name: letters, digits and underscores; makes the ids of this figure differ from those of others.
    title: what a screen reader says.
  """
  ElementTree.register_namespace('', _SVG)
  ElementTree.register_namespace('xlink', _XLINK)
  root = ElementTree.fromstring(svg)
  for parent in list(root.iter()):
    for child in list(parent):
      # A style sheet inside of a figure would be one of the whole page.
      if child.tag in (f'{{{_SVG}}}metadata', f'{{{_SVG}}}style'):
        parent.remove(child)
  for element in root.iter():
    for key, value in element.attrib.items():
      if key == 'id':
        value = f'{name}-{value}'
      elif key == f'{{{_XLINK}}}href' and value.startswith('#'):
        value = f'#{name}-{value[1:]}'
      value = value.replace('url(#', f'url(#{name}-')
      if key in ('style', 'fill', 'stroke'):
        value = re.sub(r'font-family:[^;]*;?', '', value.replace(INK, 'currentColor').replace(PAPER, 'none'))
      element.set(key, value)
  root.set('role', 'img')
  root.set('aria-label', title)
  root.set('style', 'stroke-linejoin:round;stroke-linecap:butt')
  return ElementTree.tostring(root, encoding='unicode')
