"""How long the train step of a large model takes to compile, unrolled and with scanned layers; no weights are made.

    python -m benchmarks.compile_time                                    # T5 1.1 xl on 8 virtual devices
    python -m benchmarks.compile_time --model=t5_1_1/xxl --json=compile.json
    python -m benchmarks.compile_time --variants=unrolled,scanned,scanned+full

The step is that of a run: C-Poly's optimizer and the partitioner of t5x, for abstract shapes with the base in bfloat16. The
compilation cache is off. Besides the seconds there is what XLA says of each device's memory.
"""

from __future__ import annotations

import dataclasses
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from t5x import decoding
from t5x import partitioning
from t5x import trainer
from t5x import utils

from benchmarks import train_step
from cpoly_jax.systems import configured
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import partitioning as rules
from cpoly_jax.training.models import CPolyModel
from cpoly_jax.training.optimizers import BASE, parameter_groups

_SYSTEM = flags.DEFINE_string('system', 'cpoly', 'A file of gin_configs/systems, without .gin.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/xl', 'A file of gin_configs/models, without .gin.')
_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_DEVICES = flags.DEFINE_integer('devices', 8, 'Virtual devices.')
_PARTITIONS = flags.DEFINE_integer('num_partitions', 4, 'Devices that share one copy of the model.')
_VARIANTS = flags.DEFINE_list('variants', ['unrolled', 'scanned'], '`unrolled` or `scanned`, and after a + the REMAT_POLICY.')
_BINDINGS = flags.DEFINE_multi_string('gin', [], 'More gin bindings, e.g. NUM_ENCODER_LAYERS=4.')


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What compiling a step cost.

  Attributes:
    lowering: seconds until XLA has the program.
    compiling: seconds of XLA.
    cpu: seconds of all cores for both, on which other processes have less influence.
    arguments: bytes of a device's state and batch.
    temporary: bytes of a device's values between.
    instructions: of the compiled program.
    program: its text.
  """

  lowering: float
  compiling: float
  cpu: float
  arguments: int
  temporary: int
  instructions: int
  program: str


def step_of(made: configured.Configured, partitioner: partitioning.PjitPartitioner, shape: tuple[int, int, int]):
  """Returns the partitioned train step of a run and the shapes of its state and its batch (B, Li, Lt)."""
  batch = train_step.batch_of(*shape, made.num_tasks)
  model = CPolyModel(made.transformer, train_step.VOCABULARY, train_step.VOCABULARY, made.optimizer,
                     decode_fn=decoding.temperature_sample,
                     task_index=TaskIndex(tuple(f'task{i}' for i in range(made.num_tasks))))
  initializer = utils.TrainStateInitializer(
      model.optimizer_def, model.get_initial_variables, {name: x.shape for name, x in batch.items()}, partitioner,
      {name: x.dtype for name, x in batch.items()})
  state, axes = initializer.global_train_state_shape, initializer.train_state_axes
  # As a run that restores its base with BASE_DTYPE = 'bfloat16'.
  state = state.replace_params(jax.tree.map(
      lambda x, group: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) if group == BASE else x, state.params,
      parameter_groups(state.params)))
  made_trainer = trainer.Trainer(model, state, partitioner, [], None, axes, jax.random.PRNGKey(0),
                                 learning_rate_fn=lambda step: jnp.float32(0), num_microbatches=None)
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
  return made_trainer._partitioned_train_step, (state, shapes)  # pylint: disable=protected-access


def compile_step(step, arguments) -> Compiled:
  """Lowers and compiles a step for abstract arguments."""
  start, cpu = time.perf_counter(), time.process_time()
  lowered = step.lower(*arguments)
  middle = time.perf_counter()
  compiled = lowered.compile()
  end, cpu = time.perf_counter(), time.process_time() - cpu
  memory, program = compiled.memory_analysis(), compiled.as_text()
  return Compiled(middle - start, end - middle, cpu, memory.argument_size_in_bytes, memory.temp_size_in_bytes,
                  program.count(' = '), program)


def measure(variant: str) -> Compiled:
  """Returns what one of the variants costs, e.g. `scanned+full`."""
  layers, _, policy = variant.partition('+')
  if layers not in ('unrolled', 'scanned'):
    raise app.UsageError(f'--variants: {variant} is none: write unrolled or scanned, or e.g. scanned+full')
  bindings = [f'SCAN_LAYERS = {layers == "scanned"}', f'REMAT_POLICY = {(policy or "none")!r}']
  partitioner = partitioning.PjitPartitioner(
      num_partitions=_PARTITIONS.value, logical_axis_rules=rules.logical_axis_rules(parameter_partitioning_dims=2))
  request = configured.Request(_MODEL.value, _TASKS.value, bindings=[*_BINDINGS.value, *bindings])
  with configured.configured(_SYSTEM.value, request) as made:
    return compile_step(*step_of(made, partitioner, train_step.shape()))


def main(argv) -> None:
  del argv
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  jax.config.update('jax_enable_compilation_cache', False)
  columns = ('lower s', 'XLA s', 'sum s', 'of first', 'CPU s', 'of first', 'instructions', 'state GB', 'temp GB')
  print(f'{"variant":17}' + ''.join(f' {name:>{max(8, len(name))}}' for name in columns), flush=True)
  figures, first = {}, None
  for variant in _VARIANTS.value:
    found = measure(variant)
    first = first or found
    figures[variant] = {k: v for k, v in dataclasses.asdict(found).items() if k != 'program'}
    whole, of_first = (x.lowering + x.compiling for x in (found, first))
    print(f'{variant:17} {found.lowering:8.1f} {found.compiling:8.1f} {whole:8.1f} {whole / of_first:8.3f} {found.cpu:8.1f} '
          f'{found.cpu / first.cpu:8.3f} {found.instructions:12,d} {found.arguments / 1e9:8.3f} {found.temporary / 1e9:8.3f}',
          flush=True)
  train_step.write_json(figures)


if __name__ == '__main__':
  app.run(main)
