"""The small pretrained base that the project ships, and how it is made.

    python -m t5x.train --gin_file=gin_configs/pretrain_tiny.gin
    python -m cpoly_jax.pretrained outputs/pretrain_tiny

The second command takes the newest checkpoint of that run, keeps the parameters in bfloat16 and writes one file in T5X's
native format, which every provider of t5x reads.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from cpoly_jax import command_line

_TINY = pathlib.Path(__file__).resolve().parent / 'assets' / 'tiny_base'


def tiny_base() -> str:
  """Returns the path of the shipped base's checkpoint: T5 1.1, D = 128, 2 + 2 layers, byte vocabulary.

  Raises:
    FileNotFoundError: the package was installed without its data.
  """
  found = sorted(_TINY.glob('checkpoint_*'))
  if not found:
    raise FileNotFoundError(f'no checkpoint in {_TINY}: install cpoly-jax with its package data')
  return str(found[-1])


def export(run: str, destination: pathlib.Path = _TINY) -> pathlib.Path:
  """Writes the parameters of a run's newest checkpoint as one file in T5X's native format, in bfloat16.

  Args:
    run: MODEL_DIR of a pretraining run.
    destination: gets `checkpoint_<step>/checkpoint`.

  Returns:
    The file's path.
  """
  from flax import serialization, traverse_util
  import jax.numpy as jnp
  import numpy as np
  from t5x import checkpoints
  step = checkpoints.latest_step(run)
  if step is None:
    raise FileNotFoundError(f'{run} has no checkpoint: name the MODEL_DIR of a finished run of pretrain_tiny.gin')
  state = checkpoints.load_t5x_checkpoint(run, step=step)
  target = traverse_util.flatten_dict(state['target'])
  target = traverse_util.unflatten_dict({key: np.asarray(value).astype(jnp.bfloat16) for key, value in target.items()})
  index = {'version': 3, 'optimizer': {'target': target, 'state': {'step': np.int32(step)}}}
  file = destination / f'checkpoint_{step}' / 'checkpoint'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(serialization.msgpack_serialize(index))
  return file


def _run(arguments: Sequence[str]) -> command_line.Result:
  """Exports the run of the one argument; returns the line that tells of it, and the exit code."""
  parser = command_line.Parser(prog='python -m cpoly_jax.pretrained', allow_abbrev=False,
                               description="Writes the parameters of a run's newest checkpoint as the project's small base.")
  parser.add_argument('run', metavar='MODEL_DIR', help='the folder of a finished run of pretrain_tiny.gin')
  file = export(parser.parse_args(arguments).run)
  return f'{file}: {file.stat().st_size / 1e6:.2f} MB', 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints which file was written; returns the exit code."""
  return command_line.main(_run, arguments)


if __name__ == '__main__':
  sys.exit(main())
