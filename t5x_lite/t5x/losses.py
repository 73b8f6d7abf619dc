"""Token cross entropy with label smoothing and z-loss, and how a batch's loss is normalised.

Targets are integers: the smoothed cross entropy has a closed form, so no [B, L, V] array of soft
targets is built, and the backward pass recomputes the softmax from the logits instead of keeping
it.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t5x import nonfinite

Array = jax.Array


@enum.unique
class SpecialLossNormalizingFactor(enum.Enum):
  """Normalisers that depend on the batch.

  Attributes:
    NUM_REAL_TARGET_TOKENS: the sum of the loss weights.
    NUM_TOTAL_TARGET_TOKENS: the number of target positions, padding included.
    AVERAGE_PER_SEQUENCE: the mean over sequences of each sequence's mean loss per token.
  """

  NUM_REAL_TARGET_TOKENS = 1
  NUM_TOTAL_TARGET_TOKENS = 2
  AVERAGE_PER_SEQUENCE = 3


LossNormalizingFactor = float | int | str | SpecialLossNormalizingFactor | None


def _log_sum_exp(logits: Array) -> tuple[Array, Array, Array]:
  """Returns float32 (logits - max [..., V], log of the sum of its exp [...], max [...])."""
  logits = logits.astype(jnp.float32)
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  shifted = logits - largest[..., None]
  return shifted, jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)), largest


def cross_entropy_with_logits(logits: Array, targets: Array, z_loss: float) -> tuple[Array, Array]:
  """Cross entropy against target distributions.

  Args:
    logits: [..., V].
    targets: [..., V] probabilities, e.g. one-hot rows.
    z_loss: coefficient of log(Z)^2, which keeps the normaliser Z of the softmax near 1.

  Returns:
    (loss with the z-loss included [...], the z-loss alone [...]), float32.
  """
  shifted, log_sum, largest = _log_sum_exp(logits)
  total_z_loss = z_loss * jnp.square(log_sum + largest)
  return jnp.sum(targets * (log_sum[..., None] - shifted), axis=-1) + total_z_loss, total_z_loss


def _smoothed(vocab_size: int, label_smoothing: float) -> tuple[float, float]:
  """Returns the target probabilities of (the right token, each wrong token)."""
  return 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)


def _of_target(logits: Array, targets: Array) -> Array:
  """Returns the target tokens' logits, float32 [...], of logits [..., V]."""
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def integer_cross_entropy(logits: Array, targets: Array, label_smoothing: float, z_loss: float) -> tuple[Array, Array]:
  """`cross_entropy_with_logits` against smoothed integer targets.

  Args:
    logits: [..., V].
    targets: [...] integers in [0, V).
    label_smoothing: probability that is shared by the V - 1 other tokens.
    z_loss: coefficient of log(Z)^2.

  Returns:
    (loss with the z-loss included [...], the z-loss alone [...]), float32.
  """
  return _integer_forward(logits, targets, label_smoothing, z_loss)[0]


def _integer_forward(logits, targets, label_smoothing, z_loss):
  shifted, log_sum, largest = _log_sum_exp(logits)
  log_z = log_sum + largest
  right, wrong = _smoothed(logits.shape[-1], label_smoothing)
  loss = log_sum - (right - wrong) * (_of_target(logits, targets) - largest)
  if label_smoothing:
    loss -= wrong * jnp.sum(shifted, axis=-1)
  total_z_loss = z_loss * jnp.square(log_z)
  return (loss + total_z_loss, total_z_loss), (logits, targets, log_z)


def _integer_backward(label_smoothing, z_loss, residuals, cotangents):
  logits, targets, log_z = residuals
  grad_loss, grad_z_loss = cotangents
  right, wrong = _smoothed(logits.shape[-1], label_smoothing)
  grad_log_z = grad_loss + (grad_loss + grad_z_loss) * 2 * z_loss * log_z
  probs = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
  is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
  soft_targets = jnp.where(is_target, right, wrong)
  grad_logits = (grad_log_z[..., None] * probs - grad_loss[..., None] * soft_targets).astype(logits.dtype)
  return grad_logits, np.zeros(targets.shape, jax.dtypes.float0)


integer_cross_entropy.defvjp(_integer_forward, _integer_backward)


