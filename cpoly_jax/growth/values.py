"""Parameters by a plan: what is kept is copied bit by bit, and what is new starts so that no trained task notices.

    logits of Poly, MHR and W_A    0, so that a new task uses each skill with a half (Polytropon's few-shot start)
    W_B                            1 (`gumbel`: +own_logit) for own skills, 0 (-own_logit) for those of others; for a task
                                   without own ones the same share of each trained skill, as at 0 the product of two mixes has
                                   no gradient; trained tasks give new skills the weight 0
    task embeddings                the mean of the trained ones
    gates of tasks                 as at the start of a training
    new skills                     as at the start of a training: LoRA's `down` random, its `up` zero

Notation: T tasks, S skills, W specific skills; a prime marks those afterwards.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Callable, Mapping, Sequence

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax.growth import plans
from cpoly_jax.growth.plans import NEW, Plan
from cpoly_jax.t5 import network

# A logit whose sigmoid is 0 in float32, whatever the noise.
NEVER = -1e4
_SPECIFIC, _EMBEDDING, _GATE = 'specific', 'embedding', 'gate'


def owner_and_name(path: str) -> tuple[str, str]:
  """Returns (`skills`, `routing` or another module, the parameter's own name) of a path such as `encoder/.../skills/down`."""
  parts = path.split('/')
  return (parts[-2] if len(parts) > 1 else ''), parts[-1]


def is_changed(plan: Plan, path: str) -> bool:
  """Whether the parameter at a path has rows or skills that a plan may change."""
  owner, name = owner_and_name(path)
  return owner == adapters.SKILLS or (owner == adapters.ROUTING and name in plans.tables(plan.router))


def transform(plan: Plan, leaves: Mapping[str, Any], seed: int = 0) -> dict[str, Callable[[], np.ndarray]]:
  """Returns functions that make the parameters of skills and routing afterwards.

  Args:
    plan: what changes.
    leaves: parameters before, by T5X name: arrays, or functions that read them.
    seed: of what starts at random.

  Returns:
    A function without arguments for each of the leaves that changes (`is_changed`), giving an array of its dtype.
  """
  changed = [path for path in leaves if is_changed(plan, path)]
  fresh = _fresh(plan, [path for path in changed if _starts_as_in_training(plan, path)], seed)
  read = lambda leaf: np.asarray(leaf() if callable(leaf) else leaf)
  return {path: (lambda path=path: _leaf(plan, path, read(leaves[path]), fresh.get(path))) for path in changed}


def _starts_as_in_training(plan: Plan, path: str) -> bool:
  owner, name = owner_and_name(path)
  return NEW in plan.skills if owner == adapters.SKILLS else name == _GATE and NEW in plan.rows


def _leaf(plan: Plan, path: str, value: np.ndarray, fresh: np.ndarray | None) -> np.ndarray:
  owner, name = owner_and_name(path)
  if owner == adapters.SKILLS:
    return _placed(value, plan.skills, fresh)
  if name == _SPECIFIC:
    return _specific(plan, value)
  if name == _EMBEDDING:
    trained = value[[row for row in plan.rows if row != NEW]]
    fresh = np.repeat(trained.mean(axis=0, dtype=np.float64, keepdims=True), plan.rows.count(NEW), axis=0)
  return _placed(value, plan.rows, fresh)


def _placed(value: np.ndarray, places: Sequence[int], fresh: np.ndarray | None) -> np.ndarray:
  """Returns rows of `value` at `places`; the n-th `NEW` place gets the n-th row of `fresh`, or zeros."""
  places = np.asarray(places)
  out = np.zeros((len(places), *value.shape[1:]), value.dtype)
  out[places != NEW] = value[places[places != NEW]]
  if fresh is not None:
    out[places == NEW] = fresh.astype(value.dtype)
  return out


def _specific(plan: Plan, value: np.ndarray) -> np.ndarray:
  """Returns W_B [T', W'] from [T, W]."""
  gumbel = plan.router['specific'] == routing.GUMBEL
  on, off = (plan.router['own_logit'], -plan.router['own_logit']) if gumbel else (1., 0.)
  rows, columns = np.asarray(plan.rows), np.asarray(plan.skills[plan.router['num_common']:], np.int64)
  out = np.full((len(rows), len(columns)), off, value.dtype)
  out[:, columns == NEW] = NEVER if gumbel else 0.
  old_rows, old_columns = rows != NEW, columns != NEW
  before = columns[old_columns] - plan.router['num_common']
  out[np.ix_(old_rows, old_columns)] = value[np.ix_(rows[old_rows], before)]
  for row in np.flatnonzero(rows == NEW):
    own = [skill - plan.router['num_common'] for skill in plan.own_skills(row)]
    out[row, :] = off
    out[row, own] = on
    if not own and not gumbel and old_columns.any():
      out[row, old_columns] = 1 / old_columns.sum()
  return out


def _fresh(plan: Plan, paths: Sequence[str], seed: int) -> dict[str, np.ndarray]:
  """Returns what is new of some parameters, as a new network has it; nothing else of that network is made."""
  if not paths:
    return {}
  transformer = model_settings.build(plan.after)
  places = {path: np.flatnonzero(np.asarray(
      plan.skills if owner_and_name(path)[0] == adapters.SKILLS else plan.rows) == NEW) for path in paths}

  @jax.jit
  def make(key):
    flat = initial(transformer, key)
    return {path: flat[path][at] for path, at in places.items()}

  with jax.default_device(jax.local_devices()[0]):
    # Of a kind that does not depend on the hardware: every process of a run makes the same.
    return jax.device_get(make(jax.random.key(seed, impl='threefry2x32')))


def initial(transformer: network.Transformer, key: jax.Array) -> dict[str, jax.Array]:
  """Returns the parameters of a new network by T5X name; call it inside `jit` and use some of them."""
  tokens, rows = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1,), jnp.int32)
  made = transformer.init(key, tokens, tokens, tokens, task_ids=rows, enable_dropout=False)['params']
  return traverse_util.flatten_dict(made, sep='/')


def borrowed(plan: Plan, tables: Mapping[str, np.ndarray]) -> tuple[float, int, int] | None:
  """Returns how much the tasks that stay use skills that go.

  Args:
    plan: what changes.
    tables: W_B tables [T, W] by path.

  Returns:
    The largest weight (of `gumbel`: before normalisation), the row before of the task that gives it, and the skill; None if all
    are exactly 0.
  """
  router = plan.before['adapter']['router']
  columns = [skill - router['num_common'] for skill in plan.lost]
  rows = [row for row in plan.rows if row != NEW]
  worst = None
  for table in tables.values() if columns and rows else ():
    part = np.abs(table[np.ix_(rows, columns)].astype(np.float32))
    if router['specific'] == routing.GUMBEL:
      part = np.asarray(jax.nn.sigmoid(table[np.ix_(rows, columns)]))
    at = np.unravel_index(part.argmax(), part.shape)
    if part[at] > 0 and (worst is None or part[at] > worst[0]):
      worst = float(part[at]), rows[at[0]], plan.lost[at[1]]
  return worst
