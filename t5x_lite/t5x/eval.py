"""Evaluates checkpoints on tasks: `python -m t5x.eval --gin_file=...`.

SeqIO's Evaluator computes and logs the metrics; this file gives it functions that run the model over whole
datasets, here and during training.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if __name__ == '__main__':
  # Read by C++ libraries when they are first imported, which the lines below may do.
  from t5x import runtime
  runtime.quiet_environment()

from absl import logging
import jax

from t5x import datasets
from t5x import files
from t5x import gin_utils
from t5x import inference
from t5x import joined_tasks
from t5x import model_info
from t5x import report
from t5x import restore
from t5x import utils

if TYPE_CHECKING:
  import seqio

# What SeqIO's evaluator calls for outputs of a kind: its argument, its name of the kind, and our method of the model.
_OUTPUTS = (('predict_fn', 'PREDICTION', 'predict_batch'), ('score_fn', 'SCORE', 'score_batch'),
            ('predict_with_aux_fn', 'PREDICTION_WITH_AUX', 'predict_batch_with_aux'))


class InferenceEvaluator:
  """Runs SeqIO's evaluation of one mixture or task for any number of train states.

  Attributes:
    evaluator: the SeqIO evaluator, with its data in memory.
  """

  def __init__(self, infer_eval_dataset_cfg: utils.DatasetConfig, inference_evaluator_cls: type | None, model: Any,
               partitioner: Any, log_dir: str | None = None,
               verify_matching_vocabs_fn: Callable[..., None] | None = datasets.verify_matching_vocabs):
    """Reads the evaluation data.

    Args:
      infer_eval_dataset_cfg: what to evaluate on.
      inference_evaluator_cls: seqio.Evaluator or a class with its interface; None: seqio.Evaluator.
      model: the model, for its vocabularies, feature converter and inference functions.
      partitioner: compiles the functions over its mesh.
      log_dir: results go to `<log_dir>/inference_eval`; None: nowhere.
      verify_matching_vocabs_fn: fn(cfg, model) that raises where the vocabularies differ; None: unchecked.

    Raises:
      ValueError: on an unknown task, an absent split or other vocabularies.
    """
    import seqio
    if verify_matching_vocabs_fn is not None:
      verify_matching_vocabs_fn(infer_eval_dataset_cfg, model)
    cfg = infer_eval_dataset_cfg
    without_metrics = [t.name for t in datasets.tasks_with_split(cfg) if not t.metric_fns and not t.metric_objs]
    if without_metrics:
      logging.warning('No metric, not evaluated: %s', ', '.join(without_metrics))
    self._model = model
    self._partitioner = partitioner
    self._batch_size = cfg.batch_size
    self._use_memory_cache = cfg.use_memory_cache
    self._infer_fns: dict[str, Callable[..., Any]] = {}
    self._joined: dict[str, list[joined_tasks.JoinedTasks]] = {}
    kwargs: dict[str, Any] = {'log_dir': os.path.join(log_dir, 'inference_eval')} if log_dir else {'logger_cls': ()}
    if log_dir:
      files.make_dirs(kwargs['log_dir'])
    self.evaluator = (inference_evaluator_cls or seqio.Evaluator)(
        mixture_or_task_name=cfg.mixture_or_task_name, feature_converter=model.FEATURE_CONVERTER_CLS(pack=False),
        eval_split=cfg.split, use_cached=cfg.use_cached, seed=cfg.seed, sequence_length=cfg.task_feature_lengths,
        use_memory_cache=cfg.use_memory_cache, **kwargs)

  @property
  def eval_tasks(self) -> list[seqio.Task]:
    """The tasks that have the split and a metric."""
    return list(self.evaluator.eval_tasks)

  def _element_spec(self) -> Mapping[str, Any]:
    # Not Evaluator.model_feature_shapes: it leaves out features of rank 0, such as one id per example.
    dataset = next(iter(self.evaluator.cached_model_datasets.values()))
    return dataset.element_spec[1]

  @property
  def model_feature_shapes(self) -> dict[str, tuple[int, ...]]:
    """{feature: (B, ...)} of a global batch."""
    return {k: (self._batch_size, *v.shape) for k, v in self._element_spec().items()}

  @property
  def model_feature_types(self) -> dict[str, Any]:
    """{feature: numpy dtype}."""
    return {k: v.dtype.as_numpy_dtype for k, v in self._element_spec().items()}

  def _infer_fn(self, name: str, train_state_axes: Any) -> Callable[..., Any]:
    """Returns fn(dataset, train_state) for a method of the model, built once: its compilation is kept."""
    if name not in self._infer_fns:
      self._infer_fns[name] = inference.get_infer_fn(getattr(self._model, name), self._batch_size, train_state_axes,
                                                     self._partitioner)
    return self._infer_fns[name]

  def _join(self, kind: str) -> list[joined_tasks.JoinedTasks]:
    """Returns the data of all tasks that have a metric of a kind of outputs."""
    if kind not in self._joined:
      names = [task.name for task in self.eval_tasks if kind in {metric.model_output_type.name for metric in task.metric_objs}]
      self._joined[kind] = joined_tasks.join(
          {name: self.evaluator.cached_model_datasets[name] for name in names}, self._use_memory_cache)
    return self._joined[kind]

  def evaluate(self, train_state: Any, train_state_axes: Any) -> concurrent.futures.Future:
    """Runs the model on all tasks and starts the computation of the metrics.

    Args:
      train_state: state with params and step.
      train_state_axes: its PartitionSpecs.

    Returns:
      A future of {task: {metric: value}}; of None in all processes but the first.
    """
    if not self.eval_tasks:
      future = concurrent.futures.Future()
      future.set_result({})
      return future

    datasets_by_id = {id(dataset): name for name, dataset in self.evaluator.cached_model_datasets.items()}
    outputs: dict[str, dict[str, Any]] = {}

    def run(method, kind):
      def outputs_of(dataset, *_):
        infer_fn = self._infer_fn(method, train_state_axes)
        if method not in outputs:
          outputs[method] = joined_tasks.run(self._join(kind), lambda joined: infer_fn(joined, train_state))
        name = datasets_by_id.get(id(dataset))
        # A dataset that was not joined is one that another evaluator made by itself.
        return outputs[method].pop(name) if name in outputs[method] else infer_fn(dataset, train_state)
      return outputs_of

    metrics, _ = self.evaluator.evaluate(
        compute_metrics=jax.process_index() == 0, step=int(train_state.step),
        **{argument: run(method, kind) for argument, kind, method in _OUTPUTS})
    return metrics

  def close(self) -> None:
    """Waits until all metrics are written."""
    if hasattr(self.evaluator, 'close'):
      self.evaluator.close()


def _training_metrics(training_evaluator_cls: type, dataset_cfg: utils.DatasetConfig, model: Any, train_state: Any,
                      train_state_axes: Any, partitioner: Any, output_dir: str, get_dataset_fn: Callable[..., Any],
                      eval_steps: int) -> None:
  """Writes the training metrics (loss, accuracy, ...) of each task to `<output_dir>/training_eval`."""
  layout = partitioner.get_data_layout(dataset_cfg.batch_size)
  sources = get_dataset_fn(dataset_cfg, layout.shard_id, layout.num_shards, eval_steps, model.FEATURE_CONVERTER_CLS)
  with training_evaluator_cls(model=model, train_state=train_state, partitioner=partitioner, eval_names=list(sources),
                              summary_dir=output_dir, train_state_axes=train_state_axes,
                              rng=jax.random.PRNGKey(0)) as evaluator:
    evaluator.eval({k: ds.as_numpy_iterator() for k, ds in sources.items()})


def evaluate(*, model: Any, dataset_cfg: utils.DatasetConfig, restore_checkpoint_cfg: utils.RestoreCheckpointConfig,
             partitioner: Any, output_dir: str, inference_evaluator_cls: type | None = None,
             training_evaluator_cls: type | None = None,
             summarize_config_fn: Callable[..., None] = gin_utils.summarize_gin_config,
             train_state_initializer_cls: type = utils.TrainStateInitializer,
             train_eval_get_dataset_fn: Callable[..., Any] = utils.get_training_eval_datasets,
             fallback_init_rng: int | None = None, use_orbax: bool = True, eval_steps: int = 20) -> None:
  """Evaluates one, the latest or all checkpoints and prints a table of the results.

  Args:
    model: the model.
    dataset_cfg: mixture or task, split, batch size.
    restore_checkpoint_cfg: which checkpoints; mode 'all' leaves out those evaluated before.
    partitioner: owner of the mesh.
    output_dir: where results go.
    inference_evaluator_cls: None: seqio.Evaluator.
    training_evaluator_cls: a trainer class, to write the training metrics too; None: not wanted.
    summarize_config_fn: fn(output_dir, summary_writer, step) that writes the configuration.
    train_state_initializer_cls: builds the shapes of the state.
    train_eval_get_dataset_fn: batches for `training_evaluator_cls`.
    fallback_init_rng: seed for parameters that the checkpoint lacks; None: they are an error.
    use_orbax: accepted for compatibility; both formats are read.
    eval_steps: batches per task for `training_evaluator_cls`.

  Raises:
    ValueError: where no task has the split and a metric.
    FileNotFoundError: where the checkpoint is absent.
  """
  start = time.monotonic()
  if hasattr(model, 'check_mixture'):
    model.check_mixture(datasets.get_mixture_or_task(dataset_cfg))
  if jax.process_index() == 0:
    files.check_writable(output_dir, 'EVAL_OUTPUT_DIR')
    summarize_config_fn(output_dir, None, 0)
  partitioner.get_data_layout(dataset_cfg.batch_size)
  paths = restore.checkpoints_for_inference(restore_checkpoint_cfg, fallback_init_rng)

  evaluator = InferenceEvaluator(dataset_cfg, inference_evaluator_cls, model, partitioner, output_dir)
  name = datasets.name_of(dataset_cfg)
  if not evaluator.eval_tasks:
    raise ValueError(f"No task of '{name}' has a split '{dataset_cfg.split}' and a metric: nothing to evaluate.")
  initializer = train_state_initializer_cls(
      optimizer_def=None, init_fn=model.get_initial_variables, input_shapes=evaluator.model_feature_shapes,
      input_types=evaluator.model_feature_types, partitioner=partitioner)
  model_info.log_model_info(os.path.join(output_dir, 'model-info.txt'), initializer.global_train_state_shape,
                            partitioner)

  done_file = os.path.join(output_dir, f'eval.{name}.ckpt')
  done = [line.strip() for line in files.read_lines(done_file)]
  if restore_checkpoint_cfg.mode == 'all':
    paths = [p for p in paths if os.fspath(p) not in done]
  else:
    done = []
  step, results = 0, {}
  for path in paths:
    train_state, manager = utils.create_checkpoint_manager_and_restore(
        initializer, partitioner, restore_checkpoint_cfg, path, fallback_init_rng, use_orbax=use_orbax)
    step = int(train_state.step)
    future = evaluator.evaluate(train_state, initializer.train_state_axes)
    if training_evaluator_cls is not None:
      _training_metrics(training_evaluator_cls, dataset_cfg, model, train_state, initializer.train_state_axes,
                        partitioner, output_dir, train_eval_get_dataset_fn, eval_steps)
    results = {k: report.shown(v) for k, v in (future.result() or {}).items()}
    done.append(os.fspath(path))
    manager.close()
    if jax.process_index() == 0:
      files.write_text(done_file, '\n'.join(done))
      for task in sorted(results):
        print(report.result_line(step, task, results[task]), flush=True)
  evaluator.close()
  if jax.process_index() == 0 and paths:
    print(report.write_results(output_dir, step, results, {
        'checkpoint': os.fspath(paths[-1]), 'wall_seconds': round(time.monotonic() - start, 1)}, mixture=name), flush=True)
  elif not paths:
    print(f'Every checkpoint was evaluated before ({done_file}).', flush=True)


if __name__ == '__main__':
  gin_utils.run_entry_point(evaluate)
