"""The training loop: compile once, dispatch without waiting, sum up on the devices.

The free functions are the parts of a step (gradients, update, evaluation) for trainers of one's
own; a trainer overrides `_partitioned_train_step` and `_partitioned_eval_step`.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import functools
import time
from typing import Any

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from t5x import nonfinite
from t5x import partitioning
from t5x import slow_hosts
from t5x import state_utils
from t5x import train_state as train_state_lib
from t5x.actions import ActionMapType, ActionMode, BaseAction, PreemptionError  # noqa: F401  users find them here
from t5x.training_metrics import MetricMap, MetricsManager, merge_metrics

PyTree = Any
BatchType = Mapping[str, np.ndarray | jax.Array]
LearningRateCallable = Callable[[jax.Array], jax.Array]

_DATA_SPEC = PartitionSpec('data')
# How many steps the host may be ahead of the devices; each holds its batch.
_MAX_STEPS_IN_FLIGHT = 8
_PROCESS_START = time.monotonic()


# --------------------------------------------------------------------------------------------------
# The parts of a step
# --------------------------------------------------------------------------------------------------


def accumulate_grads_microbatched(
    model: Any,
    train_state: train_state_lib.TrainState,
    batch: BatchType,
    dropout_rng: jax.Array | None,
    num_microbatches: int | None,
    data_partition_spec: PartitionSpec = _DATA_SPEC,
) -> tuple[PyTree, MetricMap, Mapping[str, PyTree]]:
  """Returns gradients and metrics of a batch.

  Args:
    model: has `loss_fn(params, batch, dropout_rng)` -> (loss, metrics), or with mutable collections
      `loss_fn(params, batch, dropout_rng, flax_mutables)` -> (loss, (metrics, flax_mutables)).
    train_state: holds the parameters.
    batch: {feature: [B, ...]}.
    dropout_rng: key for the whole batch.
    num_microbatches: n > 1 computes the gradient of B / n examples at a time and sums in float32,
      to save memory; None or 1 takes the batch as one.
    data_partition_spec: how a microbatch is split over the mesh.

  Returns:
    (gradients of the trainable parameters only, {name: clu Metric}, flax_mutables).

  Raises:
    ValueError: where n does not divide B.
  """
  trainable, frozen = state_utils.partition_params(train_state.params, train_state.trainable_mask)

  def loss_fn(trainable, batch, rng, mutables):
    params = state_utils.merge_params(trainable, frozen)
    with nonfinite.watching() as found:
      if mutables:
        loss, (metrics, mutables) = model.loss_fn(params, batch, rng, mutables)
      else:
        loss, metrics = model.loss_fn(params, batch, rng)
    return loss, ({**metrics, **nonfinite.report_loss(model, batch, loss, found)}, mutables)

  grad_fn = jax.grad(loss_fn, has_aux=True)
  n = num_microbatches or 1
  if n <= 1:
    grads, (metrics, mutables) = grad_fn(trainable, batch, dropout_rng, train_state.flax_mutables)
    return grads, metrics, mutables

  batch_size = next(iter(batch.values())).shape[0]
  if batch_size % n:
    raise ValueError(
        f'num_microbatches={n} does not divide the batch size {batch_size}; use a divisor.')

  def split(x):
    # Microbatch i has the rows i, n + i, ...: each device splits the rows that it holds already.
    x = jnp.swapaxes(x.reshape(batch_size // n, n, *x.shape[1:]), 0, 1)
    return partitioning.with_sharding_constraint(x, PartitionSpec(None, *data_partition_spec))

  def step(carry, microbatch):
    total, rng, mutables = carry
    rng, step_rng = (None, None) if rng is None else jax.random.split(rng)
    grads, (metrics, mutables) = grad_fn(trainable, microbatch, step_rng, mutables)
    total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads)
    return (total, rng, mutables), metrics

  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trainable)
  (grads, _, mutables), stacked = jax.lax.scan(
      step, (zeros, dropout_rng, train_state.flax_mutables), jax.tree.map(split, dict(batch)))
  report = stacked.pop(nonfinite.KEY, None)
  metrics = functools.reduce(
      merge_metrics, [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(n)])
  if report is not None:
    metrics[nonfinite.KEY] = nonfinite.join_microbatches(report)
  return grads, metrics, mutables


def apply_grads(
    train_state: train_state_lib.TrainState,
    grad_accum: PyTree,
    metrics: MetricMap,
    learning_rate: jax.Array,
    weight_metrics_computer: Any,
    other_state_variables: Mapping[str, Any] | None = None,
) -> tuple[train_state_lib.TrainState, dict[str, Any]]:
  """Updates the state.

  Args:
    train_state: before the update.
    grad_accum: gradients of all parameters or of the trainable ones.
    metrics: {name: clu Metric} of the step.
    learning_rate: float scalar.
    weight_metrics_computer: None, or has `compute_metrics(gradients, old_train_state, new_train_state)`, which returns
      further {name: clu Metric}; the gradients are those of the trainable parameters.
    other_state_variables: e.g. {'flax_mutables': ...}, given to `train_state.apply_gradient`.

  Returns:
    The new state (the old one where loss or gradient is not finite, see `nonfinite`), and `metrics` with the learning rate.
  """
  new_train_state = train_state.apply_gradient(
      grad_accum, learning_rate=learning_rate, **(other_state_variables or {}))
  new_train_state, metrics = nonfinite.guard(metrics, grad_accum, train_state, new_train_state)
  rate = jnp.asarray([learning_rate])
  metrics = {
      **metrics,
      'learning_rate': clu_metrics.Average.from_model_output(rate),
      'learning_rate/current': clu_metrics.LastValue.from_model_output(rate),
  }
  if weight_metrics_computer is not None:
    metrics.update(
        weight_metrics_computer.compute_metrics(grad_accum, train_state, new_train_state))
  return new_train_state, metrics


def train_with_lr(
    train_state: train_state_lib.TrainState,
    batch: BatchType,
    learning_rate: jax.Array,
    dropout_rng: jax.Array,
    model: Any,
    num_microbatches: int | None,
    weight_metrics_computer: Any = None,
    data_partition_spec: PartitionSpec = _DATA_SPEC,
) -> tuple[train_state_lib.TrainState, dict[str, Any]]:
  """Makes one training step; see `accumulate_grads_microbatched` and `apply_grads`."""
  grads, metrics, mutables = accumulate_grads_microbatched(
      model, train_state, batch, dropout_rng, num_microbatches, data_partition_spec)
  return apply_grads(
      train_state, grads, metrics, learning_rate, weight_metrics_computer,
      other_state_variables={'flax_mutables': mutables} if mutables else None)


def eval_step(model: Any, train_state: train_state_lib.TrainState, batch: BatchType) -> MetricMap:
  """Returns {name: clu Metric} of a batch without dropout."""
  if train_state.flax_mutables:
    _, (metrics, _) = model.eval_fn(train_state.params, batch, train_state.flax_mutables)
  else:
    _, metrics = model.eval_fn(train_state.params, batch)
  return metrics


# --------------------------------------------------------------------------------------------------
# Trainers
# --------------------------------------------------------------------------------------------------


class BaseTrainer(abc.ABC):
  """Runs steps over batches.

  Attributes:
    train_state: the state after the last step; may be set.
    stop_training: may be set, also while `train` runs, which then ends after the present step.
    train_metrics_manager: writes what `train` measures.
    eval_metrics_managers: the same for each name of `eval`.
    on_step: None or a function (step, metrics of that step) called after each step is dispatched;
      `step` counts the updates made, the metrics are still on the devices.
    nonfinite: reads the reports of steps; its `tell` may be set.
    clock: is told what training waits for.
    train_step_compiled: the executable of `compile_train`, with `cost_analysis()` and
      `memory_analysis()`.
  """

  def __init__(
      self,
      model: Any,
      train_state: train_state_lib.TrainState,
      partitioner: partitioning.BasePartitioner,
      eval_names: Sequence[str],
      summary_dir: str | None,
      train_state_axes: Any,
      rng: jax.Array,
  ):
    """Builds a trainer.

    Args:
      model: a `models.BaseModel`.
      train_state: the initial state; its memory is reused by the first step.
      partitioner: compiles the steps.
      eval_names: names that `eval` will get.
      summary_dir: folder for TensorBoard; None for none.
      train_state_axes: PartitionSpecs of mesh axes for `train_state`.
      rng: key of the training; step i uses fold_in(rng, i).
    """
    self._model = model
    self._partitioner = partitioner
    self._train_state_axes = train_state_axes
    # On the host, so that the compiled step is not tied to the device that holds the key.
    is_raw_key = not jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
    self._base_rng = np.asarray(rng) if is_raw_key else rng
    self.train_state = train_state
    self.stop_training = False
    self.on_step: Callable[[int, MetricMap], None] | None = None
    self.train_step_compiled: Any = None
    self._compiled_eval_steps: dict[str, Any] = {}
    self._merge = jax.jit(merge_metrics)
    self._last_metrics: Any = ()
    # (step, metrics) of the steps that are dispatched and may not be done.
    self._in_flight: collections.deque[tuple[int, MetricMap]] = collections.deque()
    self.nonfinite = nonfinite.Reader(model)
    self.clock = slow_hosts.StepClock()
    self.train_metrics_manager = MetricsManager('train', summary_dir)
    self.eval_metrics_managers = {
        name: MetricsManager(f'training_eval/{name}', summary_dir) for name in eval_names}

  def __enter__(self) -> BaseTrainer:
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  def close(self) -> None:
    """Waits for what is being written and closes the writers."""
    for manager in (self.train_metrics_manager, *self.eval_metrics_managers.values()):
      manager.close()

  def _get_step_rng(self, step: jax.Array) -> jax.Array:
    """Returns the key of a step."""
    return jax.random.fold_in(self._base_rng, step)

  def train(
      self, batch_iter: Iterator[BatchType], num_steps: int, start_step: int | None = None
  ) -> futures.Future[Mapping[str, Any]]:
    """Trains; returns as soon as all steps are dispatched.

    Args:
      batch_iter: yields {feature: [B, ...]}: global arrays, or this process's part as numpy arrays.
      num_steps: number of steps; fewer are made once `stop_training` is set.
      start_step: the state's step, where the caller knows it; saves waiting for the devices.

    Returns:
      A future of {name: clu Value}, the metrics of these steps.

    Raises:
      ValueError: where the batches end too early, or a loss or gradient is not finite and that is to stop the run.
    """
    start_step = int(self.train_state.step) if start_step is None else int(start_step)
    self.train_metrics_manager.start_duration_timer(block_on=self._last_metrics)
    # Laid out as the step returns it, so that the first step is compiled as all others.
    self.train_state = self._partitioner.move_params_to_devices(
        self.train_state, self._train_state_axes)
    train_step = self.train_step_compiled or self._partitioned_train_step
    total = None
    step = start_step
    while step < start_step + num_steps and not self.stop_training:
      step += 1
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        self.clock.waits(slow_hosts.INPUT, step)
        batch = next(batch_iter, None)
        self.clock.waits(slow_hosts.DEVICE, step)
        if batch is None:
          raise ValueError(
              f'The training data ended before step {step}; repeat the data set, or train for '
              'fewer steps.')
        batch = self._partitioner.shard_batch(batch)
        self.train_state, metrics = train_step(self.train_state, batch)
        total = metrics if total is None else self._merge(total, metrics)
      if self.on_step is not None:
        self.on_step(step, metrics)
      self.nonfinite.prefetch(metrics)
      self._in_flight.append((step, metrics))
      if len(self._in_flight) > _MAX_STEPS_IN_FLIGHT:
        self._wait_for_oldest()
      self.clock.done(step)
    self.clock.rests()
    self._last_metrics = total if total is not None else ()
    self.train_metrics_manager.write_scalar('timing/uptime', time.monotonic() - _PROCESS_START, step)
    return self.train_metrics_manager.write_metrics_summary(total or {}, step, step - start_step)

  def _wait_for_oldest(self) -> None:
    """Waits for the oldest step in flight and reads its report."""
    step, metrics = self._in_flight.popleft()
    jax.block_until_ready(metrics)
    try:
      self.nonfinite.read(step, metrics)
    except nonfinite.NonfiniteError:
      self._in_flight.clear()
      self.train_state = nonfinite.unmark(self.train_state)
      raise

  def wait_for_steps(self) -> None:
    """Waits for all steps; raises ValueError where a loss or gradient is not finite and that is to stop the run."""
    self.clock.drains()
    while self._in_flight:
      self._wait_for_oldest()
    self.clock.rests()

  def _compile(self, partitioned_step: Any, batch: BatchType) -> Any:
    """Compiles a step for the present state and batches with the global shapes of `batch`."""
    self.train_state = self._partitioner.move_params_to_devices(
        self.train_state, self._train_state_axes)
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in batch.items()}
    return self._partitioner.compile(partitioned_step, self.train_state, shapes)

  def compile_train(self, batch: BatchType) -> None:
    """Compiles the training step for global batches (arrays or shapes) like this one."""
    start = time.monotonic()
    self.train_step_compiled = self._compile(self._partitioned_train_step, batch)
    self.train_metrics_manager.write_scalar(
        'timing/compilation_seconds', time.monotonic() - start, int(self.train_state.step))

  def eval(self, batch_iters: Mapping[str, Iterator[BatchType]]) -> dict[str, Mapping[str, Any]]:
    """Evaluates the present state.

    Args:
      batch_iters: {name: batches}; each name was given to the constructor as one of `eval_names`.

    Returns:
      {name: {metric: clu Value}}.

    Raises:
      ValueError: for a name without any batch.
    """
    step = int(self.train_state.step)
    summaries = {}
    for name, batch_iter in batch_iters.items():
      manager = self.eval_metrics_managers[name]
      manager.start_duration_timer(block_on=self._last_metrics)
      eval_step_fn = self._compiled_eval_steps.get(name, self._partitioned_eval_step)
      total, num_steps = None, 0
      for batch in batch_iter:
        metrics = eval_step_fn(self.train_state, self._partitioner.shard_batch(batch))
        total = metrics if total is None else self._merge(total, metrics)
        num_steps += 1
        if num_steps % _MAX_STEPS_IN_FLIGHT == 0:
          jax.block_until_ready(total)
      if total is None:
        raise ValueError(
            f'No evaluation batch for {name}; check its split, and that it has a full batch.')
      summaries[name] = manager.write_metrics_summary(total, step, num_steps)
    return {name: summary.result() for name, summary in summaries.items()}

  def compile_eval(self, batches: Mapping[str, BatchType]) -> None:
    """Compiles the evaluation step for {name: a global batch (arrays or shapes)}."""
    step = int(self.train_state.step)
    compiled: dict[Any, Any] = {}
    for name, batch in batches.items():
      start = time.monotonic()
      key = tuple(sorted((k, tuple(v.shape), str(v.dtype)) for k, v in batch.items()))
      if key not in compiled:
        compiled[key] = self._compile(self._partitioned_eval_step, batch)
      self._compiled_eval_steps[name] = compiled[key]
      self.eval_metrics_managers[name].write_scalar(
          'timing/compilation_seconds', time.monotonic() - start, step)

  @property
  @abc.abstractmethod
  def _partitioned_train_step(self) -> Callable[..., Any]:
    """A partitioned function (train_state, batch) -> (train_state, metrics)."""

  @property
  @abc.abstractmethod
  def _partitioned_eval_step(self) -> Callable[..., Any]:
    """A partitioned function (train_state, batch) -> metrics."""


class Trainer(BaseTrainer):
  """The trainer of the run files."""

  def __init__(
      self,
      model: Any,
      train_state: train_state_lib.TrainState,
      partitioner: partitioning.BasePartitioner,
      eval_names: Sequence[str],
      summary_dir: str | None,
      train_state_axes: Any,
      rng: jax.Array,
      learning_rate_fn: LearningRateCallable,
      num_microbatches: int | None,
      weight_metrics_computer: Any = None,
  ):
    """Builds a trainer, see `BaseTrainer` for the other arguments.

    Args:
      learning_rate_fn: step (int32 scalar) -> learning rate.
      num_microbatches: see `accumulate_grads_microbatched`.
      weight_metrics_computer: see `apply_grads`.
    """
    super().__init__(
        model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng)
    self._learning_rate_fn = learning_rate_fn
    self._num_microbatches = num_microbatches
    self._weight_metrics_computer = weight_metrics_computer

  @functools.cached_property
  def _partitioned_train_step(self) -> Callable[..., Any]:
    def train_step(train_state, batch):
      return train_with_lr(
          train_state, batch,
          learning_rate=self._learning_rate_fn(train_state.step),
          dropout_rng=self._get_step_rng(train_state.step),
          model=self._model,
          num_microbatches=self._num_microbatches,
          weight_metrics_computer=self._weight_metrics_computer,
          data_partition_spec=self._partitioner.data_partition_spec)

    return self._partitioner.partition(
        train_step,
        in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
        out_axis_resources=(self._train_state_axes, None),
        donate_argnums=(0,))

  @functools.cached_property
  def _partitioned_eval_step(self) -> Callable[..., Any]:
    return self._partitioner.partition(
        functools.partial(eval_step, self._model),
        in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
        out_axis_resources=None)
