"""What all tasks share: the vocabulary of the run, the output features, the end of every pipeline.

Tasks are registered before the run's vocabulary is known, so their features hold a `RunVocabulary`, which
stands for the one that gin chooses through `vocabulary`:

    VOCABULARY = @features.vocabulary()
    features.vocabulary.path = 'bytes'          # or a SentencePiece model, local or gs://

Besides `inputs` and `targets` each example has `task_id` [1] int32, the key of its task
(`cpoly_jax.task_index.task_key`), which the feature converter turns into a routing row. The key comes from the source, so that
tasks with the same format have the very same preprocessors and a reader may run them for all of these tasks at once:
`sources.RowSource` writes it, and `with_task_key` adds it to any other source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from cpoly_jax import task_index
from cpoly_jax import vocabularies

BYTES = vocabularies.BYTES
TASK_ID = 'task_id'  # [1], what the feature converter reads.
TASK_KEY = 'task_key'  # [], what sources write.


class RunVocabulary(seqio.Vocabulary):
  """Stands for the vocabulary of the run; `bytes` until `vocabulary` chooses another."""

  def __init__(self):
    super().__init__()
    self._chosen: seqio.Vocabulary = seqio.ByteVocabulary()

  def choose(self, vocabulary: seqio.Vocabulary) -> None:
    """Makes `vocabulary` the run's."""
    self._chosen = vocabulary

  @property
  def chosen(self) -> seqio.Vocabulary:
    """The vocabulary that this one stands for."""
    return self._chosen

  @property
  def bos_id(self):
    return self._chosen.bos_id

  @property
  def eos_id(self):
    return self._chosen.eos_id

  @property
  def unk_id(self):
    return self._chosen.unk_id

  @property
  def pad_id(self):
    return self._chosen.pad_id

  @property
  def extra_ids(self):
    return self._chosen.extra_ids

  @property
  def _base_vocab_size(self):
    return self._chosen._base_vocab_size  # pylint: disable=protected-access

  @property
  def vocab_size(self):
    return self._chosen.vocab_size

  def encode(self, s):
    return self._chosen.encode(s)

  def decode(self, ids):
    return self._chosen.decode(ids)

  def encode_tf(self, s):
    return self._chosen.encode_tf(s)

  def decode_tf(self, ids):
    return self._chosen.decode_tf(ids)

  def _encode(self, s):
    return self._chosen._encode(s)  # pylint: disable=protected-access

  def _decode(self, ids):
    return self._chosen._decode(ids)  # pylint: disable=protected-access

  def _encode_tf(self, s):
    return self._chosen._encode_tf(s)  # pylint: disable=protected-access

  def _decode_tf(self, ids):
    return self._chosen._decode_tf(ids)  # pylint: disable=protected-access

  def __eq__(self, other):
    return self._chosen == (other.chosen if isinstance(other, RunVocabulary) else other)

  def __hash__(self):
    return id(self)

  def __str__(self):
    return str(self._chosen)


_RUN_VOCABULARY = RunVocabulary()


def default_vocabulary() -> RunVocabulary:
  """The vocabulary that all tasks of this package are registered with."""
  return _RUN_VOCABULARY


def vocabulary(path: str = BYTES, extra_ids: int | None = None) -> seqio.Vocabulary:
  """Chooses the run's vocabulary and returns it, for models and tasks alike.

  Args:
    path: `bytes` for UTF-8 bytes (259 ids and the extra ones), or the path of a SentencePiece model.
    extra_ids: sentinel ids at the end; None: none for bytes, those of the model file for SentencePiece.

  Raises:
    FileNotFoundError: `path` does not exist.
  """
  if path == BYTES:
    chosen = seqio.ByteVocabulary(extra_ids=extra_ids or 0)
  else:
    chosen = vocabularies.sentence_pieces(path, extra_ids)
  _RUN_VOCABULARY.choose(chosen)
  return chosen


def output_features() -> dict[str, seqio.Feature]:
  """SeqIO features of every task here: inputs, targets and task_id [1]."""
  text = seqio.Feature(_RUN_VOCABULARY, add_eos=True, required=False)
  key = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.int32)
  return {'inputs': text, 'targets': text, TASK_ID: key}


def with_task_key(source: Callable[..., tf.data.Dataset], name: str) -> Callable[..., tf.data.Dataset]:
  """Returns a function for `seqio.FunctionDataSource` whose examples have the key of task `name` besides those of `source`."""
  key = task_index.task_key(name)

  def keyed(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    return source(split, shuffle_files, seed).map(lambda example: {**example, TASK_KEY: tf.constant(key, tf.int32)})

  return keyed


def add_task_id(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Preprocessor: turns the source's `task_key` [] into the feature `task_id` [1]."""

  def add(example):
    example = dict(example)
    return {TASK_ID: example.pop(TASK_KEY)[None], **example}

  return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def pipeline(*to_text: Callable[..., tf.data.Dataset]) -> Sequence[Callable[..., tf.data.Dataset]]:
  """Returns a task's preprocessors: `to_text` (which makes inputs and targets), tokens, end of sequence, task id."""
  return [*to_text, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim, add_task_id]
