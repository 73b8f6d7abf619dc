"""Adaptation: new tasks on a trained inventory (Polytropon section 4.2), as gin_configs/runs/adapt.gin sets it up.

The network is that of the trained checkpoint with a row, and skills of their own, for each new task (`cpoly_jax.growth`). Of it
train the rows of the new tasks and, as TUNE says, skills:

    routing                  nothing else: they recombine what there is
    routing_and_new_skills   skills of their own, too
    all_skills               all skills, which other tasks use as well

The base, all other rows and, but for `all_skills`, all other skills keep every bit, so that trained tasks give what they gave.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from flax import traverse_util

from cpoly_jax import adapters
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import vocabularies
from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import loading
from cpoly_jax.growth import plans
from cpoly_jax.growth import values
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import trained as trained_lib
from cpoly_jax.training.models import CPolyModel

ROUTING = 'routing'
NEW_SKILLS = 'routing_and_new_skills'
ALL_SKILLS = 'all_skills'
TUNES = (ROUTING, NEW_SKILLS, ALL_SKILLS)

_SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Adaptation:
  """What is adapted to what.

  Attributes:
    trained: path of the trained checkpoint.
    plan: how its network grows.
    tasks: names of the tasks that are adapted.
    tune: one of `TUNES`.
    seed: of new skills.
  """

  trained: str
  plan: plans.Plan
  tasks: tuple[str, ...]
  tune: str
  seed: int = 0

  @property
  def task_rows(self) -> tuple[int, ...]:
    """The routing rows that train, in order."""
    return tuple(sorted(self.plan.index.row(name) for name in self.tasks))

  @property
  def own_skills(self) -> tuple[int, ...]:
    """The skills of the adapted tasks' own, in order."""
    if 'num_specific' not in self.plan.router:
      return ()
    return tuple(skill for row in self.task_rows for skill in self.plan.own_skills(row))

  def rows(self, path: str) -> tuple[int, ...] | None:
    """Returns which rows of the parameter at a path train: () for none, None for all (`optimizers.GroupedAdamW`)."""
    owner, name = values.owner_and_name(path)
    if owner == adapters.ROUTING:
      return self.task_rows if name in plans.tables(self.plan.router) else ()
    if owner == adapters.SKILLS:
      return {ROUTING: (), NEW_SKILLS: self.own_skills, ALL_SKILLS: None}[self.tune]
    return None if path == 'clock' else ()


def adaptation(trained: str | os.PathLike, tasks: TaskIndex, *, tune: str = NEW_SKILLS, num_specific: plans.Specific = None,
               expert_matrix: str | None = None, train_known_tasks: bool = False, model_dir: str | None = None,
               seed: int = 0) -> Adaptation:
  """Returns what a run adapts; no values are read.

  Args:
    trained: a MODEL_DIR (its newest checkpoint), a checkpoint_<step> folder, or a shared adapter's.
    tasks: what to adapt to; those that the checkpoint does not have get a row.
    tune: what trains: `routing`, `routing_and_new_skills` or `all_skills`.
    num_specific: skills of each new task's own, or {task: number}; None: as many as each trained task has, and with `routing`,
      which would not train them, none.
    expert_matrix: EXPERT only: the file with the skills of the trained and the new tasks.
    train_known_tasks: tasks that the checkpoint has may be among `tasks`, such as those that `cpoly_jax.growth` added.
    model_dir: of this run, which is to be another folder.
    seed: of new skills.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: a setting is wrong, a task is known, or the system has nothing that could train.
  """
  if tune not in TUNES:
    raise ValueError(f'TUNE = {tune!r}: write one of {", ".join(TUNES)}')
  path = trained_lib.checkpoint(trained)
  if model_dir is not None and _is_inside(path, model_dir):
    raise ValueError(f'MODEL_DIR is the folder of TRAINED, {model_dir}: name another one for what is adapted')
  description = _description(path)
  known = plans.check(description, path)
  there = [name for name in tasks.names if name in known.names]
  if there and not train_known_tasks:
    more = f' and {len(there) - _SHOWN} more' if len(there) > _SHOWN else ''
    raise ValueError(f'{path} has {", ".join(there[:_SHOWN])}{more} already: adapt to other tasks, or set TRAIN_KNOWN_TASKS = '
                     'True to train their rows, which are then no longer those of before')
  names = [name for name in tasks.names if name not in there]
  router = description['adapter']['router']
  if num_specific is None and tune == ROUTING and router['kind'] == 'CPolyRouter' and router['num_common']:
    num_specific = 0
  matrix = None
  if expert_matrix is not None:
    matrix = routing.expert_matrix(expert_matrix, known.grown(names))
  plan = plans.add(description, names, num_specific=num_specific, matrix=matrix, where=path)
  found = Adaptation(path, plan, tasks.names, tune, seed)
  _check_trains(found)
  return found


@functools.lru_cache(maxsize=4)
def _description(path: str) -> Mapping[str, Any]:
  """The description of a checkpoint, which gin asks for several times."""
  return loading.description(path)


def _is_inside(path: str, folder: str) -> bool:
  real = lambda p: os.fspath(p).rstrip('/') if '://' in os.fspath(p) else os.path.realpath(p)
  return real(path) == real(folder) or os.path.dirname(real(path)) == real(folder)


