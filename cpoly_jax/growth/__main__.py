"""Command line: tasks added to a trained inventory, or dropped from it (`python -m cpoly_jax.growth --help`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cpoly_jax import command_line

KEEP, DROP = 'keep', 'drop'
_EXAMPLES = """
CHECKPOINT is a MODEL_DIR (its newest checkpoint), a checkpoint_<step>, or the folder of a shared adapter. OUT is
  .../checkpoint_<step>   a checkpoint with the base in it, from which every t5x starts; model.json, task_index.json beside it
  another name            a shared adapter, which refers to the base

Other tasks keep every bit of their rows and skills. New rows start undecided, new skills as no change; train them with
gin_configs/runs/adapt.gin, TRAINED = OUT and TRAIN_KNOWN_TASKS = True.

examples:
  python -m cpoly_jax.growth add outputs/cpoly_tiny grown/one --tasks=latent_vaku,latent_wemi
  python -m cpoly_jax.growth add grown/one grown/two --tasks=latent_xilo,latent_zoru --num_specific=latent_xilo=2,latent_zoru=0
  python -m cpoly_jax.growth add outputs/cpoly_tiny grown/full/checkpoint_500 --tasks=latent_vaku
  python -m cpoly_jax.growth drop grown/two grown/three --tasks=latent_xilo
  python -m cpoly_jax.growth drop outputs/cpoly_tiny fewer --tasks=latent_bodu --borrowed=keep --dry_run
"""


def _parser() -> command_line.Parser:
  settings = {'allow_abbrev': False, 'formatter_class': argparse.RawDescriptionHelpFormatter, 'epilog': _EXAMPLES}
  parser = command_line.Parser(prog='python -m cpoly_jax.growth', description=__doc__.split(' (')[0], **settings)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for command, told in (('add', 'Adds tasks, with rows and skills of their own.'), ('drop', 'Drops tasks.')):
    add = commands.add_parser(command, help=told[:1].lower() + told[1:-1], description=told, **settings)
    add.add_argument('checkpoint', metavar='CHECKPOINT', help='the trained inventory')
    add.add_argument('out', metavar='OUT', help='a new folder')
    add.add_argument('--tasks', required=True, metavar='NAME,NAME', help=f'the tasks to {command}')
    if command == 'add':
      add.add_argument('--num_specific', metavar='B', help='skills of each new task\'s own, one number or NAME=B,NAME=B '
                                                           '(default: as many as each trained task has)')
      add.add_argument('--expert_matrix', metavar='FILE', help='EXPERT only: the skills of the trained and the new tasks')
      add.add_argument('--seed', type=int, default=0, help='of new skills (default: %(default)s)')
    else:
      add.add_argument('--borrowed', choices=(KEEP, DROP), help='what becomes of skills that other tasks borrow (default: '
                                                                'nothing is dropped, and it says who borrows)')
    add.add_argument('--base', metavar='PATH', help='the base checkpoint, where it is not at its recorded place; only OUT with '
                                                    'the base in it reads it')
    add.add_argument('--dry_run', action='store_true', help='print what would be read and written, and write nothing')
  return parser


def _names(text: str) -> list[str]:
  names = [name.strip() for name in text.split(',') if name.strip()]
  if not names:
    raise ValueError(f'--tasks={text} names no task: write --tasks=NAME,NAME')
  return names


def _numbers(text: str | None) -> int | dict[str, int] | None:
  """Returns the value of --num_specific."""
  try:
    if text is None or '=' not in text:
      return None if text is None else int(text)
    return {name.strip(): int(number) for name, _, number in (part.partition('=') for part in text.split(','))}
  except ValueError:
    raise ValueError(f'--num_specific={text}: write a whole number, or NAME=NUMBER,NAME=NUMBER') from None


def _plan(options: argparse.Namespace, description, path: str):
  from cpoly_jax import routing
  from cpoly_jax.growth import plans
  names = _names(options.tasks)
  if options.command == 'drop':
    return plans.drop(description, names, keep_skills=options.borrowed == KEEP, where=path)
  matrix = None
  if options.expert_matrix is not None:
    matrix = routing.expert_matrix(options.expert_matrix, plans.check(description, path).grown(names))
  return plans.add(description, names, num_specific=_numbers(options.num_specific), matrix=matrix, where=path)


def run(arguments: Sequence[str]) -> command_line.Result:
  """Returns what the program prints, and its exit code.

  Raises:
    ValueError: a mistake in the arguments, or a model whose tasks cannot be added to or dropped from.
    OSError: something is not there, is there already, or cannot be written.
  """
  options = _parser().parse_args(arguments)
  out = os.path.expanduser(options.out).rstrip('/')
  from cpoly_jax.checkpoints import loading
  from cpoly_jax.growth import files
  complete = files.check_destination(out)
  source = os.path.expanduser(options.checkpoint)
  opened = loading.open_files(source, base=options.base) if complete else loading.open_own(source)
  if not complete:
    files.check_adapter(opened, out)
  plan = _plan(options, opened.description, opened.path)
  if options.command == 'drop' and options.borrowed != DROP:
    files.check_borrowed(plan, opened)
  if not options.dry_run:
    files.write(plan, opened, out, seed=getattr(options, 'seed', 0))
  return _told(options, opened, plan, out), 0


def _told(options: argparse.Namespace, opened, plan, out: str) -> str:
  from cpoly_jax.growth import files
  from cpoly_jax.growth import plans
  before, after = (description['adapter']['router'] for description in (plan.before, plan.after))
  counts = files.sizes(plan)
  lines = [f'{"would write" if options.dry_run else "wrote"} {out}, from {opened.path}',
           f'  tasks   {len(plan.before["task_index"]["tasks"])} -> {len(plan.index)}',
           f'  skills  {plans.num_skills(before)} -> {plans.num_skills(after)} of each adapted projection',
           f'  skills and routing: {counts[0]:,} -> {counts[1]:,} parameters']
  for name in _names(options.tasks) if options.command == 'add' else ():
    row = plan.index.row(name)
    own = ', '.join(map(str, plan.own_skills(row))) if 'num_specific' in after else ''
    lines.append(f'  {name}: row {row}{f", skills {own}" if own else ", no skills of its own"}')
  return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
  """Adds or drops tasks; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
