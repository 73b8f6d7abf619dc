"""The train step of a run, compiled for devices that need not be there: only shapes and shardings, no array.

It is the step that `t5x.train` compiles: made by the run's own trainer of the run's model and partitioner. The devices are
virtual ones of the CPU, or TPUs that only their compiler (`libtpu`) knows.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import math
import time
from typing import Any
from collections.abc import Iterator, Mapping

from flax import traverse_util
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh
import jax.numpy as jnp
import numpy as np
from t5x import partitioning
from t5x import utils

from cpoly_jax.plan import devices
from cpoly_jax.plan.runs import Run

CPU = 'cpu'
TPU = 'tpu'
COMPILERS = (CPU, TPU)
AXES = ('data', 'model')
PARAMETERS = 'target/'  # What names of parameters begin with.


def has_tpu_compiler() -> bool:
  """Whether the TPU's compiler is installed."""
  return importlib.util.find_spec('libtpu') is not None


def make_mesh(shape: Mapping[str, int], compiler: str = CPU, chip: devices.Device | None = None) -> Mesh:
  """Returns a mesh of devices to compile for.

  Args:
    shape: devices along `data` and `model`.
    compiler: one of COMPILERS.
    chip: with `tpu`, which TPU.

  Raises:
    ValueError: too few virtual devices, no such slice, or no compiler.
  """
  sizes = tuple(shape[axis] for axis in AXES)
  number = math.prod(sizes)
  if compiler == CPU:
    found = jax.devices('cpu')
    if len(found) < number:
      raise ValueError(f'{number} virtual devices are needed and there are {len(found)}: set '
                       f'XLA_FLAGS=--xla_force_host_platform_device_count={number} before jax starts')
    return Mesh(np.array(found[:number]).reshape(sizes), AXES)
  if chip is None or not chip.topology:
    raise ValueError('--compiler=tpu compiles for TPUs only: write --device=v5e, or --compiler=cpu')
  if not has_tpu_compiler():
    raise ValueError('--compiler=tpu needs the package libtpu: pip install libtpu, or write --compiler=cpu')
  from jax.experimental import topologies
  more = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}  # One device a chip, as in a run.
  if number == 1:
    # The smallest slice that all compilers know has several chips.
    found = topologies.get_topology_desc(devices.topology(chip, 4), 'tpu', **more).devices[:1]
    return Mesh(np.array(found).reshape(sizes), AXES)
  found = topologies.get_topology_desc(devices.topology(chip, number), 'tpu', **more).devices
  return Mesh(mesh_utils.create_device_mesh(sizes, found), AXES)


def on_mesh(partitioner: partitioning.PjitPartitioner, mesh: Mesh,
            rules: partitioning.LogicalAxisRules | None = None) -> partitioning.PjitPartitioner:
  """Returns a copy of a partitioner with this mesh, and other rules if they are given."""
  cls = type(partitioner)
  made = copy.copy(partitioner)
  shown = {'mesh': mesh} if rules is None else {'mesh': mesh, 'logical_axis_rules': tuple(rules)}
  made.__class__ = type(cls.__name__, (cls,), shown)
  if rules is not None:
    made._logical_axis_rules = tuple(rules)  # pylint: disable=protected-access
  return made


