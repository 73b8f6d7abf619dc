"""One update for all layers of a stack, so that a large model's optimizer compiles quickly.

A deep network with skills has thousands of small arrays that train, and an optimizer that updates each by itself is most of a
scanned step's program. Here the arrays of consecutive layers with the same structure are stacked, updated together and taken
apart again. The state between steps, and so in checkpoints, is that of the transformation itself.

    encoder/layers_0/.../up [8, 4, 64]
    encoder/layers_1/.../up [8, 4, 64]   ->  encoder/layers_0/.../up [2, 8, 4, 64]

It costs stacked copies of what trains and of its state while the step updates: little for skills, much for a whole base.
"""

from __future__ import annotations

import itertools
import re
from typing import Any
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
import optax

_LAYER = re.compile(r'layers_(\d+)')


def by_stack(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns a transformation that does the same with fewer and larger arrays.

  Args:
    transformation: may treat numbers of arrays alike (AdamW), add them all up (clipping by the global norm), and tell arrays
      apart by their paths, in which a stack has the name of its first layer; it must not depend on an array's shape, as
      Adafactor and LAMB do.

  Returns:
    A transformation with the same state.
  """

  def update(updates, state, params=None):
    stacked = None if params is None else stack(params, updates)
    new_updates, new_state = transformation.update(stack(updates, updates), stack(state, updates), stacked)
    return unstack(new_updates, updates, updates), unstack(new_state, state, updates)

  return optax.GradientTransformation(transformation.init, update)


def stack(tree: Any, guide: Mapping[str, Any]) -> Any:
  """Returns a tree with consecutive equal layers as one, [layers, ...].

  Args:
    tree: parameters, or a state that holds trees like them, maybe with masks in place of some arrays.
    guide: whole parameters or updates: layers are equal if they have the same structure, shapes and dtypes here.
  """
  return jax.tree.map(lambda node: _stack_mirrors(node, guide) if _is_mapping(node) else node, tree, is_leaf=_is_mapping)


def unstack(tree: Any, like: Any, guide: Mapping[str, Any]) -> Any:
  """Returns the tree `like` with the values of `tree`, which has the structure of `stack(like, guide)`."""
  return jax.tree.map(lambda node, new: _unstack_mirrors(new, node, guide) if _is_mapping(node) else new, like, tree,
                      is_leaf=_is_mapping)


def _is_mapping(node: Any) -> bool:
  return isinstance(node, Mapping)


def _mirrors(node: Mapping[str, Any], guide: Mapping[str, Any]) -> bool:
  """Whether a dictionary in an optimizer's state is one of parameters, not, say, one of states by group."""
  return node.keys() == guide.keys()


def _stack_mirrors(node: Mapping[str, Any], guide: Mapping[str, Any]) -> Mapping[str, Any]:
  return _stack(node, guide) if _mirrors(node, guide) else type(node)({key: stack(node[key], guide) for key in node})


def _unstack_mirrors(new: Mapping[str, Any], node: Mapping[str, Any], guide: Mapping[str, Any]) -> Mapping[str, Any]:
  if _mirrors(node, guide):
    return _unstack(new, node, guide)
  return type(node)({key: unstack(new[key], node[key], guide) for key in node})


def _runs(guide: Mapping[str, Any]) -> list[list[str]]:
  """Returns the keys of a dictionary: consecutive layers that can be stacked together, every other key alone."""
  layers = sorted((key for key in guide if _LAYER.fullmatch(str(key))), key=lambda key: int(_LAYER.fullmatch(key)[1]))
  # A position less its number is the same for neighbours.
  key = lambda item: (item[0] - int(_LAYER.fullmatch(item[1])[1]), _structure(guide[item[1]]))
  runs = [[name for _, name in run] for _, run in itertools.groupby(enumerate(layers), key)]
  return runs + [[name] for name in guide if name not in layers]


def _structure(tree: Any) -> Hashable:
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _stack(node: Any, guide: Any) -> Any:
  """`stack` for a part of the parameters; `guide` is the same part of the guide."""
  if not _is_mapping(node):
    return node
  return type(node)({run[0]: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(node[name] for name in run)) if len(run) > 1
                     else _stack(node[run[0]], guide[run[0]]) for run in _runs(guide)})


def _unstack(new: Any, node: Any, guide: Any) -> Any:
  """`unstack` for a part of the parameters."""
  if not _is_mapping(node):
    return new
  found = {}
  for run in _runs(guide):
    first = new[run[0]]
    if len(run) == 1:
      found[run[0]] = _unstack(first, node[run[0]], guide[run[0]])
    else:
      found |= {name: jax.tree.map(lambda leaf, i=i: leaf[i], first) for i, name in enumerate(run)}
  return type(node)({name: found[name] for name in node})
