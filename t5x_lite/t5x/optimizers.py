"""Optimizers as T5X sees them: a definition with hyper-parameters, and a state kept apart.

`OptimizerDef` is the interface. `OptaxWrapper` gives any optax transformation this interface,
`MultiOptimizer` gives each selected part of the parameters an optimizer of its own. A definition
says which parameters it trains (`trainable_mask`); what it does not train needs neither gradient
nor state.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import flax
from flax import serialization
from flax import struct
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from t5x import state_utils

PyTree = Any


@struct.dataclass
class OptimizerState:
  """What an optimizer remembers.

  Attributes:
    step: int32 scalar, the number of updates made.
    param_states: the optimizer's own tree.
  """

  step: jax.Array
  param_states: Any


class OptimizerDef(abc.ABC):
  """How parameters are updated. Holds no arrays, so that it can be static in a train state."""

  def __init__(self, hyper_params: Any):
    self.hyper_params = hyper_params

  @abc.abstractmethod
  def init_state(self, params: PyTree) -> OptimizerState:
    """Returns the state before the first update of `params`."""

  @abc.abstractmethod
  def apply_gradient(
    self, hyper_params: Any, params: PyTree, state: OptimizerState, grads: PyTree
  ) -> tuple[PyTree, OptimizerState]:
    """Makes one update.

    Args:
      hyper_params: from `update_hyper_params`.
      params: nested dictionary of all parameters.
      state: the state that belongs to `params`.
      grads: gradients of all parameters, or of those alone that are trainable.

    Returns:
      The new parameters (what is not trained is returned as it was) and the new state.
    """

  @abc.abstractmethod
  def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: PyTree) -> Optimizer:
    """Returns `optimizer` with logical axes in the place of arrays, None for what is replicated.

    Args:
      optimizer: an optimizer with arrays or shapes.
      param_logical_axes: PartitionSpec of axis names for each parameter.
    """

  def trainable_mask(self, params: PyTree) -> PyTree:
    """Returns a bool for each parameter: whether it is updated."""
    return jax.tree.map(lambda _: True, params)

  def update_hyper_params(self, **overrides) -> Any:
    """Returns the hyper-parameters with the given ones (e.g. learning_rate) replaced."""
    return self.hyper_params.replace(**overrides) if overrides else self.hyper_params

  def create(self, target: PyTree) -> Optimizer:
    """Returns an optimizer for the parameters `target`."""
    return Optimizer(optimizer_def=self, state=self.init_state(target), target=target)

  def state_dict(self, target: PyTree, state: OptimizerState) -> dict[str, Any]:
    """Returns nested dictionaries with string keys; nodes without any array are left out."""
    return serialization.to_state_dict(
      {
        'target': serialization.to_state_dict(target),
        'state': {'step': state.step, 'param_states': _drop_empty_nodes(serialization.to_state_dict(state.param_states))},
      }
    )

  def restore_state(
    self, opt_target: PyTree, opt_state: OptimizerState, state_dict: Mapping[str, Any]
  ) -> tuple[PyTree, OptimizerState]:
    """Returns (target, state) like the first two arguments, with the values of `state_dict`."""
    target = serialization.from_state_dict(opt_target, state_dict['target'])
    template = serialization.to_state_dict(opt_state.param_states)
    param_states = serialization.from_state_dict(
      opt_state.param_states, _restore_empty_nodes(template, state_dict['state'].get('param_states', {}))
    )
    return target, OptimizerState(step=state_dict['state']['step'], param_states=param_states)


class Optimizer(struct.PyTreeNode):
  """Parameters together with the optimizer's state.

  Attributes:
    optimizer_def: how to update.
    state: an `OptimizerState`.
    target: nested dictionary of parameters.
  """

  optimizer_def: OptimizerDef = struct.field(pytree_node=False)
  state: OptimizerState
  target: Any

  def apply_gradient(self, grads: PyTree, **hyper_param_overrides) -> Optimizer:
    """Returns the optimizer after one update, e.g. with `learning_rate=...`."""
    hyper_params = self.optimizer_def.update_hyper_params(**hyper_param_overrides)
    target, state = self.optimizer_def.apply_gradient(hyper_params, self.target, self.state, grads)
    return self.replace(target=target, state=state)

  def state_dict(self) -> dict[str, Any]:
    """Returns {'target': ..., 'state': {'step', 'param_states'}}."""
    return self.optimizer_def.state_dict(self.target, self.state)

  def restore_state(self, state_dict: Mapping[str, Any]) -> Optimizer:
    """Returns the optimizer with the values of `state_dict`."""
    target, state = self.optimizer_def.restore_state(self.target, self.state, state_dict)
    return self.replace(target=target, state=state)


def _drop_empty_nodes(tree: Any) -> Any:
  """Removes dictionaries that hold no leaf, e.g. of optax.EmptyState; None is a leaf and stays."""
  if not isinstance(tree, dict):
    return tree
  pruned = {k: _drop_empty_nodes(v) for k, v in tree.items()}
  return {k: v for k, v in pruned.items() if not (isinstance(v, dict) and not v)}


def _restore_empty_nodes(template: Any, tree: Any) -> Any:
  """Puts back the nodes of `template` that a checkpoint does not store, without any array."""
  if not isinstance(template, dict) or not isinstance(tree, Mapping):
    return tree
  restored = dict(tree)
  for key, value in template.items():
    if key in tree:
      restored[key] = _restore_empty_nodes(value, tree[key])
    elif not jax.tree.leaves(value):
      restored[key] = value
  return restored


# --------------------------------------------------------------------------------------------------
# optax
# --------------------------------------------------------------------------------------------------


@struct.dataclass
class _OptaxHyperParams:
  """Accepts the trainer's learning rate, which optax transformations do not use."""

  learning_rate: Any = None


