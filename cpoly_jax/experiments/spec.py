"""What a file of an experiment says, read and checked: TOML in, dataclasses out, mistakes with file and key.

docs/experiments.md has all keys. Nothing here knows gin beyond the names of bindings; `arms` and `configuring` do.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping, Sequence

from cpoly_jax.experiments import reading
from cpoly_jax.experiments import values

MAIN, TUNE = 'main', 'tune'
Bindings = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Variant:
  """A system under a name of its own: files and bindings on top of those of `system`."""

  system: str
  gin_files: tuple[str, ...] = ()
  bindings: Bindings = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Budget:
  """Equal parameters.

  Attributes:
    equal: `trainable` or `active`.
    to: whose parameters the others get.
    vary: for each system or variant, the macro that is chosen.
    free: systems that keep what they have.
    tolerance: largest difference, as a share of the reference.
  """

  equal: str
  to: str
  vary: Mapping[str, str]
  free: tuple[str, ...]
  tolerance: float


@dataclasses.dataclass(frozen=True)
class Tune:
  """The same search for every system, on one seed."""

  seed: int
  grid: Mapping[str, tuple[str, ...]]
  bindings: Bindings
  minutes_per_run: float | None


@dataclasses.dataclass(frozen=True)
class After:
  """A second run for each first one; `{first}` in a binding is the MODEL_DIR of the first.

  Attributes:
    name: of the stage.
    systems: systems or variants that it is for; None: all.
    system: the system file that it reads in place of the first run's; None: the same.
    alone: it reads its own files and bindings only, neither those of all runs nor of the system.
    gin_files: files after that of the system.
    bindings: they win over those of the first run.
    minutes_per_run: for the estimate.
  """

  name: str
  systems: tuple[str, ...] | None
  system: str | None
  alone: bool
  gin_files: tuple[str, ...]
  bindings: Bindings
  minutes_per_run: float | None


@dataclasses.dataclass(frozen=True)
class Spec:
  """An experiment: `axes` are the further axes of the grid, `ablate` settings that are changed one at a time, `truth` is the
  file of a known task x skill matrix."""

  path: str
  text: str
  title: str
  question: str
  gin_files: tuple[str, ...]
  bindings: Bindings
  systems: tuple[str, ...]
  seeds: tuple[int, ...]
  sizes: tuple[str, ...]
  axes: Mapping[str, tuple[str, ...]]
  ablate: Mapping[str, tuple[str, ...]]
  ablated: str
  variants: Mapping[str, Variant]
  budget: Budget | None
  tune: Tune | None
  afters: tuple[After, ...]
  reference: str
  metric: str | None
  ceiling: float
  fractions: tuple[float, ...]
  truth: str | None
  minutes_per_run: float | None

  @property
  def name(self) -> str:
    """The file's name without its suffix."""
    return os.path.splitext(os.path.basename(self.path))[0]

  def error(self, key: str, text: str) -> reading.SpecError:
    """Returns the error of a key of this file."""
    return reading.SpecError(self.path, key, text)


def read(path: str) -> Spec:
  """Reads a file of an experiment.

  Raises:
    FileNotFoundError: there is none.
    reading.SpecError: it is no TOML, or a key is unknown, missing, or of the wrong kind.
  """
  try:
    with open(path, encoding='utf-8') as f:
      text = f.read()
    content = tomllib.loads(text)
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
    raise reading.SpecError(path, '', f'is no TOML: {e}') from None
  except IsADirectoryError:
    raise reading.SpecError(path, '', 'is a folder: name a .toml file') from None
  top = reading.Table(path, '', content)
  grid = top.table('grid')
  if grid is None:
    raise reading.SpecError(path, 'grid', "is not there: write [grid] with system = ['cpoly', ...]")
  systems = grid.names('system', required=True)
  seeds = tuple(grid.take('seed', reading.seeds, [0]))
  if (twice := values.repeated(seeds)) is not None:
    raise grid.error('seed', f'{twice} is there twice')
  sizes = grid.names('size')
  axes = grid.axes()
  variants = _variants(path, top)
  ablate, ablated = _ablate(top, systems)
  reference = top.take('reference', reading.is_text, systems[0])
  if reference not in systems:
    raise top.error('reference', f'is {reference!r}, which is not in grid.system')
  return Spec(
      path=path, text=text, title=top.take('title', reading.is_text, required=True),
      question=top.take('question', reading.is_text, ''), gin_files=top.names('gin_files'), bindings=top.bindings('bindings'),
      systems=systems, seeds=seeds, sizes=sizes, axes=axes, ablate=ablate, ablated=ablated, variants=variants,
      budget=_budget(top, systems), tune=_tune(top, seeds), afters=_afters(path, top, systems), reference=reference,
      metric=top.take('metric', reading.is_text), ceiling=top.take('ceiling', reading.is_positive, 1.),
      fractions=tuple(top.take('fractions', reading.shares, [0.5, 0.9])), truth=top.take('truth', reading.is_file),
      minutes_per_run=_ended(top))


