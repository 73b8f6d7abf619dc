"""The state of training as one tree: parameters, optimizer state, step, mutables, with axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax
from flax import serialization
from flax import struct
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp

from t5x import optimizers

PyTree = Any


def _split_variables(variables: Mapping[str, PyTree]):
  """Returns (params, params_axes, flax_mutables, flax_mutables_axes) of initial variables."""
  variables = flax.core.unfreeze(variables)
  params = variables.pop('params')
  params_axes = variables.pop('params_axes', None)
  axes = {k.removesuffix('_axes'): variables.pop(k) for k in list(variables) if k.endswith('_axes')}
  return params, params_axes, variables, axes or None


def _logical_axes(values: PyTree, axes_metadata: PyTree | None, collection: str) -> PyTree:
  """Returns a PartitionSpec of axis names for each leaf.

  Raises:
    ValueError: for a leaf without axis names, or with more or fewer names than dimensions.
  """
  axes = traverse_util.flatten_dict(flax.core.unfreeze(flax_partitioning.get_axis_names(axes_metadata or {})), sep='/')
  leaves = traverse_util.flatten_dict(values, sep='/')
  missing = sorted(set(leaves) - set(axes))
  if missing:
    raise ValueError(
      f'Missing axis names for parameters: {missing} (collection {collection!r}); create them '
      'with flax.linen.partitioning.param_with_axes(..., axes=(...)).'
    )
  for name, leaf in leaves.items():
    if len(axes[name]) != jnp.ndim(leaf):
      raise ValueError(
        f'{collection}/{name} has {jnp.ndim(leaf)} dimensions {jnp.shape(leaf)} but '
        f'{len(axes[name])} axis names {tuple(axes[name])}; give one name for each dimension.'
      )
  return traverse_util.unflatten_dict({name: axes[name] for name in leaves}, sep='/')


def _mutables_axes(mutables: Mapping[str, PyTree], axes: Mapping[str, PyTree] | None) -> dict[str, PyTree]:
  """Returns the axes of each collection; None for every leaf of a collection that has none."""
  return {
    name: (_logical_axes(values, axes[name], name) if axes and name in axes else jax.tree.map(lambda _: None, values))
    for name, values in mutables.items()
  }


class FlaxOptimTrainState(struct.PyTreeNode):
  """A train state around an `optimizers.Optimizer`.

  Attributes:
    params_axes: flax `AxisMetadata` of the parameters, or None.
    flax_mutables: other collections of the model, e.g. batch statistics.
    flax_mutables_axes: their `AxisMetadata` by collection, or None.
  """

  _optimizer: optimizers.Optimizer
  params_axes: Any = None
  flax_mutables: Any = struct.field(default_factory=dict)
  flax_mutables_axes: Any = None

  @classmethod
  def create(cls, optimizer_def: optimizers.OptimizerDef, model_variables: Mapping[str, PyTree]) -> FlaxOptimTrainState:
    """Returns the state at step 0.

    Args:
      optimizer_def: how to train.
      model_variables: {'params', 'params_axes' [, '<collection>', '<collection>_axes']}.

    Raises:
      ValueError: where the model names the axes of some parameters but not of all.
    """
    params, params_axes, mutables, mutables_axes = _split_variables(model_variables)
    if params_axes is not None:
      axes = _logical_axes(params, params_axes, 'params')
      if hasattr(optimizer_def, 'set_param_axes'):
        optimizer_def.set_param_axes(axes)
    return cls(optimizer_def.create(params), params_axes, mutables, mutables_axes)

  @property
  def step(self) -> jax.Array:
    return self._optimizer.state.step

  @property
  def params(self) -> PyTree:
    return self._optimizer.target

  @property
  def param_states(self) -> PyTree:
    return self._optimizer.state.param_states

  @property
  def trainable_mask(self) -> PyTree:
    """A bool for each parameter: whether the optimizer updates it."""
    return self._optimizer.optimizer_def.trainable_mask(self.params)

  def state_dict(self) -> dict[str, Any]:
    state_dict = self._optimizer.state_dict()
    if self.flax_mutables:
      state_dict['flax_mutables'] = serialization.to_state_dict(flax.core.unfreeze(self.flax_mutables))
    return state_dict

  def restore_state(self, state_dict: Mapping[str, Any]) -> FlaxOptimTrainState:
    return self.replace(
      _optimizer=self._optimizer.restore_state(state_dict), flax_mutables=_restore_mutables(self.flax_mutables, state_dict)
    )

  def replace_params(self, params: PyTree) -> FlaxOptimTrainState:
    return self.replace(_optimizer=self._optimizer.replace(target=params))

  def replace_flax_mutables(self, flax_mutables: Mapping[str, PyTree]) -> FlaxOptimTrainState:
    return self.replace(flax_mutables=flax_mutables)

  def replace_step(self, step: jax.Array) -> FlaxOptimTrainState:
    state = self._optimizer.state.replace(step=step)
    return self.replace(_optimizer=self._optimizer.replace(state=state))

  def apply_gradient(self, grads, learning_rate, flax_mutables=None) -> FlaxOptimTrainState:
    """Returns the state after one update.

    Args:
      grads: gradients of all parameters or of the trainable ones.
      learning_rate: float scalar.
      flax_mutables: the model's new mutable collections; None keeps the present ones.
    """
    return self.replace(
      _optimizer=self._optimizer.apply_gradient(grads, learning_rate=learning_rate),
      flax_mutables=self.flax_mutables if flax_mutables is None else flax_mutables,
    )

  def as_logical_axes(self) -> FlaxOptimTrainState:
    """Returns this state with PartitionSpecs of axis names, None for what is replicated.

    Raises:
      ValueError: for a parameter without axis names.
    """
    axes = _logical_axes(self.params, self.params_axes, 'params')
    definition = self._optimizer.optimizer_def
    if not hasattr(definition, 'derive_logical_axes'):
      raise ValueError(f'{type(definition).__name__} has no derive_logical_axes, which sharding needs; add it.')
    return FlaxOptimTrainState(
      definition.derive_logical_axes(self._optimizer, axes),
      flax_mutables=_mutables_axes(self.flax_mutables, self.flax_mutables_axes),
    )


class InferenceState(struct.PyTreeNode):
  """A state without an optimizer, for evaluation and inference.

  Attributes:
    step: int32 scalar.
    params: nested dictionary of the parameters.
    params_axes, flax_mutables, flax_mutables_axes: as in `FlaxOptimTrainState`.
  """

  step: Any
  params: Any
  params_axes: Any = None
  flax_mutables: Any = struct.field(default_factory=dict)
  flax_mutables_axes: Any = None

  @classmethod
  def create(cls, model_variables: Mapping[str, PyTree]) -> InferenceState:
    """Returns the state of a model's initial variables, see `FlaxOptimTrainState.create`."""
    return cls(jnp.zeros((), jnp.int32), *_split_variables(model_variables))

  @property
  def param_states(self) -> PyTree:
    raise AttributeError('An InferenceState has no optimizer state; use FlaxOptimTrainState to train.')

  def state_dict(self) -> dict[str, Any]:
    state_dict = {'target': serialization.to_state_dict(self.params), 'state': {'step': self.step}}
    if self.flax_mutables:
      state_dict['flax_mutables'] = serialization.to_state_dict(flax.core.unfreeze(self.flax_mutables))
    return state_dict

  def restore_state(self, state_dict: Mapping[str, Any]) -> InferenceState:
    return self.replace(
      params=serialization.from_state_dict(self.params, state_dict['target']),
      step=state_dict['state']['step'],
      flax_mutables=_restore_mutables(self.flax_mutables, state_dict),
    )

  def replace_params(self, params: PyTree) -> InferenceState:
    return self.replace(params=params)

  def replace_flax_mutables(self, flax_mutables: Mapping[str, PyTree]) -> InferenceState:
    return self.replace(flax_mutables=flax_mutables)

  def replace_step(self, step: jax.Array) -> InferenceState:
    return self.replace(step=step)

  def apply_gradient(self, grads, learning_rate, flax_mutables=None) -> InferenceState:
    raise TypeError('An InferenceState cannot be trained; use FlaxOptimTrainState.')

  def as_logical_axes(self) -> InferenceState:
    """Returns this state with PartitionSpecs of axis names, see `FlaxOptimTrainState`."""
    return InferenceState(
      None,
      _logical_axes(self.params, self.params_axes, 'params'),
      flax_mutables=_mutables_axes(self.flax_mutables, self.flax_mutables_axes),
    )


def _restore_mutables(mutables: Mapping[str, PyTree], state_dict: Mapping[str, Any]) -> Mapping[str, PyTree]:
  """Returns the collections of `state_dict`, or `mutables` where it has none."""
  if not mutables or 'flax_mutables' not in state_dict:
    return mutables
  return serialization.from_state_dict(flax.core.unfreeze(mutables), state_dict['flax_mutables'])


# What trainers, checkpoints and partitioners take.
TrainState = FlaxOptimTrainState | InferenceState