class OptaxWrapper(OptimizerDef):
  """Any optax transformation as an optimizer definition.

  The learning rate of the trainer is ignored: give the transformation its own schedule.
  """

  def __init__(self, optax_optimizer: optax.GradientTransformation):
    """Args: optax_optimizer: the transformation; it is given the trainable parameters only."""
    if not isinstance(optax_optimizer, optax.GradientTransformation):
      raise ValueError(
        'OptaxWrapper needs an optax.GradientTransformation, got '
        f'{type(optax_optimizer).__name__}; the optimizers of this module, e.g. '
        'optimizers.adamw, are wrapped already.'
      )
    super().__init__(_OptaxHyperParams())
    self.optax_optimizer = optax_optimizer

  def init_state(self, params: PyTree) -> OptimizerState:
    trainable, _ = state_utils.partition_params(params, self.trainable_mask(params))
    return OptimizerState(jnp.zeros((), jnp.int32), self.optax_optimizer.init(trainable))

  def apply_gradient(self, hyper_params, params, state, grads):
    del hyper_params
    trainable, frozen = state_utils.partition_params(params, self.trainable_mask(params))
    grads = state_utils.unflatten_state_dict(
      _select(state_utils.flatten_state_dict(grads), state_utils.flatten_state_dict(trainable))
    )
    updates, param_states = self.optax_optimizer.update(grads, state.param_states, trainable)
    trainable = optax.apply_updates(trainable, updates)
    return (state_utils.merge_params(trainable, frozen), OptimizerState(state.step + 1, param_states))

  def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: PyTree) -> Optimizer:
    """Gives each leaf of the state the axes of the parameter that it mirrors.

    That is the parameter whose path ends the leaf's own path and whose shape it has, so that no
    transformation needs to be known by name.
    """
    shapes = {k: v.shape for k, v in traverse_util.flatten_dict(optimizer.target).items()}
    axes = traverse_util.flatten_dict(param_logical_axes)

    def leaf_axes(path, leaf):
      names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
      for start in range(len(names)):
        param = names[start:]
        if param in shapes and shapes[param] == jnp.shape(leaf):
          return axes[param]
      return None

    param_states = jax.tree_util.tree_map_with_path(leaf_axes, optimizer.state.param_states)
    return optimizer.replace(state=OptimizerState(None, param_states), target=param_logical_axes)


def _select(flat: Mapping[Any, Any], names: Mapping[Any, Any]) -> dict[Any, Any]:
  """Returns the entries of `flat` for `names`, or says which gradient is missing."""
  missing = [str(k) for k in names if k not in flat]
  if missing:
    raise ValueError(f'No gradient for the trainable parameters {sorted(missing)}.')
  return {k: flat[k] for k in names}


def wrap_optax_optimizer(optax_optimizer: Callable[..., optax.GradientTransformation]) -> Callable[..., OptaxWrapper]:
  """Returns a constructor with the same arguments whose result is wrapped in `OptaxWrapper`."""

  @functools.wraps(optax_optimizer)
  def wrapped(*args, **kwargs) -> OptaxWrapper:
    return OptaxWrapper(optax_optimizer(*args, **kwargs))

  return wrapped


def chain(transformations: Sequence[optax.GradientTransformation]) -> OptaxWrapper:
  """Returns optax transformations applied one after the other, in a form that gin can configure."""
  return OptaxWrapper(optax.chain(*transformations))


# The constructors below take the arguments of the optax functions of the same names.
adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
lamb = wrap_optax_optimizer(optax.lamb)
lion = wrap_optax_optimizer(optax.lion)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)


# --------------------------------------------------------------------------------------------------
# Several optimizers
# --------------------------------------------------------------------------------------------------


class _Marked:
  """Stands for a parameter that a traversal selects."""


