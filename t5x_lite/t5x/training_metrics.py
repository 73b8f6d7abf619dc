"""From metrics on the devices to numbers on the host, without making the training loop wait.

A single background thread waits for the devices, computes the numbers and writes them, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
import time
from typing import Any

from clu import values as clu_values
import jax
import numpy as np

from t5x import metrics as metrics_lib
from t5x import nonfinite

MetricMap = Mapping[str, Any]  # {name: clu Metric}
# Under which name the number of steps that were undone is written, where there are any.
STEPS_UNDONE = 'nonfinite_steps'


def merge_metrics(a: MetricMap, b: MetricMap) -> MetricMap:
  """Returns {name: metric} of two sets of steps taken together."""
  return jax.tree.map(lambda x, y: x.merge(y), a, b, is_leaf=metrics_lib.is_metric_obj)


def _take_report(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
  """Returns the metrics on the host without the report of `nonfinite`, and how many steps it says were undone."""
  report = values.get(nonfinite.KEY)
  return {k: v for k, v in values.items() if k != nonfinite.KEY}, 0 if report is None else int(report.steps)


def _of_good_steps(metric: Any, undone: int) -> Any:
  """Returns a metric whose average per step leaves out the steps that were undone; not a number where all were."""
  if not undone or not isinstance(metric, metrics_lib.AveragePerStep):
    return metric
  return metric.replace_steps(metric.steps - undone or np.float32('nan'))


class MetricsManager:
  """Turns the merged metrics of a period into numbers and writes them for TensorBoard.

  Only process 0 writes. The writer, and TensorFlow with it, is loaded at the first write.
  """

  def __init__(self, name: str, summary_dir: str | None = None):
    """Creates the manager.

    Args:
      name: subfolder of `summary_dir`.
      summary_dir: where to write, None for nowhere.
    """
    self._name, self._summary_dir = name, summary_dir
    self._writer = None
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix=f'metrics {name}')
    self._pending: list[futures.Future] = []
    self._start: futures.Future | None = None

  @property
  def _writes(self) -> bool:
    return self._summary_dir is not None and jax.process_index() == 0

  @property
  def summary_writer(self) -> Any:
    """The `clu.metric_writers.MetricWriter`; call it when nothing else is being written."""
    self.flush()
    return self._get_writer()

  def _get_writer(self) -> Any:
    if self._writer is None:
      from clu import metric_writers
      self._writer = metric_writers.create_default_writer(
          self._summary_dir, collection=self._name, asynchronous=False,
      ) if self._writes else metric_writers.MultiWriter([])
    return self._writer

  def _submit(self, fn, *args) -> futures.Future:
    self._pending = [future for future in self._pending if not future.done() or future.exception()]
    self._pending.append(self._pool.submit(fn, *args))
    return self._pending[-1]

  def start_duration_timer(self, block_on: Any = ()) -> None:
    """Starts the clock of the next summary, once the arrays `block_on` are ready."""
    def start():
      jax.block_until_ready(block_on)
      return time.monotonic()
    self._start = self._submit(start)

  def write_scalar(self, key: str, value: Any, step: int) -> None:
    """Writes one number, or one scalar array, in the background."""
    self.write_scalars(step, {key: value})

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes {name: number} in the background."""
    if self._writes:
      self._submit(lambda: self._get_writer().write_scalars(step, jax.device_get(dict(scalars))))

  def write_metrics_summary(
      self, metrics: MetricMap, step: int, num_steps: int
  ) -> futures.Future[Mapping[str, Any]]:
    """Ends the period that `start_duration_timer` began.

    Args:
      metrics: merged {name: clu Metric} of the period, on the devices.
      step: under which step to write.
      num_steps: number of steps in the period.

    Returns:
      A future of {name: clu Value}.

    Raises:
      ValueError: where the timer was not started.
    """
    if self._start is None:
      raise ValueError('Call start_duration_timer() before the first step of the period.')
    start, self._start = self._start, None

    def summarize():
      values = jax.device_get(metrics)  # waits for the last step
      duration = time.monotonic() - start.result()
      values, undone = _take_report(values)
      values = metrics_lib.set_step_metrics_num_steps(values, num_steps)
      values = metrics_lib.set_time_metrics_duration(values, duration)
      with np.errstate(divide='ignore', invalid='ignore'):  # Where all steps were undone there is nothing to average.
        values = {name: _of_good_steps(metric, undone).compute_value() for name, metric in values.items()}
      if undone:
        values[STEPS_UNDONE] = clu_values.Scalar(np.int32(undone))
      if self._writes:
        from clu import metric_writers
        metric_writers.write_values(self._get_writer(), step, values)
        self._get_writer().flush()
      return values

    return self._submit(summarize)

  def flush(self) -> None:
    """Waits until all is written; raises what went wrong on the way."""
    pending, self._pending = self._pending, []
    for future in pending:
      future.result()
    if self._writer is not None:
      self._writer.flush()

  def close(self) -> None:
    """Writes what is left and ends the thread."""
    try:
      self.flush()
      if self._writer is not None:
        self._writer.close()
    finally:
      self._pool.shutdown()
