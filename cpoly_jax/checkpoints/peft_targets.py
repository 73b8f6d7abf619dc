"""Which projections an adapter is on, as PEFT says it and as we do.

PEFT gives the last parts of module names (`["q", "v"]`), our Adapter a regular expression of paths
(`.*/(query|value)`). Neither is translated: what counts is the set of projections, and each side's shortest words for it are
found anew, and checked against all projections of the network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from cpoly_jax.checkpoints import names


def to_pattern(paths: Collection[str], known: Sequence[str]) -> str:
  """Returns a regular expression that matches some projections, and no other one.

  Args:
    paths: what it matches, at least one, e.g. `encoder/layers_0/attention/query`.
    known: the paths of all projections of the network.
  """
  chosen = set(paths)
  last = _alternatives({path.rpartition('/')[2] for path in chosen})
  blocks = {}
  for path in known:
    if path in chosen:
      blocks.setdefault(_any_layer(path.rpartition('/')[0]), set()).add(path.rpartition('/')[2])
  candidates = [rf'.*/{last}', '|'.join(f'{block}/{_alternatives(ends)}' for block, ends in blocks.items())]
  for pattern in candidates:
    if {path for path in known if re.fullmatch(pattern, path)} == chosen:
      return pattern
  return '|'.join(path for path in known if path in chosen)


def to_modules(paths: Collection[str], known: Sequence[str]) -> list[str]:
  """Returns PEFT's `target_modules` for some projections: their last names (`q`) if these fit no other one, or whole names.

  Args:
    paths: e.g. `encoder/layers_0/attention/query`.
    known: the paths of all projections of the network.
  """
  chosen = set(paths)
  last = {names.module_to_huggingface(path).rpartition('.')[2] for path in chosen}
  if {path for path in known if names.module_to_huggingface(path).rpartition('.')[2] in last} == chosen:
    return sorted(last)
  return [names.module_to_huggingface(path) for path in known if path in chosen]


def _any_layer(block: str) -> str:
  return re.sub(r'layers_\d+', r'layers_\\d+', block)


def _alternatives(ends: Collection[str]) -> str:
  return next(iter(ends)) if len(ends) == 1 else f'({"|".join(sorted(ends))})'
