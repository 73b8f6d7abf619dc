"""All numbers of an analysis: from a folder to arrays, before anything is written or drawn."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cpoly_jax import adapters
from cpoly_jax.analysis import borrowing, comparison, conflict, diversity, extraction, hierarchy, statistics, transfer, truth
from cpoly_jax.checkpoints import loading
from cpoly_jax.task_index import TaskIndex


@dataclasses.dataclass(frozen=True)
class Row:
  """Statistics of one table; NaN where one is not defined."""

  table: extraction.Table
  discreteness: float
  sparsity: float
  usage: float


@dataclasses.dataclass(frozen=True)
class Moment:
  """Means over all tables of a name at one step; `borrowed` is of W_B and NaN elsewhere."""

  step: int
  name: str
  discreteness: float
  sparsity: float
  usage: float
  borrowed: float


@dataclasses.dataclass(frozen=True)
class Borrowed:
  """What tasks take from each other's specific skills.

  Attributes:
    taken: sums of |w| by owner, mean over the routers, [T, T].
    signed: the same with signs.
    by_router: share of mass off the block diagonal, by path.
  """

  taken: np.ndarray
  signed: np.ndarray
  by_router: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Diverse:
  """How skills differ.

  Attributes:
    cosine: mean over projections of the cosines [S, S]; NaN where a skill is zero everywhere.
    by_projection: means of |cosine|, by path.
    norms: mean over projections of the Frobenius norms of the deltas, [S], before they are scaled.
  """

  cosine: np.ndarray
  by_projection: Mapping[str, diversity.Overlap]
  norms: np.ndarray


@dataclasses.dataclass(frozen=True)
class Compared:
  """A known task x skill matrix beside the routing.

  Attributes:
    known: the matrix.
    matches: best F1 of each table of common skills (or of all), by (path, head).
    rand: adjusted Rand index of the two trees cut into as many clusters, by their number.
    correlation: of the two similarities over pairs of tasks.
  """

  known: truth.Truth
  matches: Mapping[tuple[str, int | None], truth.Match]
  rand: Mapping[int, float]
  correlation: float

  @property
  def mean_rand(self) -> float:
    """The mean of `rand`; NaN for fewer than three tasks."""
    return statistics.mean(self.rand.values())

  @property
  def best(self) -> tuple[tuple[str, int | None], truth.Match] | None:
    """The (path, head) of the best F1 and its match; None where no table has skills of tasks."""
    return max(self.matches.items(), key=lambda item: item[1].f1, default=None)


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was measured on examples.

  Attributes:
    tasks: their names, in the order of the mixture.
    examples: N of each.
    pulls: how their gradients agree.
    losses: nats for each target token of a task's examples (row) routed as another task (column).
  """

  tasks: tuple[str, ...]
  examples: int
  pulls: conflict.Pulls
  losses: np.ndarray


