"""Command line: the table of systems, and equal budgets (`python -m cpoly_jax.systems --help`)."""

from __future__ import annotations

import argparse
import os
import difflib
import re
import sys
from collections.abc import Sequence

from cpoly_jax import command_line
from cpoly_jax.systems import tables

_EXAMPLES = """
columns:
  S                   skills of the inventory
  skills ... base     parameters that train, as the optimizer of the gin files says
  % of base           all of these, as a share of the base's parameters
  active              those that one task, or one token of it, can use: its share of the skills, its rows of the routing
                      and what all tasks share
  FLOPs/token         what the skills add to a forward pass, as XLA counts it, over inputs and targets
  % of FLOPs          the same as a share of the base's forward pass

examples:
  python -m cpoly_jax.systems --model=t5_1_1/xxl --num_tasks=8
  python -m cpoly_jax.systems --systems=cpoly,poly --gin.RANK=16 --gin.SPECIFIC="'fixed'"
  python -m cpoly_jax.systems --gin_file=gin_configs/skills/sft.gin --format=markdown
  python -m cpoly_jax.systems --systems=expert --gin.EXPERT_MATRIX="'skills.csv'" --gin.MIXTURE_OR_TASK_NAME="'superglue'"
  python -m cpoly_jax.systems --match=trainable --to=cpoly --vary=NUM_SKILLS
"""

HEADER = ('system', 'T', 'S', 'skills', 'routing', 'base', '% of base', 'active', 'FLOPs/token', '% of FLOPs')
MATCH_HEADER = ('system', 'macro', 'was', 'value', 'parameters', 'difference %')


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m cpoly_jax.systems', allow_abbrev=False, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Parameters and costs of all systems on one model; nothing is allocated and no device is used.')
  add = parser.add_argument
  add('--model', default='t5_1_1/small', metavar='NAME', help='a file of gin_configs/models (default: %(default)s)')
  add('--num_tasks', type=int, metavar='T', help='tasks (default: those of MIXTURE_OR_TASK_NAME if that is set, or 8)')
  add('--systems', metavar='A,B', help='files of gin_configs/systems (default: all)')
  add('--gin_file', action='append', default=[], metavar='FILE', help='comes after the file of each system; repeatable')
  add('--gin.NAME', dest='_', metavar='VALUE', help='a gin binding for all systems, --gin.NAME=VALUE; repeatable')
  add('--format', choices=tables.FORMATS, default=tables.TABLE, help='(default: %(default)s)')
  add('--match', choices=('trainable', 'active'), help='give the systems equal budgets of these parameters')
  add('--to', default='cpoly', metavar='SYSTEM', help='whose budget the others get (default: %(default)s)')
  add('--vary', metavar='MACRO', help='what --match changes: NUM_SKILLS, RANK, NUM_COMMON, ...')
  return parser


def _check(names: Sequence[str], request, macros: Sequence[str]) -> None:
  """Raises an error for a gin file that is not there, and for a macro that no file of the systems uses."""
  from cpoly_jax.systems.configured import ROOT, configured
  for file in request.gin_files:
    if not any(os.path.isfile(os.path.join(folder, file)) for folder in ('', ROOT)):
      files = [str(path.relative_to(ROOT)) for path in (ROOT / 'gin_configs').rglob('*.gin')]
      near = difflib.get_close_matches(file, files, n=1)
      raise FileNotFoundError(f'no gin file {file}{f"; did you mean {near[0]}?" if near else ""}')
  used: set[str] = set()
  for name in names if macros else ():
    try:
      with configured(name, request) as made:
        used |= made.macros
    except (ValueError, OSError):
      continue  # Told when it is counted.
  for name in macros if used else ():
    if name not in used:
      near = difflib.get_close_matches(name, sorted(used), n=1)
      raise ValueError(f'no gin file of these systems uses the macro {name}{f"; did you mean {near[0]}?" if near else ""}')


def _table(names, request, form: str) -> tuple[str, list[str]]:
  """Returns the table of systems and notes on those that are left out."""
  from cpoly_jax.systems import costs, counts
  from cpoly_jax.systems.configured import configured
  from cpoly_jax.t5 import flops
  rows, notes, title = [], [], ''
  for name in names:
    try:
      with configured(name, request) as made:
        found = counts.count(made)
        batch = (made.batch_size, made.lengths['inputs'], made.lengths['targets'])
        tokens = batch[0] * (batch[1] + batch[2])
        base = flops.forward(made.transformer.config, *batch) / tokens
        added = costs.adapter_forward(made.transformer, *batch) / tokens
        title = (f'{request.model}: base of {found.base:,} parameters and {base:,.0f} FLOPs/token, '
                 f'in batches of {batch[0]} with {batch[1]} inputs and {batch[2]} targets')
    except (ValueError, OSError) as e:
      notes.append(f'{name}: {command_line.first_line(e)}')
      continue
    trained = [found.trained[group] or None for group in counts.GROUPS]
    rows.append((made.system, made.num_tasks, found.num_skills or None, *trained,
                 100 * found.trainable / found.base, found.active, round(added) or None, 100 * added / base if added else None))
  if not rows:
    raise ValueError(notes[0])
  text = tables.render(HEADER, rows, form)
  return text if form == tables.CSV else f'{title}\n\n{text}', notes


def _matched(names, request, options: argparse.Namespace) -> tuple[str, list[str]]:
  """Returns the table of equal budgets and notes on systems that cannot have one."""
  from cpoly_jax.systems import matching
  notes, rows = [], []
  reference = matching.budget(options.to, request, options.match)
  for name in names:
    if name == options.to:
      continue
    try:
      found = matching.match(name, request, options.match, options.vary, reference)
    except (ValueError, OSError) as e:
      notes.append(f'{name}: {command_line.first_line(e)}')
      continue
    rows.append((name, options.vary, found.before, found.value, found.count, 100 * found.difference))
  text = tables.render(MATCH_HEADER, rows, options.format)
  title = f'{request.model}: {options.to} has {reference:,} {options.match} parameters'
  return text if options.format == tables.CSV else f'{title}\n\n{text}', notes


def run(arguments: Sequence[str]) -> command_line.Result:
  """Returns what the program prints: a table, and notes on systems that are left out.

  Raises:
    ValueError: a mistake in the arguments.
    FileNotFoundError: no such gin file.
  """
  bindings, others = command_line.split_bindings(arguments)
  options = _parser().parse_args(others)
  if bool(options.match) != bool(options.vary):
    raise ValueError('--match and --vary go together: --match=trainable --to=cpoly --vary=NUM_SKILLS')
  from cpoly_jax.systems.configured import Request, gin_file, models, systems
  names = options.systems.split(',') if options.systems else systems()
  for name in [*names, options.to]:
    gin_file('systems', name, systems())
  gin_file('models', options.model, models())
  request = Request(options.model, options.num_tasks, tuple(options.gin_file), tuple(bindings))
  told = [match[1] for match in (re.match(r'\s*(\w+) =', binding) for binding in bindings) if match]
  if options.match:
    _check([options.to, *names], request, [options.vary, *told])
    text, notes = _matched(names, request, options)
  else:
    _check(names, request, told)
    text, notes = _table(names, request, options.format)
  return text, 0, *(f'left out: {note}' for note in notes)


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints a table; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
