"""A SeqIO source of rows that are read when a dataset is built, never at registration.

Rows are plain Python values, so that formats and checks are plain Python too. They become constant
tensors of the dataset: its iterator can be saved and restored exactly, which a generator's cannot.
"""

from __future__ import annotations

import abc
import os
from typing import Any
from collections.abc import Iterator, Mapping, Sequence

from etils import epath
import numpy as np
import seqio
import tensorflow as tf

from cpoly_jax import task_index
from tasks import features

ALLOW_DOWNLOAD = 'CPOLY_ALLOW_DOWNLOAD'
Row = Mapping[str, Any]


class RowSource(seqio.DataSource):
  """Base of the sources: a subclass says where rows are, reads them, and makes examples of them.

  Args:
    task: SeqIO name of the task, whose key every example gets that `to_example` gives none.
  """

  def __init__(self, task: str):
    super().__init__(splits=())
    self._key = task_index.task_key(task)
    self._cache: dict[tuple[str, str], Sequence[Row]] = {}

  @abc.abstractmethod
  def origin(self) -> str:
    """Where rows come from at present; rows are read again when it changes."""

  @abc.abstractmethod
  def read(self, split: str) -> Sequence[Row]:
    """Reads the rows of `split`; called once for each origin and split."""

  @abc.abstractmethod
  def to_example(self, row: Row, split: str, seed: int) -> Mapping[str, Any]:
    """Turns a row into features: str, int, or a list of str; the same ones for every row."""

  @property
  @abc.abstractmethod
  def splits(self) -> Sequence[str]:
    """The splits that exist at present."""

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  def rows(self, split: str) -> Sequence[Row]:
    """The rows of `split`.

    Raises:
      ValueError: there is no such split, or it is empty.
    """
    key = (self.origin(), split)
    if key not in self._cache:
      if split not in self.splits:
        raise ValueError(f"no split '{split}' in {key[0]}; it has {', '.join(self.splits)}")
      rows = self.read(split)
      if not rows:
        raise ValueError(
            f"no examples for split '{split}' in {key[0]}; add some or choose another split")
      self._cache[key] = rows
    return self._cache[key]

  def num_input_examples(self, split: str) -> int:
    return len(self.rows(split))

  def get_dataset(self, split: str = 'train', shuffle: bool = True, seed: int | None = None,
                  shard_info: seqio.ShardInfo | None = None, *, sequence_length=None,
                  use_cached=False, num_epochs: int | None = 1) -> tf.data.Dataset:
    """Builds the dataset of a split, or of this shard's rows of it (every n-th one)."""
    del sequence_length, use_cached, num_epochs
    rows = self.rows(split)
    shard = rows[shard_info.index::shard_info.num_shards] if shard_info else rows
    if shuffle:
      order = np.random.default_rng(None if seed is None else int(seed)).permutation(len(shard))
      shard = [shard[i] for i in order]
    seed = 0 if seed is None else int(seed)
    # A shard without rows still needs the features of one, and then takes none of it.
    examples = [{features.TASK_KEY: self._key, **self.to_example(row, split, seed)} for row in shard or rows[:1]]
    return tf.data.Dataset.from_tensor_slices(_columns(examples)).take(len(shard))


def prepared_tfds(name: str, split: str, variable: str, layout: str) -> Iterator[dict[str, Any]]:
  """Yields a TFDS split in its stored order, if it has been prepared: nothing is downloaded.

  Args:
    name: data set and configuration, e.g. `super_glue/boolq`.
    split: TFDS's name of the split.
    variable: the environment variable that would name a local folder instead, for the message.
    layout: the files expected in that folder, for the message.

  Yields:
    Examples as dicts of str, int and lists; nested features have names joined by `/`.

  Raises:
    FileNotFoundError: TFDS has not prepared it, and `CPOLY_ALLOW_DOWNLOAD` is not 1.
  """
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
  folder = epath.Path(_tfds_folder())
  versions = sorted((p.parent for p in (folder / name).glob('*/dataset_info.json')), key=_version)
  if versions:
    # Reading a prepared folder never goes to the network; asking TFDS for a builder by name may.
    builder = tfds.builder_from_directory(versions[-1])
  elif os.environ.get(ALLOW_DOWNLOAD) == '1':
    builder = tfds.builder(name, data_dir=folder)
    builder.download_and_prepare()
  else:
    raise FileNotFoundError(
        f'{variable} is not set and TFDS has no prepared {name} in {folder}; set {variable} to a '
        f'folder with {layout}, or {ALLOW_DOWNLOAD}=1 to let TFDS download it')
  for example in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)):
    yield dict(_flatten(example))


def _tfds_folder() -> str:
  """The folder of `--tfds_data_dir`, else of TFDS_DATA_DIR, else TFDS's default."""
  import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
  # A loader is the public way to the override; its name is not used, but must have a version.
  override = seqio.utils.LazyTfdsLoader(name='super_glue:1.0.2').data_dir
  return os.path.expanduser(
      override or os.environ.get('TFDS_DATA_DIR') or tfds.core.constants.DATA_DIR)


def _version(folder: epath.Path) -> tuple[int, ...]:
  return tuple(int(part) if part.isdigit() else 0 for part in folder.name.split('.'))


def _flatten(example: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in example.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{name}/')
    elif isinstance(value, bytes):
      yield prefix + name, value.decode('utf-8')
    elif np.ndim(value):
      yield prefix + name, [v.decode('utf-8') if isinstance(v, bytes) else v for v in value]
    else:
      yield prefix + name, int(value)


def _columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Stacks examples: str to [N] string, int to [N] int32, list of str to ragged [N, None]."""
  columns = {}
  for name, first in examples[0].items():
    values = [example[name] for example in examples]
    if isinstance(first, str):
      columns[name] = tf.constant(values, tf.string)
    elif isinstance(first, int):
      columns[name] = tf.constant(values, tf.int32)
    else:
      flat = tf.constant([item for value in values for item in value], tf.string)
      columns[name] = tf.RaggedTensor.from_row_lengths(flat, [len(value) for value in values])
  return columns
