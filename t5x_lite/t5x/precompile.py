"""Compiles the programs of a training run ahead of time: `python -m t5x.precompile --gin_file=...`.

It takes the gin files of `t5x.train` as they are, or T5X's own for this, which bind `precompile`. The train step, the step that
measures the loss on held-out batches and those that SeqIO's evaluation runs are compiled into the persistent cache
(`runtime.enable_compilation_cache`), where the next `t5x.train` with the same devices finds them. Data are opened as for
training, since their shapes belong to the programs; no parameter is made, restored or written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

if __name__ == '__main__':
  # Read by C++ libraries when they are first imported, which the lines below may do.
  from t5x import runtime
  runtime.quiet_environment()

import gin
import jax
import jax.numpy as jnp
import numpy as np

from t5x import batches
from t5x import checkpoint_reader
from t5x import datasets
from t5x import eval as eval_lib
from t5x import gin_utils
from t5x import inference
from t5x import model_info
from t5x import multihost
from t5x import run_plan
from t5x import runtime
from t5x import schedules
from t5x import train as train_lib
from t5x import trainer as trainer_lib
from t5x import utils

_HIT, _MISS = '/jax/compilation_cache/cache_hits', '/jax/compilation_cache/cache_misses'
# Methods of a model by the kind of metric that wants them.
_METHODS = {'predict_metric_fns': 'predict_batch', 'score_metric_fns': 'score_batch',
            'predict_with_aux_metric_fns': 'predict_batch_with_aux'}


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program.

  Attributes:
    name: what it does: 'train step', 'training eval step', or a method of the model.
    seconds: of tracing and compiling.
    flops: of one call on one device, as XLA counts them; None where it does not say.
    bytes: that one device needs for it: arguments, results and temporaries; None where XLA does not say.
    cached: whether it was in the cache; None: it is too quick to compile to be kept there, or there is no cache.
  """
  name: str
  seconds: float
  flops: float | None
  bytes: int | None
  cached: bool | None

  def __str__(self) -> str:
    where = {True: 'was in the cache', False: 'compiled, now in the cache', None: 'compiled, not cached'}[self.cached]
    flops = '' if self.flops is None else f', {self.flops / 1e9:.4g} GFLOP'
    size = '' if self.bytes is None else f', {self.bytes / 2**20:.2f} MiB a device'
    return f'{self.name}: {where}, {self.seconds:.1f} s{flops}{size}'


class _Ahead:
  """A partitioner that leaves shapes where they are and keeps the functions and programs that it makes."""

  def __init__(self, partitioner: Any):
    self._partitioner = partitioner
    self.made: Any = None

  def __getattr__(self, name: str) -> Any:
    return getattr(self._partitioner, name)

  def move_params_to_devices(self, train_state: Any, train_state_axes: Any) -> Any:
    """Returns the shapes of a train state as they are."""
    del train_state_axes
    return train_state

  def partition(self, *args, **kwargs) -> Any:
    """As of the partitioner; what it returns is `made`, too."""
    self.made = self._partitioner.partition(*args, **kwargs)
    return self.made

  def compile(self, partitioned_fn: Any, *args) -> Any:
    """As of the partitioner; what it returns is `made`, too."""
    self.made = self._partitioner.compile(partitioned_fn, *args)
    return self.made


@contextlib.contextmanager
def _cache_events() -> Iterator[list[str]]:
  """Gives a list that grows by an event whenever a program is looked up in the persistent cache."""
  seen: list[str] = []
  listen = lambda event, **_: seen.append(event) if event in (_HIT, _MISS) else None
  jax.monitoring.register_event_listener(listen)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_listener(listen)


def _timed(name: str, compile_fn: Callable[[], Any]) -> Program:
  """Compiles, and tells of it."""
  start = time.monotonic()
  runtime.forget_traces()
  with _cache_events() as seen:
    compiled = compile_fn()
  analysis = compiled.memory_analysis()
  size = None if analysis is None else (
      analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
      + analysis.temp_size_in_bytes)
  seconds = time.monotonic() - start
  kept = bool(jax.config.jax_compilation_cache_dir) and seconds >= jax.config.jax_persistent_cache_min_compile_time_secs
  program = Program(name, seconds, model_info.flops(compiled), size, True if _HIT in seen else False if kept else None)
  if jax.process_index() == 0:
    print(program, flush=True)
  return program


