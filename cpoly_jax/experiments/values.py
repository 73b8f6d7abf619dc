"""Values of a TOML file as gin writes them.

A text is a text: `MIXING = 'products'` becomes `MIXING = 'products'`. What only gin has is a table of one key:
`ROUTING_LEARNING_RATE = {gin = '%SKILLS_LEARNING_RATE'}`, and so are None and tuples.
"""

from __future__ import annotations

import datetime
import math
from typing import Any
from collections.abc import Mapping, Sequence

RAW = 'gin'


def to_gin(value: Any) -> str:
  """Returns a value of TOML as a gin expression.

  Raises:
    ValueError: a date, an infinite number, or a raw expression that is no single line.
  """
  if isinstance(value, Mapping):
    if set(value) == {RAW}:
      raw = value[RAW]
      if not isinstance(raw, str) or not raw.strip() or '\n' in raw:
        raise ValueError(f"{raw!r}: write {{gin = '...'}} with an expression of one line")
      return raw.strip()
    return '{' + ', '.join(f'{key!r}: {to_gin(item)}' for key, item in value.items()) + '}'
  if isinstance(value, list):
    return '[' + ', '.join(map(to_gin, value)) + ']'
  if isinstance(value, (datetime.date, datetime.time)):  # A datetime is a date, too.
    raise ValueError(f'{value} is a date: put it in quotes')
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f'{value} is no finite number')
  return repr(value)


def short(text: str) -> str:
  """Returns a gin expression as it stands in a name: a text without its quotes."""
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"' else text


def merged(*parts: Mapping[str, str]) -> dict[str, str]:
  """Returns all bindings; later parts win, and what wins comes last."""
  result: dict[str, str] = {}
  for part in parts:
    for name, text in part.items():
      result.pop(name, None)
      result[name] = text
  return result


def lines(bindings: Mapping[str, str]) -> list[str]:
  """Returns bindings as lines of gin."""
  return [f'{name} = {text}' for name, text in bindings.items()]


def flags(bindings: Mapping[str, str]) -> list[str]:
  """Returns bindings as flags of a run."""
  return [f'--gin.{name}={text}' for name, text in bindings.items()]


def named(values: Mapping[str, str]) -> str:
  """Returns `RANK=2 MIXING=products`."""
  return ' '.join(f'{name}={short(text)}' for name, text in values.items())


def repeated(items: Sequence[Any]) -> Any:
  """Returns the first item that is there twice; None if there is none."""
  return next((item for i, item in enumerate(items) if item in items[:i]), None)
