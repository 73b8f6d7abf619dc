"""Which rows and skills a network has after tasks were added or dropped: a plan, made from its description alone.

New tasks come after the trained ones, in rows and in skills, so that a trained task keeps its number, its row and its skills.

Notation: T tasks, S skills, A common ones; a prime marks those afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any
from collections.abc import Mapping, Sequence

from cpoly_jax import routing
from cpoly_jax.task_index import TaskIndex

NEW = -1

# The parameters of each router that have a row for each task; `specific` has a column for each specific skill, too.
_TABLES: dict[str, tuple[str, ...]] = {
    'CPolyRouter': ('common', 'specific'), 'PolyRouter': ('common',), 'HyperRouter': ('embedding',),
    'TaskMoERouter': ('embedding',), 'TokenRouter': ('gate',), 'ExpertRouter': (), 'SharedRouter': (), 'UniformRouter': ()}

Specific = int | Mapping[str, int] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What becomes of a network's rows and skills.

  Attributes:
    before: JSON of the network, its adapter and its tasks (`cpoly_jax.model_settings`).
    after: the same afterwards.
    rows: [T'] the row before of each row, or `NEW`.
    skills: [S'] the skill before of each skill, or `NEW`.
  """

  before: Mapping[str, Any]
  after: Mapping[str, Any]
  rows: tuple[int, ...]
  skills: tuple[int, ...]

  @property
  def router(self) -> Mapping[str, Any]:
    """The settings of the router afterwards."""
    return self.after['adapter']['router']

  @property
  def index(self) -> TaskIndex:
    """The tasks afterwards."""
    return TaskIndex.from_json(self.after['task_index'])

  @property
  def changes(self) -> bool:
    """Whether there is anything to do."""
    identical = lambda places, number: places == tuple(range(number))
    before = self.before['adapter']['router']
    return not (identical(self.rows, before['num_tasks']) and identical(self.skills, num_skills(before)))

  @property
  def lost(self) -> tuple[int, ...]:
    """Skills of before that there are no more."""
    return tuple(sorted(set(range(num_skills(self.before['adapter']['router']))) - set(self.skills)))

  def own_skills(self, row: int) -> tuple[int, ...]:
    """Returns the skills of a task's own, by its row afterwards."""
    return own_skills(self.router)[row]


