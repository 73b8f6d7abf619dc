"""C-Poly and Poly beside the Poly of Hugging Face PEFT: a train step of the same model on the same machine.

    pip install -e '.[parity]'
    python -m benchmarks.peft_poly --rounds=9

T5 of the same shape, batch, targets, rank and skills, float32, the same number of threads: T5X's train step of each of our
systems, and forward, backward and AdamW of PEFT's Poly in PyTorch, eager and through torch.compile. They run in turns. The
table also has the time that the counted FLOPs would take at the rate of this machine's matrix product.
"""

from __future__ import annotations

import functools

from absl import app
from absl import flags

from benchmarks import steady_memory
from benchmarks import torch_poly
from benchmarks import train_step
from cpoly_jax.t5 import flops

_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_RANK = flags.DEFINE_integer('rank', 16, 'Rank of each skill.')
_SKILLS = flags.DEFINE_integer('num_skills', 8, 'Skills of Poly.')
_COMPILE = flags.DEFINE_bool('compile', True, 'Also measure torch.compile.')

TARGETS = '.*attention/(query|key|value|out)'


def main(argv) -> None:
  del argv
  steady_memory.keep()
  ours = []
  data = train_step.batch_of(*train_step.shape(), _TASKS.value)
  for name in ('poly', 'cpoly'):
    parts = train_step.configured(
        ['gin_configs/models/t5_1_1/small.gin', f'gin_configs/systems/{name}.gin'],
        [f'NUM_TASKS = {_TASKS.value}', f'RANK = {_RANK.value}', f'NUM_SKILLS = {_SKILLS.value}'])
    ours.append(train_step.compiled(name, parts, data, _TASKS.value))
  peer = functools.partial(torch_poly.TorchStep, batches=[data], num_tasks=_TASKS.value, rank=_RANK.value,
                           num_skills=_SKILLS.value)
  peers = [peer('PEFT eager'), *([peer('PEFT compiled', compiled=True)] if _COMPILE.value else [])]
  train_step.alternate([*ours, *peers], train_step.ROUNDS.value)
  rate = train_step.matmul_rate()
  best = min(peer.median for peer in peers)
  config = parts.module.config
  by_hand = flops.frozen_step(config, *train_step.shape())
  groups = {'poly': (_SKILLS.value,), 'cpoly': (3, _TASKS.value)}
  print(f'matrix product: {rate / 1e9:.1f} GFLOP/s')
  print(f'{"step":14} {"ms":>9} {"/ best PEFT":>11} {"trainable":>12} {"GFLOP":>8} {"by hand":>8} {"GB":>7} '
        f'{"ms at matmul rate":>17}')
  rows = {}
  for step in ours:
    count = by_hand + flops.adapters(config, *train_step.shape(), rank=_RANK.value,
                                     group_sizes=groups[step.name], targets_pattern=TARGETS)
    cost = step.cost
    rows[step.name] = {'seconds': step.median, 'ratio': step.median / best, 'trainable': step.trainable, 'flops': cost['flops'],
                       'flops_by_hand': count, 'bytes': cost['bytes accessed'], 'seconds_at_matmul_rate': count / rate}
    print(f'{step.name:14} {1e3 * step.median:9.1f} {step.median / best:11.3f} {step.trainable:12,d} '
          f'{cost["flops"] / 1e9:8.1f} {count / 1e9:8.1f} {cost["bytes accessed"] / 1e9:7.2f} {1e3 * count / rate:17.1f}')
  for peer in peers:
    rows[peer.name] = {'seconds': peer.median, 'ratio': peer.median / best, 'trainable': peer.trainable}
    print(f'{peer.name:14} {1e3 * peer.median:9.1f} {peer.median / best:11.3f} {peer.trainable:12,d}')
  train_step.write_json(rows)


if __name__ == '__main__':
  app.run(main)
