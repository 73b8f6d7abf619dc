"""A checkpoint with tasks added or dropped: as a shared adapter, or as a checkpoint in T5X's native format.

A shared adapter refers to the base and is as small as skills and routing; t5x_lite starts and infers from it. A
`checkpoint_<step>` holds the base, too, so every provider of t5x starts from it; `model.json` and `task_index.json` lie beside.
"""

from __future__ import annotations

import os
from typing import Any
from collections.abc import Mapping

from etils import epath
import numpy as np

from cpoly_jax import model_settings
from cpoly_jax.checkpoints import adapter_file
from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import loading
from cpoly_jax.checkpoints import t5x_files
from cpoly_jax.growth import plans
from cpoly_jax.growth import values
from cpoly_jax.growth.plans import Plan


class _Made:
  """An array that is made when it is read."""

  def __init__(self, make):
    self.read = make


def check_destination(path: str) -> bool:
  """Returns whether a new folder is to be a checkpoint_<step> rather than a shared adapter.

  Raises:
    FileExistsError: there is something, or a run's files are beside the checkpoint that would be.
  """
  folders.check_new(path)
  try:
    t5x_files.step_of_new(path)
  except ValueError:
    return False
  beside = epath.Path(path.rstrip('/')).parent / model_settings.FILE_NAME
  if beside.exists():
    raise FileExistsError(f'{beside} is of another model and is not overwritten: name a checkpoint_<step> in a new folder')
  return True


def check_borrowed(plan: Plan, opened: loading.Opened) -> None:
  """Raises ValueError if tasks that stay use skills of tasks that go, telling who does most."""
  if not plan.lost or 'specific' not in plans.tables(plan.before['adapter']['router']):
    return
  tables = {path: folders.whole(leaf) for path, leaf in opened.arrays.items()
            if values.owner_and_name(path) == ('routing', 'specific')}
  found = values.borrowed(plan, tables)
  if found is not None:
    weight, row, skill = found
    names = plan.before['task_index']['tasks']
    of = next(name for name, own in zip(names, plans.own_skills(plan.before['adapter']['router'])) if skill in own)
    raise ValueError(f'{names[row]} borrows from {of} with a weight of up to {weight:.2g}: give --borrowed=keep to keep those '
                     'skills, so that no other task changes, or --borrowed=drop to drop them all the same')


def write(plan: Plan, opened: loading.Opened, destination: str, *, seed: int = 0) -> None:
  """Writes a checkpoint by a plan.

  Args:
    plan: what changes.
    opened: the checkpoint; with its base if `destination` is to be a checkpoint_<step>.
    destination: a new folder, local or in a bucket.
    seed: of new skills.

  Raises:
    FileExistsError: see `check_destination`.
    ValueError: the base is not the recorded one, or a shared adapter is wanted of a checkpoint that has no base apart.
  """
  complete = check_destination(destination)
  made = {name: _Made(make) for name, make in values.transform(
      plan, {name: leaf.read for name, leaf in opened.arrays.items()}, seed).items()}
  arrays = {**opened.arrays, **made}
  if complete:
    if opened.base is not None:
      _check_base(opened)
    t5x_files.write_checkpoint(destination, arrays)
    parent = os.path.dirname(destination.rstrip('/')) or '.'
    model_settings.save(plan.after, parent)
    plan.index.save(parent)
    return
  kept = {key: opened.metadata.get(key) for key in ('base', 'frozen', 'renamed', 'frozen_dtype')}
  adapter_file.write(destination, {'format': adapter_file.FORMAT, 'step': opened.step, 'model': plan.after, **kept},
                     {name: leaf for name, leaf in arrays.items() if name not in opened.frozen})


def check_adapter(opened: loading.Opened, destination: str) -> None:
  """Raises ValueError if a checkpoint has no base apart from it, so that it cannot become a shared adapter."""
  if opened.base is None:
    raise ValueError(f'{opened.path} holds all of its parameters and names no base: name a checkpoint, e.g. '
                     f'{destination}/checkpoint_{opened.step or 0}')


def _check_base(opened: loading.Opened) -> None:
  """Raises ValueError unless the base is the one that the skills were trained on."""
  checkpoints = loading.reader()
  digest = checkpoints.digest({f'target/{name}': opened.arrays[name] for name in opened.frozen})
  checkpoints.check_base(opened.path, opened.base, opened.base_path, digest, opened.force_base)


def sizes(plan: Plan) -> tuple[int, int]:
  """Returns how many parameters skills and routing have before and afterwards."""
  def count(description: Mapping[str, Any]) -> int:
    found = loading.shapes(model_settings.build(description))
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for path, leaf in found.items()
               if {'skills', 'routing'} & set(path.split('/')))
  return count(plan.before), count(plan.after)
