"""Where SuperGLUE's rows come from: the official files, or TFDS; all of them, or a few to learn from.

`superglue.few_shot.k = 32` in gin trains on 32 examples of each task, chosen by `superglue.few_shot.seed` and the examples'
own numbers, hence the same ones from files and from TFDS. Questions of MultiRC and queries of ReCoRD count, and have all
their rows. Evaluation is not touched.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Sequence

from absl import logging
from etils import epath
import gin

from tasks import few_shot as few_shot_lib
from tasks import records
from tasks import sources
from tasks import superglue_formats
from tasks import superglue_prompts

VARIABLE = 'SUPERGLUE_DIR'
LAYOUT = 'BoolQ/train.jsonl, BoolQ/val.jsonl, CB/, COPA/, MultiRC/, ReCoRD/, RTE/, WiC/ and WSC/'
DPR_VARIABLE = 'DPR_DIR'
DPR_LAYOUT = 'train.jsonl (fields sentence, pronoun, candidates, label)'
_FILES = {'train': 'train.jsonl', 'validation': 'val.jsonl', 'test': 'test.jsonl'}


@gin.configurable(module='tasks.superglue')
def few_shot(k: int | None = None, seed: int = 0) -> tuple[int | None, int]:
  """Returns how many examples of each task a run trains on, None for all, and the seed that chooses them.

  Raises:
    ValueError: `k` is no positive number.
  """
  if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
    raise ValueError(f'superglue.few_shot.k is {k!r}; set it to a positive whole number, or to None for all examples')
  return k, seed


class SuperGlueSource(sources.RowSource):
  """Rows of one task, in the style of the run's prompts.

  Args:
    name: the SeqIO task whose key the examples get.
    task: the task whose prompts are used, e.g. `rte`.
    form: how its files are read.
  """

  # The environment variable that names the folder of the files, and what is in there, for those who lack them.
  variable = VARIABLE
  layout = LAYOUT

  def __init__(self, name: str, task: str, form: superglue_formats.Format):
    super().__init__(name)
    self._task = task
    self._format = form

  def origin(self) -> str:
    folder = self._folder()
    place = str(folder) if folder else f'TFDS {self._tfds_name()}'
    k, seed = few_shot()
    # Rows depend on both settings, so they are read again when one changes.
    return f'{place} ({superglue_prompts.prompt()} prompts' + (f', {k} training examples of seed {seed})' if k else ')')

  @property
  def splits(self) -> Sequence[str]:
    folder = self._folder()
    if folder is None or (folder / _FILES['test']).exists():
      return ('train', 'validation', 'test')
    return ('train', 'validation')

  def read(self, split: str) -> Sequence[sources.Row]:
    folder = self._folder()
    if folder is not None:
      rows = self._format.read(self._file(folder, split), labelled=split != 'test')
    else:
      rows = map(self._format.from_tfds, sources.prepared_tfds(self._tfds_name(), split, self.variable, self.layout))
    return self._chosen(rows, split)

  def _folder(self) -> epath.Path | None:
    folder = records.folder_of(VARIABLE, LAYOUT)
    return folder / self._format.folder if folder else None

  def _file(self, folder: epath.Path, split: str) -> epath.Path:
    path = folder / _FILES[split]
    if not path.exists():
      raise FileNotFoundError(f'no file {path}; {self.variable} must name a folder with {self.layout}')
    return path

  def _tfds_name(self) -> str:
    return f'super_glue/{self._format.config}'

  def _chosen(self, rows: Any, split: str) -> Sequence[sources.Row]:
    """Expands rows of the files, and takes the few of a few-shot run."""
    training = split == 'train'
    expanded = [one for row in rows for one in superglue_prompts.expand(self._task, row, training)]
    k, seed = few_shot()
    if not training or k is None:
      return expanded
    available = len(set(map(self._format.group_of, expanded)))
    if available < k:
      logging.warning('%s has %d training examples, fewer than superglue.few_shot.k = %d: all are used', self._task, available,
                      k)
    return few_shot_lib.sample(expanded, k, seed, group=self._format.group_of)

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    del split, seed
    example = {'inputs': superglue_prompts.inputs(self._task, row), 'targets': superglue_prompts.target(self._task, row)}
    kept = ('label', 'idx', 'pair_id', 'idx/paragraph', 'idx/question', 'idx/answer', 'idx/passage', 'idx/query')
    example.update({name: row[name] for name in kept if name in row})
    if 'answers' in row:
      example['answers'] = list(row['answers'])
    return example


class DiagnosticSource(SuperGlueSource):
  """AX-b and AX-g: one file, which is their `test`, and is read as `validation` too, to be evaluated beside other tasks."""

  @property
  def splits(self) -> Sequence[str]:
    return ('validation', 'test')

  def read(self, split: str) -> Sequence[sources.Row]:
    return super().read('test')

  def _file(self, folder: epath.Path, split: str) -> epath.Path:
    path = folder / f'{self._format.folder}.jsonl'
    if not path.exists():
      raise FileNotFoundError(
          f'no file {path}; add it to {VARIABLE}, or evaluate a mixture without superglue_{self._format.config}')
    return path


class PronounSource(SuperGlueSource):
  """DPR, with the rows of WSC: `train`, and `test` where it is there.

  Its folder is DPR_DIR, or else DPR in SUPERGLUE_DIR; without either it is TFDS's `definite_pronoun_resolution`.
  """

  variable = DPR_VARIABLE
  layout = DPR_LAYOUT

  @property
  def splits(self) -> Sequence[str]:
    return tuple(split for split in super().splits if split != 'validation')

  def read(self, split: str) -> Sequence[sources.Row]:
    folder = self._folder()
    if folder is not None:
      number = lambda where: int(where.rpartition(':')[2])
      rows = records.read_rows(self._file(folder, split), (),
                               lambda line, where: superglue_formats.dpr_rows(line, number(where), where))
    else:
      examples = sources.prepared_tfds(self._tfds_name(), split, self.variable, self.layout)
      rows = [row for i, line in enumerate(examples, start=1)
              for row in superglue_formats.dpr_rows(line, i, f'{self._tfds_name()}, {split} {i}')]
    return self._chosen(rows, split)

  def _folder(self) -> epath.Path | None:
    folder = records.folder_of(self.variable, self.layout)
    if folder is None:
      beside = super()._folder()
      folder = beside if beside and beside.is_dir() else None
    return folder

  def _tfds_name(self) -> str:
    return 'definite_pronoun_resolution/plain_text'