def compute_weighted_cross_entropy(
  logits: Array,
  targets: Array,
  weights: Array | None = None,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  loss_normalizing_factor: float | Array | None = None,
) -> tuple[Array, Array, Array]:
  """Sums the weighted cross entropy of a batch.

  With label smoothing the entropy of the smoothed targets is subtracted, so that a perfect model
  has loss 0.

  Args:
    logits: [B, L, V].
    targets: [B, L] integers.
    weights: [B, L], or None for all ones.
    label_smoothing: probability given to the wrong tokens.
    z_loss: coefficient of log(Z)^2.
    loss_normalizing_factor: what the two sums are divided by; None for 1.

  Returns:
    (summed loss including the z-loss, summed z-loss, sum of the weights), scalars.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  if logits.ndim != targets.ndim + 1 or logits.shape[:-1] != targets.shape:
    raise ValueError(
      f'Logits {logits.shape} do not fit targets {targets.shape}: give logits [B, L, V] and integer targets [B, L].'
    )
  loss, total_z_loss = integer_cross_entropy(logits, targets.astype(jnp.int32), label_smoothing, z_loss)
  if label_smoothing:
    right, wrong = _smoothed(logits.shape[-1], label_smoothing)
    loss += right * math.log(right + 1e-20) + label_smoothing * math.log(wrong + 1e-20)

  weight_sum = jnp.float32(math.prod(targets.shape))
  if weights is not None:
    loss, total_z_loss, weight_sum = loss * weights, total_z_loss * weights, jnp.sum(weights)
  nonfinite.note_rows(loss)
  loss, total_z_loss = jnp.sum(loss), jnp.sum(total_z_loss)
  if loss_normalizing_factor is not None:
    loss, total_z_loss = loss / loss_normalizing_factor, total_z_loss / loss_normalizing_factor
  return loss, total_z_loss, weight_sum


def convert_special_loss_normalizing_factor_to_enum(name: str) -> SpecialLossNormalizingFactor:
  """Returns the member called `name` (in any case).

  Raises:
    ValueError: if there is none.
  """
  try:
    return SpecialLossNormalizingFactor[name.upper()]
  except KeyError:
    known = ', '.join(SpecialLossNormalizingFactor.__members__)
    raise ValueError(f'Unknown loss_normalizing_factor {name!r}: give a number, None, or one of {known}.') from None


def _sum_of_own_sequence(weights: Array, segment_ids: Array | None) -> Array:
  """[B, L]: for each position the sum of the weights of the sequence it belongs to."""
  if segment_ids is None:
    return jnp.broadcast_to(jnp.sum(weights, axis=-1, keepdims=True), weights.shape)

  def one_row(row_weights: Array, row_segments: Array) -> Array:
    # There are at most L segments in L positions; id 0 is padding.
    sums = jax.ops.segment_sum(row_weights, row_segments, num_segments=row_weights.shape[0] + 1)
    return sums[row_segments]

  return jax.vmap(one_row)(weights, segment_ids)


def get_loss_normalizing_factor_and_weights(
  loss_normalizing_factor: LossNormalizingFactor, batch: Mapping[str, Array]
) -> tuple[float | Array | None, Array | None]:
  """Resolves the normaliser and the loss weights of a batch.

  Args:
    loss_normalizing_factor: a number, None, or a `SpecialLossNormalizingFactor` or its name.
    batch: decoder_target_tokens [B, L]; optionally decoder_loss_weights and decoder_segment_ids [B,
      L].

  Returns:
    (normaliser or None, weights [B, L] or None). AVERAGE_PER_SEQUENCE returns fractional weights
    that add up to 1 in each sequence; a packed row holds one sequence per segment. The special
    factors take the positions whose target is not 0 where the batch has no weights.

  Raises:
    ValueError: for an unknown name.
  """
  weights = batch.get('decoder_loss_weights')
  factor = loss_normalizing_factor
  if isinstance(factor, str):
    factor = convert_special_loss_normalizing_factor_to_enum(factor)
  if not isinstance(factor, SpecialLossNormalizingFactor):
    return factor, weights

  targets = batch['decoder_target_tokens']
  if weights is None:
    weights = (targets > 0).astype(jnp.float32)
  if factor is SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS:
    return jnp.sum(weights), weights
  if factor is SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
    return math.prod(targets.shape), weights

  segment_ids = batch.get('decoder_segment_ids')
  weights = weights.astype(jnp.float32)
  if segment_ids is not None:
    weights = jnp.where(segment_ids > 0, weights, 0.0)
  sums = _sum_of_own_sequence(weights, segment_ids)
  weights = jnp.where(sums > 0, weights / jnp.where(sums > 0, sums, 1.0), 0.0)
  return jnp.sum(weights), weights
