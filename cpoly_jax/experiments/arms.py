"""The arms of an experiment: a system or variant, a size and values of the axes; what is run once for each seed.

Later files and bindings win: those of all runs, of the size, of the system, of the variant, of the axes.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
from collections.abc import Iterator, Mapping

from cpoly_jax.experiments import values
from cpoly_jax.experiments.spec import Spec
from cpoly_jax.systems import configured

SIZE = 'size'


@dataclasses.dataclass(frozen=True)
class Arm:
  """What is compared.

  Attributes:
    label: its name, e.g. `poly small RANK=2`.
    system: as in `grid.system`.
    point: the size and values of the axes, which it shares with the arms that it is compared with.
    ablated: the setting that differs from the others' at this point, {} for none.
    base_files: gin files before that of the system.
    gin_files: all gin files.
    bindings: macro or parameter -> gin text.
  """

  label: str
  system: str
  point: Mapping[str, str]
  ablated: Mapping[str, str]
  base_files: tuple[str, ...]
  gin_files: tuple[str, ...]
  bindings: Mapping[str, str]


def exists(file: str) -> bool:
  """Whether a gin file is there, from the working directory or from the folder of gin_configs."""
  return any(os.path.isfile(os.path.join(folder, file)) for folder in ('', configured.ROOT))


def check_files(spec: Spec, key: str, files: tuple[str, ...]) -> None:
  """Raises SpecError for a gin file that is not there; the nearest name is told."""
  for file in files:
    if not exists(file):
      root = configured.ROOT / configured.FOLDER
      known = [f'{configured.FOLDER}/{path.relative_to(root)}' for path in sorted(root.rglob('*.gin'))]
      near = difflib.get_close_matches(file, known, n=1)
      raise spec.error(key, f'there is no gin file {file}{f"; did you mean {near[0]}?" if near else ""}')


def system_files(spec: Spec, key: str, name: str) -> tuple[str, ...]:
  """Returns the files of a system or variant.

  Raises:
    SpecError: no such system or file.
  """
  if name in spec.variants:
    variant = spec.variants[name]
    check_files(spec, f'variants.{name}.gin_files', variant.gin_files)
    return (*_file(spec, f'variants.{name}.system', variant.system, configured.systems()), *variant.gin_files)
  return _file(spec, key, name, [*configured.systems(), *spec.variants])


def _file(spec: Spec, key: str, name: str, known: list[str]) -> tuple[str, ...]:
  try:
    files = (configured.gin_file('systems', name, known),)
  except ValueError as e:
    raise spec.error(key, str(e)) from None
  check_files(spec, key, files)
  return files


def _base_files(spec: Spec, size: str | None) -> tuple[str, ...]:
  check_files(spec, 'gin_files', spec.gin_files)
  if size is None:
    if not spec.gin_files:
      raise spec.error('gin_files', "is not there: write gin_files = ['gin_configs/cpoly_tiny.gin'], or grid.size")
    return spec.gin_files
  file = f'{configured.FOLDER}/cpoly_{size}.gin'
  check_files(spec, 'grid.size', (file,))
  return (file, *spec.gin_files)


def arms(spec: Spec) -> list[Arm]:
  """Returns all arms, in the order of the file.

  Raises:
    SpecError: an unknown system, size or file, a variant that nothing uses, or two arms of one name.
  """
  for name in spec.variants:
    if name not in spec.systems:
      raise spec.error(f'variants.{name}', 'is not in grid.system')
    if name in configured.systems():
      raise spec.error(f'variants.{name}', f'is the name of {configured.FOLDER}/systems/{name}.gin: take another')
  found = []
  for size, *chosen in itertools.product(spec.sizes or (None,), *spec.axes.values()):
    point = {} if size is None else {SIZE: size}
    axes = dict(zip(spec.axes, chosen))
    for system, ablated in _systems(spec):
      variant = spec.variants.get(system)
      base = _base_files(spec, size)
      words = (system, size or '', values.named(axes), values.named(ablated))
      files = (*base, *system_files(spec, 'grid.system', system))
      found.append(Arm(
          ' '.join(filter(None, words)), system, point | axes, ablated, base, files,
          values.merged(spec.bindings, variant.bindings if variant else {}, axes, ablated)))
  if (twice := values.repeated([arm.label for arm in found])) is not None:
    raise spec.error('grid', f'{twice} is there twice')
  return found


def _systems(spec: Spec) -> Iterator[tuple[str, Mapping[str, str]]]:
  """Gives each system, and the ablated one with each of its settings changed."""
  for system in spec.systems:
    yield system, {}
    if system == spec.ablated:
      for name, texts in spec.ablate.items():
        yield from ((system, {name: text}) for text in texts)


def reference(spec: Spec, arm: Arm, all_arms: list[Arm], system: str | None = None) -> Arm:
  """Returns the arm that one is compared with: that of the reference system at the same point."""
  return next(other for other in all_arms
              if other.system == (system or spec.reference) and other.point == arm.point and not other.ablated)