@dataclasses.dataclass(frozen=True)
class State:
  """The train state as shapes.

  Attributes:
    shapes: a train state of `jax.ShapeDtypeStruct`s, frozen parameters in the dtype that the run keeps them in.
    axes: a train state of PartitionSpecs of mesh axes.
    leaves: {name: shape and dtype} of its leaves; names of parameters begin with `target/`.
    specs: {name: PartitionSpec of mesh axes, or None for a copy on each device}.
    trainable: names of the parameters that train.
  """

  shapes: Any
  axes: Any
  leaves: Mapping[str, jax.ShapeDtypeStruct]
  specs: Mapping[str, Any]
  trainable: frozenset[str]

  @property
  def params(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves that are parameters."""
    return {name: leaf for name, leaf in self.leaves.items() if name.startswith(PARAMETERS)}


def flat(state: Any) -> dict[str, Any]:
  """Returns {name: leaf} of a train state, leaves that are None included."""
  return traverse_util.flatten_dict(state.state_dict(), sep='/')


def state_of(run: Run, partitioner: partitioning.PjitPartitioner) -> State:
  """Returns the train state that a restored checkpoint of the base becomes.

  Raises:
    ValueError: a dimension that its mesh axis does not divide, or an axis without a rule.
  """
  initializer = utils.TrainStateInitializer(
      optimizer_def=run.model.optimizer_def, init_fn=run.model.get_initial_variables,
      input_shapes={name: x.shape for name, x in run.batch.items()},
      input_types={name: x.dtype for name, x in run.batch.items()}, partitioner=partitioner)
  shapes, axes = initializer.global_train_state_shape, initializer.train_state_axes
  mask = trainable_mask(run.model.optimizer_def, shapes.params)
  shapes = shapes.replace_params(_kept(shapes.params, mask, run.frozen_dtype))
  trainable = frozenset(f'{PARAMETERS}{name}' for name, trains in traverse_util.flatten_dict(mask, sep='/').items() if trains)
  leaves = {name: leaf for name, leaf in flat(shapes).items() if hasattr(leaf, 'shape')}
  return State(shapes, axes, leaves, flat(axes), trainable)


def trainable_mask(optimizer: Any, params: Any) -> Any:
  """Returns a tree like `params` that says what trains; all of it where the optimizer does not tell."""
  if hasattr(optimizer, 'trainable_mask'):
    return optimizer.trainable_mask(params)
  return jax.tree.map(lambda _: True, params)


def _kept(params: Any, trainable: Any, dtype: Any) -> Any:
  """The parameters in the dtype that restoring gives them: frozen ones in `dtype`."""

  def keep(leaf, trains):
    if trains or dtype is None or not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))

  return jax.tree.map(keep, params, trainable)


@contextlib.contextmanager
def _rng_of(run: Run) -> Iterator[None]:
  with jax.default_prng_impl('unsafe_rbg' if run.hardware_rng else jax.config.jax_default_prng_impl):
    yield


def lower(run: Run, state: State, partitioner: partitioning.PjitPartitioner) -> jax.stages.Lowered:
  """Returns the train step of the run's trainer, traced and not compiled."""
  with _rng_of(run):
    rng = jax.random.PRNGKey(0)
    trainer = run.trainer_cls(
        model=run.model, train_state=state.shapes, partitioner=partitioner, eval_names=(), summary_dir=None,
        train_state_axes=state.axes, rng=np.asarray(rng))
    try:
      step = trainer._partitioned_train_step  # pylint: disable=protected-access  # What trainers of one's own override.
      return step.lower(state.shapes, dict(run.batch))
    finally:
      trainer.close()


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled train step.

  Attributes:
    executable: the program of one device.
    state: what it is given.
    compiler: which compiler made it.
    seconds: of tracing and compiling.
  """

  executable: jax.stages.Compiled
  state: State
  compiler: str
  seconds: float


def compile_step(run: Run, mesh: Mesh, compiler: str = CPU, rules: partitioning.LogicalAxisRules | None = None) -> Compiled:
  """Compiles the train step of a run for a mesh.

  Args:
    run: the run.
    mesh: of `make_mesh`.
    compiler: of which kind the mesh's devices are.
    rules: in place of the run's own.

  Raises:
    ValueError: a batch or a dimension that the mesh does not divide.
  """
  start = time.monotonic()
  partitioner = on_mesh(run.partitioner, mesh, rules)
  partitioner.get_data_layout(run.batch_size)
  state = state_of(run, partitioner)
  executable = lower(run, state, partitioner).compile()
  return Compiled(executable, state, compiler, time.monotonic() - start)
