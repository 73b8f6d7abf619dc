"""A JSONL file of inputs as a SeqIO task, so that `python -m t5x.infer` answers it line by line.

    {"task": "superglue_boolq", "input": "question: ... passage: ...", "id": 7}
    {"task": "superglue_rte", "input": "...", "target": "entailment"}

become the same lines, in the same order, with a field more: `prediction`, and `scores` or `score`, as the mode of the inference
says. The tasks of a file may be mixed: each line is routed by its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from typing import Any
from collections.abc import Iterable, Mapping, Sequence

from etils import epath
import gin
import numpy as np
import seqio
import tensorflow as tf

from cpoly_jax import routing
from cpoly_jax import task_index
from cpoly_jax import vocabularies
from tasks import features
from tasks import records
from tasks import sources

SPLIT = 'infer'
RECORD = 'record'  # The line of the file.
# Fields that each mode of the inference adds.
ADDED = {'predict': ('prediction',), 'predict_with_aux': ('prediction', 'scores'), 'score': ('score',)}
_INPUT, _TARGET = ('input', 'inputs'), ('target', 'targets')

_registered: dict[str, tuple[Any, ...]] = {}  # What each task that is registered here is made of.


@dataclasses.dataclass(frozen=True)
class Row:
  """A line: the task that routes it, input, target ('' where there is none), and the line itself as JSON."""
  task: str
  input: str
  target: str
  record: str


class InputFileSource(sources.RowSource):
  """The lines of a file.

  Args:
    name: SeqIO name of the task.
    path: the file, local or in a bucket.
    model: a `CPolyModel`: its tasks and vocabularies.
    task: of lines without a field `task`; None where all have it, or the model has one task only.
    mode: of the inference; 'score' needs a target in each line.
    lengths: most tokens of {'inputs', 'targets'}, with the end of sequence; a longer text is a fault. None: it is cut.
  """

  def __init__(self, name: str, path: str, model: Any, task: str | None, mode: str, lengths: Mapping[str, int] | None):
    super().__init__(name)
    self._path, self._model, self._mode, self._lengths = path, model, mode, lengths
    only = model.task_index.names[0] if len(model.task_index) == 1 else None
    self._task = task or only

  def origin(self) -> str:
    return self._path

  @property
  def splits(self) -> Sequence[str]:
    return (SPLIT,)

  def list_shards(self, split: str) -> Sequence[str]:
    return [self._path]

  def read(self, split: str) -> Sequence[Row]:
    del split
    return records.read_rows(self._path, (), self._to_rows)

  def to_example(self, row: Row, split: str, seed: int) -> Mapping[str, Any]:
    del split, seed
    return {'inputs': row.input, 'targets': row.target, RECORD: row.record,
            features.TASK_KEY: task_index.task_key(task_index.routed_as(row.task))}

  @property
  def routed_tasks(self) -> Sequence[str]:
    """The tasks of the lines, which the model must have rows for."""
    return sorted({row.task for row in self.rows(SPLIT)})

  def content_digest(self, split: str) -> str:
    """Tells these lines from others: an inference goes on only with the same ones."""
    lines = (f'{row.task}\0{row.target}\0{row.record}\n' for row in self.rows(split))
    return hashlib.sha256(''.join(lines).encode('utf-8')).hexdigest()[:16]

  def _to_rows(self, record: Mapping[str, Any], where: str) -> Iterable[Row]:
    task = record.get('task') or self._task
    if task is None:
      raise records.BadRecord(f"{where}: field 'task' is missing or empty; write the name of the line's task into it, or set "
                              'TASK for the whole file')
    try:
      self._model.task_index.row(task_index.routed_as(str(task)))
    except ValueError as e:
      if self._model.unknown_task != routing.AVERAGE:
        raise records.BadRecord(f'{where}: {e}') from None
    taken = [field for field in ADDED[self._mode] if field in record]
    if taken:
      raise records.BadRecord(f"{where}: field '{taken[0]}' is there already; rename it, the result is written into it")
    text = self._text(record, _INPUT, 'inputs', where)
    target = self._text(record, _TARGET, 'targets', where) if self._mode == 'score' else ''
    yield Row(str(task), text, target, json.dumps(record, ensure_ascii=False))

  def _text(self, record: Mapping[str, Any], names: Sequence[str], feature: str, where: str) -> str:
    present = [name for name in names if name in record]
    if len(present) != 1:
      fault = f"both '{names[0]}' and '{names[1]}' are there; keep one of them" if present else (
          f"field '{names[0]}' is missing (fields here: {', '.join(map(str, record)) or 'none'}); rename the field that has it")
      raise records.BadRecord(f'{where}: {fault}')
    found = record[present[0]]
    if isinstance(found, list) and len(found) == 1 and feature == 'targets':
      found = found[0]
    if not isinstance(found, str) or not found.strip():
      raise records.BadRecord(f"{where}: field '{present[0]}' is {found!r:.60}; wanted one text that is not empty")
    if self._lengths is not None:
      number = len(_vocabulary(self._model, feature).encode(found)) + 1
      if number > self._lengths[feature]:
        raise records.BadRecord(
            f"{where}: the {present[0]} has {number} tokens with its end, more than {self._lengths[feature]}; shorten it, "
            f"raise {feature} in TASK_FEATURE_LENGTHS, or set TRUNCATE = True to cut it")
    return found


def _vocabulary(model: Any, feature: str) -> seqio.Vocabulary:
  return model.input_vocabulary if feature == 'inputs' else model.output_vocabulary


@gin.configurable(module='tasks.input_file')
def task(path: os.PathLike | str | None = None, model: Any = None, task: str | None = None, mode: str = 'predict',
         lengths: Mapping[str, int] | None = None, truncate: bool = False, name: str | None = None) -> str:
  """Registers a file as a task with one split, `infer`, and returns the task's name.

  Args:
    path: the JSONL file, local or in a bucket.
    model: a `CPolyModel`.
    task: the routed task of lines without a field `task`.
    mode: 'predict', 'predict_with_aux' or 'score'.
    lengths: TASK_FEATURE_LENGTHS.
    truncate: cut longer texts instead of refusing them.
    name: of the SeqIO task, which starts the names of the results; None: that of the file.

  Raises:
    ValueError: an argument is missing or wrong, or another task has the name. Faults of the file are found when it is read.
  """
  if not path:
    raise ValueError("input_file.task.path is not set; set it to the file of your inputs (INPUT_FILE = 'questions.jsonl')")
  if mode not in ADDED:
    raise ValueError(f"mode '{mode}' is not known; write one of {', '.join(ADDED)}")
  if not truncate and lengths is None:
    raise ValueError("TASK_FEATURE_LENGTHS is not set; give the length of each feature, e.g. {'inputs': 512, 'targets': 128}")
  if task is not None and model.unknown_task != routing.AVERAGE:
    model.task_index.row(task_index.routed_as(task))
  path = os.fspath(path)
  name = name or re.sub(r'\W', '_', epath.Path(path).stem)
  settings = (path, task, mode, None if truncate else tuple(sorted(lengths.items())), model.task_index.names,
              *(str(vocabularies.describe(v) or id(v)) for v in (model.input_vocabulary, model.output_vocabulary)))
  if _registered.get(name) == settings:
    return name
  if name in _registered:
    seqio.TaskRegistry.remove(name)
  elif name in seqio.TaskRegistry.names() or name in seqio.MixtureRegistry.names():
    raise ValueError(f'there is a task or mixture {name!r} already; rename the file {path}, or set input_file.task.name')
  key = features.output_features()[features.TASK_ID]
  seqio.TaskRegistry.add(
      name,
      source=InputFileSource(name, path, model, task, mode, None if truncate else lengths),
      output_features={**{feature: seqio.Feature(_vocabulary(model, feature), add_eos=True, required=False)
                          for feature in ('inputs', 'targets')}, features.TASK_ID: key},
      preprocessors=features.pipeline(),
      metric_fns=[])
  _registered[name] = settings
  return name


def write(path: str, inferences: tuple[Sequence[Any], Mapping[str, Any]] | Sequence[Any], task_ds: tf.data.Dataset, mode: str,
          vocabulary: seqio.Vocabulary | None = None) -> None:
  """Writes the lines of some examples with what was inferred for them: T5X's `write_fn`.

  Args:
    path: the file to write.
    inferences: (predictions or scores, {name: values}), in the order of `task_ds`.
    task_ds: examples with their `record`.
    mode: 'predict', 'predict_with_aux' or 'score'.
    vocabulary: decodes predictions.
  """
  outputs, auxiliary = inferences if isinstance(inferences, tuple) else (inferences, {})
  values = {field: _column(field, outputs, auxiliary, vocabulary) for field in ADDED[mode]}
  lines = []
  for i, example in enumerate(task_ds.as_numpy_iterator()):
    record = json.loads(example[RECORD])
    lines.append(json.dumps({**record, **{field: column[i] for field, column in values.items()}}, ensure_ascii=False) + '\n')
  target = epath.Path(path)
  temporary = epath.Path(f'{os.fspath(path)}.tmp')  # A reader sees the whole chunk or none.
  temporary.write_text(''.join(lines))
  temporary.replace(target)


def _column(field: str, outputs: Sequence[Any], auxiliary: Mapping[str, Any], vocabulary: Any) -> list[Any]:
  """Returns the values of a field: texts, or lists of them for several decodes, or numbers."""
  if field == 'prediction':
    return [_decoded(np.asarray(output), vocabulary) for output in outputs]
  return np.asarray(auxiliary[field] if field == 'scores' else outputs).tolist()


def _decoded(tokens: np.ndarray, vocabulary: seqio.Vocabulary) -> Any:
  return vocabulary.decode(tokens.tolist()) if tokens.ndim == 1 else [_decoded(row, vocabulary) for row in tokens]
