"""SuperGLUE: its eight tasks in T5's text-to-text format, and three mixtures of them.

Tasks are named `superglue_<task>`; mixtures: `superglue` (proportional to the number of training
examples), `superglue_equal` and `superglue_temperature`. Data come from the folder that
SUPERGLUE_DIR names, in the layout of the official release (`BoolQ/train.jsonl`, `BoolQ/val.jsonl`,
...), or, where it is not set, from a `super_glue` that TFDS has prepared. Nothing is read before a
dataset is built.

Training gives ReCoRD one row per answer and WSC the true pairs only; evaluation gives one row per
query and all pairs. Test labels of the benchmark are hidden: evaluate on `validation`, infer on
`test`.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Sequence

import seqio

from tasks import features
from tasks import mixtures
from tasks import records
from tasks import sources
from tasks import superglue_formats
from tasks import superglue_metrics

VARIABLE = 'SUPERGLUE_DIR'
LAYOUT = 'BoolQ/train.jsonl, BoolQ/val.jsonl, CB/, COPA/, MultiRC/, ReCoRD/, RTE/, WiC/ and WSC/'
_FILES = {'train': 'train.jsonl', 'validation': 'val.jsonl', 'test': 'test.jsonl'}

TASKS = tuple(f'superglue_{task}' for task in superglue_formats.FORMATS)
benchmark_score = superglue_metrics.benchmark_score


class SuperGlueSource(sources.RowSource):
  """Rows of one SuperGLUE task, from the official files or from TFDS."""

  def __init__(self, task: str, form: superglue_formats.Format):
    super().__init__(task)
    self._format = form

  def origin(self) -> str:
    folder = records.folder_of(VARIABLE, LAYOUT)
    return str(folder / self._format.folder) if folder else f'TFDS super_glue/{self._format.config}'

  @property
  def splits(self) -> Sequence[str]:
    folder = records.folder_of(VARIABLE, LAYOUT)
    if folder is None or (folder / self._format.folder / _FILES['test']).exists():
      return ('train', 'validation', 'test')
    return ('train', 'validation')

  def read(self, split: str) -> Sequence[sources.Row]:
    folder = records.folder_of(VARIABLE, LAYOUT)
    if folder is not None:
      path = folder / self._format.folder / _FILES[split]
      if not path.exists():
        raise FileNotFoundError(f'no file {path}; {VARIABLE} must name a folder with {LAYOUT}')
      rows = self._format.read(path, labelled=split != 'test')
    else:
      rows = sources.prepared_tfds(f'super_glue/{self._format.config}', split, VARIABLE, LAYOUT)
    expand = self._format.training_rows if split == 'train' else self._format.evaluation_rows
    return [expanded for row in rows for expanded in expand(row)]

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    del split, seed
    return self._format.example(row)


def _evaluation(task: str, form: superglue_formats.Format):
  """Returns the postprocessor and the metrics of a task."""
  if task == 'multirc':
    return superglue_metrics.multirc_answer, [superglue_metrics.multirc_f1,
                                              superglue_metrics.multirc_exact_match]
  if task == 'record':
    return superglue_metrics.record_answer, [superglue_metrics.record_em_f1]
  if task == 'wsc':
    return superglue_metrics.wsc_referent, [superglue_metrics.accuracy]
  metrics = [superglue_metrics.accuracy]
  if task == 'cb':
    metrics.insert(0, superglue_metrics.mean_3class_f1)
  return superglue_metrics.class_index(form.labels), metrics


def register() -> None:
  """Registers tasks and mixtures; does nothing the second time."""
  if 'superglue' in seqio.MixtureRegistry.names():
    return
  for task, form in superglue_formats.FORMATS.items():
    name = f'superglue_{task}'
    postprocess, metrics = _evaluation(task, form)
    seqio.TaskRegistry.add(
        name,
        source=SuperGlueSource(name, form),
        output_features=features.output_features(),
        preprocessors=features.pipeline(),
        postprocess_fn=postprocess,
        metric_fns=metrics)
  seqio.MixtureRegistry.add('superglue', TASKS, default_rate=mixtures.proportional_rate)
  seqio.MixtureRegistry.add('superglue_equal', TASKS, default_rate=mixtures.equal_rate)
  seqio.MixtureRegistry.add('superglue_temperature', TASKS, default_rate=mixtures.temperature_rate)


register()
