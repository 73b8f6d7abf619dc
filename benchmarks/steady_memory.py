"""Memory that a process keeps: without it a step on CPU loses a fifth of its time to the kernel.

XLA takes the temporaries of a step, a gigabyte for T5-small, from malloc and gives them back after it. By default glibc returns
them to the system each time, so that each step touches hundreds of thousands of new pages. glibc reads its settings when a
process starts, so a benchmark starts itself again with them; whatever else runs in that process, such as PyTorch, has them too.
"""

from __future__ import annotations

import os
import sys

VARIABLE = 'GLIBC_TUNABLES'
# Large blocks come from one heap that is never trimmed, made of huge pages where the system has them.
SETTINGS = ('glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:'
            'glibc.malloc.trim_threshold=1000000000000:glibc.malloc.top_pad=67108864')


def keep() -> None:
  """Starts this process again with memory that it keeps, unless it has the variable already or is not on Linux."""
  if sys.platform == 'linux' and VARIABLE not in os.environ:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: SETTINGS})
