"""The gin configuration of a run, as the run itself will read it: checked, counted, and told apart by a hash.

Only text and shapes are made: no data is read, no device is used. Everything is read relative to the working directory and to
the folder of gin_configs, as `python -m t5x.train` does with the flags of `flags`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

import gin
from t5x import gin_utils

from cpoly_jax import command_line
from cpoly_jax.experiments import values
from cpoly_jax.systems import configured
from cpoly_jax.systems import counts
from cpoly_jax.t5 import network

SEARCH_PATHS = ('.', str(configured.ROOT))
_DIGITS = 16
_STATEMENT = re.compile(r'^(\S+) = (.*(?:\n[ \t].*)*)', re.MULTILINE)
# What code takes from a reference only: a router that no reference names is one that another system's file left behind.
_REFERENCED_ONLY = ('routing.', 'skills.')


@dataclasses.dataclass(frozen=True)
class Config:
  """What gin makes of files and bindings.

  Attributes:
    text: all of it, as gin writes it; equal texts are equal runs.
    macros: names of the macros that something in use uses.
    steps: TRAIN_STEPS; None where it is no number.
    batch_size: BATCH_SIZE; None where it is no number.
  """

  text: str
  macros: frozenset[str]
  steps: int | None
  batch_size: int | None

  def fingerprint(self, *more: str) -> str:
    """Returns a hash of the configuration, and of what else decides what a run does."""
    return hashlib.sha256('\0'.join((self.text, *more)).encode()).hexdigest()[:_DIGITS]


@contextlib.contextmanager
def parsed(files: Sequence[str], bindings: Mapping[str, str]) -> Iterator[Config]:
  """Gives the configuration of a run; within the block gin has it.

  Replaces what gin had parsed before, and leaves it empty.

  Raises:
    ValueError: gin refuses it, in one line; or something is required and nobody gave it.
  """
  gin.clear_config()
  lines = values.lines({'MODEL_DIR': "''", **bindings})
  try:
    with configured.as_training():
      try:
        gin_utils.parse_gin_flags(SEARCH_PATHS, files, lines, finalize_config=False)
      except (ValueError, OSError, NameError, AttributeError, SyntaxError) as e:
        raise ValueError(command_line.first_line(e)) from None
    text = gin.config_str()
    if missing := re.findall(r'^(\S+) = %gin\.REQUIRED$', text, re.MULTILINE):
      raise ValueError(f'{" and ".join(missing)} must be given, e.g. in [bindings]')
    yield Config(text, used_macros(text), _number('TRAIN_STEPS'), _number('BATCH_SIZE'))
  finally:
    gin.clear_config()


def used_macros(text: str) -> frozenset[str]:
  """Returns the macros that a configuration uses, but for routers and skills that nothing in it refers to.

  A file on top has a system, which the file of another one replaces: settings of the first are still there, without effect.

  Args:
    text: of gin.
  """
  statements = dict(_STATEMENT.findall(text))
  while True:
    referenced = {name.rpartition('/')[2] for value in statements.values() for name in re.findall(r'@([\w./]+)', value)}
    idle = [name for name in statements
            if name.startswith(_REFERENCED_ONLY) and name.rpartition('.')[0] not in referenced]
    if not idle:
      return configured.used_macros('\n'.join(statements.values()))
    for name in idle:
      del statements[name]


def _number(name: str) -> int | None:
  try:
    value = configured.macro(name)
  except ValueError:  # No such macro.
    return None
  return value if type(value) is int else None


def read(files: Sequence[str], bindings: Mapping[str, str]) -> Config:
  """Returns the configuration of a run; raises as `parsed` does."""
  with parsed(files, bindings) as config:
    return config


def unused(config: Config, names: Sequence[str]) -> str | None:
  """Returns what is wrong with the first macro that nothing in a configuration uses; None if there is none."""
  for name in names:
    if re.fullmatch(r'\w+', name) and name not in config.macros:
      near = difflib.get_close_matches(name, sorted(config.macros), n=1)
      return f'no gin file uses the macro {name}{f"; did you mean {near[0]}?" if near else ""}'
  return None


class Counter:
  """Counts parameters of configurations, each once."""

  def __init__(self):
    self._known: dict[str, counts.Counts] = {}

  def __call__(self, files: Sequence[str], bindings: Mapping[str, str]) -> counts.Counts:
    """Returns the parameters of a run.

    Raises:
      ValueError: gin or the network refuses the settings, or nothing would train.
    """
    with parsed(files, bindings) as config:
      if config.text not in self._known:
        try:
          self._known[config.text] = counts.count(_made(config))
        except (OSError, TypeError) as e:
          raise ValueError(command_line.first_line(e)) from None
      return self._known[config.text]


def _made(config: Config) -> configured.Configured:
  """What `counts` needs of the configuration that gin has."""
  return configured.Configured(
      system='', transformer=gin.get_configurable(network.Transformer)(), optimizer=configured.macro('OPTIMIZER'),
      num_tasks=configured.macro('NUM_TASKS'), batch_size=config.batch_size or 1, lengths={}, macros=config.macros)


def whole_number(files: Sequence[str], bindings: Mapping[str, str], name: str) -> int:
  """Returns the value of a macro in a configuration.

  Raises:
    ValueError: nothing uses it, or it is no whole number.
  """
  with parsed(files, bindings) as config:
    if wrong := unused(config, [name]):
      raise ValueError(wrong)
    value = configured.macro(name)
  if type(value) is not int:
    raise ValueError(f'has {name} = {value!r}, which is no whole number')
  return value
