"""Parameters of a system: what trains, and what one task can use of it.

Shapes come from `jax.eval_shape` of the network, so that nothing is allocated. Layers of a stack have the same shapes but
for what is adapted, so one layer of each kind is traced and stands for all: XXL takes as long as small.

Notation: T tasks, S skills.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any
from collections.abc import Mapping, Sequence

from flax import traverse_util
import jax
import jax.numpy as jnp

from cpoly_jax.adapters import Adapter
from cpoly_jax.systems.configured import Configured
from cpoly_jax.t5 import network
from cpoly_jax.training import optimizers

GROUPS = (optimizers.SKILLS, optimizers.ROUTING, optimizers.BASE)
STACKS = ('encoder', 'decoder')


@dataclasses.dataclass(frozen=True)
class Parameter:
  """Shape of a parameter and the logical names of its axes."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Parameters of a system.

  Attributes:
    num_skills: S; 0 without an adapter.
    active_skills: skills that can have a weight for one task or token.
    base: parameters of the base, trained or not.
    trained: trained parameters of each of GROUPS.
    active: those of the trained ones that one task, or one token of it, can use: its share of the skills, its row of
      each table by task, and what all tasks share.
  """

  num_skills: int
  active_skills: int
  base: int
  trained: Mapping[str, int]
  active: int

  @property
  def trainable(self) -> int:
    """All that trains."""
    return sum(self.trained.values())


@dataclasses.dataclass(frozen=True)
class _OneLayer(Adapter):
  """The adapter of a network cut to one layer, where nothing need be a target."""

  def check_matches(self, paths: Sequence[str]) -> None:
    """The whole network was checked."""


def parameters(net: network.Transformer) -> dict[str, Parameter]:
  """Returns {path: Parameter} of a network's parameters.

  Args:
    net: a network, with or without an adapter.

  Raises:
    ValueError: the network refuses its settings.
  """
  depths = dict(zip(STACKS, (net.config.num_encoder_layers, net.config.num_decoder_layers)))
  if net.adapter is not None:
    net.adapter.check_matches(network.projection_paths(net.config))
  # For each stack, what is adapted in each layer.
  kinds = {stack: _targets(net, stack, depth) for stack, depth in depths.items()}
  distinct = [list(dict.fromkeys(kinds[stack])) for stack in STACKS]
  first, found = None, {}
  for pair in itertools.zip_longest(*distinct):
    pair = tuple(kind if kind is not None else kinds[stack][0] for stack, kind in zip(STACKS, pair))
    traced = _trace(_cut(net, pair))
    first = first or traced
    found.update(((stack, kind), traced) for stack, kind in zip(STACKS, pair))
  result = {path: leaf for path, leaf in first.items() if not re.match(r'(encoder|decoder)/layers_0/', path)}
  for stack, depth in depths.items():
    prefix = f'{stack}/layers_0/'
    for i in range(depth):
      result.update((f'{stack}/layers_{i}/{path.removeprefix(prefix)}', leaf)
                    for path, leaf in found[stack, kinds[stack][i]].items() if path.startswith(prefix))
  return result


def count(configured: Configured) -> Counts:
  """Counts the parameters of a system; what trains is what its optimizer says.

  Raises:
    ValueError: the network refuses its settings, or nothing would train.
  """
  found = parameters(configured.transformer)
  router = None if configured.transformer.adapter is None else configured.transformer.adapter.describe()
  tree = traverse_util.unflatten_dict(found, sep='/')
  mask = traverse_util.flatten_dict(configured.optimizer.trainable_mask(tree), sep='/')
  groups = {path: optimizers.group_of(path) for path in found}
  trained = {path: leaf for path, leaf in found.items() if mask[path] and groups[path] in GROUPS}
  share = router.active_skills / router.num_skills if router is not None else 1
  return Counts(
      num_skills=router.num_skills if router is not None else 0,
      active_skills=router.active_skills if router is not None else 0,
      base=sum(leaf.size for path, leaf in found.items() if groups[path] == optimizers.BASE),
      trained={group: sum(leaf.size for path, leaf in trained.items() if groups[path] == group) for group in GROUPS},
      active=round(sum(_active(leaf, groups[path], share) for path, leaf in trained.items())))


def _active(leaf: Parameter, group: str, share: float) -> float:
  """Elements of a trained parameter that one task can use."""
  if group == optimizers.SKILLS:
    return leaf.size * share  # The first axis of a bank is the skill.
  by_task = leaf.axes[:1] == ('task',)
  return leaf.size / leaf.shape[0] if by_task else leaf.size


def _targets(net: network.Transformer, stack: str, depth: int) -> list[tuple[str, ...]]:
  """Returns for each layer the adapted projections, e.g. ('attention/query',)."""
  if net.adapter is None:
    return [()] * depth
  layers: list[list[str]] = [[] for _ in range(depth)]
  for path in filter(net.adapter.is_target, network.projection_paths(net.config)):
    of, layer, name = path.split('/', 2)
    if of == stack:
      layers[int(layer.removeprefix('layers_'))].append(name)
  return [tuple(names) for names in layers]


def _cut(net: network.Transformer, pair: Sequence[Sequence[str]]) -> network.Transformer:
  """Returns the network with one layer a stack, which adapts the named projections."""
  adapter = net.adapter
  if adapter is not None:
    paths = [re.escape(f'{stack}/layers_0/{name}') for stack, names in zip(STACKS, pair) for name in names]
    fields = {field.name: getattr(adapter, field.name) for field in dataclasses.fields(Adapter)}
    adapter = _OneLayer(**{**fields, 'targets': '|'.join(paths) or '(?!)'})  # '(?!)' matches nothing.
  config = net.config.replace(num_encoder_layers=1, num_decoder_layers=1)
  return net.clone(config=config, adapter=adapter)


def _trace(net: network.Transformer) -> dict[str, Parameter]:
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  task_ids = jax.ShapeDtypeStruct((1,), jnp.int32)

  def init(tokens, task_ids) -> Any:
    return net.init(jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False, task_ids=task_ids)

  variables = jax.eval_shape(init, tokens, task_ids)
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  return {path: Parameter(tuple(leaf.shape), tuple(axes[f'{path}_axes'].names))
          for path, leaf in traverse_util.flatten_dict(variables['params'], sep='/').items()}