@dataclasses.dataclass(frozen=True)
class Findings:
  """What was learned; parts that a run does not have are None, or empty."""

  run: extraction.Run
  rows: Sequence[Row]
  moments: Sequence[Moment]
  alike: np.ndarray | None
  linkage: np.ndarray | None
  borrowed: Borrowed | None
  diverse: Diverse
  compared: Compared | None = None
  gains: Sequence[comparison.Gain] = ()
  against: str | None = None
  measured: Measured | None = None
  notes: Sequence[str] = ()

  @property
  def order(self) -> list[int]:
    """Rows of the tasks so that like ones are neighbours."""
    return list(range(len(self.run.tasks))) if self.linkage is None else hierarchy.order(self.linkage)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Training examples to measure on.

  Attributes:
    count: N of each task, even.
    tasks: of these tasks only; none for all.
    base: the base checkpoint, where it is not at its recorded place.
  """

  count: int
  tasks: Collection[str] = ()
  base: str | None = None


def analyse(path: str | os.PathLike, *, known: str | None = None, against: str | None = None,
            examples: Examples | None = None) -> Findings:
  """Analyses a run.

  Args:
    path: a MODEL_DIR, whose newest checkpoint is analysed and whose others give the course of training; one
      checkpoint_<step>; or a shared adapter's folder.
    known: file of a task x skill matrix to compare with.
    against: MODEL_DIR of a run to compare scores with.
    examples: what to measure gradients and transfer on; None: these are left out, and so neither data nor base is read.

  Raises:
    FileNotFoundError: there is no checkpoint, matrix or results file; with `examples`, no base, config.gin or data.
    ValueError: one of them is damaged or does not fit, or nothing is routed.
  """
  found = extraction.opened(path)
  folder = model_dir(path, found.path)
  gained = comparison.gains(comparison.read(folder or os.path.dirname(found.path)), comparison.read(against)) if against else ()
  run = extraction.read(found)
  matrix = truth.read(known, TaskIndex(run.tasks)) if known else None
  rows = table_rows(run)
  moments, notes = _course(folder, run)
  alike, linkage = None, None
  if len(run.tasks) > 1 and (run.tables or run.gates):
    alike = hierarchy.similarity(_by_router(run))
    linkage = hierarchy.tree(alike)
  if matrix is not None and alike is None:
    notes.append('there is nothing to compare with the known skills: this system has no rows of several tasks')
  return Findings(run=run, rows=rows, moments=moments, alike=alike, linkage=linkage, borrowed=borrowed(run),
                  diverse=_diverse(found, run), compared=_compared(run, matrix, alike, linkage), gains=gained, against=against,
                  measured=_measured(found, run, folder, examples) if examples else None, notes=notes)


def _measured(found: loading.Opened, run: extraction.Run, folder: str | None, wanted: Examples) -> Measured:
  """Measures gradients and transfer on examples of the run's tasks."""
  from cpoly_jax.analysis import task_batches  # Here: only examples need TensorFlow.
  from cpoly_jax.training import trained
  model = trained.model(found.path, description=found.description)
  opened = loading.open_files(found.path, base=wanted.base)
  batches = task_batches.read(folder or os.path.dirname(found.path), model, wanted.count, wanted.tasks)
  params = loading.read(opened).params
  return Measured(tuple(batches), wanted.count, conflict.pulls(model, params, batches, run.owners),
                  transfer.losses(model, params, batches))


def table_rows(run: extraction.Run) -> list[Row]:
  """Returns the statistics of each table; discreteness is of logits only."""
  nan = float('nan')
  return [Row(table, statistics.discreteness(table.usage) if table.kind == extraction.LOGITS else nan,
              statistics.sparsity(table.active), statistics.usage(table.usage)) for table in run.tables]


def borrowed(run: extraction.Run) -> Borrowed | None:
  """Returns what tasks borrow; None where W_B is not learned."""
  if not run.named(extraction.SPECIFIC):
    return None
  specific = run.owners >= 0
  owners = run.owners[specific]
  own = owners[:, None] == np.arange(len(run.tasks))
  weights = {path: w[..., specific].mean(axis=1, dtype=np.float64) for path, w in run.weights.items()}
  taken = {path: borrowing.by_owner(w, owners) for path, w in weights.items()}
  return Borrowed(np.mean(list(taken.values()), axis=0), np.mean([w @ own for w in weights.values()], axis=0),
                  {path: borrowing.borrowed(mass) for path, mass in taken.items()})


def _by_router(run: extraction.Run) -> list[np.ndarray]:
  """Returns for each router the rows of tasks that are compared: its tables side by side, or its gates."""
  paths: dict[str, list[np.ndarray]] = {}
  for table in run.tables:
    paths.setdefault(table.path, []).append(table.values if table.kind == extraction.RELATIVE else table.usage)
  return [np.concatenate(parts, axis=1) for parts in paths.values()] or list(run.gates.values())