class MultiOptimizer(OptimizerDef):
  """An optimizer for each selected part of the parameters; all others stay as they are.

  The parts' optimizers must keep one state for each parameter, as `adafactor.Adafactor` does.
  """

  def __init__(self, traversals_and_optimizers: Sequence[tuple[traverse_util.Traversal, OptimizerDef]]):
    """Says who trains what.

    Args:
      traversals_and_optimizers: ((flax.traverse_util.ModelParamTraversal(filter), optimizer), ...),
        where filter(path, value) gets paths such as '/encoder/mlp/wi/kernel'.

    Raises:
      ValueError: for an optimizer whose state is no tree of parameters.
    """
    self.traversals = [traversal for traversal, _ in traversals_and_optimizers]
    self.sub_optimizers = [definition for _, definition in traversals_and_optimizers]
    for definition in self.sub_optimizers:
      if isinstance(definition, OptaxWrapper):
        raise ValueError(
          'MultiOptimizer does not take optax optimizers, whose state is no tree of parameters; '
          'write OptaxWrapper(optax.multi_transform(...)) instead.'
        )
    super().__init__([definition.hyper_params for definition in self.sub_optimizers])

  def _names(self, params: PyTree) -> list[list[tuple[str, ...]]]:
    """Returns for each traversal the paths that it selects.

    Raises:
      ValueError: where two traversals select the same parameter.
    """
    names = []
    taken = set()
    for traversal in self.traversals:
      marked = traverse_util.flatten_dict(traversal.update(lambda _: _Marked, flax.core.unfreeze(params)))
      names.append([k for k, v in marked.items() if v is _Marked])
      overlap = sorted('/'.join(k) for k in taken.intersection(names[-1]))
      if overlap:
        raise ValueError(f'MultiOptimizer: more than one traversal selects {overlap}; narrow a filter.')
      taken.update(names[-1])
    return names

  def _parts(self, params: PyTree, *trees: PyTree):
    """Yields (i, sub-optimizer, *the selected subtree of each of `trees`)."""
    flat_trees = [traverse_util.flatten_dict(flax.core.unfreeze(tree)) for tree in trees]
    for i, (names, definition) in enumerate(zip(self._names(params), self.sub_optimizers)):
      yield (i, definition, *(traverse_util.unflatten_dict(_select(flat, dict.fromkeys(names))) for flat in flat_trees))

  def trainable_mask(self, params: PyTree) -> PyTree:
    selected = {k for names in self._names(params) for k in names}
    return traverse_util.unflatten_dict({k: k in selected for k in traverse_util.flatten_dict(params)})

  def update_hyper_params(self, **overrides) -> list[Any]:
    return [definition.update_hyper_params(**overrides) for definition in self.sub_optimizers]

  def set_param_axes(self, param_logical_axes: PyTree) -> None:
    """Hands each sub-optimizer the axes of its parameters."""
    for i, definition, axes in self._parts(param_logical_axes, param_logical_axes):
      if hasattr(definition, 'set_param_axes'):
        definition.set_param_axes(axes)
        self.hyper_params[i] = definition.hyper_params

  def init_state(self, params: PyTree) -> OptimizerState:
    states = dict.fromkeys(traverse_util.flatten_dict(params))
    for _, definition, part in self._parts(params, params):
      states.update(traverse_util.flatten_dict(definition.init_state(part).param_states))
    return OptimizerState(jnp.zeros((), jnp.int32), traverse_util.unflatten_dict(states))

  def apply_gradient(self, hyper_params, params, state, grads):
    new_params = traverse_util.flatten_dict(params)
    states = traverse_util.flatten_dict(state.param_states)
    for i, definition, part, sub_states, sub_grads in self._parts(params, params, state.param_states, grads):
      part, sub_state = definition.apply_gradient(hyper_params[i], part, OptimizerState(state.step, sub_states), sub_grads)
      new_params.update(traverse_util.flatten_dict(part))
      states.update(traverse_util.flatten_dict(sub_state.param_states))
    return (traverse_util.unflatten_dict(new_params), OptimizerState(state.step + 1, traverse_util.unflatten_dict(states)))

  def derive_logical_axes(self, optimizer: Optimizer, param_logical_axes: PyTree) -> Optimizer:
    params, states = optimizer.target, optimizer.state.param_states
    all_axes = dict.fromkeys(traverse_util.flatten_dict(params))
    for _, definition, part, sub_states, axes in self._parts(params, params, states, param_logical_axes):
      derived = definition.derive_logical_axes(
        Optimizer(definition, OptimizerState(optimizer.state.step, sub_states), part), axes
      )
      all_axes.update(traverse_util.flatten_dict(derived.state.param_states))
    return optimizer.replace(state=OptimizerState(None, traverse_util.unflatten_dict(all_axes)), target=param_logical_axes)