def tables(router: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of a router's parameters that have a row for each task, by its settings.

  Raises:
    ValueError: it is of a kind that is not known here.
  """
  kind = router['kind']
  if kind not in _TABLES:
    raise ValueError(f'{kind} is no router that tasks can be added to or dropped from: they are {", ".join(sorted(_TABLES))}')
  if kind == 'TokenRouter' and not router['per_task']:
    return ()
  if kind == 'CPolyRouter':
    learned = router['specific'] != routing.FIXED and sum(_counts(router)) > 0
    return ('common',) * (router['num_common'] > 0) + ('specific',) * learned
  return _TABLES[kind]


def _counts(router: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the number of skills of each task's own."""
  own = router.get('num_specific', 0)
  return (own,) * router['num_tasks'] if isinstance(own, int) else tuple(own)


def num_skills(router: Mapping[str, Any]) -> int:
  """Returns S by a router's settings."""
  if router['kind'] == 'ExpertRouter':
    return len(router['matrix'][0])
  return router['num_skills'] if 'num_skills' in router else router['num_common'] + sum(_counts(router))


def own_skills(router: Mapping[str, Any]) -> list[tuple[int, ...]]:
  """Returns the skills of each task's own, [T]."""
  ends = list(itertools.accumulate(_counts(router), initial=router.get('num_common', 0)))
  return [tuple(range(start, end)) for start, end in itertools.pairwise(ends)]


def check(description: Mapping[str, Any], where: str) -> TaskIndex:
  """Returns the tasks of a network that tasks can be added to or dropped from; ValueError for another one."""
  if not description.get('adapter'):
    raise ValueError(f'{where} has no skills and no routing: give a run of another system than gin_configs/systems/full.gin')
  if not description.get('task_index'):
    raise ValueError(f'{where} does not tell its tasks, so its rows have no names')
  router = description['adapter']['router']
  tables(router)
  if router.get('single_task'):
    raise ValueError(f'{where} is of a system for one task alone: use a run of gin_configs/systems/shared.gin')
  return TaskIndex.from_json(description['task_index'])


def add(description: Mapping[str, Any], names: Sequence[str], *, num_specific: Specific = None,
        matrix: Sequence[Sequence[float]] | None = None, where: str = 'the checkpoint') -> Plan:
  """Returns a plan that adds tasks.

  Args:
    description: JSON of the trained network.
    names: of the new tasks; there may be none.
    num_specific: b, skills of each new task's own: one number, or one for some of the names; None, and for the other names: as
      many as each trained task has.
    matrix: EXPERT only: rows [T', S] of all tasks.
    where: the checkpoint, for messages.

  Raises:
    ValueError: a name is there already, the system cannot take new tasks, or a number is wrong.
  """
  index = check(description, where)
  if len(set(names)) < len(names):
    raise ValueError('a new task is named twice: name each once')
  grown = index.grown(names)
  router = description['adapter']['router']
  counts = _new_counts(router, names, num_specific)
  kept = [(row, own_skills(router)[row]) for row in range(len(index))]
  return _plan(description, grown, kept, counts, _spare(router, len(index)), _new_matrix(router, names, matrix))


def drop(description: Mapping[str, Any], names: Sequence[str], *, keep_skills: bool = False,
         where: str = 'the checkpoint') -> Plan:
  """Returns a plan that drops tasks.

  Args:
    description: JSON of the trained network.
    names: of tasks that it has.
    keep_skills: their own skills stay, since others may borrow them; they then count as those of the task before (or, of the
      first tasks, after) them.
    where: the checkpoint, for messages.

  Raises:
    ValueError: a name is not there, or no task would be left.
  """
  index = check(description, where)
  router = description['adapter']['router']
  left = index.without(names)
  keep_skills = keep_skills and 'specific' in tables(router)
  kept: list[tuple[int, tuple[int, ...]]] = []
  orphans: tuple[int, ...] = ()
  for row, own in zip(range(len(index)), own_skills(router)):
    if index.names[row] in left.names:
      kept.append((row, orphans + own))
      orphans = ()
    elif keep_skills and kept:
      kept[-1] = (kept[-1][0], kept[-1][1] + own)
    elif keep_skills:
      orphans += own
  matrix = tuple(router['matrix'][row] for row, _ in kept) if router['kind'] == 'ExpertRouter' else None
  return _plan(description, left, kept, [], _spare(router, len(index)), matrix)


def _spare(router: Mapping[str, Any], used: int) -> tuple[int, ...]:
  """Returns the skills of rows that no task had (NUM_TASKS above the number of tasks), which tasks may borrow all the same."""
  return tuple(itertools.chain(*own_skills(router)[used:])) if 'specific' in tables(router) else ()


def _plan(description: Mapping[str, Any], index: TaskIndex, kept: Sequence[tuple[int, tuple[int, ...]]], new: Sequence[int],
          spare: tuple[int, ...], matrix: Any) -> Plan:
  """Returns a plan.

  Args:
    description: before.
    index: tasks afterwards, the kept ones first.
    kept: row and own skills before of each task that is kept.
    new: b of each new task.
    spare: skills that stay although no task has them; they go to the last task that is kept.
    matrix: EXPERT's rows afterwards, else None.
  """
  after = copy.deepcopy(dict(description))
  router = after['adapter']['router']
  kept = [*kept[:-1], (kept[-1][0], kept[-1][1] + spare)]
  if 'num_specific' in router:
    counts = [*(len(own) for _, own in kept), *new]
    router['num_specific'] = counts[0] if len(set(counts)) == 1 else counts
    shared = tuple(range(router['num_common']))
  else:
    shared = tuple(range(num_skills(router)))
  router['num_tasks'] = len(index)
  if matrix is not None:
    router['matrix'] = [list(row) for row in matrix]
  after['task_index'] = index.to_json()
  skills = (*shared, *itertools.chain(*(own for _, own in kept)), *[NEW] * sum(new))
  return Plan(description, after, (*(row for row, _ in kept), *[NEW] * (len(index) - len(kept))), skills)


def _new_counts(router: Mapping[str, Any], names: Sequence[str], num_specific: Specific) -> list[int]:
  """Returns b of each new task; [] for a system without skills of tasks' own."""
  kind = router['kind']
  if 'num_specific' not in router:
    if num_specific:
      raise ValueError(f'{kind} has no skills of tasks\' own: leave out their number, {num_specific!r}')
    return []
  trained = set(_counts(router))
  usual = trained.pop() if len(trained) == 1 else None
  given = num_specific if isinstance(num_specific, Mapping) else {name: num_specific for name in names}
  unknown = sorted(set(given) - set(names))
  if unknown:
    raise ValueError(f'numbers of skills were given for {", ".join(unknown)}, which are no new tasks: these are '
                     f'{", ".join(names) or "none"}')
  counts = [usual if (count := given.get(name)) is None else count for name in names]
  if None in counts:
    raise ValueError(f'the trained tasks have {min(_counts(router))} to {max(_counts(router))} skills of their own each: say '
                     'how many the new ones get (NUM_NEW_SPECIFIC, --num_specific)')
  if any(not isinstance(count, int) or count < 0 for count in counts):
    raise ValueError(f'{num_specific!r} skills of new tasks\' own: write whole numbers of 0 or more')
  if kind == 'TokenRouter' and set(counts) - {usual}:
    raise ValueError(f'{kind} gives each task {usual} skills of its own, and {num_specific!r} were asked for: leave the number '
                     'out')
  if sum(counts) and router.get('specific') == routing.GUMBEL and router['sampling']['uniform']:
    raise ValueError('a uniform share of the weights (UNIFORM_SHARE) gives new skills to the trained tasks, too: name 0 skills '
                     'of the new tasks\' own')
  if router['num_common'] == 0 and 0 in counts:
    raise ValueError('a system without common skills needs at least 1 of each task\'s own: raise their number')
  return counts


def _new_matrix(router: Mapping[str, Any], names: Sequence[str], matrix: Sequence[Sequence[float]] | None) -> Any:
  """Returns EXPERT's rows afterwards, and None for other systems."""
  if router['kind'] != 'ExpertRouter':
    if matrix is not None:
      raise ValueError(f'{router["kind"]} has no task x skill matrix: leave it out')
    return None
  before = [list(row) for row in router['matrix']]
  if not names:
    return before
  if matrix is None:
    raise ValueError('ExpertRouter has rows that people write: give the task x skill matrix of the trained and the new tasks '
                     '(EXPERT_MATRIX, --expert_matrix)')
  if [list(row) for row in matrix[:len(before)]] != before:
    raise ValueError('the task x skill matrix gives the trained tasks other skills than they were trained with, or the new '
                     'ones skills that none of them has: keep the rows and columns of the training')
  return matrix