def _ended(table: reading.Table) -> float | None:
  """Takes the last key of a table, and refuses those that are left."""
  minutes = table.take('minutes_per_run', reading.is_positive)
  table.end()
  return minutes


def _variants(path: str, top: reading.Table) -> dict[str, Variant]:
  found = {}
  table = top.table('variants')
  for name, content in ({} if table is None else table.rest()).items():
    if wanted := reading.is_name(name) or (None if isinstance(content, dict) else f'write a table, [variants.{name}]'):
      raise table.error(name, wanted)
    one = reading.Table(path, f'variants.{name}', content)
    found[name] = Variant(one.take('system', reading.is_text, required=True), one.names('gin_files'), one.bindings('bindings'))
    one.end()
  return found


def _ablate(top: reading.Table, systems: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], str]:
  table = top.table('ablate')
  if table is None:
    return {}, ''
  system = table.take('system', reading.is_text, systems[0])
  if system not in systems:
    raise table.error('system', f'is {system!r}, which is not in grid.system')
  found = table.axes()
  if not found:
    raise top.error('ablate', 'has no setting to change: write RANK = [1, 16]')
  return found, system


def _budget(top: reading.Table, systems: Sequence[str]) -> Budget | None:
  table = top.table('budget')
  if table is None:
    return None
  one_of = lambda allowed: lambda value: None if value in allowed else f'write one of {", ".join(allowed)}'
  equal = table.take('equal', one_of(('trainable', 'active')), required=True)
  to = table.take('to', one_of(systems), systems[0])
  vary_table = table.table('vary')
  vary = {} if vary_table is None else vary_table.rest()
  for name, macro in vary.items():
    if name not in systems or name == to:
      raise vary_table.error(name, 'has the budget that others get' if name == to else 'is not in grid.system')
    if not isinstance(macro, str) or not re.fullmatch(r'[A-Za-z_]\w*', macro):
      raise vary_table.error(name, f'is {macro!r}: write the name of a macro, such as RANK')
  free = table.names('free')
  for name in free:
    if name not in systems or name in vary:
      raise table.error('free', f'{name} is in budget.vary, too' if name in vary else f'{name} is not in grid.system')
  for name in systems:
    if name != to and name not in vary and name not in free:
      raise table.error('vary', f'lacks {name}: name the macro that gives it the budget of {to}, or list it in budget.free')
  tolerance = table.take('tolerance', reading.is_positive, 0.1)
  table.end()
  return Budget(equal, to, vary, free, tolerance)


def _tune(top: reading.Table, seeds: Sequence[int]) -> Tune | None:
  table = top.table('tune')
  if table is None:
    return None
  seed = table.take('seed', reading.is_seed, required=True)
  if seed in seeds:
    raise table.error('seed', f'{seed} is in grid.seed: choose on a seed that is not among the results')
  grid_table = table.table('grid')
  if grid_table is None or not (grid := grid_table.axes()):
    raise table.error('grid', 'is not there: write SKILLS_LEARNING_RATE = [1e-3, 3e-3]')
  return Tune(seed, grid, table.bindings('bindings'), _ended(table))


def _afters(path: str, top: reading.Table, systems: Sequence[str]) -> tuple[After, ...]:
  are_tables = lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value)
  tables = top.take('after', lambda value: None if are_tables(value) else 'write [[after]]', [])
  found: list[After] = []
  for number, content in enumerate(tables):
    one = reading.Table(path, f'after[{number}]', content)
    name = one.take('name', reading.is_name, required=True)
    if name in (MAIN, TUNE, *(after.name for after in found)):
      raise one.error('name', f'{name} is there twice' if name not in (MAIN, TUNE) else f'{name} is the name of another stage')
    only = one.names('systems', None)
    for system in only or ():
      if system not in systems:
        raise one.error('systems', f'{system} is not in grid.system')
    system = one.take('system', reading.is_text)
    alone = one.take('alone', lambda value: None if isinstance(value, bool) else 'write true or false', False)
    gin_files = one.names('gin_files', required=alone)
    if alone and system is not None:
      raise one.error('system', 'an after that is alone reads gin_files only: leave system or alone out')
    found.append(After(name, only, system, alone, gin_files, one.bindings('bindings'), _ended(one)))
  return tuple(found)
