"""Command line: a grid of runs from a file (`python -m cpoly_jax.experiments --help`)."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from typing import Any
from collections.abc import Mapping, Sequence

from cpoly_jax import command_line

_EXAMPLES = """
examples:
  python -m cpoly_jax.experiments experiments/smoke.toml
  python -m cpoly_jax.experiments experiments/seen_tasks.toml --dry_run
  python -m cpoly_jax.experiments experiments/seen_tasks.toml --jobs=2 --only='cpoly *,poly *'
  python -m cpoly_jax.experiments experiments/seen_tasks.toml --report

The same command goes on where it was stopped or killed. docs/experiments.md has the keys of a file.
"""


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m cpoly_jax.experiments', allow_abbrev=False, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Runs systems x seeds x settings, each in a process and a MODEL_DIR of its own, and writes tables, intervals '
                  'and figures of what came of them.')
  add = parser.add_argument
  add('spec', metavar='FILE', help='a .toml file, e.g. of experiments/')
  add('--out', metavar='FOLDER', help='(default: outputs/experiments/<name of the file>)')
  add('--jobs', type=int, default=1, metavar='N', help='runs at a time, which share the CPUs; 1 on an accelerator (default: 1)')
  add('--only', metavar='A,B', help="runs whose name matches, e.g. 'cpoly *'; what they need runs, too")
  add('--dry_run', action='store_true', help='list all runs, their parameters and the time; nothing is written')
  add('--report', action='store_true', help='run nothing: write the report of what is there')
  add('--numbers_only', action='store_true', help='no figures in the report, for which matplotlib is needed')
  return parser


def wanted(runs: Sequence[Any], only: str | None) -> list[Any]:
  """Returns the runs whose name matches one of the patterns, and what they need, in order.

  Raises:
    ValueError: a pattern matches none.
  """
  if only is None:
    return list(runs)
  kept = set()
  for pattern in filter(None, (part.strip() for part in only.split(','))):
    found = [run for run in runs if fnmatch.fnmatchcase(run.name, pattern)]
    if not found:
      raise ValueError(f'--only: no run matches {pattern}; there are {runs[0].name}, {runs[-1].name}, ...: see --dry_run')
    kept |= set(found)
  todo = list(kept)
  while todo:
    needs = [need for need in todo.pop().needs if need not in kept]
    kept |= set(needs)
    todo += needs
  if not kept:
    raise ValueError("--only: write names or patterns, e.g. --only='cpoly *'")
  return [run for run in runs if run in kept]


def listing(plan: Any, runs: Sequence[Any]) -> str:
  """Returns what `--dry_run` prints."""
  from cpoly_jax.experiments import progress, values
  from cpoly_jax.systems import tables
  seconds, parameters, rows = progress.expected(plan.runs), {}, []
  for run in runs:
    key = run.arm.label, run.stage
    if key not in parameters:
      parameters[key] = plan.parameters(run.arm, run.stage)
    time = seconds(run)
    state = 'done' if run.is_done else run.folder.read().get('state', '-') if run.folder is not None else '-'
    is_open = plan.spec.tune and run.stage != 'tune' and run.folder is None
    settings = values.named(run.chosen) or ('to be tuned' if is_open else '')
    rows.append((run.name, run.stage, state, *parameters[key],
                 None if run.steps is None else str(run.steps), None if time is None else progress.duration(time), settings))
  header = ('run', 'stage', 'state', 'trainable', 'active', 'steps', 'time', 'tuned')
  done = sum(run.is_done for run in runs)
  times = [seconds(run) for run in runs if not run.is_done]
  known = [time for time in times if time is not None]
  time = f'about {progress.duration(sum(known))} one at a time' if known or not times else 'time unknown'
  if len(known) < len(times):
    time += f', {len(times) - len(known)} runs without minutes_per_run in the file'
  lines = [f'{plan.spec.title}: {len(runs)} runs, {done} done; {time}', f'{plan.out}', '',
           tables.render(header, rows, tables.TABLE)]
  if plan.matched:
    header = ('system', 'macro', 'was', 'is', 'parameters', 'difference %')
    rows = [(label, macro, one.before, one.value, one.count, 100 * one.difference)
            for label, (macro, one) in plan.matched.items()]
    lines += ['', f'equal {plan.spec.budget.equal} parameters, those of {plan.spec.budget.to}:', '',
              tables.render(header, rows, tables.TABLE)]
  if others := plan.others():
    lines += ['', f'{len(others)} folders of other settings are left aside: {others[0]}{", ..." if others[1:] else ""}']
  return '\n'.join(lines)


def run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> command_line.Result:
  """Runs an experiment, or lists or reports it.

  Args:
    arguments: of the command line.
    environment: of the runs; None: that of this process.

  Raises:
    ValueError: a mistake in the arguments or in the file.
    OSError: something is absent or cannot be written.
  """
  options = _parser().parse_args(arguments)
  if options.jobs < 1:
    raise ValueError(f'--jobs={options.jobs}: write 1 or more')
  from cpoly_jax.experiments import spec as spec_lib
  spec = spec_lib.read(options.spec)
  from cpoly_jax.analysis import svg
  from cpoly_jax.experiments import driver, output, plans
  if not options.numbers_only and not options.dry_run:
    svg.check_installed()
  plan = plans.make(spec, options.out or os.path.join('outputs', 'experiments', spec.name))
  runs = wanted(plan.runs, options.only)
  if options.dry_run:
    return listing(plan, runs), 0
  output.note_plan(plan)
  if options.report:
    page = output.write(plan, numbers_only=options.numbers_only)
    return f'{sum(one.is_done for one in plan.runs)} of {len(plan.runs)} runs are done\nreport: {page}', 0
  outcome = driver.Driver(plan, runs, options.jobs, environment=environment).run()
  output.note_plan(plan)
  page = output.write(plan, numbers_only=options.numbers_only)
  lines = [f'{len(outcome.done)} of {len(runs)} runs are done', f'report: {page}']
  notes = [f'failed: {name}: {why}' for name, why in outcome.failed.items()]
  if outcome.left_out:
    notes.append(f'left out: {len(outcome.left_out)} runs that need those')
  return '\n'.join(lines), outcome.code, *notes


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program; returns the exit code. A mistake is one line on stderr and exit code 1."""
  environment = dict(os.environ)  # Runs get the environment as it was given: this program keeps to the CPU, they need not.
  return command_line.main(lambda given: run(given, environment), arguments)


if __name__ == '__main__':
  sys.exit(main())
