"""What the command lines of this package share: gin, as a run or a folder of tasks needs it, and empty again afterwards."""

from __future__ import annotations

import contextlib
from typing import Any
from collections.abc import Iterator, Sequence

SKIP_BAD_LINES = 'tasks.records.skip_bad_lines.limit'


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
