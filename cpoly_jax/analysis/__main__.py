"""Command line: what a run's routing and skills have become (`python -m cpoly_jax.analysis --help`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cpoly_jax import command_line

_EXAMPLES = """
examples:
  python -m cpoly_jax.analysis outputs/cpoly_tiny
  python -m cpoly_jax.analysis outputs/cpoly_tiny --truth=tasks/assets/latent_skills.csv
  python -m cpoly_jax.analysis outputs/cpoly_tiny --against=outputs/shared --out=reports/cpoly_over_shared
  python -m cpoly_jax.analysis outputs/cpoly_tiny --examples=64
  python -m cpoly_jax.analysis outputs/cpoly_tiny/checkpoint_250 --out=reports/step_250 --numbers_only

docs/analysis.md tells how to read each figure.
"""


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
      prog='python -m cpoly_jax.analysis', allow_abbrev=False, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      description='Says what a run learned: which tasks use which skills, who borrows from whom, which tasks are alike, how '
                  'skills differ. Writes one HTML report that opens offline, figures (SVG, PNG) and all numbers (CSV, JSON).')
  add = parser.add_argument
  add('path', metavar='MODEL_DIR', help='a run, one checkpoint_<step> of it, or a shared adapter; its base is not read')
  add('--out', metavar='FOLDER', help='(default: MODEL_DIR/analysis; for one checkpoint PATH_analysis)')
  add('--truth', metavar='FILE', help='a known task x skill matrix: .csv (task,<skill>,... with 0 and 1) or .json')
  add('--against', metavar='MODEL_DIR', help='a run whose scores (results.json) to compare with, e.g. of SHARED')
  add('--examples', metavar='N', type=_even,
      help='also measure on N training examples of each task whether gradients conflict, and whose routing serves whom; reads '
           'the data that config.gin tells, and the base')
  add('--tasks', metavar='NAMES', help='examples of these tasks only, with commas between; all their gradients are in memory')
  add('--base', metavar='CHECKPOINT', help='the base for --examples, where it is not at its recorded place')
  add('--numbers_only', action='store_true', help='CSV and JSON only: no report and no figures')
  return parser


def _even(text: str) -> int:
  """Reads N, which is cut into halves."""
  if not text.isdecimal() or int(text) < 2 or int(text) % 2:
    raise argparse.ArgumentTypeError(f'{text} is no even number of examples above 0: write --examples=64')
  return int(text)


def run(arguments: Sequence[str]) -> command_line.Result:
  """Writes an analysis; returns a summary.

  Raises:
    ValueError: a mistake in the arguments or in a file.
    OSError: something is absent or cannot be written.
  """
  options = _parser().parse_args(arguments)
  if options.examples is None and (options.tasks or options.base):
    raise ValueError('--tasks and --base are of examples: write --examples=64, too')
  from cpoly_jax.analysis import findings, output, svg
  if not options.numbers_only:
    svg.check_installed()
  examples = options.examples and findings.Examples(
      options.examples, tuple(filter(None, (options.tasks or '').split(','))), options.base)
  found = findings.analyse(options.path, known=options.truth, against=options.against, examples=examples)
  path = options.path.rstrip('/')
  several = findings.model_dir(path, found.run.path) is not None
  folder = options.out or (os.path.join(path, 'analysis') if several else f'{path}_analysis')
  files = output.write(found, folder, numbers_only=options.numbers_only)
  first = os.path.join(folder, files[0])
  return f'{output.summary(found)}\nwrote {len(files)} files: {first}', 0, *found.notes


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the program; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
