"""Trains a model as a gin file says: `python -m t5x.train --gin_file=...`.

The loop knows steps only: it trains to the next step at which something is due (`run_plan`), then saves and
evaluates. What is computed lives in the trainer, what is read in `datasets`, what is saved in `restore`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if __name__ == '__main__':
  # Read by C++ libraries when they are first imported, which the lines below may do.
  from t5x import runtime
  runtime.quiet_environment()

import jax

from t5x import batches
from t5x import datasets
from t5x import event_files
from t5x import files
from t5x import gin_utils
from t5x import model_info
from t5x import multihost
from t5x import nonfinite
from t5x import periodic_eval
from t5x import progress as progress_lib
from t5x import report
from t5x import run_plan
from t5x import runtime
from t5x import slow_hosts
from t5x import utils

from t5x.train_loop import run_actions
from t5x.train_loop import TRAIN_METRIC_KEY
from t5x.train_loop import TrainLoop

if TYPE_CHECKING:
  from t5x import trainer as trainer_lib

__all__ = ('run_actions', 'train', 'TRAIN_METRIC_KEY')

def _check_data(model: Any, model_dir: str, partitioner: Any, cfgs: Mapping[str, Any],
                verify_matching_vocabs_fn: Callable[..., None] | None) -> None:
  """Finds what would fail later while it is still cheap: names, splits, vocabularies, sizes, the folder.

  Raises:
    ValueError: one line that says what to write instead.
  """
  files.check_writable(model_dir, 'MODEL_DIR')
  nonfinite.policy_of(model)
  slow_hosts.seconds_from_environment()
  for name, cfg in cfgs.items():
    partitioner.get_data_layout(cfg.batch_size)
    if name != 'infer_eval':  # SeqIO's evaluator measures the longest example.
      datasets.check_feature_lengths(cfg)
    mixture_or_task = datasets.get_mixture_or_task(cfg)
    datasets.tasks_with_split(cfg, warn=name == 'train')  # The evaluations warn themselves.
    if verify_matching_vocabs_fn is not None:
      verify_matching_vocabs_fn(cfg, model)
    if hasattr(model, 'check_mixture'):
      model.check_mixture(mixture_or_task)


def _checkpoint_to_start_from(model_dir: str, checkpoint_cfg: Any) -> tuple[Any, str | None, bool]:
  """Returns (restore configuration, path, whether it resumes this run); (None, None, False) for a new model."""
  save, restore = checkpoint_cfg.save, checkpoint_cfg.restore
  if restore is not None:
    if restore.mode == 'all':
      raise ValueError("Training starts from one checkpoint: set RestoreCheckpointConfig.mode='latest' or 'specific'.")
    if not isinstance(restore.path, (str, os.PathLike)) and len(restore.path) > 1:
      raise ValueError(f'Training starts from one checkpoint, not from {len(restore.path)}: '
                       'set RestoreCheckpointConfig.path to one path.')
  own = utils.RestoreCheckpointConfig(
      path=model_dir, mode='latest', dtype=restore.dtype if restore else None,
      restore_dataset=bool(save and save.save_dataset), base_path=getattr(restore, 'base_path', None),
      state_transformation_fns=list(restore.state_transformation_fns) if restore else [])
  cfg, paths = utils.get_first_valid_restore_config_and_paths([own, restore])
  if not paths:
    return None, None, False
  return cfg, paths[0], cfg.path == model_dir


def _step_of(path: str | None, restore_cfg: Any, resumes: bool) -> int | None:
  """Step that a run starts at by the name of its checkpoint, 0 where its step is not taken over, None if unknown."""
  from t5x import checkpoints
  for pattern, source in () if resumes else getattr(restore_cfg, 'assignment_map', None) or ():
    if re.fullmatch(pattern, 'state/step'):
      return 0 if source is None else None
  with contextlib.suppress(ValueError):
    return checkpoints.get_step_from_checkpoint_dir(path)[1] if path else 0
  return None


def _first_step(model_dir: str, resumes: bool, start_step: int) -> int:
  """Step at which the run began: noted by its first process, else that of its oldest checkpoint."""
  from t5x import checkpoints
  if not resumes:
    return start_step
  return run_plan.read_run(model_dir).get('first_step', min(checkpoints.all_steps(model_dir), default=start_step))


def _data_place(model_dir: str, step: int) -> Mapping[str, int] | None:
  """Place in the training data that a checkpoint of this run holds, None where it holds none or cannot be read."""
  from t5x import checkpoint_reader
  with contextlib.suppress(checkpoint_reader.CheckpointReadError, FileNotFoundError):
    checkpoint = checkpoint_reader.open_checkpoint(checkpoint_reader.get_checkpoint_dir(model_dir, step))
    return (checkpoint.metadata or {}).get('data_place')
  return None


def _read_ahead(train_iter: batches.BatchIterator) -> concurrent.futures.Future:
  """Reads the first batch in a thread; the time it takes is the result."""
  def work():
    start = time.monotonic()
    train_iter.peek()
    return time.monotonic() - start
  executor = concurrent.futures.ThreadPoolExecutor(1, 'first_batch')
  future = executor.submit(work)
  executor.shutdown(wait=False)
  return future


def train(*, model: Any, train_dataset_cfg: utils.DatasetConfig, train_eval_dataset_cfg: utils.DatasetConfig | None,
          infer_eval_dataset_cfg: utils.DatasetConfig | None, checkpoint_cfg: utils.CheckpointConfig,
          partitioner: Any, trainer_cls: type[trainer_lib.BaseTrainer], model_dir: str, total_steps: int,
          eval_steps: int, eval_period: int, random_seed: int | None, summarize_config_fn: Callable[..., None],
          relative_steps: int | None = None, stats_period: int | None = None, use_hardware_rng: bool = False,
          inference_evaluator_cls: type | None = None, get_dataset_fn: Callable[..., Any] = utils.get_dataset,
          concurrent_metrics: bool = True, actions: Mapping[Any, Sequence[Any]] | None = None,
          train_eval_get_dataset_fn: Callable[..., Any] = utils.get_training_eval_datasets,
          run_eval_before_training: bool = False,
          train_state_initializer_cls: type = utils.TrainStateInitializer, use_orbax: bool = True,
          verify_matching_vocabs_fn: Callable[..., None] | None = utils.verify_matching_vocabs,
          gc_period: int = 0) -> tuple[int, Any]:
  """Trains, saves and evaluates; goes on exactly where an earlier process in `model_dir` stopped.

  Args:
    model: the model.
    train_dataset_cfg: data to train on; without a seed of its own it takes the run's.
    train_eval_dataset_cfg: data on which the training loss is measured, or None.
    infer_eval_dataset_cfg: data on which SeqIO's metrics are computed, or None.
    checkpoint_cfg: when to save, what to start from.
    partitioner: owner of the mesh.
    trainer_cls: builds the trainer.
    model_dir: where everything goes.
    total_steps: last step, absolute.
    eval_steps: batches of each evaluation on `train_eval_dataset_cfg`.
    eval_period: steps between evaluations.
    random_seed: of initialisation, dropout and data; None: from the clock, noted in `model_dir`.
    summarize_config_fn: fn(model_dir, summary_writer, step) that writes the configuration.
    relative_steps: where given, train this many steps instead of to `total_steps`.
    stats_period: steps between summaries; None: the shortest other period.
    use_hardware_rng: faster random numbers that depend on the hardware; also used where there is no seed.
    inference_evaluator_cls: None: seqio.Evaluator.
    get_dataset_fn: builds the training data.
    concurrent_metrics: compute metrics while training goes on.
    actions: {'TRAIN' | 'TRAIN_EVAL' | 'INFER_EVAL': actions}, any of which may stop training.
    train_eval_get_dataset_fn: builds the batches of `train_eval_dataset_cfg`.
    run_eval_before_training: evaluate the initial state too.
    train_state_initializer_cls: builds the train state.
    use_orbax: which manager writes checkpoints.
    verify_matching_vocabs_fn: fn(cfg, model) that raises where the vocabularies differ; None: unchecked.
    gc_period: steps between garbage collections, which are then off otherwise; 0: left to Python.

  Returns:
    (last step, train state).

  Raises:
    ValueError: on a configuration that cannot work, in one line, before anything large is allocated.
    PreemptionError: raised again after the state was saved.
  """
  clock = time.monotonic()
  cfgs = {'train': train_dataset_cfg, 'train_eval': train_eval_dataset_cfg if eval_steps else None,
          'infer_eval': infer_eval_dataset_cfg}
  _check_data(model, model_dir, partitioner, {k: v for k, v in cfgs.items() if v is not None},
              verify_matching_vocabs_fn)
  if use_hardware_rng or random_seed is None:
    multihost.set_hardware_rng_ops()
  seed = run_plan.choose_seed(model_dir, random_seed)
  init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(seed))

  restore_cfg, restore_path, resumes = _checkpoint_to_start_from(model_dir, checkpoint_cfg)
  make_plan = functools.partial(
      run_plan.make_plan, total_steps=total_steps, relative_steps=relative_steps, save_cfg=checkpoint_cfg.save,
      eval_period=eval_period, stats_period=stats_period, gc_period=gc_period)
  named_step = _step_of(restore_path, restore_cfg, resumes)
  first_step = _first_step(model_dir, resumes, named_step or 0)
  make_plan(first_step=first_step, start_step=named_step or first_step)

  # Data: a resumed run goes on where its checkpoint was saved. Where no place was saved, it leaves out as many batches as it
  # has made steps.
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)

  def open_data(step):
    train_ds = get_dataset_fn(datasets.with_seed(train_dataset_cfg, seed), layout.shard_id, layout.num_shards,
                              model.FEATURE_CONVERTER_CLS)
    goes_on = resumes and not restore_cfg.restore_dataset
    description = f"'{datasets.name_of(train_dataset_cfg)}' ({train_dataset_cfg.split})"
    return batches.BatchIterator(train_ds, description, skip=step - first_step if goes_on else 0,
                                 place=_data_place(model_dir, step) if goes_on else None)

  train_iter = open_data(named_step)
  saves_data = bool(checkpoint_cfg.save and checkpoint_cfg.save.save_dataset)
  # A batch that was read ahead would be missing from the saved position of the initial checkpoint.
  first_batch = None if saves_data else _read_ahead(train_iter)
  input_shapes = {k: (layout.batch_size, *v.shape[1:]) for k, v in train_iter.element_spec.items()}
  input_types = {k: v.dtype for k, v in train_iter.element_spec.items()}

  # State.
  start = time.monotonic()
  initializer = train_state_initializer_cls(
      optimizer_def=model.optimizer_def, init_fn=model.get_initial_variables, input_shapes=input_shapes,
      input_types=input_types, partitioner=partitioner)
  model_info.log_model_info(os.path.join(model_dir, 'model-info.txt'), initializer.global_train_state_shape,
                            partitioner)
  train_state, manager = utils.create_checkpoint_manager_and_restore(
      initializer, partitioner, restore_cfg, restore_path, init_rng, save_checkpoint_cfg=checkpoint_cfg.save,
      model_dir=model_dir, ds_iter=train_iter if saves_data else None, use_orbax=use_orbax)
  if train_state is None:
    train_state = initializer.from_scratch(init_rng)
  init_seconds = time.monotonic() - start
  start_step = int(train_state.step)
  first_step = first_step if resumes else start_step
  plan = make_plan(first_step=first_step, start_step=start_step)
  if resumes and start_step != named_step:
    # The newest checkpoint was damaged and an older one was taken. (SeqIO's pipeline shuffles differently when it is read a
    # second time, so a new one is built.)
    train_iter = open_data(start_step)
    first_batch = None if saves_data else _read_ahead(train_iter)
  manager.data_place = lambda step: train_iter.place_after(step - start_step)
  if jax.process_index() == 0:
    run_plan.note_run(model_dir, first_step, seed)
    periodic_eval.drop_later_metrics(model_dir, start_step)
    event_files.drop_after(os.path.join(model_dir, 'train'), start_step)

  progress = progress_lib.Progress(model_dir, start_step, plan.total_steps, layout.batch_size, plan.summary_period)
  evaluation = periodic_eval.PeriodicEvaluation(
      model=model, partitioner=partitioner, model_dir=model_dir, train_eval_cfg=cfgs['train_eval'],
      infer_eval_cfg=cfgs['infer_eval'] if eval_period else None, eval_steps=eval_steps if eval_period else 0,
      evaluator_cls=inference_evaluator_cls, train_eval_get_dataset_fn=train_eval_get_dataset_fn,
      verify_matching_vocabs_fn=None, concurrent_metrics=concurrent_metrics, show=progress.print)
  trainer = trainer_cls(
      model=model, train_state=train_state, partitioner=partitioner, eval_names=evaluation.names,
      summary_dir=model_dir, train_state_axes=initializer.train_state_axes, rng=trainer_rng)
  del train_state  # Donated by the first step: the trainer's is the only valid one.
  summarize_config_fn(model_dir, trainer.train_metrics_manager.summary_writer, start_step)
  loop = TrainLoop(trainer, plan, manager, checkpoint_cfg.save, evaluation, progress, initializer.train_state_axes,
                   actions)
  loop.write('timing/init_or_restore_seconds', init_seconds)
  with trainer, contextlib.ExitStack() as stack:
    stack.callback(progress.close)
    # Whatever ends the run, a checkpoint that is being written is finished.
    stack.callback(manager.close)
    if not resumes:
      loop.save()
    if not resumes:
      if run_eval_before_training:
        loop.evaluate()
    elif plan.evaluates_at(start_step) or run_eval_before_training and start_step == first_step:
      if evaluation.is_missing(model_dir, start_step):
        if jax.process_index() == 0:
          periodic_eval.drop_later_metrics(model_dir, start_step - 1)
        loop.evaluate()
    if start_step < plan.total_steps:
      runtime.forget_traces()
      trainer.compile_train({k: jax.ShapeDtypeStruct(input_shapes[k], input_types[k]) for k in input_shapes})
      evaluation.prepare()
      progress.print(model_info.summary_line(trainer.train_state, trainer.train_step_compiled))
      if first_batch is not None:
        loop.write('timing/train_iter_warmup', first_batch.result())
      trainer.on_step = progress
      trainer.nonfinite.tell = progress.print
      stack.enter_context(slow_hosts.Heartbeat(trainer.clock, progress.print))
      stack.enter_context(loop.keeping_last_good_state())
      loop.run(utils.prepare_train_iter(train_iter, partitioner=partitioner, checkpoint_cfg=checkpoint_cfg,
                                        data_layout=layout), gc_period)
    evaluation.finish()
    manager.wait_until_finished()
    mixture = infer_eval_dataset_cfg and datasets.name_of(infer_eval_dataset_cfg)
    _report(model_dir, loop, plan, evaluation, time.monotonic() - clock, mixture)
    return loop.step, trainer.train_state


def _report(model_dir: str, loop: TrainLoop, plan: run_plan.RunPlan, evaluation: Any, seconds: float,
            mixture: str | None) -> None:
  """Prints and writes the table of results."""
  if jax.process_index():
    return
  inference_dir = os.path.join(model_dir, 'inference_eval')
  results = {k: v for k, (_, v) in report.read_metrics(inference_dir).items()}
  first = {k: (step, v) for k, (step, v) in report.read_metrics(inference_dir, first=True).items() if step < loop.step}
  results.update(evaluation.results)
  steps = loop.step - loop.start_step
  facts = {'total_steps': plan.total_steps, 'wall_seconds': round(seconds, 1)}
  if steps:
    facts['steps_per_second'] = round(steps / max(loop.train_seconds, 1e-6), 4)
  facts.update({f'train_{k}': v for k, v in loop.progress.last.items() if k.startswith('loss')})
  print(report.write_results(model_dir, loop.step, results, facts, first, mixture), flush=True)


if __name__ == '__main__':
  gin_utils.run_entry_point(train)