def _moments(run: extraction.Run) -> list[Moment]:
  loans = borrowed(run)
  rows = table_rows(run)
  found = []
  for name in run.table_names:
    own = [row for row in rows if row.table.name == name]
    means = (statistics.mean(getattr(row, key) for row in own) for key in ('discreteness', 'sparsity', 'usage'))
    lent = statistics.mean(loans.by_router.values()) if loans and name == extraction.SPECIFIC else float('nan')
    found.append(Moment(-1 if run.step is None else run.step, name, *means, lent))
  return found


def model_dir(path: str | os.PathLike, checkpoint: str) -> str | None:
  """Returns the folder of checkpoints that `path` is; None if it is the checkpoint, or the shared adapter, itself."""
  path = os.fspath(path).rstrip('/')
  path = path if '://' in path else os.path.abspath(path)
  return None if path == checkpoint.rstrip('/') else path


def _course(folder: str | None, run: extraction.Run) -> tuple[list[Moment], list[str]]:
  """Returns the means at each kept step, and notes on checkpoints that cannot be read."""
  moments, notes = _moments(run), []
  if folder is None:
    return moments, notes
  from t5x import checkpoints
  for step in checkpoints.all_steps(folder):
    if step == run.step:
      continue
    try:
      moments += _moments(extraction.read(extraction.opened(os.path.join(folder, f'checkpoint_{step}'))))
    except (ValueError, OSError) as e:
      notes.append(f'checkpoint_{step} is left out of the course of training: {str(e).splitlines()[0]}')
  return sorted(moments, key=lambda moment: moment.step), notes


def _diverse(found: loading.Opened, run: extraction.Run) -> Diverse:
  """Compares the skills of each projection, one projection at a time."""
  size = len(run.skills)
  for name, array in found.arrays.items():
    if adapters.SKILLS in name.split('/') and hasattr(array, 'start_opening'):
      array.start_opening()
  total, count, norms, overlaps = np.zeros((size, size)), np.zeros((size, size), int), [], {}
  for path in run.projections:
    prefix = f'{path}/{adapters.SKILLS}/'
    skills = {name.removeprefix(prefix): np.asarray(array.read()) for name, array in found.arrays.items()
              if name.startswith(prefix)}
    products = diversity.gram({name: value.astype(np.float32) for name, value in skills.items()})
    if not np.isfinite(products).all():
      raise ValueError(f'{found.path}: the skills of {path} are not finite: the run diverged; analyse an earlier '
                       'checkpoint_<step>')
    cosine = diversity.cosines(products)
    overlaps[path] = diversity.overlap(cosine, run.owners)
    norms.append(np.sqrt(np.maximum(np.diag(products), 0)))
    known = ~np.isnan(cosine)
    total[known] += cosine[known]
    count += known
  mean = np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)
  return Diverse(mean, overlaps, np.mean(norms, axis=0))


def _compared(run: extraction.Run, matrix: truth.Truth | None, alike: np.ndarray | None,
              linkage: np.ndarray | None) -> Compared | None:
  """Compares tables and trees with the truth; None where there is none, or no rows of tasks."""
  if matrix is None or alike is None or linkage is None:
    return None
  true_alike = hierarchy.cosines(matrix.matrix)
  true_tree = hierarchy.tree(true_alike)
  rand = {count: truth.adjusted_rand(hierarchy.clusters(true_tree, count), hierarchy.clusters(linkage, count))
          for count in range(2, len(run.tasks))}
  matches: dict[tuple[str, int | None], truth.Match] = {}
  for (path, head), tables in _grouped(run.tables).items():
    matches[path, head] = truth.match(np.concatenate([table.active for table in tables], axis=1), matrix.matrix)
  return Compared(matrix, matches, rand, truth.correlation(alike, true_alike))


def _grouped(tables: Sequence[extraction.Table]) -> dict[tuple[str, int | None], list[extraction.Table]]:
  groups: dict[tuple[str, int | None], list[extraction.Table]] = {}
  for table in tables:
    groups.setdefault((table.path, table.head), []).append(table)
  return groups
