"""One compiled body for all equal layers of a stack, and rematerialisation of each layer.

How a stack is executed, not what it is: parameters stay separate for each layer, with the same names, so that checkpoints
do not tell how a network was or will be run. In a scanned forward pass the variables of layers 0..N-1 are stacked, leaf by
leaf, and `jax.lax.scan` runs the first layer's module over them. Random numbers are those of the layers themselves: flax
folds a hash of a module's path into the rng, and the body folds in that of the layer whose turn it is.

Layers are equal if the adapter's patterns select the same of their projections. Runs of consecutive equal ones are scanned.
Wherever some collection is written (initialisation, the cache of decoding, intermediates) layers run one after the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from typing import Any
from collections.abc import Callable, Hashable, Sequence

import flax
from flax import linen as nn
from flax.core import Scope
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax.adapters import Adapter
from cpoly_jax.t5 import remat

# Runs a layer: (layer, x) -> x.
Call = Callable[[nn.Module, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Execution:
  """How the layers of both stacks are run; neither results nor checkpoints depend on it.

  Attributes:
    scan_layers: compile one body for each run of equal layers, rather than every layer.
    remat_policy: what each layer keeps for its backward pass, one of `remat.POLICIES`.
  """

  scan_layers: bool = False
  remat_policy: str = remat.NONE

  def __post_init__(self):
    remat.rematerialised(lambda: None, self.remat_policy)  # Raises for an unknown one.


def patterns(adapter: Adapter | None) -> tuple[str, ...]:
  """Returns the regular expressions on projections' paths that an adapter or its skills have: fields named `...targets`."""
  if adapter is None:
    return ()
  inventory = adapter.inventory(num_skills=1, features=1, parent=None)
  fields = dataclasses.fields(inventory) if dataclasses.is_dataclass(inventory) else ()
  return (adapter.targets, *(getattr(inventory, field.name) for field in fields if field.name.endswith('targets')))


def kinds(paths: Sequence[str], expressions: Sequence[str]) -> dict[str, Hashable]:
  """Returns what the adapter selects inside each layer.

  Args:
    paths: of all projections, e.g. `encoder/layers_0/mlp/wo`.
    expressions: as of `patterns`.

  Returns:
    {path of a layer: an object that is equal for equal layers}, in the order of the paths.
  """
  found: dict[str, list] = {}
  for path in paths:
    layer, inner = re.fullmatch(r'([^/]+/layers_\d+)/(.*)', path).groups()
    found.setdefault(layer, []).append((inner, *(re.fullmatch(e, path) is not None for e in expressions)))
  return {layer: tuple(selected) for layer, selected in found.items()}


def check(paths: Sequence[str], adapter: Adapter | None) -> None:
  """Raises ValueError for a stack of several layers without two equal ones in a row, which a scan cannot shorten."""
  for stack, layers in itertools.groupby(kinds(paths, patterns(adapter)).items(), key=lambda item: item[0].split('/')[0]):
    selected = [kind for _, kind in layers]
    if len(selected) > 1 and all(a != b for a, b in itertools.pairwise(selected)):
      raise ValueError(f'no two layers of the {stack} that follow each other have the same targets, so none can be scanned: '
                       f'set SCAN_LAYERS = False, or ADAPTER_TARGETS to one pattern for all layers, not {adapter.targets!r}')


def run(layers: Sequence[nn.Module], x: jax.Array, call: Call, execution: Execution, adapter: Adapter | None,
        paths: Sequence[str]) -> jax.Array:
  """Runs the layers of a stack.

  Args:
    layers: bound modules of one class, named layers_0, layers_1, ...
    x: [B, L, D], input of the first layer.
    call: runs one of them; what else it needs, it closes over.
    execution: how.
    adapter: of the network.
    paths: of all projections inside its layers.

  Returns:
    [B, L, D], output of the last layer.
  """
  if execution == Execution() or layers[0].scope.mutable:
    for layer in layers:
      x = call(layer, x)
    return x
  kind = kinds(paths, patterns(adapter)) if execution.scan_layers else {}
  # Without a scan each layer is a run of its own.
  key = lambda layer: (kind['/'.join(layer.path)], _shapes(layer)) if execution.scan_layers else layer.name
  for _, group in itertools.groupby(layers, key=key):
    group = list(group)
    x = (_scan if len(group) > 1 else _one)(group, x, call, execution.remat_policy)
  return x


