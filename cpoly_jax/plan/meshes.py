"""The meshes that a run can use, and an estimate of each: how a step of a T5 with a frozen base is split, by hand.

Notation: B batch, Li / Lt input and target length, D width, d and m devices along `data` and `model`.

An estimate needs no compiler. Its state is exact; its activations are what the traced loss keeps for its backward pass, split
by shape; its time counts the products, the weights and the sums over devices that tensor parallelism and sharded parameters
imply. What XLA makes of it differs: the mesh that is chosen is compiled.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from collections.abc import Iterator, Mapping, Sequence

from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
import jax
from jax.sharding import PartitionSpec

from cpoly_jax.plan import memory, roofline
from cpoly_jax.plan.devices import Device
from cpoly_jax.plan.runs import Run
from cpoly_jax.plan.train_step import AXES, PARAMETERS, State
from cpoly_jax.systems import costs
from cpoly_jax.t5 import flops
from cpoly_jax.training import optimizers, partitioning

# Skills split over `data`, or `model` where they cannot be; tables of tasks and inputs of skills over the axis that is left.
SHARDED_SKILLS = (('skill', 'data'), ('skill', 'model'), ('task', 'data'), ('task', 'model'), ('embed', 'model'))


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the rules of what is split over it.

  Attributes:
    data: d.
    model: m.
    dims: PARAMETER_PARTITIONING_DIMS; 2 splits parameters over `data`, too.
    axis_rules: ADDITIONAL_AXIS_RULES.
  """

  data: int
  model: int
  dims: int = 1
  axis_rules: tuple[tuple[str, str | None], ...] = ()

  @property
  def mesh(self) -> dict[str, int]:
    """Sizes of the mesh axes."""
    return dict(zip(AXES, (self.data, self.model)))

  @property
  def rules(self) -> Sequence[tuple[str, str | None]]:
    """Rules for a partitioner."""
    return partitioning.logical_axis_rules(parameter_partitioning_dims=self.dims, additional_rules=self.axis_rules)

  @property
  def gin(self) -> str:
    """The bindings that give a run this layout."""
    text = f'--gin.NUM_PARTITIONS={self.model} --gin.PARAMETER_PARTITIONING_DIMS={self.dims}'
    return text + (f' --gin.ADDITIONAL_AXIS_RULES="{self.axis_rules}"' if self.axis_rules else '')


@dataclasses.dataclass(frozen=True)
class Costs:
  """What does not depend on the mesh.

  Attributes:
    flops: of a step, by hand.
    kept: [(shape, dtype)] of the activations that the backward pass needs, of a whole microbatch.
    logical: {name: logical axes} of the train state.
    gathers: how often a step reads the weights: forward, backward.
  """

  flops: float
  kept: Sequence[jax.ShapeDtypeStruct]
  logical: Mapping[str, Any]
  gathers: int = 2


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a layout needs.

  Attributes:
    layout: the mesh and its rules.
    state: bytes of the train state on a device.
    activations: bytes of what a device keeps for the backward pass.
    working: bytes of what it needs for a moment: gradients, gathered weights, logits.
    work: what a device does in a step.
  """

  layout: Layout
  state: memory.StateBytes
  activations: float
  working: float
  work: roofline.Work

  @property
  def bytes(self) -> float:
    """Memory of a device."""
    return self.state.kept + self.activations + self.working


def hand_flops(run: Run) -> float:
  """Returns the FLOPs of a step by hand: base, and three times the adapters' forward pass; 0 for a network of another kind."""
  net = run.model.module
  if not hasattr(net, 'adapter') or not hasattr(net, 'config'):
    return 0.
  sizes = (run.batch_size, run.length('encoder_input_tokens'), run.length('decoder_target_tokens'))
  return flops.frozen_step(net.config, *sizes) + 3 * costs.adapter_forward(net, *sizes)


def costs_of(run: Run, state: State, logical: Mapping[str, Any]) -> Costs:
  """Returns what estimates of all meshes share.

  Args:
    run: the run.
    state: its state on any mesh.
    logical: {name: its logical axes}.
  """
  return Costs(hand_flops(run), kept_activations(run, state), logical)


def kept_activations(run: Run, state: State) -> list[jax.ShapeDtypeStruct]:
  """Returns the arrays by example that the gradient of the traced loss keeps from its forward pass, of one microbatch."""
  params, tree = jax.tree.flatten(state.shapes.params)
  mask = [f'{PARAMETERS}{name}' in state.trainable
          for name in traverse_util.flatten_dict(tree.unflatten(range(len(params))), sep='/')]
  size = max(1, run.batch_size // run.microbatches)
  batch = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in run.batch.items()}

  def backward(trained, frozen, batch):
    def loss(trained):
      left, right = iter(trained), iter(frozen)
      merged = tree.unflatten([next(left) if trains else next(right) for trains in mask])
      return run.model.loss_fn(merged, batch, jax.random.PRNGKey(0))[0]

    return jax.vjp(loss, trained)[1]

  split = lambda wanted: [leaf for leaf, trains in zip(params, mask) if trains == wanted]
  found = jax.tree.leaves(jax.eval_shape(backward, split(True), split(False), batch))
  # Layers that are scanned come before the examples.
  return [leaf for leaf in found if leaf.ndim > 1 and size in leaf.shape[:2]]


