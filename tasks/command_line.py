"""What the command lines of this package share: flags, gin bindings among them, and mistakes told in one line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any, NoReturn
from collections.abc import Callable, Iterator, Sequence

SKIP_BAD_LINES = 'tasks.records.skip_bad_lines.limit'


class Parser(argparse.ArgumentParser):
  """Tells of a wrong flag as of any other mistake."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(message)


def split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns the gin bindings among the arguments, as gin has them, and the other arguments."""
  bindings, others = [], []
  for argument in arguments:
    name, equals, value = argument.removeprefix('--gin.').partition('=')
    if not argument.startswith('--gin.'):
      others.append(argument)
    elif equals:
      bindings.append(f'{name} = {value}')
    else:
      raise ValueError(f'{argument} has no value: write {argument}=VALUE')
  return bindings, others


@contextlib.contextmanager
def configured(files: Sequence[str], bindings: Sequence[str], skip_bad_lines: int | None) -> Iterator[dict[str, Any]]:
  """Parses gin files as a run does, and gives its mixture, vocabulary and lengths where there are files. Leaves gin empty."""
  import gin  # pylint: disable=g-import-not-at-top
  gin.clear_config()
  try:
    found: dict[str, Any] = {}
    if files or bindings:
      # Only here, since these import all of a model.
      from cpoly_jax.systems import configured as run  # pylint: disable=g-import-not-at-top
      from t5x import gin_utils  # pylint: disable=g-import-not-at-top
      with run.as_training():
        gin_utils.parse_gin_flags(['.', str(run.ROOT)], files, bindings, finalize_config=False)
      if files:
        found['vocabulary'] = run.macro('VOCABULARY')
        found['name'] = run.macro('MIXTURE_OR_TASK_NAME')
        found['lengths'] = run.macro('TASK_FEATURE_LENGTHS')
    if skip_bad_lines is not None:
      gin.bind_parameter(SKIP_BAD_LINES, skip_bad_lines)
    yield found
  finally:
    gin.clear_config()


def main(run: Callable[[Sequence[str]], tuple[str, int]], arguments: Sequence[str] | None) -> int:
  """Prints what `run` returns; returns its exit code. A mistake is one line on stderr and exit code 1.

  Args:
    run: takes the arguments, and returns a text and an exit code.
    arguments: those of the command line; None: of the process.
  """
  from absl import logging  # pylint: disable=g-import-not-at-top
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  try:
    text, code = run(sys.argv[1:] if arguments is None else arguments)
  except (ValueError, OSError) as e:
    print(f'error: {str(e).strip().splitlines()[0]}', file=sys.stderr)
    return 1
  print(text)
  return code
