"""The cost of many tasks: a train step of C-Poly with T tasks over the same step with few, at the same batch.

    python -m benchmarks.task_scaling
    python -m benchmarks.task_scaling --specific=fixed --num_tasks=8,100,1600 --json=scaling.json
    python -m benchmarks.task_scaling --specific=learned,learned_rows --rank=1

For each routing of the own skills the steps run in turns in one process. Besides the time, the table has the memory of the
train state over what is expected of it, the base once and three times what trains, and what XLA counts.
"""

from __future__ import annotations

from absl import app
from absl import flags
import jax

from benchmarks import steady_memory
from benchmarks import train_step

# With the trainer of gin_configs/runs/task_rows.gin.
ROWS = {'rows': 'fixed', 'learned_rows': 'learned'}
_SPECIFIC = flags.DEFINE_list(
    'specific', ['rows', 'fixed'], 'Routings of the own skills: fixed, learned, gumbel, or with the trainer of '
    'gin_configs/runs/task_rows.gin: `rows` (fixed), `learned_rows`. Learned W_B of 1,600 tasks fits 24 GB at --rank=1.')
_TASKS = flags.DEFINE_list('num_tasks', ['8', '1600'], 'Numbers of tasks; the first is the reference.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/small', 'A file of gin_configs/models, without .gin.')
_RANK = flags.DEFINE_integer('rank', 4, 'Rank of each skill.')


def main(argv) -> None:
  del argv
  steady_memory.keep()
  rows = []
  print(f'{"specific":12} {"T":>6} {"ms/step":>9} {"ratio":>6} {"GFLOP":>8} {"GB moved":>9} {"state MB":>9} {"trainable":>13} '
        f'{"/ expected":>10}')
  for specific in _SPECIFIC.value:
    steps = []
    for tasks in map(int, _TASKS.value):
      parts = train_step.configured(
          [f'gin_configs/models/{_MODEL.value}.gin', 'gin_configs/systems/cpoly.gin'],
          [f'NUM_TASKS = {tasks}', f'RANK = {_RANK.value}', f"SPECIFIC = '{ROWS.get(specific, specific)}'"])
      data = train_step.batch_of(*train_step.shape(), tasks)
      steps.append(train_step.compiled(str(tasks), parts, data, tasks, rows=specific in ROWS))
    train_step.alternate(steps, train_step.ROUNDS.value)
    for step in steps:
      state_bytes = sum(x.nbytes for x in jax.tree.leaves(step.state))
      parameters = sum(x.nbytes for x in jax.tree.leaves(step.state.params))
      row = {'specific': specific, 'tasks': int(step.name), 'seconds': step.median, 'ratio': step.median / steps[0].median,
             'flops': step.cost['flops'], 'bytes': step.cost['bytes accessed'], 'state_bytes': state_bytes,
             'trainable': step.trainable, 'state_over_expected': state_bytes / (parameters + 2 * 4 * step.trainable)}
      rows.append(row)
      print(f'{specific:12} {step.name:>6} {1e3 * row["seconds"]:9.1f} {row["ratio"]:6.3f} {row["flops"] / 1e9:8.1f} '
            f'{row["bytes"] / 1e9:9.2f} {state_bytes / 1e6:9.1f} {step.trainable:13,d} '
            f'{row["state_over_expected"]:10.4f}', flush=True)
    del steps
  train_step.write_json(rows)


if __name__ == '__main__':
  app.run(main)