def legal(run: Run, state: State, logical: Mapping[str, Any], number: int) -> Iterator[Layout]:
  """Yields the layouts of a number of devices that divide the batch, the heads and every dimension they split."""
  heads = getattr(getattr(run.model.module, 'config', None), 'num_heads', None)
  for model in (m for m in range(1, number + 1) if number % m == 0):
    data = number // model
    if run.batch_size % (data * run.microbatches) or (heads is not None and heads % model):
      continue
    for dims in (1, 2) if data > 1 else (1,):
      for rules in dict.fromkeys((run.axis_rules, SHARDED_SKILLS)):
        layout = Layout(data, model, dims, rules)
        if _divides(state, mesh_axes(logical, layout), layout.mesh):
          yield layout


def mesh_axes(logical: Mapping[str, Any], layout: Layout) -> dict[str, PartitionSpec | None]:
  """Returns the mesh axes of each leaf of the train state."""
  rules = layout.rules
  known: dict[tuple[str, ...], PartitionSpec] = {(): PartitionSpec()}
  for axes in {tuple(axes) for axes in logical.values() if axes}:
    known[axes] = flax_partitioning.logical_to_mesh_axes(axes, rules)
  return {name: None if axes is None else known[tuple(axes)] for name, axes in logical.items()}


def _divides(state: State, specs: Mapping[str, PartitionSpec | None], mesh: Mapping[str, int]) -> bool:
  return all(size % (mesh[axis] if axis else 1) == 0
             for name, leaf in state.leaves.items() for size, axis in zip(leaf.shape, specs.get(name) or ()))


def estimate(run: Run, state: State, shared: Costs, layout: Layout) -> Estimate:
  """Returns what a layout needs."""
  specs = mesh_axes(shared.logical, layout)
  held = memory.state_bytes(state, layout.mesh, specs)
  # What weights are when they are used: not split over `data`.
  used = {'data': 1, 'model': layout.model}
  whole = memory.state_bytes(state, used, specs)
  weights = whole.frozen + whole.trainable
  gathered = weights - held.frozen - held.trainable
  kept = [_activation_bytes(run, leaf, layout) for leaf in shared.kept]
  largest = max(memory.leaf_bytes(leaf, specs[name], used) for name, leaf in state.params.items())
  working = held.gradients + 3 * max(kept, default=0) + min(gathered, 4 * largest)
  moved = shared.gathers * weights + 2 * (held.trainable + held.optimizer) + 2 * run.microbatches * sum(kept)
  sent = _sums(run, layout) + shared.gathers * gathered + _gradients(layout, held, whole)
  work = roofline.Work(shared.flops / (layout.data * layout.model), moved, sent)
  return Estimate(layout, held, sum(kept), working, work)


def _activation_bytes(run: Run, leaf: jax.ShapeDtypeStruct, layout: Layout) -> float:
  """Bytes on a device of an array by example: split over `data`, and over `model` if one of its dimensions is."""
  config = getattr(run.model.module, 'config', None)
  split = {getattr(config, name, None) for name in ('num_heads', 'mlp_dim', 'vocab_size')}
  parts = layout.data * (layout.model if split & set(leaf.shape[1:]) else 1)
  return math.prod(leaf.shape) * leaf.dtype.itemsize / parts


def _sums(run: Run, layout: Layout) -> float:
  """Bytes that a device sends for the sums over `model` of a step: after attention and MLP, and of their gradients."""
  config = getattr(run.model.module, 'config', None)
  if layout.model == 1 or config is None:
    return 0.
  examples = run.batch_size / layout.data
  inputs, targets = run.length('encoder_input_tokens'), run.length('decoder_target_tokens')
  # Twice: forward and backward. A decoder layer also sends back gradients of the encoded inputs; and embeddings, logits.
  positions = 2 * (2 * config.num_encoder_layers * inputs + 3 * config.num_decoder_layers * targets)
  positions += config.num_decoder_layers * inputs + inputs + 2 * targets
  size = positions * examples * config.emb_dim * jax.numpy.dtype(config.dtype).itemsize
  return 2 * size * (layout.model - 1) / layout.model


def _gradients(layout: Layout, held: memory.StateBytes, whole: memory.StateBytes) -> float:
  """Bytes that a device sends to sum the gradients over `data`: once where they are split over it, twice where not."""
  if layout.data == 1:
    return 0.
  once = (whole.gradients - held.gradients) * layout.data / (layout.data - 1)
  return (once + 2 * max(0., whole.gradients - once)) * (layout.data - 1) / layout.data


def rank(estimates: Sequence[Estimate], device: Device, mfu: float = roofline.MFU) -> list[Estimate]:
  """Returns the estimates, best first: those that fit the device, then the fastest, then the smallest."""
  key = lambda found: (found.bytes > device.memory, round(found.work.likely(device, mfu), 4), found.bytes)
  return sorted(estimates, key=key)


def group_of(path: str) -> str:
  """Returns `base`, `skills` or `routing` for a parameter's path."""
  group = optimizers.group_of(path)
  return {optimizers.FROZEN: optimizers.SKILLS, optimizers.CLOCK: optimizers.ROUTING}.get(group, group)
