"""The SeqIO source of one Super-NI task: its instances, from its file or from TFDS.

A file is parsed once for all splits, when the first of them is wanted, and only what the splits use is kept.

Training targets are one reference of each instance, drawn by a hash of its id and the data seed.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from typing import Any
from collections.abc import Hashable, Mapping, Sequence

import seqio

from tasks import records
from tasks import sources
from tasks import superni_files
from tasks import superni_prompts
from tasks import superni_splits

UNSET_TASK = 'needs_SUPERNI_DIR'


class InstanceSource(sources.RowSource):
  """Instances of one task."""

  def __init__(self, stem: str, is_test: bool):
    """Args: stem: the task's name upstream; is_test: whether its first instances are for `test`."""
    super().__init__(superni_files.task_name(stem))
    self._stem = stem
    self._is_test = is_test
    # What the rows depend on, the category, and the rows of each split.
    self._loaded: tuple[Hashable, str, Mapping[str, Sequence[sources.Row]]] = (None, '', {})

  def origin(self) -> str:
    folder = superni_files.folder()
    return str(folder / 'tasks' / f'{self._stem}.json') if folder else f'TFDS {self._stem}'

  @property
  def splits(self) -> Sequence[str]:
    return superni_splits.SPLITS if self._is_test else superni_splits.SPLITS[:2]

  def rows(self, split: str) -> Sequence[sources.Row]:
    self._refresh()
    return super().rows(split)

  def read(self, split: str) -> Sequence[sources.Row]:
    return self._loaded[2][split]

  def category(self) -> str:
    """The task's category, `unknown` where its file does not tell, or without files; reads the file unless it has been."""
    self._refresh()
    return self._loaded[1]

  def category_metric(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, seqio.metrics.Text]:
    """A metric that names the task's category, so that logs and metric files show it beside the scores."""
    del targets, predictions
    return {'category': seqio.metrics.Text(self.category())}

  def _refresh(self) -> None:
    """Reads the task unless that is done; again where the folder or a setting has changed."""
    folder, most = superni_files.folder(), superni_splits.sizes()
    version = (folder, most, records.skip_bad_lines())
    if version == self._loaded[0]:
      return
    if folder is not None:
      task = superni_files.read_task(folder / 'tasks' / f'{self._stem}.json')
    elif self._stem == UNSET_TASK:
      raise unset_error()
    else:
      task = superni_files.TaskFile(superni_files.UNKNOWN_CATEGORY, tfds_instances(most.needed).get(self._stem, []))
    self._cache.clear()
    self._loaded = (version, task.category, superni_splits.split(task.instances, self._is_test, most))

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    pieces = superni_prompts.prompt_pieces(self._stem, row['definition'], row['positive'], row['negative'], row['input'],
                                           superni_prompts.prompt_options())
    outputs = row['output']
    chosen = _draw(row['id'], seed, len(outputs)) if split == 'train' else 0
    return {**pieces, 'targets': outputs[chosen].strip(), 'references': list(outputs), 'id': row['id']}


def unset_error() -> FileNotFoundError:
  """Returns the error of a run without SUPERNI_DIR and SUPERNI_SPLITS."""
  return FileNotFoundError(f'{superni_files.VARIABLE} is not set; set it, before tasks.superni is imported, to a folder with '
                           f'{superni_files.LAYOUT}')


@functools.lru_cache(maxsize=1)
def tfds_instances(most: int) -> Mapping[str, list[dict[str, Any]]]:
  """Reads TFDS's `natural_instructions` once: task -> its first `most` instances."""
  found = collections.defaultdict(list)
  for row in sources.prepared_tfds('natural_instructions', 'train', superni_files.VARIABLE, superni_files.LAYOUT):
    rows = found[row['task_name']]
    if len(rows) < most:
      rows.append({'id': row['id'], 'input': row['input'], 'output': [row['output']],
                   'definition': row['definition'], 'positive': [], 'negative': []})
  return found


def _draw(instance: str, seed: int, number: int) -> int:
  """A number below `number` that depends on the instance and the seed alone, on any machine."""
  digest = hashlib.sha256(f'{seed}:{instance}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % number
