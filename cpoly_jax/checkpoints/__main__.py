"""Command line: what is in a checkpoint, and from one format to another (`python -m cpoly_jax.checkpoints --help`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cpoly_jax import command_line
from cpoly_jax.checkpoints import converting
from cpoly_jax.checkpoints import peft_command

_EXAMPLES = """
examples:
  python -m cpoly_jax.checkpoints describe outputs/cpoly_tiny
  python -m cpoly_jax.checkpoints describe models/flan-t5-small --arrays
  python -m cpoly_jax.checkpoints convert models/flan-t5-small models/flan_t5_small/checkpoint_0
  python -m cpoly_jax.checkpoints convert gs://t5-data/pretrained_models/t5x/t5_1_1_small/checkpoint_1000000 \\
      models/t5-v1_1-small --dtype=bfloat16
  python -m cpoly_jax.checkpoints convert models/flan-t5-xxl models/flan_t5_xxl/checkpoint_0 --dry_run
  python -m cpoly_jax.checkpoints share outputs/cpoly_tiny shared/cpoly_tiny
"""


def _describe(options: argparse.Namespace) -> str:
  from cpoly_jax.checkpoints import describing
  rows, arrays = describing.describe(options.path)
  return describing.text(rows, arrays if options.arrays else None)


def _convert(options: argparse.Namespace) -> str:
  return converting.convert(options.source, options.destination, to=options.to, dtype=options.dtype, dry_run=options.dry_run)


def _share(options: argparse.Namespace) -> str:
  from cpoly_jax.checkpoints import adapter_file
  return adapter_file.share(options.checkpoint, options.folder, base=options.base, dry_run=options.dry_run)


def _parser() -> command_line.Parser:
  settings = {'allow_abbrev': False, 'formatter_class': argparse.RawDescriptionHelpFormatter}
  parser = command_line.Parser(prog='python -m cpoly_jax.checkpoints', epilog=_EXAMPLES, description=__doc__.split(' (')[0],
                               **settings)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

  add = commands.add_parser('describe', help='what lies at a path', description='Says what lies at a path; reads no values.',
                            **settings)
  add.add_argument('path', metavar='PATH', help='a Hugging Face folder, T5X checkpoint, MODEL_DIR, adapter or safetensors file')
  add.add_argument('--arrays', action='store_true', help='list the arrays, too')
  add.set_defaults(function=_describe)

  add = commands.add_parser(
      'convert', help='a plain T5 to the other format', epilog=_EXAMPLES,
      description='Writes a plain T5, without skills, in the other format: a Hugging Face folder as a T5X checkpoint, or a T5X '
                  'checkpoint as a Hugging Face folder. One tensor (or one file of them) at a time is in memory.', **settings)
  add.add_argument('source', metavar='SOURCE', help='a Hugging Face folder, or a T5X checkpoint of either format')
  add.add_argument('destination', metavar='DESTINATION', help='a new folder; for T5X its name is checkpoint_<step>')
  add.add_argument('--to', choices=converting.FORMATS, help='(default: the format that SOURCE does not have)')
  add.add_argument('--dtype', choices=converting.DTYPES, help='of what is written (default: that of each tensor)')
  add.add_argument('--dry_run', action='store_true', help='print what would be read and written, and write nothing')
  add.set_defaults(function=_convert)

  add = commands.add_parser(
      'share', help='skills and routing as a folder for others', epilog=_EXAMPLES,
      description='Writes what a checkpoint holds besides its base: adapter.safetensors and adapter.json.', **settings)
  add.add_argument('checkpoint', metavar='CHECKPOINT', help='a checkpoint_<step> folder or a MODEL_DIR')
  add.add_argument('folder', metavar='FOLDER', help='a new folder')
  add.add_argument('--base', metavar='PATH', help='the base to name (default: the recorded one); needed for a checkpoint of '
                                                  'google-research/t5x, which holds everything')
  add.add_argument('--dry_run', action='store_true', help='print what would be written, and write nothing')
  add.set_defaults(function=_share)
  peft_command.add_commands(commands, **settings)
  return parser


def run(arguments: Sequence[str]) -> command_line.Result:
  """Returns what the program prints, and its exit code.

  Raises:
    ValueError: a mistake in the arguments or in a file.
    OSError: something is absent or cannot be written.
  """
  options = _parser().parse_args(arguments)
  return options.function(options), 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code. A mistake is one line on stderr and exit code 1."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