def _frozen_dtype(model_dir: str, checkpoint_cfg: Any) -> tuple[Any, Mapping[str, Any]]:
  """Returns the dtype that frozen parameters will have after restoring, None for the stored one, and {name: stored array}."""
  restore = getattr(checkpoint_cfg, 'restore', None)
  dtype, path = getattr(restore, 'dtype', None), getattr(restore, 'path', None)
  own = checkpoint_reader.latest_step(model_dir) if model_dir else None
  if own is not None:
    path = checkpoint_reader.get_checkpoint_dir(model_dir, own)
    dtype = (checkpoint_reader.open_checkpoint(path).metadata or {}).get('frozen_dtype') or dtype
  if dtype is not None or not path or not isinstance(path, str):
    return dtype if path else None, {}
  return None, checkpoint_reader.open_checkpoint(checkpoint_reader.find_checkpoint(path)).arrays


def _restored(shapes: Any, model_dir: str, checkpoint_cfg: Any) -> Any:
  """Returns the shapes of a train state with the dtypes that restoring gives to its frozen parameters."""
  dtype, stored = _frozen_dtype(model_dir, checkpoint_cfg)

  def kept(path, leaf, trains):
    name = 'target/' + '/'.join(str(key.key) for key in path)
    wanted = dtype or (stored[name].dtype if name in stored else leaf.dtype)
    if trains or not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(wanted))

  return shapes.replace_params(jax.tree_util.tree_map_with_path(kept, shapes.params, shapes.trainable_mask))


