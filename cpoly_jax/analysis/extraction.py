"""What a trained run says about its routing: the tables that it learned, and the weights that each task gets from them.

Only skills and routing are read, never the base. The weights come from the router's own module, asked for every task in
evaluation, so that every system by task is covered; a router that reads the tokens has no weights by task, but may have
gates by task.

Notation: T tasks, S skills, H heads, k columns of a table, d inputs of a projection.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any
from collections.abc import Mapping, Sequence

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
from scipy import special

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import loading
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex

LOGITS = 'logits'  # Evaluation takes their sigmoid.
RAW = 'raw'  # Weights that are used as they stand: C-Poly's learned W_B.
RELATIVE = 'relative'  # Weights that only compare with each other: normalised, or of any sign.

COMMON, SPECIFIC, ALL, WEIGHTS = 'W_A', 'W_B', 'Z', 'w'


@dataclasses.dataclass(frozen=True)
class Table:
  """Tasks x skills of one router, or of one of its heads.

  Attributes:
    path: where the router lies, e.g. `encoder/layers_0/attention/query`, `encoder`, or `` for the whole model's.
    name: `W_A`, `W_B`, `Z` (Polytropon), or `w` where the router has no table and its weights stand for one.
    kind: LOGITS, RAW or RELATIVE.
    values: float64 [T, k].
    start: the skill of the first column.
    head: of multi-head routing, None elsewhere.
  """

  path: str
  name: str
  kind: str
  values: np.ndarray
  start: int = 0
  head: int | None = None

  @property
  def usage(self) -> np.ndarray:
    """How much each task uses each skill, [T, k]: sigmoid(Z), W_B as it stands, or |w| over the row's largest."""
    if self.kind == LOGITS:
      return special.expit(self.values)
    if self.kind == RAW:
      return self.values
    size = np.abs(self.values)
    return size / np.maximum(size.max(axis=1, keepdims=True), 1e-12)

  @property
  def active(self) -> np.ndarray:
    """Whether each task uses each skill, bool [T, k]: usage above one half."""
    return self.usage > 0.5


@dataclasses.dataclass(frozen=True)
class Run:
  """What was learned, at one step.

  Attributes:
    path: of the checkpoint.
    step: None if it is not told.
    tasks: T names, in the order of the rows.
    skills: S names.
    owners: for each skill the row of the task whose own it is, or -1 for a skill that is not one task's own.
    router: name of the router's class.
    inventory: name of the inventory's class.
    granularity: what shares a router.
    projections: paths of the adapted projections.
    tables: those of all routers.
    weights: by path of the router, float32 [T, H, S], in evaluation; {} for a router by token.
    gates: by path, the gates of each task's own in a router by token, [T, n], the same up to what softmax ignores.
    reads_inputs: the router weighs skills by token.
  """

  path: str
  step: int | None
  tasks: tuple[str, ...]
  skills: tuple[str, ...]
  owners: np.ndarray
  router: str
  inventory: str
  granularity: str
  projections: tuple[str, ...]
  tables: tuple[Table, ...]
  weights: Mapping[str, np.ndarray]
  gates: Mapping[str, np.ndarray]
  reads_inputs: bool

  @property
  def num_common(self) -> int:
    """Skills that are no task's own."""
    return int(np.sum(self.owners < 0))

  def named(self, name: str) -> list[Table]:
    """Returns the tables of a name."""
    return [table for table in self.tables if table.name == name]

  @property
  def table_names(self) -> list[str]:
    """Names of the tables, each once."""
    return list(dict.fromkeys(table.name for table in self.tables))


def place(path: str) -> tuple[str, int | None, str]:
  """Splits a path into (stack, layer, rest): ('encoder', 0, 'attention/query'); ('', None, '') for the whole model."""
  match = re.fullmatch(r'(\w*?)(?:/layers_(\d+)(?:/(.*))?)?', path)
  if match is None:
    return '', None, path
  return match[1], None if match[2] is None else int(match[2]), match[3] or ''


def router_path(projection: str, granularity: str) -> str:
  """Returns where the router of a projection lies."""
  depth = {adapters.MODEL: 0, adapters.STACK: 1, adapters.LAYER: 2}.get(granularity)
  return '/'.join(projection.split('/')[:depth])


def opened(path: str | os.PathLike) -> loading.Opened:
  """Opens a checkpoint without its base.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is damaged, or nothing in it is routed.
  """
  found = loading.open_own(path)
  if found.transformer.adapter is None or not found.description.get('task_index'):
    raise ValueError(f'{found.path} has no routed skills: it is a plain T5, of which there is nothing to tell here')
  return found


