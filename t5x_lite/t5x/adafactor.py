"""Adafactor (arXiv 1804.04235) as T5X has it: factored second moments, relative updates.

Of a matrix the second moment is kept as row and column means. Which dimensions of a larger array
are rows, columns or independent batches follows from the logical names of its axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import enum
import re
from typing import Any

import flax
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from t5x import optimizers
from t5x import state_utils


class FactorDim(enum.Enum):
  """The part a dimension plays: kept whole, an independent batch, or averaged as row or column."""

  NONE = None
  BATCH = 1
  ROW = 2
  COLUMN = 3


HEURISTIC_RULE = 'heuristic'  # as a rule: the two largest dimensions are row and column


class HParamMap:
  """Values by parameter name: `map[name]` is the value of the first pattern found in the name."""

  def __init__(self, rules: Sequence[tuple[str, Any]]):
    """Args: rules: [(regular expression, value)]; a final ('.*', value) is a default."""
    self._rules = [(re.compile(pattern), value) for pattern, value in rules]

  def __getitem__(self, name: str) -> Any:
    for regex, value in self._rules:
      if regex.search(name):
        return value
    raise KeyError(
        f"No factor rule found for parameter: {name}; add one, or a last rule ('.*', value).")


def standard_logical_factor_rules() -> Mapping[str, FactorDim]:
  """Returns the part that each of T5X's axis names plays; unfreeze it to add names of your own."""
  column = ('vocab', 'mlp', 'heads', 'kv', 'joined_kv', 'q_wi_fused', 'o_wo_fused',
            'multiquery_heads', 'kv_fused', 'mlp_activations')
  return flax.core.FrozenDict({
      'embed': FactorDim.ROW,
      **dict.fromkeys(column, FactorDim.COLUMN),
      **dict.fromkeys(('layers', 'stack'), FactorDim.BATCH),
      **dict.fromkeys(('relpos_buckets', 'layer_norm_scale'), FactorDim.NONE),
  })


@struct.dataclass
class _AdafactorHyperParams:
  """The arguments of `Adafactor`."""

  learning_rate: Any
  factored: bool
  multiply_by_parameter_scale: bool | HParamMap
  beta1: float | None
  decay_rate: float
  step_offset: int
  clipping_threshold: float | None
  weight_decay_rate: float | None
  min_dim_size_to_factor: int
  epsilon1: float
  epsilon2: float
  factor_map: Any
  logical_factor_rules: Any
  weight_decay_rate_lr_exponent: float | None
  global_norm_clip_threshold: float | None
  max_parameter_scale: float | None
  skip_nan_updates: bool


@struct.dataclass
class _AdafactorParamState:
  """Moments of one parameter; those that are not used are zeros of shape (1,).

  Attributes:
    v_row: factored second moment with the columns averaged away.
    v_col: the same with the rows averaged away.
    v: second moment of a parameter that is not factored.
    m: first moment.
  """

  v_row: Any
  v_col: Any
  v: Any
  m: Any


