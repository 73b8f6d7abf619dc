"""Runs one inference function of a model over a whole dataset, in batches of one fixed shape.

A dataset rarely divides by the batch size: the last batch is filled up with copies of its last example,
which carry the index -1 and are dropped from the result. So there is one shape, and one compilation.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import PartitionSpec
import numpy as np

from t5x import runtime

if TYPE_CHECKING:
  import tensorflow as tf

# Index of the copies that fill up the last batch.
PADDING_INDEX = -1


def _batches(dataset: tf.data.Dataset, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Yields (indices [B], {feature: [B, ...]}) from enumerated examples, padded to `batch_size`."""
  examples = dataset.as_numpy_iterator()
  while chunk := list(itertools.islice(examples, batch_size)):
    missing = batch_size - len(chunk)
    indices = np.array([i for i, _ in chunk] + [PADDING_INDEX] * missing, np.int64)
    chunk.extend(chunk[-1:] * missing)
    yield indices, {k: np.stack([example[k] for _, example in chunk]) for k in chunk[0][1]}


def _place(batch: Mapping[str, np.ndarray], partitioner: Any, layout: Any) -> dict[str, Any]:
  """Puts a global batch on the devices; every process reads all of it and keeps its own rows."""
  rows = layout.batch_size // layout.num_shards
  local = {k: v[layout.shard_id * rows:(layout.shard_id + 1) * rows] for k, v in batch.items()}
  return partitioner.shard_batch(local)


def _rows(tree: Any, as_numpy: bool) -> Any:
  """Turns each leaf [N, ...] into the list of its N rows, nested lists unless `as_numpy`."""
  return jax.tree.map(lambda x: list(x) if as_numpy else x.tolist(), tree)


def get_infer_fn(infer_step: Callable[..., Any], batch_size: int, train_state_axes: Any, partitioner: Any,
                 keep_aux_as_numpy: bool = False) -> Callable[..., Any]:
  """Wraps a step of the model into a function over datasets.

  Args:
    infer_step: fn(params, batch, [rng], [flax_mutables]) -> outputs [B, ...] or (outputs, auxiliary pytree of
      [B, ...]). `rng` and `flax_mutables` are passed where its signature has them.
    batch_size: B, a multiple of the number of data shards.
    train_state_axes: train state with a PartitionSpec per leaf.
    partitioner: compiles the step over its mesh.
    keep_aux_as_numpy: leave auxiliary rows as numpy arrays instead of lists.

  Returns:
    fn(enumerated dataset, train_state, rng=None, on_batch=None) -> [(index, output)], in the order of the dataset, or
    ([(index, output)], auxiliary pytree of lists in the same order). `on_batch(number of examples)` is called when a batch
    is done.
  """
  parameters = inspect.signature(infer_step).parameters
  layout = partitioner.get_data_layout(batch_size)

  def step(train_state, batch, rng):
    optional = {'rng': rng, 'flax_mutables': train_state.flax_mutables}
    return infer_step(train_state.params, batch, **{k: v for k, v in optional.items() if k in parameters})

  partitioned_step = partitioner.partition(
      step, in_axis_resources=(train_state_axes, partitioner.data_partition_spec, None),
      out_axis_resources=PartitionSpec())
  is_traced = False

  def infer_fn(dataset, train_state, rng=None, on_batch=None):
    if rng is None:
      rng = jax.random.PRNGKey(0)
    nonlocal is_traced
    all_indices, all_outputs = [], []

    def fetch(number):
      all_outputs[number] = jax.device_get(all_outputs[number])
      if on_batch is not None:
        on_batch(int((all_indices[number] != PADDING_INDEX).sum()))

    for number, (indices, batch) in enumerate(_batches(dataset, batch_size)):
      placed, batch_rng = _place(batch, partitioner, layout), jax.random.fold_in(rng, number)
      if not is_traced:
        runtime.forget_traces()
        is_traced = True
      outputs = partitioned_step(train_state, placed, batch_rng)
      all_indices.append(indices)
      # The copy to the host of one batch overlaps with the computation of the next.
      all_outputs.append(outputs)
      if len(all_outputs) > 1:
        fetch(number - 1)
    if not all_outputs:
      return []
    fetch(-1)
    indices = np.concatenate(all_indices)
    kept = indices != PADDING_INDEX
    outputs = jax.tree.map(lambda *x: np.concatenate(x)[kept], *all_outputs)
    if isinstance(outputs, tuple):
      values, auxiliary = outputs
      return list(zip(indices[kept].tolist(), list(values))), _rows(auxiliary, keep_aux_as_numpy)
    return list(zip(indices[kept].tolist(), list(outputs)))

  return infer_fn