def _shapes(layer: nn.Module) -> Hashable:
  leaves, structure = jax.tree.flatten(layer.variables)
  return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _one(layers: Sequence[nn.Module], x: jax.Array, call: Call, policy: str) -> jax.Array:
  layer, = layers
  if policy == remat.NONE:
    return call(layer, x)

  def body(x, variables):
    # A scope of its own: the layer's lies outside of what is differentiated.
    scope = layer.scope
    return call(layer.clone(parent=Scope(variables, scope.rngs, scope.name, path=scope.path, flags=scope.flags)), x)

  return remat.rematerialised(body, policy)(x, layer.variables)


def _scan(layers: Sequence[nn.Module], x: jax.Array, call: Call, policy: str) -> jax.Array:
  template = layers[0]

  def body(x, layer):
    variables, turn = layer
    return call(template.clone(parent=_SharedScope.of(layers, variables, turn)), x), None

  stacked = _with_axes(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layer.variables for layer in layers)),
                       lambda: _logical_axes(template, x, call))
  xs = (stacked, jnp.arange(len(layers)))
  return jax.lax.scan(remat.rematerialised(body, policy, in_scan=True), x, xs)[0]


class _SharedScope(Scope):
  """The scope of a body that several layers share: its random keys are those of the layer whose turn it is."""

  @classmethod
  def of(cls, layers: Sequence[nn.Module], variables: Any, turn: jax.Array) -> _SharedScope:
    """Returns a scope with the place of the first of the layers; `turn` is an int32 scalar, a position among them."""
    first = layers[0].scope
    return cls._sharing(cls(variables, first.rngs, first.name, path=first.path, flags=first.flags), layers, turn)

  @classmethod
  def _sharing(cls, scope: Scope, layers: Sequence[nn.Module], turn: jax.Array) -> _SharedScope:
    scope.__class__ = cls
    scope.layers, scope.turn = layers, turn
    return scope

  # Scopes that come from a shared one are shared, too.
  def push(self, name: str | None = None, prefix: str = '', reuse: bool = False) -> _SharedScope:
    """As of `Scope`: that of a submodule."""
    return self._sharing(super().push(name, prefix, reuse), self.layers, self.turn)

  def rewound(self, rewind_rngs: bool = False) -> _SharedScope:
    """As of `Scope`: that of a submodule's second call."""
    return self._sharing(super().rewound(rewind_rngs), self.layers, self.turn)

  def make_rng(self, name: str = 'params') -> jax.Array:
    """As of `Scope`, for the layer whose turn it is."""
    if not self.has_rng(name):
      if not self.has_rng('params'):
        return super().make_rng(name)  # Raises.
      name = 'params'
    self.rng_counters[name] += 1
    inner = (*self.rngs[name].suffix[len(self.root.rngs[name].suffix):], self.rng_counters[name])
    hashes = np.array([_hash((*layer.scope.rngs[name].suffix, *inner)) for layer in self.layers], np.uint32)
    return jax.random.fold_in(self.rngs[name].rng, jnp.asarray(hashes)[self.turn])


def _hash(names: Sequence[str | int]) -> int:
  """The number that flax folds into an rng for a path and a count: four bytes of their SHA-1."""
  separator = b'\0' if flax.config.flax_fix_rng_separator else b''
  as_bytes = lambda x: x.encode() if isinstance(x, str) else x.to_bytes((x.bit_length() + 7) // 8, 'big')
  return int.from_bytes(hashlib.sha1(b''.join(separator + as_bytes(x) for x in names)).digest()[:4], 'big')


def _logical_axes(layer: nn.Module, x: jax.Array, call: Call) -> dict[tuple[str, ...], tuple[str, ...]]:
  """Returns {path inside the layer: logical names of a parameter's axes}, of a trace without computation."""

  def traced(variables, x):
    scope = Scope({**variables, 'params_axes': {}}, layer.scope.rngs, layer.scope.name, mutable=['params_axes'],
                  path=layer.scope.path, flags=layer.scope.flags)
    call(layer.clone(parent=scope), x)
    return scope.mutable_variables()['params_axes']

  axes = flax.traverse_util.flatten_dict(flax.core.unfreeze(jax.eval_shape(traced, layer.variables, x)))
  return {(*path[:-1], path[-1].removesuffix('_axes')): tuple(leaf.names) for path, leaf in axes.items()}


def _with_axes(stacked: Any, axes_of: Callable[[], dict]) -> Any:
  """Lays stacked parameters out as the layers' own: otherwise XLA might gather them."""
  if not nn_partitioning.get_axis_rules():
    return stacked
  axes = axes_of()
  params = flax.traverse_util.flatten_dict(flax.core.unfreeze(stacked['params']))
  params = {path: nn_partitioning.with_sharding_constraint(leaf, jax.sharding.PartitionSpec(None, *axes[path]))
            for path, leaf in params.items()}
  return {**stacked, 'params': flax.traverse_util.unflatten_dict(params)}
