"""The files of an inference: chunks that are written one by one, and what a later process may rely on.

A chunk is done when its file and the marker `<file>.COMPLETED` beside it are there. The marker tells of what run the chunk is,
so that a process that goes on with other settings, or another input file, says so instead of mixing two runs in one result.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from t5x import datasets
from t5x import files

if TYPE_CHECKING:
  import seqio
  import tensorflow as tf

DONE = '.COMPLETED'
# The fact that matters to chunks only: examples in each.
CHUNK = 'chunk'


class TaskFiles:
  """The examples of one task for one job, the chunks that they become, and the file in the end.

  Args:
    task: the task.
    cfg: split, lengths and order of its examples.
    mode: 'predict', 'predict_with_aux' or 'score'.
    output_dir: folder of the result.
    shard: (index of this job, number of jobs that share the examples).
    file_extension: of the result.
    facts: what two processes of one run must have in common, for JSON; e.g. the checkpoint, and `CHUNK`.

  Attributes:
    file_name: of the result.
    path: of the result.
    tmp_dir: folder of the chunks.
  """

  def __init__(self, task: seqio.Task, cfg: datasets.DatasetConfig, mode: str, output_dir: str, shard: tuple[int, int],
               file_extension: str, facts: Mapping[str, Any] | None = None):
    self.task, self.cfg = task, cfg
    self.output_dir = output_dir
    self._shard = shard
    suffix = f'{shard[0]:05}-of-{shard[1]:05}'
    self.file_name = f'{task.name}-{mode}.{file_extension}-{suffix}'
    self.path = os.path.join(output_dir, self.file_name)
    self.tmp_dir = os.path.join(output_dir, f'tmp-{task.name}-{suffix}')
    self._facts = {'mode': mode, 'split': cfg.split, 'lengths': dict(cfg.task_feature_lengths or {}), 'shuffle': cfg.shuffle,
                   'seed': cfg.seed, **(facts or {})}

  def dataset(self) -> tf.data.Dataset:
    """The examples of this job with the features of the task, in a fixed order."""
    ds = self.task.get_dataset(
        sequence_length=self.cfg.task_feature_lengths, split=self.cfg.split, shuffle=self.cfg.shuffle, num_epochs=1,
        use_cached=self.cfg.use_cached, seed=0 if self.cfg.seed is None else self.cfg.seed,
        trim_output_features=self.cfg.trim_output_features)
    return ds.shard(self._shard[1], self._shard[0])

  def chunk_path(self, chunk: int) -> str:
    return os.path.join(self.tmp_dir, f'{self.file_name}-chunk{chunk:05}')

  def is_done(self) -> bool:
    """Whether the result is there. Raises ValueError where it is that of another run."""
    return self._is_marked(self.path, ignored=(CHUNK,))

  def num_chunks_done(self) -> int:
    """Chunks that are done, counted from the first. Raises ValueError where they are those of another run."""
    return next(i for i in itertools.count() if not self._is_marked(self.chunk_path(i)))

  def prepare(self, keep: bool) -> None:
    """Makes the folder of the chunks, without chunks of before unless they are kept."""
    folder = epath.Path(self.tmp_dir)
    if folder.exists() and not keep:
      folder.rmtree()
    files.make_dirs(self.tmp_dir)

  def mark_chunk(self, chunk: int) -> None:
    """Says that a chunk is written."""
    files.write_text(self.chunk_path(chunk) + DONE, self._marker())

  def mark_result(self) -> None:
    """Says that the result is written."""
    files.write_text(self.path + DONE, self._marker())

  def _marker(self) -> str:
    return json.dumps(self._facts) + '\n'

  def _is_marked(self, path: str, ignored: Sequence[str] = ()) -> bool:
    text = ''.join(files.read_lines(path + DONE))
    # Killed while chunks were being removed, a process may leave a marker behind.
    if not (epath.Path(path).exists() and epath.Path(path + DONE).exists()):
      return False
    try:
      there = json.loads(text) if text.strip() else {}  # Other writers leave the marker empty.
    except ValueError:
      return False
    here = json.loads(self._marker())
    differ = [name for name in there if name in here and there[name] != here[name] and name not in ignored]
    if differ:
      told = ', '.join(f'{name} = {there[name]!r} there and {here[name]!r} now' for name in differ)
      raise ValueError(f'{path} is of another run ({told}): remove it and {self.tmp_dir}, or set INFER_OUTPUT_DIR to another '
                       'folder.')
    return True


def content(task: seqio.Task, split: str) -> Any:
  """Returns what tells the examples of a task from others, as far as its source knows.

  A source may have a method `content_digest(split)`; of others the number of their examples is taken.
  """
  digest = getattr(task.source, 'content_digest', None)
  if digest is not None:
    return digest(split)
  return datasets.stated_examples(task, split)


def num_examples(ds: tf.data.Dataset, task: seqio.Task, split: str, num_shards: int = 1) -> int | None:
  """Returns how many examples a dataset has, or about how many; None where neither it nor its task knows."""
  known = int(ds.cardinality())
  if known >= 0:
    return known
  stated = datasets.stated_examples(task, split)
  return None if stated is None else -(-stated // num_shards)


def iterate(ds: tf.data.Dataset, size: int, skip: int) -> Iterator[tuple[int, tf.data.Dataset]]:
  """Yields (chunk number, dataset of its examples), reading the source once.

  Args:
    ds: the examples.
    size: examples in a chunk; the last one may have fewer.
    skip: chunks to leave out at the start.
  """
  import tensorflow as tf
  examples = ds.skip(skip * size).as_numpy_iterator()
  for number in itertools.count(skip):
    chunk = list(itertools.islice(examples, size))
    if not chunk:
      return
    chunk_ds = tf.data.Dataset.from_generator(lambda chunk=chunk: iter(chunk), output_signature=ds.element_spec)
    yield number, chunk_ds.apply(tf.data.experimental.assert_cardinality(len(chunk)))


def merge_chunks_to_file(output_dir: str, output_fname: str, tmp_dir: str, step: int | None = None) -> None:
  """Joins the chunk files of `tmp_dir`, in order, into `<output_dir>/<output_fname>` and removes the folder.

  Args:
    output_dir: folder of the result.
    output_fname: its name.
    tmp_dir: folder of the chunks.
    step: accepted for compatibility.
  """
  del step
  chunks = sorted(p for p in epath.Path(tmp_dir).iterdir() if re.search(r'-chunk\d+$', p.name))
  target = epath.Path(output_dir) / output_fname
  partial = epath.Path(f'{target}.tmp')
  with partial.open('w') as out:
    for chunk in chunks:
      out.write(chunk.read_text())
  partial.replace(target)
  epath.Path(tmp_dir).rmtree()
