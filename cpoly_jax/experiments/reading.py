"""A TOML file's tables, whose keys are taken one by one: every mistake is told with file and key."""

from __future__ import annotations

import difflib
import math
import os
import re
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from cpoly_jax.experiments import values

_NAME = re.compile(r'(?:\w+/)*[A-Za-z_][\w.]*')
_LONGEST = 60


class SpecError(ValueError):
  """A mistake in a file: `path: key: what is wrong and what to write instead`."""

  def __init__(self, path: str, key: str, text: str):
    super().__init__(f'{path}: {key}: {text}' if key else f'{path}: {text}')


class Table:
  """A table of the file whose keys are taken one by one; `end` refuses those that nobody took."""

  def __init__(self, path: str, prefix: str, content: Mapping[str, Any]):
    self._path, self._prefix, self._left, self._known = path, prefix, dict(content), []

  def key(self, name: str) -> str:
    """The whole key."""
    return f'{self._prefix}.{name}' if self._prefix else name

  def error(self, name: str, text: str) -> SpecError:
    """Returns the error of a key."""
    return SpecError(self._path, self.key(name), text)

  def take(self, name: str, check: Callable[[Any], str | None], default: Any = None, *, required: bool = False) -> Any:
    """Returns a value; `check` says what to write instead, or None."""
    self._known.append(name)
    if name not in self._left:
      if required:
        raise SpecError(self._path, self.key(name), f'is not there: {check(None)}')
      return default
    value = self._left.pop(name)
    if wanted := check(value):
      raise self.error(name, f'is {value!r}: {wanted}')
    return value

  def table(self, name: str) -> Table | None:
    """Returns a table, None if it is absent."""
    found = self.take(name, lambda v: None if isinstance(v, dict) else f'write a table, [{self.key(name)}]')
    return None if found is None else Table(self._path, self.key(name), found)

  def rest(self) -> dict[str, Any]:
    """Takes all keys that are left."""
    rest, self._left = self._left, {}
    return rest

  def names(self, name: str, default: Sequence[str] | None = (), *, required: bool = False) -> Any:
    """Returns a list of different texts, as a tuple."""
    found = self.take(name, texts, default, required=required)
    if found is None:
      return None
    if (twice := values.repeated(found)) is not None:
      raise self.error(name, f'{twice} is there twice')
    return tuple(found)

  def bindings(self, name: str) -> dict[str, str]:
    """Returns a table of bindings."""
    table = self.table(name)
    return {} if table is None else {key: table.gin(key, value) for key, value in table.rest().items()}

  def axes(self) -> dict[str, tuple[str, ...]]:
    """Takes all keys that are left as axes: lists of different values."""
    found = {}
    for name, items in self.rest().items():
      if not isinstance(items, list) or not items:
        raise self.error(name, 'write a list of values, not an empty one')
      found[name] = tuple(self.gin(name, item) for item in items)
      if (twice := values.repeated(found[name])) is not None:
        raise self.error(name, f'{twice} is there twice')
    return found

  def gin(self, name: str, value: Any) -> str:
    """Returns the value of a binding."""
    if not _NAME.fullmatch(name):
      raise self.error(name, 'is no name of a gin macro or parameter')
    if name in ('MODEL_DIR', 'RANDOM_SEED'):
      raise self.error(name, 'is set by the experiment: give seeds in grid.seed, and --out')
    try:
      return values.to_gin(value)
    except ValueError as e:
      raise self.error(name, str(e)) from None

  def end(self) -> None:
    """Raises SpecError for a key that nobody took."""
    for name in self._left:
      near = difflib.get_close_matches(name, self._known, n=1)
      hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(self._known)}'
      raise self.error(name, f'unknown key; {hint}')


def is_text(value: Any) -> str | None:
  """Says what to write where a value is no text; None if it is one."""
  return None if isinstance(value, str) and value.strip() else "write a text, 'in quotes'"


def is_file(value: Any) -> str | None:
  """Says what to write where a value names no file that is there; None if it does."""
  return None if isinstance(value, str) and os.path.isfile(value) else 'write the path of a file that is there'


def texts(value: Any) -> str | None:
  """Says what to write where a value is no list of texts."""
  good = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
  return None if good else "write a list of texts, not an empty one: ['one', 'two']"


def is_seed(value: Any) -> str | None:
  """Says what to write where a value is no whole number from 0."""
  return None if type(value) is int and value >= 0 else 'write a whole number, 0 or more'


def seeds(value: Any) -> str | None:
  """Says what to write where a value is no list of whole numbers from 0."""
  good = isinstance(value, list) and value and not any(map(is_seed, value))
  return None if good else 'write a list of whole numbers, not an empty one: [0, 1, 2]'


def is_positive(value: Any) -> str | None:
  """Says what to write where a value is no number above 0."""
  return None if type(value) in (int, float) and 0 < value < math.inf else 'write a number above 0'


def shares(value: Any) -> str | None:
  """Says what to write where a value is no list of shares."""
  good = isinstance(value, list) and value and all(type(item) in (int, float) and 0 < item <= 1 for item in value)
  return None if good else 'write a list of shares of the ceiling, above 0 and up to 1: [0.5, 0.9]'


def is_name(value: Any) -> str | None:
  """Says what to write where a value is no name of a stage or variant."""
  good = isinstance(value, str) and value.isprintable() and value.strip() == value and 0 < len(value) <= _LONGEST
  return None if good and ',' not in value else f'write a name: printable, no comma, at most {_LONGEST} characters'
