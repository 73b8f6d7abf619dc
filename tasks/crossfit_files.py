"""CrossFit's files of one task: few-shot sets as its scripts publish them, or drawn from whole files by the same rule.

Published (`_build_gym.py` of the authors' repository writes it): `<task>/<task>_<shots>_<seed>_{train,dev,test}.tsv`, of five
seeds, `shots` rows per label for classification and in all for other tasks; the test file is the same for every seed.
Whole: `<task>/<task>_{train,test}.tsv` and perhaps `<task>_dev.tsv`. Then `train` is drawn from the train file, and `dev` from
the dev file or, where there is none, from the rest of the train file. These are not the authors' draws.

A row is an input and one or more acceptable outputs, separated by tabs; there is no header and no quoting.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from collections.abc import Iterable, Sequence

from etils import epath

from tasks import few_shot
from tasks import records

SEEDS = (100, 13, 21, 42, 87)
PARTS = ('train', 'dev', 'test')
LAYOUT = '<task>/<task>_<shots>_<seed>_{train,dev,test}.tsv'
_ROW = 'wanted the input, a tab and the output on one line'


@dataclasses.dataclass(frozen=True)
class TaskFiles:
  """The files of one task in a folder.

  Attributes:
    folder: what CROSSFIT_DIR names.
    task: CrossFit's name of the task.
    shots: number in the files' names, and how many rows are drawn from whole files.
    per_label: whether `shots` counts for each first output.
  """
  folder: epath.Path
  task: str
  shots: int
  per_label: bool

  def rows(self, part: str, seed: int) -> list[dict[str, Any]]:
    """Returns the rows (`id`, `input`, `outputs`) of a part of PARTS.

    Raises:
      FileNotFoundError: its file is absent.
      ValueError: a row is bad (`records.BadRecord`), too many are, or there is none.
    """
    if part == 'test' and not self._published(part, seed).exists() and self._whole(part).exists():
      return read_tsv(self._whole(part))
    if part == 'test' or not self._is_drawn(seed):
      return read_tsv(self._published(part, seed))
    train = read_tsv(self._whole('train'))
    drawn = self._draw(train, seed)
    if part == 'train':
      return drawn
    if self._whole('dev').exists():
      return self._draw(read_tsv(self._whole('dev')), seed)
    taken = {row['id'] for row in drawn}
    return self._draw([row for row in train if row['id'] not in taken], seed)

  def absent(self, parts: Iterable[str], seeds: Sequence[int]) -> list[epath.Path]:
    """Returns the published files that `rows` would need for these parts and seeds, and that are not there."""
    paths = [self._published(part, seed) for seed in seeds for part in parts
             if part == 'test' and not self._whole(part).exists() or part != 'test' and not self._is_drawn(seed)]
    return [path for path in paths if not path.exists()]

  def seeds(self) -> list[int]:
    """Returns the seeds of the published training files that are there, sorted."""
    folder = self.folder / self.task
    pattern = re.compile(rf'{re.escape(self.task)}_{self.shots}_(\d+)_train\.tsv')
    matches = [pattern.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in matches if match)

  def _published(self, part: str, seed: int) -> epath.Path:
    return self.folder / self.task / f'{self.task}_{self.shots}_{seed}_{part}.tsv'

  def _whole(self, part: str) -> epath.Path:
    return self.folder / self.task / f'{self.task}_{part}.tsv'

  def _is_drawn(self, seed: int) -> bool:
    # By the training file alone, so that a lost dev file is never drawn from rows that are trained on.
    return not self._published('train', seed).exists() and self._whole('train').exists()

  def _draw(self, rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    label = (lambda row: row['outputs'][0]) if self.per_label else None
    return list(few_shot.sample(rows, self.shots, seed, label=label))


def read_tsv(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads one file of rows; bad ones are skipped as `records.skip_bad_lines` allows.

  Returns:
    Rows in the order of the lines: `id` (`<file>:<line>`), `input`, and `outputs`, the acceptable ones, at least one. Spaces
    around a field are dropped, as are empty outputs beside others, CR at the end of a line, and blank lines.

  Raises:
    FileNotFoundError: there is no such file.
    records.BadRecord: a line has no tab, no input or no output, or is not UTF-8.
    ValueError: there is no row, or too many are bad.
  """
  path = epath.Path(path)
  rows = []
  empty = True
  with records.Faults(path) as faults:
    for number, line in enumerate(records.read_bytes(path).split(b'\n'), start=1):
      if not line.strip():
        continue
      empty = False
      with faults.record(f'line {number}'):
        rows.append({'id': f'{path.name}:{number}', **_parse(line, f'{path}:{number}')})
  if empty:
    raise ValueError(f'{path}: no rows in the file; {_ROW}')
  return rows


def _parse(line: bytes, where: str) -> dict[str, Any]:
  fields = [field.strip() for field in records.decode(line, where).split('\t')]
  if len(fields) == 1:
    raise records.BadRecord(f'{where}: no tab in the line; {_ROW} (replace line breaks inside a text by spaces)')
  source, outputs = fields[0], [field for field in fields[1:] if field]
  if not source or not outputs:
    raise records.BadRecord(f'{where}: the {"output" if source else "input"} is empty; {_ROW}')
  return {'input': source, 'outputs': outputs}
