"""What packing gains: useful tokens per second of packed rows beside padded ones, on real data.

    SUPERGLUE_DIR=... python -m benchmarks.packing --mixture=superglue
    SUPERNI_DIR=... python -m benchmarks.packing --mixture=superni --json=packing.json
    python -m benchmarks.packing --mixture=superni --lengths=1024,128 --rows=2 --segments=10 --system=poly --rank=16 --peft

Where no vocabulary is given, a SentencePiece model is trained on the mixture's own texts first, so that lengths are those of
sub-words. Lengths are the shortest of some at which less than 5 % of the training examples are cut. Packed rows have the same
inputs, and targets as long as the data's share of target tokens asks for. Then the train step runs on batches of both kinds in
turns; a useful token is one that is not padding, of inputs and targets together. With `--peft` the Poly of Hugging Face PEFT
runs beside it on the padded examples: batches as they are, and each cut to its longest example, as Transformers' collators do.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from absl import app
from absl import flags
import numpy as np
import seqio
from t5x import utils

import tasks as _  # noqa: F401  (they register)
from benchmarks import steady_memory
from benchmarks import torch_poly
from benchmarks import train_step
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import features as task_features
from tasks import features
from tasks import sources

_MIXTURE = flags.DEFINE_string('mixture', 'superglue', 'A mixture whose tasks read files.')
_SYSTEM = flags.DEFINE_string('system', 'cpoly', 'A file of gin_configs/systems, without .gin.')
_MODEL = flags.DEFINE_string('model', 't5_1_1/small', 'A file of gin_configs/models, without .gin.')
_ROWS = flags.DEFINE_integer('rows', 4, 'Rows of a batch.')
_RANK = flags.DEFINE_integer('rank', 4, 'Rank of each skill.')
_LENGTHS = flags.DEFINE_list('lengths', None, 'Inputs and targets of a padded row; none: the shortest that cut less than 5 %.')
_SEGMENTS = flags.DEFINE_integer('segments', 5, 'Examples in a packed row, at most.')
_VOCABULARY = flags.DEFINE_string('vocabulary', None, 'A SentencePiece model; None: one of 8,000 pieces is trained.')
_COUNTED = flags.DEFINE_integer('counted', 100, 'Batches of each kind whose tokens are counted.')
_PEFT = flags.DEFINE_bool('peft', False, "Also measure PEFT's Poly on padded rows; --system=poly is like it.")
_PEFT_BATCHES = flags.DEFINE_integer('peft_batches', 4, 'Batches of which each of its steps takes all, one after the other.')
_SKILLS = flags.DEFINE_integer('num_skills', 8, 'Skills of Poly, in both.')
flags.register_validator('lengths', lambda value: value is None or len(value) == 2 and all(map(str.isdigit, value)),
                         'write two numbers, as in --lengths=1024,128')

INPUT_LENGTHS = (128, 256, 384, 512, 768, 1024)
TARGET_LENGTHS = (8, 16, 32, 64, 128)
MOST_CUT = .05


def texts(task: seqio.Task) -> Iterator[str]:
  """Yields the texts of a task's training rows, without running its pipeline."""
  if not isinstance(task.source, sources.RowSource):
    raise ValueError(f'{task.name} reads no rows of files: name a mixture such as superglue or superni')
  for row in task.source.rows('train'):
    for value in task.source.to_example(row, 'train', 0).values():
      yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))


def train_vocabulary(lines: Iterator[str], folder: str, size: int = 8000) -> str:
  """Trains a SentencePiece model with T5's special ids and returns its path."""
  import sentencepiece  # pylint: disable=g-import-not-at-top
  prefix = str(pathlib.Path(folder) / 'pieces')
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(line[:4000] for line in lines), model_prefix=prefix, vocab_size=size, pad_id=0, eos_id=1, unk_id=2,
      bos_id=-1, hard_vocab_limit=False, input_sentence_size=20_000, shuffle_input_sentence=False, minloglevel=2)
  return prefix + '.model'


@dataclasses.dataclass
class Data:
  """Batches of one kind, and the mean number of useful input and target tokens of one."""
  batches: Sequence[Mapping[str, np.ndarray]]
  inputs: float
  targets: float

  @property
  def batch(self) -> Mapping[str, np.ndarray]:
    """The first batch."""
    return self.batches[0]

  @property
  def useful(self) -> float:
    """Useful tokens of a batch."""
    return self.inputs + self.targets

  @property
  def all_tokens(self) -> int:
    """Tokens of a batch, padding included."""
    return self.batch['encoder_input_tokens'].size + self.batch['decoder_target_tokens'].size


def _dataset(index: TaskIndex, lengths: Mapping[str, int], pack: bool, rows: int):
  config = utils.DatasetConfig(_MIXTURE.value, lengths, 'train', batch_size=rows, shuffle=True, seed=0, pack=pack)
  return utils.get_dataset(config, 0, 1, task_features.converter_for(index))


def read(index: TaskIndex, lengths: Mapping[str, int], pack: bool) -> Data:
  """Reads batches and counts the useful tokens of the first ones."""
  batches = list(itertools.islice(iter(_dataset(index, lengths, pack, _ROWS.value)), _COUNTED.value))
  count = lambda name: float(np.mean([np.sum(batch[name] > 0) for batch in batches]))
  return Data(batches, count('encoder_input_tokens'), count('decoder_target_tokens'))