def _check_trains(found: Adaptation) -> None:
  """Raises ValueError, naming the system's router, if what TUNE asks for has no parameters."""
  router = found.plan.router
  kind, has_rows = router['kind'], bool(plans.tables(router))
  if found.tune == NEW_SKILLS and not found.own_skills:
    instead = ' or '.join([repr(ROUTING)] * has_rows + [repr(ALL_SKILLS)])
    raise ValueError(f'TUNE = {NEW_SKILLS!r}, but {kind} gives the new tasks no skills of their own: set TUNE = {instead}')
  if found.tune == ROUTING and not has_rows:
    instead = ' or '.join([repr(NEW_SKILLS)] * bool(router.get('num_specific')) + [repr(ALL_SKILLS)])
    raise ValueError(f'TUNE = {ROUTING!r}, but {kind} has no rows by task that learn: set TUNE = {instead}')


def rows(adaptation: Adaptation) -> Callable[[str], Sequence[int] | None]:
  """Returns `Adaptation.rows`, for gin."""
  return adaptation.rows


def checkpoint(adaptation: Adaptation) -> str:
  """Returns the path of the trained checkpoint, for gin."""
  return adaptation.trained


def vocabulary_path(trained: str | os.PathLike) -> str:
  """Returns `bytes`, or the path of the SentencePiece model of a checkpoint's training; ValueError if it does not say."""
  told = _vocabulary(trained)
  if told is None:
    raise ValueError(f'{os.fspath(trained)} does not tell its vocabulary: set VOCABULARY_PATH')
  return vocabularies.BYTES if told['kind'] == vocabularies.BYTES else told['path']


def extra_ids(trained: str | os.PathLike) -> int | None:
  """Returns how many extra ids the vocabulary of a checkpoint has; None if it does not say."""
  return (_vocabulary(trained) or {}).get('extra_ids')


def _vocabulary(trained: str | os.PathLike) -> Mapping[str, Any] | None:
  return (_description(trained_lib.checkpoint(trained)).get('vocabularies') or {}).get('input')


class AdaptedModel(CPolyModel):
  """A `CPolyModel` that starts from a checkpoint with fewer tasks and goes on from its own.

  Args:
    plan: how the network grew.
    **kwargs: as of `CPolyModel`.
  """

  def __init__(self, *args, plan: plans.Plan, **kwargs):
    super().__init__(*args, **kwargs)
    self._plan = plan

  def check_checkpoint_metadata(self, metadata: Mapping[str, Any], where: str = 'the checkpoint') -> None:
    """Raises ValueError for a checkpoint that is neither this run's nor the trained one."""
    same = lambda key: metadata.get(key) == self._plan.before[key]
    if not (same('task_index') and same('adapter')):
      super().check_checkpoint_metadata(metadata, where)


def model(adaptation: Adaptation, *, dtype: Any = None, dropout_rate: float | None = None, execution: Any = None,
          **kwargs) -> AdaptedModel:
  """Returns the model of a run that adapts.

  Args:
    adaptation: what is adapted to what.
    dtype: of activations; None for that of the training.
    dropout_rate: None for that of the training.
    execution: how the layers are run (`cpoly_jax.t5.scan.Execution`); None for one after the other.
    **kwargs: as of `CPolyModel`: vocabularies, optimizer_def and the like.
  """
  module = model_settings.build(adaptation.plan.after, dtype=dtype)
  if dropout_rate is not None:
    module = module.clone(config=dataclasses.replace(module.config, dropout_rate=dropout_rate))
  if execution is not None:
    module = module.clone(execution=execution)
  unknown = adaptation.plan.router.get('unknown_task', routing.ERROR)
  return AdaptedModel(module, plan=adaptation.plan, task_index=adaptation.plan.index, unknown_task=unknown, **kwargs)


def grow(adaptation: Adaptation) -> Callable[..., Mapping[str, Any]]:
  """Returns a `RestoreCheckpointConfig.state_transformation_fns` that gives the trained checkpoint's state its new rows."""

  def transform(state: Mapping[str, Any], model_state: Mapping[str, Any], *, is_resuming: bool = False) -> Mapping[str, Any]:
    """Returns the state with rows and skills of the new tasks; that of a run which goes on is returned as it is.

    Raises:
      ValueError: the checkpoint lacks a parameter of the network, which would start at random, or the installed t5x does not
        show its values.
    """
    if is_resuming:
      return state
    wanted = traverse_util.flatten_dict(model_state['target'])
    found = {path: _at(state['target'], path) for path in wanted}
    missing = sorted('/'.join(path) for path, leaf in found.items() if leaf is None)
    if missing:
      more = f' and {len(missing) - 1} more' if missing[1:] else ''
      raise ValueError(f'{adaptation.trained} has no {missing[0]}{more}, so that it is not the checkpoint that its description '
                       'tells of')
    if not adaptation.plan.changes:
      return state
    leaves = {'/'.join(path): leaf for path, leaf in found.items()}
    if any(not hasattr(leaf, 'shape') for name, leaf in leaves.items() if values.is_changed(adaptation.plan, name)):
      raise ValueError(f'the installed t5x does not show the values of {adaptation.trained} before it restores them: add the '
                       'tasks with python -m cpoly_jax.growth, where t5x_lite is installed, and set TRAIN_KNOWN_TASKS = True')
    reads = {name: functools.partial(folders.whole, leaf) for name, leaf in leaves.items()}
    leaves |= {name: make() for name, make in values.transform(adaptation.plan, reads, adaptation.seed).items()}
    return {**state, 'target': traverse_util.unflatten_dict(leaves, sep='/')}

  return transform


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
  """Returns what a nested dict has at a path, None if nothing."""
  for name in path:
    tree = tree.get(name) if isinstance(tree, Mapping) else None
  return tree
