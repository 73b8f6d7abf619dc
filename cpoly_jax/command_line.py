"""What all command lines share: flags, gin bindings among them, and mistakes told in one line on stderr.

    def run(arguments):
      options = parser().parse_args(arguments)  # A command_line.Parser.
      return 'what is printed', 0

    def main(arguments=None):
      return command_line.main(run, arguments)

Nothing heavy is imported here, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn
from collections.abc import Callable, Sequence

# A text for stdout, an exit code, and any number of notes, a line each, for stderr.
Result = tuple[str, int, *tuple[str, ...]]


class Parser(argparse.ArgumentParser):
  """Tells of a wrong flag as of any other mistake: raises ValueError."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(message)


def split_bindings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns the gin bindings among the arguments, as gin has them, and the other arguments.

  Raises:
    ValueError: a binding has no value.
  """
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


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message (gin appends others), or its kind where there is no message."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(run: Callable[[Sequence[str]], Result], arguments: Sequence[str] | None = None) -> int:
  """Prints what `run` returns; returns its exit code. A mistake is one line on stderr and exit code 1.

  The process uses the CPU unless JAX_PLATFORMS names something else.

  Args:
    run: takes the arguments; returns (text, code), or (text, code, *notes). ValueError and OSError are mistakes of the user.
    arguments: those of the command line; None: of the process.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # A training may hold the accelerator.
  from absl import logging  # pylint: disable=g-import-not-at-top
  logging.set_verbosity(logging.WARNING)  # t5x logs what gin parsed.
  logging.use_absl_handler()  # So that t5x can keep back what gin logs of folders without a file.
  try:
    text, code, *notes = run(sys.argv[1:] if arguments is None else arguments)
  except (ValueError, OSError) as e:
    print(f'error: {first_line(e)}', file=sys.stderr)
    return 1
  print(text)
  for note in notes:
    print(note, file=sys.stderr)
  return code
