"""Evaluation while training: the loss on held-out batches and SeqIO's metrics, at the steps of the plan.

SeqIO's evaluators read their data when they are made. That happens in a thread beside the first training
steps, and is waited for at the first evaluation.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any

from etils import epath
import jax

from t5x import datasets
from t5x import eval as eval_lib
from t5x import event_files
from t5x import progress as progress_lib
from t5x import report
from t5x import runtime

_INFERENCE_DIR = 'inference_eval'


def drop_later_metrics(model_dir: str, step: int) -> None:
  """Removes the metrics and event records of evaluations after `step`, which a resumed run will do again."""
  for folder in event_files.folders(model_dir):
    event_files.drop_after(folder, step)
  for path in epath.Path(model_dir, _INFERENCE_DIR).glob('*-metrics.jsonl'):
    progress_lib.truncate_record(os.fspath(path), step)


class PeriodicEvaluation:
  """Both kinds of evaluation of a training run.

  Attributes:
    concurrent: whether metrics are computed while training goes on.
    results: {task: {metric: value}} of the newest evaluation whose metrics are known.
  """

  def __init__(self, *, model: Any, partitioner: Any, model_dir: str, train_eval_cfg: Any, infer_eval_cfg: Any,
               eval_steps: int, evaluator_cls: type | None, train_eval_get_dataset_fn: Callable[..., Any],
               verify_matching_vocabs_fn: Callable[..., None] | None, concurrent_metrics: bool, show: Any):
    """Describes the evaluation; see `prepare`.

    Args:
      model: the model.
      partitioner: owner of the mesh.
      model_dir: where results go.
      train_eval_cfg: data on which the training loss is measured, or None.
      infer_eval_cfg: data on which SeqIO's metrics are computed, or None.
      eval_steps: batches per task of `train_eval_cfg`.
      evaluator_cls: seqio.Evaluator or a class like it; None: seqio.Evaluator.
      train_eval_get_dataset_fn: builds the batches of `train_eval_cfg`.
      verify_matching_vocabs_fn: see `InferenceEvaluator`.
      concurrent_metrics: compute metrics while training goes on.
      show: fn(line) for one line of results.
    """
    self.results: dict[str, dict[str, float]] = {}
    self._partitioner = partitioner
    self.concurrent = concurrent_metrics
    self._show = show
    self._future = None
    self._train_eval = train_eval_cfg if eval_steps else None
    self._infer_eval = infer_eval_cfg
    self._sources: dict[str, Any] = {}
    self._compiled = False
    if self._train_eval is not None:
      self._layout = partitioner.get_data_layout(train_eval_cfg.batch_size)
      self._sources = train_eval_get_dataset_fn(train_eval_cfg, self._layout.shard_id, self._layout.num_shards,
                                                eval_steps, model.FEATURE_CONVERTER_CLS)
    self._evaluator: concurrent.futures.Future | None = None
    self._make_evaluator = functools.partial(
        eval_lib.InferenceEvaluator, infer_eval_cfg, evaluator_cls, model, partitioner, model_dir,
        verify_matching_vocabs_fn)

  def prepare(self) -> None:
    """Starts to read the evaluation data, once, in a thread."""
    if self._infer_eval is not None and self._evaluator is None:
      executor = concurrent.futures.ThreadPoolExecutor(1, 'evaluation_data')
      self._evaluator = executor.submit(self._make_evaluator)
      executor.shutdown(wait=False)

  @property
  def names(self) -> list[str]:
    """Names under which the trainer keeps the training metrics of the held-out batches."""
    return list(self._sources)

  def run_training_metrics(self, trainer: Any) -> Any:
    """Measures loss and accuracy on the held-out batches; returns {task: {metric: clu Value}}."""
    if not self._sources:
      return {}
    if not self._compiled:
      size = self._layout.batch_size
      runtime.forget_traces()
      trainer.compile_eval({k: datasets.get_zeros_batch_like_dataset(ds, size) for k, ds in self._sources.items()})
      self._compiled = True
    return trainer.eval({k: ds.as_numpy_iterator() for k, ds in self._sources.items()})

  def run_inference_metrics(self, train_state: Any, train_state_axes: Any) -> dict[str, Any]:
    """Runs the model on the evaluation tasks.

    Returns:
      {task: {metric: value}}, or {} where the metrics are still being computed.
    """
    if self._infer_eval is None:
      return {}
    self.prepare()
    step = int(train_state.step)
    future = self._evaluator.result().evaluate(train_state, train_state_axes)
    self._future = future
    if self.concurrent and hasattr(future, 'add_done_callback'):
      future.add_done_callback(lambda f: self._take(step, f) if f.exception() is None else None)
      return {}
    metrics = future.result() or {}
    self._take(step, future)
    return metrics

  def _take(self, step: int, future: Any) -> None:
    """Keeps and shows the metrics of a finished evaluation."""
    for task, metrics in sorted((future.result() or {}).items()):
      self.results[task] = report.shown(metrics)
      self._show(report.result_line(step, task, self.results[task]))

  def is_missing(self, model_dir: str, step: int) -> bool:
    """Whether an evaluation of `step` was lost, or a part of it: a task has no metrics of that step on disk."""
    if jax.process_count() > 1:
      return False
    if self._infer_eval is not None:
      import seqio
      names = {task.name for task in seqio.get_subtasks(datasets.get_mixture_or_task(self._infer_eval))}
      recorded = report.read_metrics(os.path.join(model_dir, _INFERENCE_DIR))
      steps = [at for name, (at, _) in recorded.items() if name in names]
      if min(steps, default=step - 1) < step:
        return True
    return any(step not in event_files.steps(os.path.join(model_dir, 'training_eval', name)) for name in self.names)

  def finish(self) -> None:
    """Waits for the metrics that are still computed, and raises what went wrong there."""
    if self._future is not None:
      self._future.result()
      # Joins the thread in which the last line of results is shown.
      self._evaluator.result().close()
