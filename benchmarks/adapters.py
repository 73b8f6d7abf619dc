"""The cost of adapters: a train step of each system over the same step with a frozen base and a single LoRA.

    python -m benchmarks.adapters
    python -m benchmarks.adapters --systems=poly,cpoly --rounds=15 --json=adapters.json

All systems run in turns in one process; the table has medians, their ratio to `shared` (one LoRA), and what XLA counts.
"""

from __future__ import annotations

from absl import app
from absl import flags

from benchmarks import steady_memory
from benchmarks import train_step

_SYSTEMS = flags.DEFINE_list('systems', ['poly', 'cpoly', 'hyper', 'task_moe', 'moe_lora', 'mmoe', 'cgc'],
                             'Files of gin_configs/systems, without .gin.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/small', 'A file of gin_configs/models, without .gin.')
_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_RANK = flags.DEFINE_integer('rank', 16, 'Rank of each skill, and of the single LoRA.')

REFERENCE = 'shared'


def main(argv) -> None:
  del argv
  steady_memory.keep()
  bindings = [f'NUM_TASKS = {_TASKS.value}', f'RANK = {_RANK.value}']
  steps = []
  for name in [REFERENCE, *_SYSTEMS.value]:
    parts = train_step.configured(
        [f'gin_configs/models/{_MODEL.value}.gin', f'gin_configs/systems/{name}.gin'], bindings)
    steps.append(train_step.compiled(name, parts, train_step.batch_of(*train_step.shape(), _TASKS.value), _TASKS.value))
  train_step.alternate(steps, train_step.ROUNDS.value)
  reference = steps[0]
  print(f'{"system":10} {"ms/step":>9} {"ratio":>6} {"GFLOP":>8} {"ratio":>6} {"GB":>7} {"trainable":>12}')
  rows = {}
  for step in steps:
    cost = step.cost
    rows[step.name] = {'seconds': step.median, 'ratio': step.median / reference.median, 'flops': cost['flops'],
                       'bytes': cost['bytes accessed'], 'trainable': step.trainable}
    print(f'{step.name:10} {1e3 * step.median:9.1f} {step.median / reference.median:6.3f} {cost["flops"] / 1e9:8.1f} '
          f'{cost["flops"] / reference.cost["flops"]:6.3f} {cost["bytes accessed"] / 1e9:7.2f} {step.trainable:12,d}')
  train_step.write_json(rows)


if __name__ == '__main__':
  app.run(main)