class Adafactor(optimizers.OptimizerDef):
  """Adafactor."""

  def __init__(
      self,
      learning_rate: float | None = None,
      factored: bool = True,
      multiply_by_parameter_scale: bool | HParamMap = True,
      beta1: float | None = None,
      decay_rate: float = 0.8,
      step_offset: int = 0,
      clipping_threshold: float | None = 1.0,
      weight_decay_rate: float | None = None,
      min_dim_size_to_factor: int = 128,
      epsilon1: float = 1e-30,
      epsilon2: float = 1e-3,
      dtype_momentum: Any = jnp.float32,
      factor_map: HParamMap | None = None,
      logical_factor_rules: Mapping[str, FactorDim] | None = None,
      weight_decay_rate_lr_exponent: float | None = None,
      global_norm_clip_threshold: float | None = None,
      max_parameter_scale: float | None = None,
      skip_nan_updates: bool = False,
  ):
    """Builds the definition.

    Args:
      learning_rate: usually None, as the trainer gives one each step.
      factored: whether second moments may be factored.
      multiply_by_parameter_scale: whether updates are relative to the parameter's RMS.
      beta1: decay of the first moment; None for none.
      decay_rate: the second moment decays by 1 - (t + 1) ** -decay_rate.
      step_offset: t = step - step_offset, to begin anew when fine-tuning.
      clipping_threshold: largest RMS of an update before scaling; None for no limit.
      weight_decay_rate: share of the parameter taken away each step.
      min_dim_size_to_factor: smallest size of both dimensions that the heuristic factors.
      epsilon1: added to squared gradients.
      epsilon2: smallest parameter scale.
      dtype_momentum: dtype of the first moment.
      factor_map: rules by parameter name; replaced where `logical_factor_rules` are given.
      logical_factor_rules: rules by axis name, see `standard_logical_factor_rules`.
      weight_decay_rate_lr_exponent: multiplies the weight decay by learning_rate ** this.
      global_norm_clip_threshold: largest norm of all gradients together.
      max_parameter_scale: largest parameter scale.
      skip_nan_updates: whether values and moments that would become NaN stay as they are.
    """
    if not factored and (factor_map is not None or logical_factor_rules is not None):
      raise ValueError(
          'Adafactor: factored=False contradicts factor_map and logical_factor_rules; drop one.')
    super().__init__(_AdafactorHyperParams(
        learning_rate, factored, multiply_by_parameter_scale, beta1, decay_rate, step_offset,
        clipping_threshold, weight_decay_rate, min_dim_size_to_factor, epsilon1, epsilon2,
        factor_map, logical_factor_rules, weight_decay_rate_lr_exponent,
        global_norm_clip_threshold, max_parameter_scale, skip_nan_updates))
    self.dtype_momentum = jax.dtypes.canonicalize_dtype(dtype_momentum)

  def set_param_axes(self, param_logical_axes: Any) -> None:
    """Turns `logical_factor_rules` into a rule for each parameter, by the names of its axes.

    Raises:
      ValueError: for an axis name without a rule.
    """
    rules = self.hyper_params.logical_factor_rules
    if rules is None:
      return
    factor_map = {}
    for name, axes in state_utils.flatten_state_dict(param_logical_axes).items():
      unknown = [axis for axis in axes if axis not in (None, *rules)]
      if unknown:
        raise ValueError(
            f'Adafactor: no factor rule for the axes {unknown} of {name}; add e.g. {unknown[0]!r}: '
            'FactorDim.NONE to logical_factor_rules.')
      rule = tuple(rules.get(axis, FactorDim.NONE) for axis in axes)
      if not {FactorDim.ROW, FactorDim.COLUMN} <= set(rule):
        # Rows alone, or columns alone, cannot be factored; batches stay independent.
        rule = tuple(dim if dim is FactorDim.BATCH else FactorDim.NONE for dim in rule)
      factor_map[name] = rule
    self.hyper_params = self.hyper_params.replace(factor_map=factor_map)

  def _rule(self, name: str, shape: tuple[int, ...]) -> tuple[FactorDim, ...]:
    """Returns the part of each dimension; without both rows and columns nothing is factored."""
    hp = self.hyper_params
    whole = (FactorDim.NONE,) * len(shape)
    if not hp.factored:
      return whole
    rule = HEURISTIC_RULE if hp.factor_map is None else hp.factor_map[name]
    if rule is None:
      return whole
    if rule != HEURISTIC_RULE and len(rule) != len(shape):
      raise ValueError(
          f'Adafactor: the factor rule {rule} of {name} must name each dimension of {shape}.')
    if len(shape) <= 2 and (rule == HEURISTIC_RULE or FactorDim.BATCH not in rule):
      if len(shape) < 2 or min(shape) < hp.min_dim_size_to_factor:
        return whole
      rows_first = shape[0] <= shape[1]
      return (FactorDim.ROW, FactorDim.COLUMN) if rows_first else (FactorDim.COLUMN, FactorDim.ROW)
    if rule == HEURISTIC_RULE:
      raise ValueError(
          f'Adafactor: {name} {shape} has more than two dimensions, so it must have a rule; set '
          'logical_factor_rules=@adafactor.standard_logical_factor_rules() or factor_map.')
    return tuple(rule)

  def _rows_columns_inner(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Returns the indices of the row, the column and all but the batch dimensions.

    Batches (e.g. stacked layers) are treated as separate parameters.
    """
    dims = tuple(enumerate(self._rule(name, shape)))
    return (tuple(i for i, dim in dims if dim is FactorDim.ROW),
            tuple(i for i, dim in dims if dim is FactorDim.COLUMN),
            tuple(i for i, dim in dims if dim is not FactorDim.BATCH))

  def init_state(self, params: Any) -> optimizers.OptimizerState:
    def init(name, param):
      rows, columns, _ = self._rows_columns_inner(name, param.shape)
      v_row, v_col, v = (1,), (1,), param.shape
      if rows and columns:
        v_row, v_col, v = np.delete(v, columns), np.delete(v, rows), (1,)
      m = (1,) if self.hyper_params.beta1 is None else param.shape
      # An array for each, as the state is donated and a buffer can be donated only once.
      return _AdafactorParamState(
          *(jnp.zeros(shape, jnp.float32) for shape in (v_row, v_col, v)),
          jnp.zeros(m, self.dtype_momentum))

    flat = state_utils.flatten_state_dict(params)
    states = state_utils.unflatten_state_dict({k: init(k, v) for k, v in flat.items()})
    return optimizers.OptimizerState(jnp.zeros((), jnp.int32), states)

  def apply_gradient(self, hyper_params, params, state, grads):
    hp = hyper_params
    if hp.learning_rate is None:
      raise ValueError('Adafactor: no learning rate; pass learning_rate=... to apply_gradient.')
    flat_params, flat_grads, flat_states = map(
        state_utils.flatten_state_dict, (params, grads, state.param_states))
    if hp.global_norm_clip_threshold is not None:
      norm = jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in flat_grads.values()))
      scale = jnp.minimum(1.0, hp.global_norm_clip_threshold / norm)
      flat_grads = {k: g * scale for k, g in flat_grads.items()}
    new_params, new_states = {}, {}
    for name, param in flat_params.items():
      new_params[name], new_states[name] = self._update(
          hp, name, state.step, param, flat_states[name], flat_grads[name])
    new_state = optimizers.OptimizerState(
        state.step + 1, state_utils.unflatten_state_dict(new_states))
    return state_utils.unflatten_state_dict(new_params), new_state

  def _update(self, hp, name, step, param, state, grad):
    """Updates one parameter; all arithmetic is in float32."""
    rows, columns, inner = self._rows_columns_inner(name, param.shape)
    weight, grad = param.astype(jnp.float32), grad.astype(jnp.float32)

    def rms(x):
      return jnp.sqrt(jnp.mean(jnp.square(x), axis=inner, keepdims=True))

    beta2 = 1.0 - (step - hp.step_offset + 1.0) ** -hp.decay_rate
    squared = jnp.square(grad) + hp.epsilon1
    v_row, v_col, v, m = state.v_row, state.v_col, state.v, state.m
    if rows and columns:
      v_row = beta2 * v_row + (1.0 - beta2) * jnp.mean(squared, axis=columns)
      v_col = beta2 * v_col + (1.0 - beta2) * jnp.mean(squared, axis=rows)
      row, column = jnp.expand_dims(v_row, columns), jnp.expand_dims(v_col, rows)
      row = row / jnp.mean(row, axis=rows, keepdims=True)
      update = grad * jax.lax.rsqrt(row) * jax.lax.rsqrt(column)
    else:
      v = beta2 * v + (1.0 - beta2) * squared
      update = grad * jax.lax.rsqrt(v)
    if hp.clipping_threshold is not None:
      update = update / jnp.maximum(1.0, rms(update) / hp.clipping_threshold)

    scale, relative = hp.learning_rate, hp.multiply_by_parameter_scale
    if relative[name] if isinstance(relative, HParamMap) else relative:
      scale = scale * jnp.clip(rms(weight), hp.epsilon2, hp.max_parameter_scale)
    update = update * scale
    if hp.beta1 is not None:
      update = hp.beta1 * m.astype(jnp.float32) + (1.0 - hp.beta1) * update
      m = update.astype(self.dtype_momentum)
    new_weight = weight - update
    if hp.weight_decay_rate is not None:
      decay = hp.weight_decay_rate
      if hp.weight_decay_rate_lr_exponent:
        decay = decay * hp.learning_rate ** hp.weight_decay_rate_lr_exponent
      new_weight = new_weight - weight * decay
    new_param, new_state = new_weight.astype(param.dtype), _AdafactorParamState(v_row, v_col, v, m)
    if hp.skip_nan_updates:
      new_param, new_state = jax.tree.map(
          lambda old, new: jnp.where(jnp.isnan(new), old, new),
          (param, state), (new_param, new_state))
    return new_param, new_state

  def derive_logical_axes(self, optimizer, param_logical_axes):
    """Shards moments of a parameter's shape like it; the small factored ones are replicated."""
    target, axes, states = map(
        state_utils.flatten_state_dict,
        (optimizer.target, param_logical_axes, optimizer.state.param_states))
    for name, state in states.items():
      states[name] = jax.tree.map(
          lambda x, name=name: axes[name] if x.shape == target[name].shape else None, state)
    return optimizer.replace(
        state=optimizers.OptimizerState(None, state_utils.unflatten_state_dict(states)),
        target=param_logical_axes)