def _placed(shapes: Any, axes: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the shapes of a train state with the shardings that its arrays will have, which belong to what jax traces."""

  def place(spec, part):
    sharding = jax.sharding.NamedSharding(mesh, spec or jax.sharding.PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

  return jax.tree.map(place, axes, shapes, is_leaf=lambda x: x is None or isinstance(x, jax.sharding.PartitionSpec))


def _structs(shapes: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  return {k: jax.ShapeDtypeStruct(shapes[k], jax.dtypes.canonicalize_dtype(types[k])) for k in shapes}


def precompile(*, model: Any, train_dataset_cfg: utils.DatasetConfig, partitioner: Any, model_dir: str,
               random_seed: int | None, get_dataset_fn: Callable[..., Any] = utils.get_dataset,
               verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
               trainer_cls: Callable[..., Any] | None = None, checkpoint_cfg: Any = None,
               train_eval_dataset_cfg: utils.DatasetConfig | None = None,
               infer_eval_dataset_cfg: utils.DatasetConfig | None = None, eval_steps: int = 0,
               inference_evaluator_cls: type | None = None,
               train_eval_get_dataset_fn: Callable[..., Any] = utils.get_training_eval_datasets,
               train_state_initializer_cls: type = utils.TrainStateInitializer,
               use_hardware_rng: bool = False) -> list[Program]:
  """Compiles the programs of a run; prints a line for each.

  Args:
    model: the model.
    train_dataset_cfg: training data.
    partitioner: owner of the mesh.
    model_dir: folder of the run; a checkpoint in it, which training would resume, decides on dtypes.
    random_seed: of the run: its key is a constant of the train step. None: that of the run in `model_dir`, else one from the
      clock, which no later run has.
    get_dataset_fn: opens the training data.
    verify_matching_vocabs_fn: fn(cfg, model) that raises where the vocabularies differ; None: unchecked.
    trainer_cls: the run's trainer; None: `trainer.Trainer` with T5X's default schedule.
    checkpoint_cfg: of the run; None: training starts from new parameters.
    train_eval_dataset_cfg: held-out data for the training loss, or None.
    infer_eval_dataset_cfg: data of SeqIO's evaluation, or None.
    eval_steps: batches per task of `train_eval_dataset_cfg`; 0: none.
    inference_evaluator_cls: None: seqio.Evaluator.
    train_eval_get_dataset_fn: opens `train_eval_dataset_cfg`.
    train_state_initializer_cls: builds the shapes of the state.
    use_hardware_rng: as of `train`.

  Returns:
    What was compiled.

  Raises:
    ValueError, FileNotFoundError: one line, as `train` itself.
  """
  cfgs = [cfg for cfg in (train_dataset_cfg, train_eval_dataset_cfg if eval_steps else None, infer_eval_dataset_cfg) if cfg]
  for cfg in cfgs:
    partitioner.get_data_layout(cfg.batch_size)
    if cfg is not infer_eval_dataset_cfg:
      datasets.check_feature_lengths(cfg)
    datasets.tasks_with_split(cfg, warn=False)
    if verify_matching_vocabs_fn is not None:
      verify_matching_vocabs_fn(cfg, model)
  if use_hardware_rng or random_seed is None:
    multihost.set_hardware_rng_ops()
  if random_seed is None and 'random_seed' not in run_plan.read_run(model_dir):
    print('note: without RANDOM_SEED each run has a key of its own, so that no other run finds this train step', flush=True)
  seed = run_plan.choose_seed(model_dir, random_seed)
  _, trainer_rng = jax.random.split(jax.random.PRNGKey(seed))

  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  converter = model.FEATURE_CONVERTER_CLS
  train_ds = get_dataset_fn(datasets.with_seed(train_dataset_cfg, seed), layout.shard_id, layout.num_shards, converter)
  spec = batches.BatchIterator(train_ds).element_spec
  batch = _structs({k: (layout.batch_size, *v.shape[1:]) for k, v in spec.items()}, {k: v.dtype for k, v in spec.items()})
  initializer = train_state_initializer_cls(
      optimizer_def=model.optimizer_def, init_fn=model.get_initial_variables, partitioner=partitioner,
      input_shapes={k: v.shape for k, v in batch.items()}, input_types={k: v.dtype for k, v in batch.items()})
  axes = initializer.train_state_axes
  shapes = _restored(initializer.global_train_state_shape, model_dir, checkpoint_cfg)
  held_out = {}
  if train_eval_dataset_cfg is not None and eval_steps:
    layout = partitioner.get_data_layout(train_eval_dataset_cfg.batch_size)
    sources = train_eval_get_dataset_fn(train_eval_dataset_cfg, layout.shard_id, layout.num_shards, eval_steps, converter)
    held_out = {k: datasets.get_zeros_batch_like_dataset(ds, layout.batch_size) for k, ds in sources.items()}

  ahead = _Ahead(partitioner)
  make = trainer_cls or functools.partial(trainer_lib.Trainer, num_microbatches=None,
                                          learning_rate_fn=schedules.create_learning_rate_scheduler())
  # The trainer reads the number of the step, and of the rest only shapes.
  state = _placed(shapes, axes, partitioner.mesh)
  state = state.replace_step(jax.device_put(np.zeros((), np.int32), state.step.sharding))
  programs = []
  with make(model=model, train_state=state, partitioner=ahead, eval_names=list(held_out), summary_dir=None,
            train_state_axes=axes, rng=trainer_rng) as trainer:

    def compile_with(method, batch):
      method(batch)
      return ahead.made

    programs.append(_timed('train step', functools.partial(compile_with, trainer.compile_train, batch)))
    seen = set()
    for name, zeros in held_out.items():
      if (key := str({k: (v.shape, v.dtype) for k, v in sorted(zeros.items())})) not in seen:
        seen.add(key)
        programs.append(_timed('training eval step', functools.partial(compile_with, trainer.compile_eval, {name: zeros})))
  if infer_eval_dataset_cfg is not None:
    programs += _inference(infer_eval_dataset_cfg, inference_evaluator_cls, model, ahead, state, axes)
  return programs


def _inference(cfg: utils.DatasetConfig, evaluator_cls: type | None, model: Any, ahead: _Ahead, shapes: Any,
               axes: Any) -> Iterator[Program]:
  """Compiles the methods of the model that the metrics of the evaluated tasks want."""
  evaluator = eval_lib.InferenceEvaluator(cfg, evaluator_cls, model, ahead, None, None)
  wanted = {method for task in evaluator.eval_tasks for kind, method in _METHODS.items() if getattr(task, kind, None)}
  batch = _structs(evaluator.model_feature_shapes, evaluator.model_feature_types) if wanted else {}
  rows = jax.sharding.NamedSharding(ahead.mesh, ahead.data_partition_spec)
  batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in batch.items()}
  rng = jax.eval_shape(lambda: jax.random.fold_in(jax.random.PRNGKey(0), 0))
  for method in sorted(wanted):
    inference.get_infer_fn(getattr(model, method), cfg.batch_size, axes, ahead)
    yield _timed(method, lambda: ahead.made.lower(shapes, batch, rng).compile())
  evaluator.close()


def train(**arguments) -> list[Program]:
  """Compiles what `t5x.train.train` would run with these arguments, which gin files of training bind; without any, what
  `precompile` is bound to."""
  if not arguments:
    return gin.get_configurable(precompile)()
  bound = inspect.signature(train_lib.train).bind(**arguments)
  bound.apply_defaults()
  taken = {k: v for k, v in bound.arguments.items() if k in inspect.signature(precompile).parameters}
  if not bound.arguments['eval_period']:
    taken.update(infer_eval_dataset_cfg=None, eval_steps=0)
  return precompile(**taken)


# Gin tells by the signature what may be bound.
train.__signature__ = inspect.signature(train_lib.train)


if __name__ == '__main__':
  gin.configurable(precompile)
  gin_utils.run_entry_point(train)