def packed_targets(padded: Data, lengths: Mapping[str, int]) -> int:
  """Returns the target length at which inputs fill a packed row before targets do, with a third to spare."""
  share = padded.targets / padded.inputs
  return max(lengths['targets'], 8 * int(np.ceil(lengths['inputs'] * share * 4 / 3 / 8)))


def shortest(index: TaskIndex, feature: str, name: str, lengths: Sequence[int]) -> tuple[int, float]:
  """Returns the first length of a feature at which less than 5 % of the examples may be cut, and that share."""
  for length in lengths:
    limits = {'inputs': 1024, 'targets': 128, feature: length}
    batches = itertools.islice(iter(_dataset(index, limits, False, 100)), 20)
    # An example that fills its row may have been longer.
    cut = float(np.mean([np.mean(batch[name][:, -1] > 0) for batch in batches]))
    if cut < MOST_CUT:
      break
  return length, cut


def peft_steps(batches: Sequence[Mapping[str, np.ndarray]], num_tasks: int) -> list[torch_poly.TorchStep]:
  """Returns the steps of PEFT's Poly: on padded batches, eager and compiled for their shape, and on batches of any length."""
  build = functools.partial(torch_poly.TorchStep, num_tasks=num_tasks, rank=_RANK.value, num_skills=_SKILLS.value)
  return [build('PEFT', batches), build('PEFT compiled', batches, compiled=True),
          build('PEFT to the longest', [torch_poly.trimmed(batch) for batch in batches])]


def tokens(batches) -> tuple[float, float]:
  """Returns the mean numbers of useful and of all tokens of PyTorch's batches."""
  ignored = torch_poly.IGNORED
  useful = [int((batch['input_ids'] > 0).sum() + (batch['labels'] != ignored).sum()) for batch in batches]
  every = [batch['input_ids'].numel() + batch['labels'].numel() for batch in batches]
  return float(np.mean(useful)), float(np.mean(every))


def main(argv) -> None:
  del argv
  steady_memory.keep()
  members = seqio.get_subtasks(seqio.get_mixture_or_task(_MIXTURE.value))
  index = TaskIndex(tuple(sorted(task.name for task in members)))
  with tempfile.TemporaryDirectory() as folder:
    features.vocabulary(_VOCABULARY.value or train_vocabulary(itertools.chain.from_iterable(map(texts, members)), folder))
    of_inputs, of_targets = [[int(length)] for length in _LENGTHS.value or ()] or [INPUT_LENGTHS, TARGET_LENGTHS]
    inputs, inputs_cut = shortest(index, 'inputs', 'encoder_input_tokens', of_inputs)
    targets, targets_cut = shortest(index, 'targets', 'decoder_target_tokens', of_targets)
    print(f'{_MIXTURE.value}: inputs {inputs} ({inputs_cut:.1%} cut), targets {targets} ({targets_cut:.1%} cut)', flush=True)
    lengths = {'inputs': inputs, 'targets': targets}
    kinds = {'padded': read(index, lengths, False)}
    lengths_packed = {**lengths, 'targets': packed_targets(kinds['padded'], lengths), features.TASK_ID: _SEGMENTS.value}
    kinds['packed'] = read(index, lengths_packed, True)
  bindings = [f'NUM_TASKS = {len(index)}', f'RANK = {_RANK.value}', f'NUM_SKILLS = {_SKILLS.value}']
  files = [f'gin_configs/models/{_MODEL.value}.gin', f'gin_configs/systems/{_SYSTEM.value}.gin']
  parts = train_step.configured(files, bindings)
  steps = [train_step.compiled(kind, parts, data.batch, len(index)) for kind, data in kinds.items()]
  peers = peft_steps(kinds['padded'].batches[:_PEFT_BATCHES.value], len(index)) if _PEFT.value else []
  train_step.alternate([*steps, *peers], train_step.ROUNDS.value)
  counts = {step.name: (kinds[step.name].useful, kinds[step.name].all_tokens) for step in steps}
  counts |= {peer.name: tokens(peer.batches) for peer in peers}
  print(f'{"rows":20} {"useful":>8} {"s/step":>8} {"useful tokens/s":>16}')
  rates = {}
  for step in [*steps, *peers]:
    useful, every = counts[step.name]
    rates[step.name] = useful / step.median
    print(f'{step.name:20} {useful / every:8.1%} {step.median:8.3f} {rates[step.name]:16,.0f}')
  ideal = kinds['padded'].all_tokens / kinds['padded'].useful
  gain = rates['packed'] / rates['padded']
  print(f'gain {gain:.2f}, ideal {ideal:.2f} (padded tokens / real tokens), reached {gain / ideal:.2f}')
  figures = {
      'mixture': _MIXTURE.value, 'lengths': {'padded': lengths, 'packed': lengths_packed},
      'cut': {'inputs': inputs_cut, 'targets': targets_cut}, 'useful': {name: u / e for name, (u, e) in counts.items()},
      'seconds': {step.name: step.median for step in [*steps, *peers]}, 'gain': gain, 'ideal': ideal, 'reached': gain / ideal}
  if peers:
    figures['per_useful_token'] = {peer.name: rates[peer.name] / rates['packed'] for peer in peers}
    for name, ratio in figures['per_useful_token'].items():
      print(f'seconds of a useful token, packed / {name}: {ratio:.3f}')
  train_step.write_json(figures)


if __name__ == '__main__':
  app.run(main)
