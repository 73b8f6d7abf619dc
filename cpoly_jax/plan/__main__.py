"""Command line: what a run needs, before it has it (`python -m cpoly_jax.plan --help`)."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cpoly_jax import command_line
from cpoly_jax.plan import devices

if TYPE_CHECKING:
  from cpoly_jax.plan import meshes, runs

_EXAMPLES = """
The train step is compiled as t5x.train would, from shapes alone: for as many virtual CPU devices as the mesh has, or by the
compiler of TPUs where libtpu is installed (pip install libtpu). What the figures are and are not: docs/plan.md.

examples:
  python -m cpoly_jax.plan --gin_file=gin_configs/cpoly_xxl.gin --mesh=data=8,model=8 --device=v5e
  python -m cpoly_jax.plan --gin_file=gin_configs/cpoly_large.gin --mesh=data=8,model=1 --device=a100 --gin.BATCH_SIZE=128
  python -m cpoly_jax.plan --gin_file=gin_configs/cpoly_xxl.gin --devices=64 --best
  python -m cpoly_jax.plan --gin_file=gin_configs/cpoly_xxl.gin --devices=64 --estimate --gin.NUM_TASKS=1600
"""
_AXES = ('data', 'model')
_MOST = 4096  # Virtual devices.


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m cpoly_jax.plan', allow_abbrev=False, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Memory, FLOPs and time of the train step of a run, without its devices and without its weights.')
  add = parser.add_argument
  add('--gin_file', action='append', default=[], metavar='FILE', help='gin file of a training run; repeatable')
  add('--mesh', metavar='data=D,model=M', help='devices along the two axes of the mesh')
  add('--devices', type=int, metavar='N', help='number of devices, in place of --mesh: the best mesh of N devices')
  add('--best', action='store_true', help='estimate all meshes of as many devices, and compile the best one')
  add('--estimate', action='store_true', help='as --best, and compile nothing')
  add('--device', default='v5e', metavar='NAME', help=f'one of {", ".join(devices.DEVICES)} (default: %(default)s)')
  add('--compiler', choices=('cpu', 'tpu'), default='cpu', help='tpu: that of libtpu, for --device=v... (default: %(default)s)')
  add('--mfu', type=float, default=0.4, metavar='SHARE', help='share of the peak FLOP/s that is assumed (default: %(default)s)')
  add('--gin.NAME', dest='_', metavar='VALUE', help='a gin binding, --gin.NAME=VALUE; repeatable')
  return parser


def parse_mesh(text: str) -> dict[str, int]:
  """Returns {'data': D, 'model': M} of `data=D,model=M`; an axis that is left out is 1.

  Raises:
    ValueError: anything else.
  """
  found: dict[str, int] = {}
  for part in text.split(','):
    match = re.fullmatch(r'\s*(\w+)\s*=\s*(\d+)\s*', part)
    if not match or match[1] not in _AXES or match[1] in found or not int(match[2]):
      raise ValueError(f'--mesh={text}: write --mesh=data=8,model=8, with numbers above 0')
    found[match[1]] = int(match[2])
  return {axis: found.get(axis, 1) for axis in _AXES}


def _check(options: argparse.Namespace) -> dict[str, int] | None:
  """Returns the mesh, None if it is to be found; raises ValueError for a mistake in the flags."""
  if not options.gin_file:
    raise ValueError('give the gin file of a training run: --gin_file=gin_configs/cpoly_xxl.gin')
  devices.device(options.device)
  if not 0 < options.mfu <= 1:
    raise ValueError(f'--mfu={options.mfu}: write a share of the peak above 0, up to 1')
  mesh = options.mesh and parse_mesh(options.mesh)
  if mesh and options.devices:
    raise ValueError('--mesh and --devices exclude each other: give one of them')
  if not mesh and not options.devices:
    raise ValueError('give --mesh=data=8,model=8, or --devices=64 to find the best mesh')
  number = math.prod(mesh.values()) if mesh else options.devices
  if not 1 <= number <= _MOST:
    raise ValueError(f'{number} devices: write 1 to {_MOST}')
  return mesh


def _virtual_devices(number: int) -> None:
  """Asks for as many virtual CPU devices; has an effect only before jax looks for its devices."""
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ.get('XLA_FLAGS', ''))
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={number}'.strip()


def _compile(run: runs.Run, layout: meshes.Layout, rules: Any, options: argparse.Namespace, by_hand: float) -> list[str]:
  """Returns the lines on the compiled step of a layout."""
  from cpoly_jax.plan import hlo, report, roofline, train_step
  chip = devices.device(options.device)
  mesh = train_step.make_mesh(layout.mesh, options.compiler, chip)
  found = train_step.compile_step(run, mesh, options.compiler, rules)
  analysis = roofline.analyse(found.executable, hlo.Program(found.executable.as_text()))
  return report.compiled(run, found, layout.mesh, chip, analysis, by_hand, options.mfu)


def _state(run: runs.Run) -> tuple[Any, Any]:
  """Returns the train state on one device, and {name: its logical axes}."""
  from cpoly_jax.plan import train_step
  alone = train_step.on_mesh(run.partitioner, train_step.make_mesh({'data': 1, 'model': 1}))
  state = train_step.state_of(run, alone)
  return state, train_step.flat(alone.get_logical_axes(state.shapes))


def _plan(run: runs.Run, mesh: dict[str, int] | None, options: argparse.Namespace) -> list[str]:
  """Returns the lines of a plan."""
  from cpoly_jax.plan import meshes, report
  state, logical = _state(run)
  lines = report.head(run, state)
  search = mesh is None or options.best or options.estimate
  if not search:
    layout = meshes.Layout(mesh['data'], mesh['model'], run.dims or 1, run.axis_rules)
    return lines + _compile(run, layout, None, options, meshes.hand_flops(run))
  number = math.prod(mesh.values()) if mesh else options.devices
  layouts = list(meshes.legal(run, state, logical, number))
  if not layouts:
    raise ValueError(f'no mesh of {number} devices divides the batch of {run.batch_size}, the heads and the parameters: '
                     'write another --devices, or another --gin.BATCH_SIZE')
  shared, chip = meshes.costs_of(run, state, logical), devices.device(options.device)
  ranked = meshes.rank([meshes.estimate(run, state, shared, layout) for layout in layouts], chip, options.mfu)
  lines += ['', *report.table(ranked, chip, options.mfu), '']
  best = ranked[0].layout
  lines.append(f'best: data={best.data}, model={best.model}; write {best.gin}')
  if not options.estimate:
    lines += _compile(run, best, best.rules, options, shared.flops)
  return lines


def run(arguments: Sequence[str]) -> command_line.Result:
  """Returns what the program prints.

  Raises:
    ValueError: a mistake in the arguments or in the run, or a mesh that does not divide it.
    FileNotFoundError: no such gin file.
  """
  bindings, others = command_line.split_bindings(arguments)
  options = _parser().parse_args(others)
  mesh = _check(options)
  _virtual_devices(math.prod(mesh.values()) if mesh else options.devices)
  from cpoly_jax.plan import runs
  with runs.configured(options.gin_file, bindings) as configured:
    return '\n'.join(_plan(configured, mesh, options)), 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints a plan; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
