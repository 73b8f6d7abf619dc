"""Metrics of a training or evaluation period, on top of `clu.metrics`.

A jitted step can count tokens but knows neither how many steps are merged into a period nor how
long the period took: `Step` and `Time` metrics leave these open, and the trainer fills them in at
the end with `set_step_metrics_num_steps` and `set_time_metrics_duration`. `compute_base_metrics`
lists what every sequence model reports.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from collections.abc import Mapping

from clu import metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp

Array = jax.Array
Scalar = Any  # a number or an array of shape ().
MetricsMap = Mapping[str, clu_metrics.Metric]


def _masked_sum(values: Scalar, mask: Array | None) -> Array:
  """Sums `values` [...], only where `mask` (of the same shape, or of the leading axes) is true."""
  values = jnp.asarray(values)
  if mask is None:
    return jnp.sum(values)
  mask = jnp.asarray(mask).astype(bool)
  mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
  return jnp.sum(jnp.where(mask, values, 0))


@flax.struct.dataclass
class Sum(clu_metrics.Metric):
  """The sum of everything seen.

  Attributes:
    total: the sum so far.
  """

  total: Scalar

  @classmethod
  def empty(cls) -> Sum:
    return cls(total=jnp.float32(0))

  @classmethod
  def from_model_output(cls, values: Scalar, mask: Array | None = None, **_) -> Sum:
    """Sums `values`, where `mask` is true."""
    return cls(total=_masked_sum(values, mask))

  def merge(self, other: Sum) -> Sum:
    return self.replace(total=self.total + other.total)

  def compute(self) -> Scalar:
    return self.total


@flax.struct.dataclass
class Step(clu_metrics.Metric):
  """Base of the metrics that depend on the number of steps.

  Attributes:
    steps: number of steps merged; None is unknown.
  """

  steps: Scalar | None = 1

  def replace_steps(self, steps: Scalar) -> Step:
    """Returns a copy with this number of steps."""
    return self.replace(steps=steps)

  def compute(self) -> Scalar:
    """Returns the number of steps.

    Raises:
      ValueError: if it is unknown.
    """
    if self.steps is None:
      raise ValueError(f'{type(self).__name__} has no `steps`: call `replace_steps(n)` first.')
    return self.steps


@flax.struct.dataclass
class AveragePerStep(Step):
  """A sum divided by the number of steps.

  Attributes:
    total: the sum so far.
  """

  total: Scalar | None = None

  @classmethod
  def empty(cls) -> AveragePerStep:
    return cls(steps=0, total=jnp.float32(0))

  @classmethod
  def from_model_output(cls, values: Scalar, mask: Array | None = None, steps: Scalar | None = 1, **_) -> AveragePerStep:
    """Sums `values`, where `mask` is true, as the result of `steps` steps."""
    return cls(steps=steps, total=_masked_sum(values, mask))

  def merge(self, other: AveragePerStep) -> AveragePerStep:
    return self.replace(steps=self.steps + other.steps, total=self.total + other.total)

  def compute(self) -> Scalar:
    return self.total / super().compute()


@flax.struct.dataclass
class Time(clu_metrics.Metric):
  """The duration of the period.

  Attributes:
    duration: seconds; None until the trainer sets it.
  """

  duration: Scalar | None = None

  @classmethod
  def empty(cls) -> Time:
    return cls()

  @classmethod
  def from_model_output(cls, **_) -> Time:
    """Returns a `Time` whose duration is still open."""
    return cls()

  def replace_duration(self, duration: Scalar) -> Time:
    """Returns a copy with this duration in seconds."""
    return self.replace(duration=duration)

  def _check_mergeable(self, other: Time) -> None:
    # The durations of overlapping or separate periods do not combine in one way.
    if self.duration is not None or other.duration is not None:
      raise ValueError(f'{type(self).__name__} has a duration already: merge first, then set it.')

  def merge(self, other: Time) -> Time:
    self._check_mergeable(other)
    return self

  def compute(self) -> Scalar:
    """Returns the duration in seconds.

    Raises:
      ValueError: if it was not set.
    """
    if self.duration is None:
      raise ValueError(f'{type(self).__name__} has no `duration`: call `replace_duration(s)` first.')
    return self.duration


@flax.struct.dataclass
class TimeRate(Time):
  """A sum divided by the duration.

  Attributes:
    numerator: the sum so far.
  """

  numerator: Scalar | None = None

  @classmethod
  def empty(cls) -> TimeRate:
    return cls(numerator=jnp.float32(0))

  @classmethod
  def from_model_output(cls, numerator: Scalar, **_) -> TimeRate:
    """Returns the rate of `numerator` per second, its duration still open."""
    return cls(numerator=numerator)

  def merge(self, other: TimeRate) -> TimeRate:
    self._check_mergeable(other)
    return self.replace(numerator=self.numerator + other.numerator)

  def compute(self) -> Scalar:
    return self.numerator / super().compute()


@flax.struct.dataclass
class StepsPerTime(Step, Time):
  """Steps per second."""

  @classmethod
  def empty(cls) -> StepsPerTime:
    return cls(steps=0)

  @classmethod
  def from_model_output(cls, steps: Scalar | None = 1, **_) -> StepsPerTime:
    """Returns the rate of `steps` per second, its duration still open."""
    return cls(steps=steps)

  def merge(self, other: StepsPerTime) -> StepsPerTime:
    self._check_mergeable(other)
    return self.replace(steps=self.steps + other.steps)

  def compute(self) -> Scalar:
    return Step.compute(self) / Time.compute(self)


def is_metric_obj(obj: Any) -> bool:
  """Whether `obj` is a metric; for the `is_leaf` of tree functions."""
  return isinstance(obj, clu_metrics.Metric)


def is_time_metric(obj: Any) -> bool:
  """Whether `obj` is a metric whose duration can be set."""
  return isinstance(obj, Time)


def set_time_metrics_duration(metrics: Any, duration: Scalar) -> Any:
  """Returns the tree `metrics` with `duration` (seconds) set in every `Time`."""
  return jax.tree.map(lambda m: m.replace_duration(duration) if is_time_metric(m) else m, metrics, is_leaf=is_metric_obj)


def set_step_metrics_num_steps(metrics: Any, num_steps: Scalar) -> Any:
  """Returns the tree `metrics` with `num_steps` set in every `Step`."""
  return jax.tree.map(lambda m: m.replace_steps(num_steps) if isinstance(m, Step) else m, metrics, is_leaf=is_metric_obj)


def shape_obj_to_defined_obj(obj: clu_metrics.Metric) -> clu_metrics.Metric:
  """Turns a metric of shapes, as `jax.eval_shape` returns it, into one of zeros."""
  return dataclasses.replace(
    obj,
    **{
      field.name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), getattr(obj, field.name))
      for field in dataclasses.fields(obj)
    },
  )


def create_metrics_dict(float_metrics_dict: Mapping[str, Any]) -> dict[str, clu_metrics.Metric]:
  """Wraps each plain number as a `Sum`; metrics stay as they are."""
  return {name: value if is_metric_obj(value) else Sum(total=value) for name, value in float_metrics_dict.items()}


def count_packed_examples(segment_ids: Array) -> Array:
  """Counts the segments in segment_ids [B, L]: runs of one id that is not 0 (padding)."""
  segment_ids = segment_ids.astype(jnp.int32)
  before = jnp.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
  return jnp.sum((segment_ids != before) & (segment_ids != 0))


def _is_predicted(logits: Array, targets: Array) -> Array:
  """Whether the targets [...] are the first largest of logits [..., V], as `argmax` has it.

  On a CPU an argmax over a large vocabulary takes ten times as long as these comparisons.
  """
  of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  before = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) < targets[..., None]
  return ~jnp.any((logits > of_target) | (before & (logits == of_target)), axis=-1)


def compute_base_metrics(
  logits: Array,
  targets: Array,
  mask: Array | None,
  loss: Array,
  z_loss: Array | None = None,
  segment_ids: Mapping[str, Array] | None = None,
) -> MetricsMap:
  """Computes the metrics of one batch.

  Args:
    logits: [B, L, V].
    targets: [B, L].
    mask: [B, L] loss weights, or None for all ones.
    loss: [] loss including the z-loss.
    z_loss: [] the z-loss alone.
    segment_ids: feature name -> [B, L], 0 at padding; adds the metrics on padding and packing.

  Returns:
    Metrics by name.
  """
  average, per_step = clu_metrics.Average, AveragePerStep.from_model_output
  rate = TimeRate.from_model_output
  num_positions = math.prod(targets.shape)
  num_tokens = num_positions if mask is None else jnp.sum(mask)
  num_devices = jax.device_count()
  correct = average.from_model_output(_is_predicted(logits, targets).astype(jnp.float32), mask=mask)
  metrics = {
    'accuracy': clu_metrics.Accuracy(total=correct.total, count=correct.count),
    'loss': per_step(loss),
    'loss_per_nonpadding_target_token': average(total=loss, count=num_tokens),
    'loss_per_all_target_tokens': average(total=loss, count=jnp.int32(num_positions)),
    'timing/seqs': Sum.from_model_output(targets.shape[0]),
    'timing/seconds': Time(),
    'timing/steps_per_second': StepsPerTime.from_model_output(),
    'timing/seqs_per_second': rate(jnp.float32(targets.shape[0])),
    'timing/seqs_per_second_per_core': rate(jnp.float32(targets.shape[0] / num_devices)),
    'timing/target_tokens_per_second': rate(jnp.float32(num_positions)),
    'timing/target_tokens_per_second_per_core': rate(jnp.float32(num_positions / num_devices)),
    'non_padding_fraction/loss_weights': average(total=num_tokens, count=jnp.int32(num_positions)),
  }
  if z_loss is not None:
    metrics |= {
      'z_loss': per_step(z_loss),
      'z_loss_per_all_target_tokens': average(total=z_loss, count=jnp.int32(num_positions)),
      'cross_ent_loss': per_step(loss - z_loss),
      'cross_ent_loss_per_all_target_tokens': average(total=loss - z_loss, count=jnp.int32(num_positions)),
    }
  if segment_ids:
    real = {name: jnp.sum(ids != 0) for name, ids in segment_ids.items()}
    for name, ids in segment_ids.items():
      metrics[f'effective_batch_size/{name}'] = per_step(count_packed_examples(ids))
      metrics[f'non_padding_fraction/{name}'] = average(total=real[name], count=jnp.int32(ids.size))
    metrics['non_padding_fraction/overall'] = average(
      total=sum(real.values()), count=jnp.int32(sum(ids.size for ids in segment_ids.values()))
    )
  return metrics
