"""Runs train steps of a run for real, and tells what they took beside what the plan says; a program of its own.

    python tests/cpoly_jax/plan/measured.py DATA MODEL GIN_FILE [NAME=VALUE ...]

Measured are, of each device, the bytes of the shards of the train state that it holds; and, of the process, by how much its
peak of resident memory during its second step exceeds what it held before it, divided by the devices: temporary memory is given
back between steps, and the first step also loads the program. Prints JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import pathlib
import re
import sys

DATA, MODEL = int(sys.argv[1]), int(sys.argv[2])


def _resident(what: str) -> int:
  """Bytes of resident memory: VmRSS, or VmHWM for the peak."""
  return 1024 * int(re.search(rf'{what}:\s+(\d+)', pathlib.Path('/proc/self/status').read_text(encoding='ascii'))[1])


def main() -> None:
  """Prints what was planned and what was measured."""
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DATA * MODEL}'
  import jax  # pylint: disable=g-import-not-at-top
  import jax.numpy as jnp
  from cpoly_jax.plan import memory, report, runs, train_step

  def zeros(leaf, sharding):
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=sharding)()

  with runs.configured([sys.argv[3]], [binding.replace('=', ' = ', 1) for binding in sys.argv[4:]]) as run:
    mesh = train_step.make_mesh({'data': DATA, 'model': MODEL})
    found = train_step.compile_step(run, mesh)
    # Zeros are as good as any values: memory does not depend on them.
    state, batch = jax.tree.map(zeros, (found.state.shapes, dict(run.batch)), found.executable.input_shardings[0])
    jax.block_until_ready((state, batch))
    held = {device.id: 0 for device in mesh.devices.flat}
    for leaf in jax.tree.leaves(state):
      for shard in leaf.addressable_shards:
        held[shard.device.id] += math.prod(shard.data.shape) * shard.data.dtype.itemsize
    planned = memory.state_bytes(found.state, {'data': DATA, 'model': MODEL})
    analysis = found.executable.memory_analysis()
    state, metrics = found.executable(state, batch)
    jax.block_until_ready((state, metrics))
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # The peak starts anew.
    before = _resident('VmRSS')
    state, metrics = found.executable(state, batch)
    jax.block_until_ready((state, metrics))
    grown = (_resident('VmHWM') - before) / (DATA * MODEL)
    print(json.dumps({
        'state planned': planned.kept, 'state measured': held, 'temporaries planned': analysis.temp_size_in_bytes,
        'temporaries measured': round(grown), 'step': int(state.step), 'all planned': report.step_bytes(analysis)}))


if __name__ == '__main__':
  main()
