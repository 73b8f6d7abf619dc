"""The loop over the steps of a plan: train to the next stop, save, evaluate, or end early and well."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from t5x import actions as actions_lib
from t5x import nonfinite
from t5x import periodic_eval
from t5x import progress as progress_lib
from t5x import run_plan
from t5x import runtime

# Name under which the metrics of training steps are handed to actions.
TRAIN_METRIC_KEY = 'train'


def run_actions(mode: Any, actions: Mapping[Any, Sequence[Any]] | None, train_state: Any,
                metrics_by_task: Mapping[str, Any]) -> bool:
  """Runs the actions of one mode.

  Args:
    mode: 'TRAIN', 'TRAIN_EVAL', 'INFER_EVAL', or the ActionMode of that name.
    actions: {mode: actions} or None.
    train_state: handed to each action.
    metrics_by_task: {task: metrics}, handed to each action.

  Returns:
    Whether any action asks to stop.
  """
  name = getattr(mode, 'name', mode)
  chosen = [a for key, group in (actions or {}).items() if getattr(key, 'name', key) == name for a in group]
  return any([action.run(train_state, metrics_by_task=metrics_by_task) for action in chosen])


class TrainLoop:
  """Trains from stop to stop.

  Attributes:
    step: steps made, known without waiting for the devices.
    start_step: step of the state at the start.
    train_seconds: time spent in training, without saving and evaluating.
  """

  def __init__(self, trainer: Any, plan: run_plan.RunPlan, manager: Any, save_cfg: Any,
               evaluation: periodic_eval.PeriodicEvaluation, progress: progress_lib.Progress, train_state_axes: Any,
               actions: Mapping[Any, Sequence[Any]] | None):
    """Creates the loop.

    Args:
      trainer: holds the train state.
      plan: the steps at which something is due.
      manager: of the checkpoints.
      save_cfg: SaveCheckpointConfig, or None.
      evaluation: what to evaluate.
      progress: shows and records steps.
      train_state_axes: PartitionSpecs of the train state.
      actions: {mode: actions} or None.
    """
    self.trainer, self.plan, self.manager, self.save_cfg = trainer, plan, manager, save_cfg
    self.evaluation, self.progress, self.actions = evaluation, progress, actions
    self._axes = train_state_axes
    self._saved_step = None
    self.step = int(trainer.train_state.step)
    self.start_step = self.step
    self.train_seconds = 0.0

  def write(self, name: str, seconds: float) -> None:
    """Adds a duration to the summaries of training."""
    self.trainer.train_metrics_manager.write_scalar(name, seconds, self.step)

  def save(self) -> None:
    """Saves the state, once for each step, after the records of its steps are on disk; never one that is not finite."""
    self.trainer.wait_for_steps()
    self.progress.flush()
    self.trainer.train_metrics_manager.flush()
    if self.save_cfg is None or self._saved_step == self.step:
      return
    start = time.monotonic()
    self._check_state()
    self.manager.save(self.trainer.train_state, self.save_cfg.state_transformation_fns)
    self._saved_step = self.step
    if self.step > self.start_step:
      self.write('timing/checkpoint_seconds', time.monotonic() - start)

  def evaluate(self) -> bool:
    """Measures the training metrics, then SeqIO's; returns whether an action asks to stop."""
    start = time.monotonic()
    self.trainer.wait_for_steps()
    self.progress.flush()
    state = self.trainer.train_state
    summaries = self.evaluation.run_training_metrics(self.trainer)
    stops = run_actions('TRAIN_EVAL', self.actions, state, summaries) if self.actions else False
    metrics = self.evaluation.run_inference_metrics(state, self._axes)
    if metrics and self.actions:
      stops |= run_actions('INFER_EVAL', self.actions, state, metrics)
    self.write('timing/evaluate_seconds', time.monotonic() - start)
    return stops

  def _step_of_state(self) -> int:
    """Returns the step of the state, once all its steps are made."""
    self.trainer.wait_for_steps()
    return int(self.trainer.train_state.step)

  def _check_state(self) -> None:
    """Raises NonfiniteError where a trained parameter is not finite, though loss and gradients were."""
    name = None if self.trainer.nonfinite.policy == nonfinite.IGNORE else nonfinite.spoilt_parameter(self.trainer.train_state)
    if name is not None:
      raise nonfinite.NonfiniteError(
          self.step, f'{name} is not finite at step {self.step}, which is not saved; the newest checkpoint is the last good '
                     "state. Look at the learning rates, or set NONFINITE = 'ignore' to save it all the same.")

  @contextlib.contextmanager
  def keeping_last_good_state(self) -> Iterator[None]:
    """Context in which a step whose loss or gradient is not finite leaves a checkpoint of the state before it.

    Where the position in the data is saved too, it is past that step: then the last checkpoint stays the newest.

    Raises:
      NonfiniteError: the one that was raised inside, with the checkpoint to go on from.
    """
    try:
      yield
    except nonfinite.NonfiniteError as error:
      self.step = int(self.trainer.train_state.step)
      if self.save_cfg is None or self.save_cfg.save_dataset or nonfinite.spoilt_parameter(self.trainer.train_state):
        raise
      self.save()
      self.manager.wait_until_finished()
      raise nonfinite.NonfiniteError(
          error.step, f'{error.message} checkpoint_{self.step} is the last good state.') from error

  def _train_to(self, stop: int, train_iter: Iterator) -> bool:
    """Trains up to step `stop`; returns whether an action asks to stop."""
    start = time.monotonic()
    self.progress.resume()
    summary = self.trainer.train(train_iter, stop - self.step, start_step=self.step)
    # Asking the state for its step waits for the devices: only where the trainer may have stopped early.
    self.step = self._step_of_state() if self.trainer.stop_training else stop
    self.train_seconds += time.monotonic() - start
    if self.actions and not self.evaluation.concurrent:
      self.trainer.wait_for_steps()
      return run_actions('TRAIN', self.actions, self.trainer.train_state, {TRAIN_METRIC_KEY: summary.result()})
    return False

  @contextlib.contextmanager
  def _asking_after_steps(self, signals: runtime.StopSignals) -> Iterator[None]:
    """Context in which each step is followed by the question whether all processes are to stop after it."""
    on_step = self.trainer.on_step

    def ask(step, metrics):
      if on_step is not None:
        on_step(step, metrics)
      signals.reached(step)

    self.trainer.on_step = ask
    try:
      yield
    finally:
      self.trainer.on_step = on_step

  def run(self, train_iter: Iterator, gc_period: int) -> None:
    """Trains to the end of the plan, or until a signal, an action or a preemption ends it."""
    if gc_period:
      gc.disable()
    signals = runtime.StopSignals(on_stop=lambda: setattr(self.trainer, 'stop_training', True))
    try:
      with signals, self._asking_after_steps(signals):
        while self.step < self.plan.total_steps and not self.trainer.stop_training:
          stops = self._train_to(self.plan.next_stop(self.step), train_iter)
          if self.trainer.stop_training:
            break
          if self.plan.saves_at(self.step):
            self.save()
          if self.plan.evaluates_at(self.step):
            stops |= self.evaluate()
          if self.plan.collects_at(self.step):
            gc.collect()
          if stops:
            break
    except (actions_lib.PreemptionError, KeyboardInterrupt) as error:
      if isinstance(error, KeyboardInterrupt) and jax.process_count() > 1:
        raise  # Only this process was asked a second time: the others will not save with it.
      self.step = self._step_of_state()
      self.save()
      raise
    finally:
      if gc_period:
        gc.enable()
    if self.step < self.plan.total_steps or self.trainer.stop_training:
      self.save()
      self.manager.wait_until_finished()
    if signals.received is not None:
      self.progress.print(f'{signals.received.name}: stopped at step {self.step}, '
                          f'{"saved" if self.save_cfg else "not saved"}; the same command goes on from there.')
      if signals.received.name == 'SIGINT' and jax.process_count() == 1:
        raise KeyboardInterrupt
