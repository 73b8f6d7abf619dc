"""Command line: what a mixture, a task or a folder of own tasks gives a model (`python -m tasks.show --help`).

Examples, lengths, labels and rates are read through the pipelines that a run uses, from a sample of each task.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import seqio

from cpoly_jax import command_line
from cpoly_jax import task_index
from tasks import features
from tasks import own_data
from tasks import own_data_files
from tasks import samples
from tasks import show_report
from tasks.command_line import configured

_EXAMPLES = """
columns:
  row          of the routing; a task that is routed as another has that one's
  share        of the mixture's training examples, in percent
  inputs       tokens with the end of sequence: median and longest of the sample; targets alike
  cut          examples that are longer than --lengths, in percent of the sample
               (Super-NI's tasks cut by themselves, at superni_prompts.prompt_options; they are measured after that)

examples:
  python -m tasks.show latent_skills
  python -m tasks.show my_tasks --lengths=inputs=512,targets=128 --plot=lengths.png
  python -m tasks.show my_tasks --task=sentiment --split=validation --n=10
  python -m tasks.show --gin_file=gin_configs/cpoly_tiny.gin         # the mixture, vocabulary and lengths of a run
  SUPERGLUE_DIR=/data/superglue python -m tasks.show superglue --vocabulary_path=/data/t5.model
"""


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(prog='python -m tasks.show', allow_abbrev=False, epilog=_EXAMPLES,
                  formatter_class=argparse.RawDescriptionHelpFormatter,
                  description='Examples, token lengths, labels and rates of a mixture, a task or a folder of own tasks.')
  add = parser.add_argument
  add('name', nargs='?', metavar='MIXTURE_OR_FOLDER', help='a registered name, a folder (docs/own_data.md) or a file of tasks')
  add('--split', default='train', help='(default: %(default)s)')
  add('--task', action='append', default=[], metavar='NAME', help='only this task of the mixture; repeatable')
  add('--n', type=int, default=3, help='examples to print, the first of each task in turn (default: %(default)s)')
  add('--sample', type=int, default=200, metavar='N', help='rows of each task for lengths and labels (default: %(default)s)')
  add('--lengths', metavar='inputs=N,targets=N', help='longest inputs and targets, in tokens')
  add('--vocabulary_path', metavar='FILE', help="a SentencePiece model, or 'bytes' (default)")
  add('--plot', metavar='FILE.png', help='also draw the lengths')
  add('--skip_bad_lines', type=int, metavar='N', help='bad records to skip in each file (default: 0)')
  add('--gin_file', action='append', default=[], metavar='FILE',
      help='take mixture, vocabulary and lengths of this run, where they are not given; repeatable')
  add('--gin.NAME', dest='_', metavar='VALUE', help='a gin binding, --gin.NAME=VALUE; repeatable')
  return parser


def collect(name: str, split: str, sample: int, only: Sequence[str] = ()) -> list[show_report.Shown]:
  """Returns what there is to show of the tasks of a registered mixture or task, in the order of the routing's rows.

  Args:
    name: the mixture or task.
    split: the split to sample.
    sample: rows of each task.
    only: tasks to leave in, by their names with or without that of the mixture; () for all.

  Raises:
    ValueError: no task has the split, or `only` names none.
    FileNotFoundError: the data are not there.
  """
  provider = seqio.get_mixture_or_task(name)
  index = task_index.from_mixture(name)
  row = lambda task: index.row(task_index.routed_as(task.name))
  tasks = sorted(seqio.get_subtasks(provider), key=lambda task: (row(task), task.name))
  trained = [task for task in tasks if own_data_files.TRAIN in task.splits]
  rates = {task.name: provider.get_rate(task) if isinstance(provider, seqio.Mixture) else 1. for task in trained}
  chosen = [task for task in tasks if not only or task.name in only or task.name.removeprefix(f'{name}_') in only]
  if not chosen:
    raise ValueError(f"{name} has no task {' or '.join(only)}{_near(only[0], [task.name for task in tasks])}")
  if not any(split in task.splits for task in chosen):
    splits = show_report.ordered_splits(provider.splits)
    raise ValueError(f"no task of {name} has a split '{split}'; write one of {', '.join(splits)}")
  examples = samples.read(chosen, split, sample)
  return [show_report.Shown(
      name=task.name, row=row(task), counts={key: task.num_input_examples(key) for key in task.splits},
      share=rates[task.name] / sum(rates.values()) if task.name in rates else None, examples=examples[task.name])
          for task in chosen]


def _near(name: str, known: Sequence[str]) -> str:
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
  return f'; did you mean {near[0]}?' if near else f"; it has {', '.join(known[:5])}{', ...' if known[5:] else ''}"


def example_lines(shown: Sequence[show_report.Shown], split: str, number: int, lengths: Mapping[str, int]) -> list[str]:
  """Returns `number` examples as the model gets them: decoded from their tokens after they were cut."""
  if number < 1:
    return []
  each = -(-number // len(shown))
  tasks = [seqio.TaskRegistry.get(task.name) for task in shown[:number]]
  found = samples.read(tasks, split, each, lengths or None)
  whole = samples.read(tasks, split, each)
  turns = [(task, place) for place in range(each) for task in shown[:number] if place < len(found[task.name])]
  lines = []
  for task, place in turns[:number]:
    lines += ['', f'{task.name}, {split}, example {place + 1}, row {task.row}']
    for feature in show_report.FEATURES:
      ids, uncut = getattr(found[task.name][place], feature), getattr(whole[task.name][place], feature)
      text = features.default_vocabulary().decode([int(i) for i in ids])
      size = f'{len(ids)} tokens' if len(ids) == len(uncut) else f'{len(ids)} of {len(uncut)} tokens'
      lines.append(f'  {feature} ({size}): {show_report.one_line(text)}')
  return lines


def parse_lengths(text: str | None) -> dict[str, int]:
  """Returns the lengths of `inputs=512,targets=128`; raises ValueError."""
  found = {}
  for part in (text or '').split(',') if text else ():
    feature, _, number = part.partition('=')
    if feature not in show_report.FEATURES or not number.isdigit() or not int(number):
      raise ValueError(f'--lengths={text}: write --lengths=inputs=512,targets=128')
    found[feature] = int(number)
  return found


def registered(name: str) -> str:
  """Returns a registered name: `name` itself, or that of the mixture of the folder or file `name`, which it registers.

  Raises:
    ValueError: there is neither such a name nor such a folder.
  """
  import tasks  # noqa: F401  pylint: disable=g-import-not-at-top,unused-import
  known = set(seqio.MixtureRegistry.names()) | set(seqio.TaskRegistry.names())
  if name in known:
    return name
  if not os.path.exists(name) and '://' not in name:
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else 'write latent_skills, superglue, superni or the path of a folder'
    raise ValueError(f'there is neither a mixture, a task nor a folder {name!r}; {hint}')
  return own_data.mixture(name)


def run(arguments: Sequence[str]) -> tuple[str, int]:
  """Returns what the program prints, and its exit code.

  Raises:
    ValueError: a mistake in the arguments or in the data.
    FileNotFoundError: there are no such data or gin files.
  """
  bindings, others = command_line.split_bindings(arguments)
  options = _parser().parse_args(others)
  lengths = parse_lengths(options.lengths)
  if options.sample < 1 or options.n < 0:
    raise ValueError(f'--sample={options.sample} --n={options.n}: write whole numbers, --sample above 0')
  with configured(options.gin_file, bindings, options.skip_bad_lines) as of_run:
    if options.vocabulary_path or not of_run:
      features.vocabulary(options.vocabulary_path or features.BYTES)
    name = options.name or of_run.get('name')
    if not isinstance(name, str):
      raise ValueError('give a mixture, a task or a folder: python -m tasks.show latent_skills')
    of_run_lengths = of_run.get('lengths') or {}
    lengths = lengths or {feature: of_run_lengths[feature] for feature in show_report.FEATURES if feature in of_run_lengths}
    name = registered(name)
    shown = collect(name, options.split, options.sample, options.task)
    found = {feature: np.concatenate([task.lengths(feature) for task in shown]) for feature in show_report.FEATURES}
    size = found['inputs'].size
    vocabulary = features.default_vocabulary().chosen
    of = getattr(vocabulary, 'sentencepiece_model_file', type(vocabulary).__name__)
    lines = [f"{name}: {len(shown)} task{'s'[:len(shown) > 1]}, lengths of {size:,} examples of '{options.split}' in pieces of "
             f'{of} ({vocabulary.vocab_size:,})', '', show_report.table(shown, lengths)]
    for feature, values in found.items():
      lines += ['', show_report.histogram(values, feature, lengths.get(feature))]
    labels = show_report.label_lines(shown)
    if labels:
      lines += ['', 'labels', *labels]
    lines += example_lines(shown, options.split, options.n, lengths)
    if options.plot:
      show_report.plot(shown, lengths, options.plot)
      lines += ['', f'lengths are drawn in {options.plot}']
  return '\n'.join(lines), 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints what there is; returns the exit code."""
  return command_line.main(run, arguments)


if __name__ == '__main__':
  sys.exit(main())
