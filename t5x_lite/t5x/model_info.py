"""What a model consists of and what its train state costs, as a file and as one line."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
import numpy as np

from t5x import files


def _flat(state_dict: Any) -> dict[str, Any]:
  """Returns {path: leaf}; None leaves stay."""
  return flax.traverse_util.flatten_dict(state_dict, sep='/')


def _variable_line(name: str, leaf: Any, logical_axes: Any, mesh_axes: Any) -> str:
  """One variable: its size, its shape with the names of its axes, and how it is split over the mesh."""
  if leaf is None:
    return f'Variable {name:<80} None'
  sizes = tuple(leaf.shape)
  if logical_axes:
    shape = ', '.join(f'{axis}={size}' for axis, size in zip(logical_axes, sizes))
    shape = f'({shape})'
  else:
    shape = str(sizes)
  spec = tuple(mesh_axes) if mesh_axes else None
  return (f'Variable {name:<80} size {int(np.prod(sizes)):<12} shape {shape:<40} '
          f'partition spec {spec}')


def log_model_info(log_file: str | None, full_train_state: Any, partitioner: Any) -> None:
  """Writes every parameter and every leaf of the optimizer state, in alphabetical order.

  Args:
    log_file: where to write; None: nowhere.
    full_train_state: train state of arrays or of shapes.
    partitioner: knows the logical and the mesh axes of each leaf.
  """
  if not log_file or jax.process_index():
    return
  state = full_train_state.state_dict()
  logical = partitioner.get_logical_axes(full_train_state).state_dict()
  mesh = partitioner.get_mesh_axes(full_train_state).state_dict()

  def lines(part):
    leaves, logical_axes, mesh_axes = _flat(state[part]), _flat(logical[part]), _flat(mesh[part])
    return [_variable_line(k, leaves[k], logical_axes.get(k), mesh_axes.get(k)) for k in sorted(leaves)]

  total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state['target']))
  text = lines('target') + [f'Total number of parameters: {total}', ''] + lines('state')
  files.write_text(log_file, '\n'.join(text) + '\n')


def parameter_counts(train_state: Any) -> tuple[int, int]:
  """Returns (all, trainable) numbers of parameters; an inference state trains none."""
  count = lambda leaves: sum(int(np.prod(x.shape)) for x in leaves)
  leaves = jax.tree.leaves(train_state.params)
  mask = getattr(train_state, 'trainable_mask', None)
  if mask is None:
    return count(leaves), 0
  return count(leaves), count(x for x, trains in zip(leaves, jax.tree.leaves(mask)) if trains)


def state_bytes(tree: Any) -> int:
  """Returns the bytes of all array leaves, one copy of each however it is sharded."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, 'dtype'))


def flops(compiled: Any) -> float | None:
  """Returns what XLA counts for one call of a compiled function, None where it does not say."""
  analysis = getattr(compiled, 'cost_analysis', lambda: None)()
  if isinstance(analysis, (list, tuple)):
    analysis = analysis[0] if analysis else None
  return None if not analysis else analysis.get('flops')


def summary_line(train_state: Any, compiled_step: Any = None) -> str:
  """Returns one line: parameters, how many train, what the train state weighs, FLOPs of a step.

  Args:
    train_state: the state on the devices; its bytes are measured from its arrays.
    compiled_step: the compiled train step, if there is one.
  """
  total, trainable = parameter_counts(train_state)
  parameters = state_bytes(train_state.params)
  size = lambda n: f'{n / 2**30:.2f} GiB' if n >= 2**30 else f'{n / 2**20:.2f} MiB'
  everything = parameters + state_bytes(train_state.param_states)
  text = (f'model: {total:,} parameters, {trainable:,} trainable ({trainable / max(total, 1):.2%}); train state '
          f'{size(everything)}: parameters {size(parameters)}, optimizer {size(everything - parameters)}')
  count = flops(compiled_step)
  return text if count is None else f'{text}; {count / 1e9:.3g} GFLOP per step'
