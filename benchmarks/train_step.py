"""One train step of a system, compiled and timed: what the benchmarks of skills and routing share.

Notation: B batch, Li / Lt input and target length, T tasks.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import time
from typing import Any
from collections.abc import Mapping, Sequence

from absl import flags
from flax import linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import decoding
from t5x import train_state
from t5x import trainer

from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import task_rows
from cpoly_jax.training.models import CPolyModel

VOCABULARY = seqio.ByteVocabulary()

# What all benchmarks of the train step let one choose.
BATCH = flags.DEFINE_integer('batch', 16, 'Examples in a batch.')
INPUTS = flags.DEFINE_integer('inputs', 128, 'Input tokens of an example.')
TARGETS = flags.DEFINE_integer('targets', 32, 'Target tokens of an example.')
ROUNDS = flags.DEFINE_integer('rounds', 7, 'Steps of each that count.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')


def shape() -> tuple[int, int, int]:
  """Returns B, Li and Lt as the flags have them."""
  return BATCH.value, INPUTS.value, TARGETS.value


def write_json(figures: Any) -> None:
  """Writes figures to the file of --json, if one is given."""
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')


@dataclasses.dataclass
class Configured:
  """What the gin files build.

  Attributes:
    module: the network.
    optimizer: its optimizer.
  """

  module: nn.Module
  optimizer: Any


def configured(files: Sequence[str], bindings: Sequence[str]) -> Configured:
  """Returns what gin files and bindings build; whatever was configured before is forgotten."""
  gin.clear_config()
  gin.parse_config_files_and_bindings([*files, 'benchmarks/train_step.gin'], list(bindings), finalize_config=False)
  return gin.get_configurable(Configured)()


@dataclasses.dataclass
class Step:
  """A compiled train step, its state and its batch."""

  name: str
  compiled: Any
  state: Any
  batch: Mapping[str, jax.Array]
  rng: jax.Array
  seconds: list[float] = dataclasses.field(default_factory=list)

  @property
  def cost(self) -> Mapping[str, float]:
    """XLA's count of a step: `flops`, `bytes accessed`."""
    return self.compiled.cost_analysis()

  @property
  def trainable(self) -> int:
    """Parameters that train."""
    mask = self.state.trainable_mask
    return sum(x.size for x, on in zip(jax.tree.leaves(self.state.params), jax.tree.leaves(mask)) if on)

  def run(self, steps: int) -> None:
    """Makes steps and notes the seconds of each."""
    for _ in range(steps):
      start = time.perf_counter()
      self.state, _ = self.compiled(self.state, self.batch, jnp.float32(0), self.rng)
      jax.block_until_ready(self.state)
      self.seconds.append(time.perf_counter() - start)

  @property
  def median(self) -> float:
    """Median seconds of a step."""
    return statistics.median(self.seconds)


def batch_of(batch: int, inputs: int, targets: int, num_tasks: int, vocab_size: int = 256) -> dict[str, np.ndarray]:
  """Returns a batch of random tokens without padding, as T5X's models take it; tasks are spread over all rows."""
  rng = np.random.default_rng(0)
  tokens = lambda length: rng.integers(3, vocab_size, size=(batch, length), dtype=np.int32)
  target = tokens(targets)
  return {'encoder_input_tokens': tokens(inputs), 'decoder_target_tokens': target,
          'decoder_input_tokens': np.pad(target, ((0, 0), (1, 0)))[:, :-1],
          'decoder_loss_weights': np.ones_like(target),
          'task_id': np.linspace(0, num_tasks - 1, batch).astype(np.int32)[:, None]}


def compiled(name: str, parts: Configured, data: Mapping[str, np.ndarray], num_tasks: int, *, rows: bool = False) -> Step:
  """Compiles the train step that `t5x.trainer` makes of a network and an optimizer.

  Args:
    name: what the step is called in tables.
    parts: the network and the optimizer.
    data: a batch, as of `batch_of`.
    num_tasks: T.
    rows: touch only the rows of the batch's tasks (`cpoly_jax.training.task_rows`).
  """
  model = CPolyModel(parts.module, VOCABULARY, VOCABULARY, parts.optimizer, decode_fn=decoding.temperature_sample,
                     task_index=TaskIndex(tuple(f'task{i}' for i in range(num_tasks))))
  shapes = {key: value.shape for key, value in data.items()}
  initial = lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)
  axes = jax.eval_shape(initial)
  params = jax.jit(lambda: initial()['params'])()
  state = train_state.FlaxOptimTrainState.create(model.optimizer_def, {**axes, 'params': params})
  train = task_rows.train_with_rows if rows else trainer.train_with_lr

  def step(state, batch, rate, rng):
    return train(state, batch, rate, rng, model, None)

  rng = jax.random.PRNGKey(1)
  program = jax.jit(step, donate_argnums=0).lower(state, data, jnp.float32(0), rng).compile()
  return Step(name, program, state, {key: jnp.asarray(value) for key, value in data.items()}, rng)


def alternate(steps: Sequence[Step], rounds: int, of_each: int = 1) -> None:
  """Runs the steps in turns, so that whatever else the machine does falls on all of them; the first of each does not count."""
  for step in steps:
    step.run(1)
    step.seconds.clear()
  for _ in range(rounds):
    for step in steps:
      step.run(of_each)


def matmul_rate(size: int = 1024, repeats: int = 10) -> float:
  """Returns this machine's float32 FLOP/s in a product of two square matrices, the best of some."""
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, x))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(product(x, x))
    times.append(time.perf_counter() - start)
  return 2 * size ** 3 / min(times)
