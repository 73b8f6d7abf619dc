"""Where arrays live: a mesh with axes `data` and `model`, and rules from axis names to it.

Arrays carry logical axis names (`embed`, `mlp`, ...). Rules say over which mesh axis each name is
split, so that the same model runs on one device or on many; `jax.jit` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math
from typing import Any

from flax.linen import partitioning as flax_partitioning
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from t5x import state_utils
from t5x import train_state as train_state_lib

AxisNames = PartitionSpec  # logical axis names, one for each dimension
LogicalAxisRules = Sequence[tuple[str, str | None]]
TrainState = train_state_lib.TrainState
PyTree = Any


@dataclasses.dataclass
class DataLayout:
  """The part of each batch that this process reads.

  Attributes:
    batch_size: number of examples of the global batch.
    shard_id: which part this process reads.
    num_shards: number of parts.
    is_first_host_in_replica_set: whether no process with a lower index reads the same part.
  """

  batch_size: int
  shard_id: int
  num_shards: int
  is_first_host_in_replica_set: bool


def standard_logical_axis_rules(
  activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1, additional_rules: LogicalAxisRules | None = None
) -> LogicalAxisRules:
  """Returns T5X's rules.

  Args:
    activation_partitioning_dims: 2 splits activations along `embed` over `model` as well.
    parameter_partitioning_dims: 2 splits parameters along `embed` over `data` as well.
    additional_rules: appended; for a name with several rules the first one that is free is used.
  """
  embed = {
    (1, 1): [('embed', None)],
    (2, 1): [('embed', 'model')],
    (1, 2): [('embed', 'data')],
    (2, 2): [('embed', 'model'), ('embed', 'data')],
  }.get((activation_partitioning_dims, parameter_partitioning_dims))
  if embed is None:
    raise ValueError(
      'activation_partitioning_dims and parameter_partitioning_dims must be 1 or 2, got '
      f'{activation_partitioning_dims} and {parameter_partitioning_dims}.'
    )
  split = [(name, 'model') for name in ('vocab', 'mlp', 'heads', 'joined_kv')]
  whole = [(name, None) for name in ('kv', 'relpos_buckets', 'abspos_buckets', 'length', 'layers', 'stack', 'mlp_activations')]
  return (('batch', 'data'), *split, *embed, *whole, *(additional_rules or ()))


def default_mesh(
  num_partitions: int | None,
  model_parallel_submesh: Sequence[int] | None = None,
  backend: str | None = None,
  ici_mesh_shape: Sequence[int] | None = None,
  dcn_mesh_shape: Sequence[int] | None = None,
) -> Mesh:
  """Builds a mesh over all devices with the axes (data, model).

  Args:
    num_partitions: size of the model axis.
    model_parallel_submesh: chips of one model copy along each dimension, in place of
      `num_partitions`.
    backend: e.g. 'cpu'; None is jax's default.
    ici_mesh_shape: (data, model) within a slice, in place of `num_partitions`.
    dcn_mesh_shape: (data, model) across slices.

  Returns:
    The mesh; with more than one slice, neighbours along `model` are neighbours in the network.

  Raises:
    ValueError: where the sizes do not fit the number of devices.
  """
  devices = jax.devices(backend)
  if ici_mesh_shape is not None:
    shape = tuple(ici_mesh_shape)
    across = tuple(dcn_mesh_shape or (1,) * len(shape))
    if len(shape) != 2 or len(across) != 2 or math.prod(shape + across) != len(devices):
      raise ValueError(
        f'ici_mesh_shape {shape} and dcn_mesh_shape {across} must be (data, model) pairs whose '
        f'product is the number of devices, {len(devices)}.'
      )
    if math.prod(across) > 1:
      return Mesh(mesh_utils.create_hybrid_device_mesh(shape, across, devices), ('data', 'model'))
  else:
    if dcn_mesh_shape is not None:
      raise ValueError('dcn_mesh_shape needs ici_mesh_shape; give both, or num_partitions alone.')
    if model_parallel_submesh is not None:
      num_partitions = math.prod(model_parallel_submesh)
    if not num_partitions or num_partitions < 1 or len(devices) % num_partitions:
      divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
      raise ValueError(f'num_partitions={num_partitions} does not divide the {len(devices)} devices; use one of {divisors}.')
    shape = (len(devices) // num_partitions, num_partitions)
  return Mesh(mesh_utils.create_device_mesh(shape, devices), ('data', 'model'))


def with_sharding_constraint(x: PyTree, axis_resources: PartitionSpec) -> PyTree:
  """Asks for a layout of `x` over the current mesh; does nothing without one."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, axis_resources)


