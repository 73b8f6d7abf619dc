"""A run in miniature for the tests of several processes: command line, mesh, trainer and loop are real; no TensorFlow.

Row n of the data is the number n; the loss of the linear model is the sum of x + w * x over a batch, where w starts at zero.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import signal
import time
import types

from clu import metrics as clu_metrics
from flax import struct
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np

from t5x import gin_utils
from t5x import multihost
from t5x import optimizers
from t5x import partitioning
from t5x import progress as progress_lib
from t5x import train_loop
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

BATCH = 8


@struct.dataclass
class Sum(clu_metrics.Metric):
  """A sum, under the name that the record of training reads."""

  total: jax.Array

  def merge(self, other):
    return self.replace(total=self.total + other.total)

  def compute(self):
    return self.total


def _loss(params, batch, rng):
  del rng
  loss = jnp.sum(batch['x'] + params['w'] * batch['x'])
  return loss, {'loss': Sum(total=loss)}


def _initial_state(optimizer_def):
  variables = {'params': {'w': jnp.zeros(1)}, 'params_axes': {'w_axes': flax_partitioning.AxisMetadata(('embed',))}}
  return train_state_lib.FlaxOptimTrainState.create(optimizer_def, variables)


class _Manager:
  """Saves nothing, but together: all processes must do so at the same step."""

  def __init__(self):
    self.steps = []

  def save(self, state, fns):
    del fns
    multihost.sync_global_devices(f'save {int(state.step)}')
    self.steps.append(int(state.step))

  def wait_until_finished(self):
    """There is nothing to wait for."""


class _Plan:
  """One stretch to the end."""

  def __init__(self, total_steps):
    self.total_steps = total_steps

  def next_stop(self, step):
    del step
    return self.total_steps

  def saves_at(self, step):
    return step == self.total_steps

  def evaluates_at(self, step):
    del step
    return False

  collects_at = evaluates_at


def train(model_dir: str, total_steps: int = 3, signal_name: str | None = None, signal_process: int = 0, signal_step: int = 0):
  """Trains; then writes ended_<process>.json: the last step, the steps saved, the first rows read.

  Args:
    model_dir: an empty folder.
    total_steps: steps.
    signal_name: e.g. 'SIGKILL', sent to one process by itself.
    signal_process: that process.
    signal_step: the step after which it is sent.
  """
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  layout = partitioner.get_data_layout(BATCH)
  size = BATCH // layout.num_shards
  rows = []

  def batches():
    for first in itertools.count(layout.shard_id * size, BATCH):
      x = np.arange(first, first + size, dtype=np.float32)
      if len(rows) < 2:
        rows.append(x.tolist())
      time.sleep(0.01)
      yield {'x': x}

  init = functools.partial(_initial_state, optimizers.sgd(1e-3))
  axes = partitioner.get_mesh_axes(jax.eval_shape(init))
  state = partitioner.partition(init, (), axes)()
  trainer = trainer_lib.Trainer(
      types.SimpleNamespace(loss_fn=_loss), state, partitioner, (), None, axes, jax.random.PRNGKey(0),
      learning_rate_fn=lambda step: jnp.float32(0), num_microbatches=None)
  manager = _Manager()
  progress = progress_lib.Progress(model_dir, 0, total_steps, BATCH, total_steps)
  save_cfg = types.SimpleNamespace(state_transformation_fns=())
  loop = train_loop.TrainLoop(trainer, _Plan(total_steps), manager, save_cfg, types.SimpleNamespace(concurrent=True), progress,
                              axes, None)

  def on_step(step, metrics):
    progress(step, metrics)
    if signal_name and step == signal_step and jax.process_index() == signal_process:
      os.kill(os.getpid(), getattr(signal, signal_name))

  trainer.on_step = on_step
  with trainer:
    loop.run(batches(), 0)
  progress.close()
  ended = {'step': loop.step, 'saved': manager.steps, 'rows': rows}
  pathlib.Path(model_dir, f'ended_{jax.process_index()}.json').write_text(json.dumps(ended), encoding='utf-8')


if __name__ == '__main__':
  gin_utils.run_entry_point(train)