def read(found: loading.Opened) -> Run:
  """Reads the routing of an opened checkpoint.

  Raises:
    ValueError: a table is not finite.
  """
  adapter = found.transformer.adapter
  projections = [p for p in network.projection_paths(found.transformer.config) if adapter.is_target(p)]
  names = [name for name in found.arrays if adapters.ROUTING in name.split('/') or name == network.CLOCK]
  for name in names:
    if hasattr(found.arrays[name], 'start_opening'):
      found.arrays[name].start_opening()
  params = {name: np.asarray(found.arrays[name].read()).astype(np.float32) for name in names}
  broken = [name for name, value in params.items() if not np.isfinite(value).all()]
  if broken:
    raise ValueError(f'{found.path}: {broken[0]} is not finite: the run diverged; analyse an earlier checkpoint_<step>')
  return collect(adapter, projections, params, TaskIndex.from_json(found.description['task_index']), found.path, found.step)


def collect(adapter: Adapter, projections: Sequence[str], params: Mapping[str, np.ndarray], index: TaskIndex,
            path: str = '', step: int | None = None) -> Run:
  """Gathers tables and weights of all routers.

  Args:
    adapter: the adapter of the network.
    projections: paths of the adapted projections.
    params: parameters of the routing, flat by name, and the network's clock if it has one.
    index: the tasks.
    path: of the checkpoint, for the record.
    step: the step, for the record.
  """
  router = adapter.describe()
  clock = params.get(network.CLOCK)
  tables, weights, gates = [], {}, {}
  for where in dict.fromkeys(router_path(p, adapter.granularity) for p in projections):
    prefix = f'{where}/{adapters.ROUTING}/'.lstrip('/')
    own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
    if router.reads_inputs:
      gates.update({where: _gates(own)} if getattr(router, 'per_task', False) and 'gate' in own else {})
      continue
    weights[where] = _weights(router, own, len(index), clock)
    tables += _tables(where, router, own, weights[where])
  owners = np.full(router.num_skills, -1)
  if isinstance(router, routing.CPolyRouter):
    owners[router.num_common:] = np.repeat(np.arange(len(index)), router.counts)
  elif isinstance(router, routing.TokenRouter) and router.num_specific:
    owners[router.num_common:] = np.repeat(np.arange(len(index)), router.num_specific)
  inventory = adapter.inventory(num_skills=1, features=1, parent=None)
  return Run(path=path, step=step, tasks=tuple(index.names), skills=_skill_names(owners, index.names), owners=owners,
             router=type(router).__name__, inventory=type(inventory).__name__, granularity=adapter.granularity,
             projections=tuple(projections), tables=tuple(tables), weights=weights, gates=gates,
             reads_inputs=router.reads_inputs)


def _weights(router: Any, own: Mapping[str, np.ndarray], num_tasks: int, clock: np.ndarray | None) -> np.ndarray:
  """Asks a router for the weights of all tasks: [T, H, S]."""
  step = None if clock is None else jnp.asarray(clock, jnp.float32)
  variables = {'params': traverse_util.unflatten_dict(dict(own), sep='/')} if own else {}
  groups = router.apply(variables, jnp.arange(num_tasks), None, deterministic=True, step=step)
  found = np.zeros((num_tasks, max(group.heads for group in groups), router.num_skills), np.float32)
  for group in groups:
    values = np.asarray(group.weights)
    if group.ids is None:
      found[..., group.start:group.start + values.shape[-1]] += values
    else:
      for column, ids in enumerate(np.asarray(group.ids).T):
        found[np.arange(num_tasks), :, ids] += values[..., column]
  return found


def _tables(path: str, router: Any, own: Mapping[str, np.ndarray], weights: np.ndarray) -> list[Table]:
  """Returns the tables of a router: its own ones where it has some, and else its weights."""
  found = []
  if isinstance(router, routing.CPolyRouter):
    if router.num_common:
      found.append((COMMON, LOGITS, own['common'], 0))
    if sum(router.counts) and router.specific != routing.FIXED:  # A fixed one is the same for ever.
      found.append((SPECIFIC, LOGITS if router.specific == routing.GUMBEL else RAW, own['specific'], router.num_common))
  elif isinstance(router, routing.PolyRouter):
    found.append((ALL, LOGITS, own['common'], 0))
  tables = []
  for name, kind, values, start in found or [(WEIGHTS, RELATIVE, weights, 0)]:
    heads = values.astype(np.float64).reshape(values.shape[0], -1, values.shape[-1])
    tables += [Table(path, name, kind, heads[:, h], start, h if heads.shape[1] > 1 else None) for h in range(heads.shape[1])]
  return tables


def _gates(own: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the gates [T, d, k] of tasks as rows [T, d*k], less their mean over the skills, which softmax ignores."""
  gate = own['gate'].astype(np.float64)
  return (gate - gate.mean(axis=-1, keepdims=True)).reshape(gate.shape[0], -1)


def _skill_names(owners: np.ndarray, tasks: Sequence[str]) -> tuple[str, ...]:
  specific = bool((owners >= 0).any())
  names, seen = [], dict.fromkeys(range(len(tasks)), 0)
  for skill, owner in enumerate(owners.tolist()):
    if owner < 0:
      names.append(f'common {skill + 1}' if specific else f'skill {skill + 1}')
      continue
    seen[owner] += 1
    names.append(tasks[owner] if np.sum(owners == owner) == 1 else f'{tasks[owner]} {seen[owner]}')
  return tuple(names)