class PjittedFnWithContext:
  """A jitted function that is traced, lowered and called under its mesh and axis rules."""

  def __init__(self, jitted_fn: Any, mesh: Mesh, logical_axis_rules: LogicalAxisRules = ()):
    self._jitted_fn = jitted_fn
    self._mesh = mesh
    self._rules = logical_axis_rules

  @contextlib.contextmanager
  def _context(self) -> Iterator[None]:
    with jax.set_mesh(self._mesh), flax_partitioning.axis_rules(self._rules):
      yield

  def __call__(self, *args):
    with self._context():
      return self._jitted_fn(*args)

  def lower(self, *args):
    """Returns the `jax.stages.Lowered` for these arguments (arrays or shapes)."""
    with self._context():
      return self._jitted_fn.lower(*args)


def _is_axes(x: Any) -> bool:
  return x is None or isinstance(x, (PartitionSpec, jax.sharding.Sharding))


class PjitPartitioner:
  """Decides by rules from axis names to mesh axes where arrays live, and compiles functions with `jax.jit` accordingly."""

  def __init__(
    self,
    num_partitions: int | None = None,
    model_parallel_submesh: Sequence[int] | None = None,
    params_on_devices: bool = True,
    backend: str | None = None,
    ici_mesh_shape: Sequence[int] | None = None,
    dcn_mesh_shape: Sequence[int] | None = None,
    logical_axis_rules: LogicalAxisRules | None = None,
  ):
    """Describes mesh and rules.

    Args:
      num_partitions: number of devices over which one copy of the model is split.
      model_parallel_submesh: the same as chips along each dimension.
      params_on_devices: must be True; here for T5X's interface.
      backend: e.g. 'cpu'; None is jax's default.
      ici_mesh_shape: (data, model) within a slice, in place of `num_partitions`.
      dcn_mesh_shape: (data, model) across slices.
      logical_axis_rules: [(axis name, mesh axis or None)]; None means
        `standard_logical_axis_rules()`.

    Raises:
      ValueError: for a rule with an unknown mesh axis, or without any size of the model axis.
    """
    given = [num_partitions, model_parallel_submesh, ici_mesh_shape]
    if all(value is None for value in given):
      raise ValueError('PjitPartitioner needs num_partitions (1: data parallel) or model_parallel_submesh.')
    if (
      num_partitions is not None
      and model_parallel_submesh is not None
      and (math.prod(model_parallel_submesh) != num_partitions)
    ):
      raise ValueError(
        f'num_partitions={num_partitions} contradicts model_parallel_submesh={tuple(model_parallel_submesh)}; give one of them.'
      )
    self._mesh_args = (num_partitions, model_parallel_submesh, backend, ici_mesh_shape, dcn_mesh_shape)
    self._mesh: Mesh | None = None
    if not params_on_devices:
      raise ValueError('params_on_devices=False is not offered: parameters are always on the devices')
    self.params_on_devices = params_on_devices
    rules = standard_logical_axis_rules() if logical_axis_rules is None else logical_axis_rules
    self._logical_axis_rules = tuple((name, axis) for name, axis in rules)
    for name, axis in self._logical_axis_rules:
      if axis not in (None, 'data', 'model'):
        raise ValueError(f"logical_axis_rules: ({name!r}, {axis!r}) must map to 'data', 'model' or None.")

  @property
  def logical_axis_rules(self) -> LogicalAxisRules:
    """The rules under which functions run."""
    return self._logical_axis_rules

  @property
  def mesh(self) -> Mesh:
    """The mesh; devices are looked up at the first use."""
    if self._mesh is None:
      self._mesh = default_mesh(*self._mesh_args)
    return self._mesh

  @property
  def data_partition_spec(self) -> PartitionSpec:
    """How the first dimension of a batch is split."""
    return PartitionSpec('data')

  @property
  def data_mesh_size(self) -> int:
    """Size of the data axis of the mesh."""
    return self.mesh.shape['data']

  def get_data_layout(self, batch_size: int | None = None, host_index: int | None = None) -> DataLayout:
    """Returns what a process reads of each batch.

    Args:
      batch_size: global batch size; None means the smallest possible one.
      host_index: the process; None means this one.

    Raises:
      ValueError: where the batch cannot be split evenly over the data axis.
    """
    size = self.data_mesh_size
    batch_size = size if batch_size is None else batch_size
    if batch_size < 1 or batch_size % size:
      near = max(size, round(batch_size / size) * size)
      raise ValueError(
        f'Batch size {batch_size} is not divisible by the data axis of the mesh, {size} devices; '
        f'use a multiple of {size}, e.g. {near}.'
      )
    # Processes that hold devices with the same data coordinates read the same part.
    coordinates: dict[int, set[int]] = {}
    for row, devices in enumerate(self.mesh.devices):
      for device in devices.flat:
        coordinates.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in coordinates.values()})
    if sum(map(len, parts)) != size or len({len(part) for part in parts}) != 1:
      raise ValueError(
        f'The processes do not hold equal parts of the data axis: {parts}; choose num_partitions '
        'so that it divides the devices of a process or is a multiple of them.'
      )
    host = jax.process_index() if host_index is None else host_index
    part = tuple(sorted(coordinates[host]))
    first = min(p for p, rows in coordinates.items() if tuple(sorted(rows)) == part)
    return DataLayout(batch_size, parts.index(part), len(parts), host == first)

  def shard_batch(self, batch: PyTree) -> PyTree:
    """Turns what this process has read into global arrays, split over the data axis.

    Args:
      batch: arrays [local batch, ...]; jax arrays are returned as they are.

    Returns:
      The same tree of jax arrays [batch, ...].
    """
    sharding = NamedSharding(self.mesh, self.data_partition_spec)
    return jax.tree.map(
      lambda x: x if isinstance(x, jax.Array) else (jax.make_array_from_process_local_data(sharding, np.asarray(x))), batch
    )

  def get_logical_axes(self, train_state: TrainState) -> TrainState:
    """Returns the train state with a PartitionSpec of axis names, or None, for each array."""
    return train_state.as_logical_axes()

  def partition(
    self,
    fn: Callable[..., Any],
    in_axis_resources: PyTree,
    out_axis_resources: PyTree,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> PjittedFnWithContext:
    """Returns `fn` compiled for the mesh.

    Args:
      fn: a function of arrays.
      in_axis_resources: for each argument PartitionSpecs of mesh axes, as a prefix of its tree;
        None means that every device has a copy.
      out_axis_resources: the same for the result.
      static_argnums: arguments that are no arrays; they have no entry in `in_axis_resources`.
      donate_argnums: arguments whose memory may be used for the result.
    """
    jitted = jax.jit(
      fn,
      in_shardings=self.shardings(in_axis_resources),
      out_shardings=self.shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return PjittedFnWithContext(jitted, self.mesh, self.logical_axis_rules)

  def compile(self, partitioned_fn: PjittedFnWithContext, *args) -> Any:
    """Returns the executable for these arguments (arrays or shapes), with `cost_analysis()`."""
    return partitioned_fn.lower(*args).compile()

  def shardings(self, axis_resources: PyTree) -> PyTree:
    """Returns NamedShardings for PartitionSpecs of mesh axes; None means a copy on every device."""
    return jax.tree.map(
      lambda spec: (
        spec if isinstance(spec, jax.sharding.Sharding) else NamedSharding(self.mesh, PartitionSpec() if spec is None else spec)
      ),
      axis_resources,
      is_leaf=_is_axes,
    )

  def move_params_to_devices(self, train_state: TrainState, train_state_axes: TrainState) -> TrainState:
    """Returns the train state laid out over the mesh as its PartitionSpecs say."""
    return jax.device_put(train_state, self.shardings(train_state_axes))

  def get_mesh_axes(self, train_state: TrainState) -> TrainState:
    """Returns PartitionSpecs of mesh axes for the arrays or shapes of `train_state`.

    Raises:
      ValueError: for an axis name without a rule, or a dimension its mesh axis does not divide.
    """
    logical_axes = self.get_logical_axes(train_state)
    known = {name for name, _ in self._logical_axis_rules} | {None}
    for name, axes in state_utils.flatten_state_dict(logical_axes.state_dict()).items():
      unknown = [axis for axis in axes or () if axis not in known]
      if unknown:
        raise ValueError(
          f'{name}: no rule for the axis {unknown[0]!r}; add e.g. ({unknown[0]!r}, None) to the '
          'additional_rules of standard_logical_axis_rules.'
        )

    def to_mesh_axes(axes):
      if axes is None:
        return None
      return flax_partitioning.logical_to_mesh_axes(axes, self._logical_axis_rules)

    mesh_axes = jax.tree.map(to_mesh_axes, logical_axes, is_leaf=_is_axes)
    self._check_divisible(train_state, logical_axes, mesh_axes)
    return mesh_axes

  def _check_divisible(self, train_state: TrainState, logical_axes: TrainState, mesh_axes: TrainState) -> None:
    shapes, names, specs = (
      state_utils.flatten_state_dict(state.state_dict()) for state in (train_state, logical_axes, mesh_axes)
    )
    for name, spec in specs.items():
      for dim, mesh_axis in enumerate(spec or ()):
        size = shapes[name].shape[dim]
        parts = 1 if mesh_axis is None else self.mesh.shape[mesh_axis]
        if size % parts:
          raise ValueError(
            f'{name}: dimension {dim} ({names[name][dim]!r}, size {size}) is not divisible by '
            f'the {parts} devices of mesh axis {mesh_axis!r}: make it {-(-size // parts) * parts}, change num_partitions, or '
            'map the axis to None in logical_axis_rules.'
          )


# The names by which extensions know the interface of a partitioner.
BasePartitioner = BasePjitPartitioner = PjitPartitioner
