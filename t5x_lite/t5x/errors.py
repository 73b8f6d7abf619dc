"""A user's mistake ends in one line that says what to do, a fault of the program in a traceback.

`run_reporting` wraps an entry point. Which of the two it is, the class of the exception tells:
wrong values, missing files and failed imports are the user's to mend, a TypeError is not.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TypeVar
from collections.abc import Callable

from absl import app
from absl import flags

T = TypeVar('T')

TRACEBACK_VARIABLE = 'T5X_TRACEBACK'

# Classes that mean: the input, not the program, has to change.
USER_ERRORS = (ValueError, OSError, LookupError, ImportError, SyntaxError, app.UsageError, flags.Error)

# What gin adds, level by level, to the text of an exception that passes through it.
_GIN_CALL = re.compile(r"\n  In call to configurable '([^']+)'")
_GIN_CONTEXT = re.compile(r'\n  (In call to configurable|No values supplied by Gin|In file |In bindings string)')
_GIN_FILE = re.compile(r'\n  In file "([^"]+)", line (\d+)')
_GIN_BINDING = re.compile(r'\n  In bindings string line \d+\n\s*(.*)')
# A required argument that no binding supplies: as gin says it, and as Python says it.
_GIN_REQUIRED = re.compile(r'Required bindings for `(?:.*\.)?(\w+)` not provided in config: (.*)')
_ARGUMENT_MISSING = re.compile(r'(?:.*\.)?(?!__)(\w+?)(?:\.__\w+__)?\(\) missing \d+ required .*: (.*)')
_ARGUMENT_UNKNOWN = re.compile(r"(?:.*\.)?(?!__)(\w+?)(\.__\w+__)?\(\) got an unexpected keyword argument '(\w+)'")
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'
# TensorFlow only reads data here, so its errors tell of data, unless they carry a fault of a Python function.
_TF_NODE = re.compile(r'\{\{[^}]*\}\}\s*')
_PYTHON_FAULT = re.compile(r'(Type|Attribute|Name|Assertion|Runtime|NotImplemented|ZeroDivision)Error: ')


def gin_location(text: str) -> str:
  """Returns where gin's error text says the mistake is, e.g. `x.gin, line 3`, or ''."""
  if match := _GIN_FILE.search(text):
    return f'{match[1]}, line {match[2]}'
  if match := _GIN_BINDING.search(text):
    return f'--gin.{match[1].strip()}'
  return ''


def _first_line(text: str) -> str:
  """The first line of `text` that is not empty, without what gin appended."""
  context = _GIN_CONTEXT.search(text)
  lines = text[: context.start() if context else None].splitlines()
  return next((line.strip() for line in lines if line.strip()), '')


def _wrong_arguments(exc: BaseException) -> str | None:
  """Returns the line for a call by gin that lacked an argument or got one too many, else None."""
  text = str(exc)
  call = _GIN_CALL.search(text)
  if isinstance(exc, RuntimeError):
    missing = _GIN_REQUIRED.match(text)
  elif isinstance(exc, TypeError) and call:
    # Only in a call by gin itself the bindings are to blame; else it is a fault of the program.
    missing = _ARGUMENT_MISSING.match(_first_line(text))
    missing = missing if missing and missing[1] == call[1] else None
    unknown = _ARGUMENT_UNKNOWN.match(_first_line(text))
    if unknown and (unknown[1] == call[1] or unknown[2]):
      return f'{call[1]} has no parameter {unknown[3]!r}: remove or correct its binding'
  else:
    missing = None
  if missing is None:
    return None
  names = re.findall(r"'(\w+)'", missing[2])
  example = ' '.join(f'--gin.{missing[1]}.{name}=...' for name in names)
  return (
    f'{missing[1]} has no value for {", ".join(names)}: give the gin file of this run with --gin_file=..., or set {example}'
  )


def _tensorflow_message(exc: BaseException) -> str | None:
  """Returns the text of an error of TensorFlow's runtime without names of nodes, None for others."""
  bases = type(exc).__mro__
  if not any(c.__name__ == 'OpError' and c.__module__.startswith('tensorflow.') for c in bases):
    return None
  return _TF_NODE.sub('', str(getattr(exc, 'message', exc))).split(' [Op:')[0].strip()


def is_user_error(exc: BaseException) -> bool:
  """Whether `exc` means that the input has to change, not the program."""
  if (message := _tensorflow_message(exc)) is not None:
    return not _PYTHON_FAULT.match(message)
  if isinstance(exc, USER_ERRORS) or _wrong_arguments(exc) is not None:
    return True
  return isinstance(exc, RuntimeError) and _OUT_OF_MEMORY in str(exc)


def report(exc: BaseException) -> str:
  """Returns the one line that tells a user what went wrong.

  Args:
    exc: any exception. Of a text with several lines the first one is kept; what gin appended is
      dropped but for the file and line of a wrong binding.

  Returns:
    One line without a prefix, never empty.
  """
  if (line := _wrong_arguments(exc)) is not None:
    return line
  if isinstance(exc, SyntaxError):
    where = f' ({exc.filename or "gin binding"}, line {exc.lineno})' if exc.lineno else ''
    return f'{_first_line(str(exc.msg))}{where}'
  if (message := _tensorflow_message(exc)) is not None:
    return f'TensorFlow could not read or write data: {_first_line(message) or type(exc).__name__}'
  text = str(exc)
  if isinstance(exc, KeyError) and len(exc.args) == 1:
    text = str(exc.args[0])  # str(KeyError) would quote it, line breaks included
  line = _first_line(text) or type(exc).__name__
  if isinstance(exc, RuntimeError) and _OUT_OF_MEMORY in text:
    line = f'out of memory: use a smaller batch, more microbatches or more devices ({line})'
  elif isinstance(exc, KeyError) and ' ' not in line:
    line = f'unknown name {line!r}'
  elif isinstance(exc, ModuleNotFoundError):
    line += ': install it, or put the folder it lies in on PYTHONPATH'
  where = gin_location(str(exc))
  return f'{line} ({where})' if where else line


def _wants_traceback() -> bool:
  if os.environ.get(TRACEBACK_VARIABLE, '') not in ('', '0'):
    return True
  values = flags.FLAGS
  return 'verbosity' in values and values.is_parsed() and values['verbosity'].value >= 1


def run_reporting(fn: Callable[[], T]) -> T:
  """Runs `fn`; a user's error becomes `error: <line>` on stderr and exit code 1.

  With T5X_TRACEBACK=1 in the environment, or the flag -v=1, it stays an exception with its
  traceback, as all other exceptions do. An interrupt exits with code 130.

  Args:
    fn: the entry point.

  Returns:
    What `fn` returns.

  Raises:
    SystemExit: in place of a user's error or an interrupt.
  """
  try:
    return fn()
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(130)
  except Exception as exc:
    if _wants_traceback() or not is_user_error(exc):
      raise
    print(f'error: {report(exc)}', file=sys.stderr)
    sys.exit(1)
