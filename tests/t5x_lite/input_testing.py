"""What tests of the input pipeline share: tasks whose examples can be told apart, and a process that plays one host.

Example j of a task has the input `<task>.<j>` and some letters more, and its target is the beginning of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
from t5x import datasets
import tensorflow as tf

LENGTHS = {'inputs': 24, 'targets': 8}
FEATURES = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for name in LENGTHS}
PREPROCESSORS = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim)
_OFFSET = 3  # Of the bytes in ByteVocabulary.


def text(name: str, j: int) -> str:
  return f'{name}.{j}' + 'x' * (j * 5 % 11)


def source(name: str, size: int, stated: int | None = -1) -> seqio.FunctionDataSource:
  """Source of `size` examples, which states their number, or `stated` where it is given."""

  def dataset_fn(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    texts = [text(name, j) for j in range(size)]
    return tf.data.Dataset.from_tensor_slices({'inputs': texts, 'targets': [t[:j % 6 + 1] for j, t in enumerate(texts)]})

  stated = size if stated == -1 else stated
  return seqio.FunctionDataSource(
      dataset_fn, splits=['train'], num_input_examples=None if stated is None else {'train': stated})


def task(name: str, size: int, preprocessors: Sequence[Callable[..., Any]] = PREPROCESSORS,
         stated: int | None = -1) -> seqio.Task:
  """A task that is registered nowhere."""
  return seqio.Task(name, source=source(name, size, stated), preprocessors=preprocessors, output_features=FEATURES,
                    shuffle_buffer_size=1000)


def mixture(sizes: Sequence[int] = (30, 7, 12), rates: Sequence[float] = (3, 1, 2), name: str = 'mix') -> seqio.Mixture:
  """A mixture of tasks `a`, `b`, ... that is registered nowhere."""
  return seqio.Mixture(name, [(task(chr(ord('a') + i), size), rate) for i, (size, rate) in enumerate(zip(sizes, rates))])


def config(source: Any, **overrides) -> datasets.DatasetConfig:
  values = dict(mixture_or_task_name=source, task_feature_lengths=LENGTHS, split='train', batch_size=8, shuffle=True, seed=3)
  return datasets.DatasetConfig(**{**values, **overrides})


def get(source: Any, shard_id: int = 0, num_shards: int = 1, **overrides):
  return datasets.get_dataset(config(source, **overrides), shard_id, num_shards, seqio.EncDecFeatureConverter)


def read(dataset: Any, number: int) -> list[dict[str, np.ndarray]]:
  return list(dataset.take(number).as_numpy_iterator())


def decode(tokens: np.ndarray) -> str:
  """The text of a row of byte tokens, up to the end of sequence."""
  return bytes(t - _OFFSET for t in tokens if t >= _OFFSET).decode()


def inputs(batches: Sequence[dict[str, np.ndarray]]) -> list[str]:
  """The inputs of the unpacked rows of batches."""
  return [decode(row) for batch in batches for row in batch['encoder_input_tokens']]


def segments(batches: Sequence[dict[str, np.ndarray]]) -> list[tuple[str, str]]:
  """Input and target of every segment of packed batches, in order."""
  found = []
  for batch in batches:
    for row in range(len(batch['encoder_input_tokens'])):
      for n in range(1, batch['encoder_segment_ids'][row].max() + 1):
        found.append(tuple(decode(batch[tokens][row][batch[ids][row] == n]) for tokens, ids in (
            ('encoder_input_tokens', 'encoder_segment_ids'), ('decoder_target_tokens', 'decoder_segment_ids'))))
  return found


def assert_batches_equal(test: Any, first: Sequence[dict[str, np.ndarray]], second: Sequence[dict[str, np.ndarray]]) -> None:
  test.assertEqual(len(first), len(second))
  for a, b in zip(first, second):
    test.assertEqual(set(a), set(b))
    for name in a:
      test.assertEqual(a[name].dtype, b[name].dtype, name)
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


if __name__ == '__main__':
  # One host: which of how many, whether to pack, how many batches, where to write them.
  arguments = json.loads(sys.argv[1])
  batches = read(get(mixture(), arguments['host'], arguments['hosts'], pack=arguments['pack']), arguments['batches'])
  np.savez(arguments['path'], **{name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
