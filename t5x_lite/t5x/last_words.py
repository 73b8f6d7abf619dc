"""A line on stderr for a process that ends without a chance to print one.

JAX aborts a process whose peers have died, from C++, with a stack trace that tells nothing of what to do; a process that is
killed tells nothing at all. So a small shell beside the process reads from a pipe what to say, and says it when the pipe
ends, unless it was told that all is well.
"""

from __future__ import annotations

import contextlib
import subprocess

_WELL = 'well'
# The last line that was read; `read` fails at the end of the pipe, which is that of the process.
_SHELL = f'while IFS= read -r line; do words=$line; done; [ "$words" = {_WELL} ] || printf "%s\\n" "$words" >&2'


class LastWords:
  """What is printed should this process end now; nothing once `withdraw` was called."""

  def __init__(self, words: str):
    """Starts the shell.

    Args:
      words: one line.
    """
    self._shell = None
    with contextlib.suppress(OSError):  # Without a shell there are no last words; all else goes on.
      # A session of its own: signals to the process group must not end it before the process.
      self._shell = subprocess.Popen(['/bin/sh', '-c', _SHELL], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                     start_new_session=True, text=True)
    self.change(words)

  def change(self, words: str) -> None:
    """Replaces the line."""
    if self._shell is not None:
      with contextlib.suppress(OSError):
        self._shell.stdin.write(' '.join(words.splitlines()) + '\n')
        self._shell.stdin.flush()

  def withdraw(self) -> None:
    """Lets the process end without a line; waits for the shell, which takes milliseconds."""
    if self._shell is not None:
      self.change(_WELL)
      with contextlib.suppress(OSError):
        self._shell.stdin.close()
      self._shell.wait()
      self._shell = None
