"""Runs the SeqIO preprocessors of many tasks, with one traced pipeline for all tasks that share them.

tf.data traces every function of every task's pipeline, a quarter of a second a task, however short the task. Tasks with the
very same preprocessors, output features and source layout differ only in their rows. So the pipeline is traced once, as a
function of the rows: each task still runs through a pipeline of its own, as SeqIO builds it, which ends with its last row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

if TYPE_CHECKING:
  import seqio
  import tensorflow as tf

# Examples that are handed over at once.
_SLAB = 256


@dataclasses.dataclass(frozen=True)
class Conversion:
  """How examples of a task become features of the model.

  Attributes:
    split: split of each task.
    feature_lengths: task feature -> length.
    converter: a SeqIO feature converter that does not pack.
    seed: of the sources and of random preprocessing.
    use_cached: read SeqIO's offline cache of the tasks that have one.
    trim_output_features: cut features to their length.
  """
  split: str
  feature_lengths: Mapping[str, int]
  converter: seqio.FeatureConverter
  seed: int
  use_cached: bool = False
  trim_output_features: bool = True


class Pipeline:
  """The converted examples of some tasks, in their stored order, one task after the other.

  Attributes:
    tasks: numbers of the tasks, as the caller counts them.
    is_random: whether a preprocessor draws random numbers, which SeqIO would draw anew in each epoch.
    size: number of examples where it is known beforehand, else None.
  """

  def __init__(self, tasks: Sequence[int], dataset: tf.data.Dataset, is_random: bool, size: int | None):
    """Args: dataset: of (features, number of the task)."""
    self.tasks, self.is_random, self.size = tuple(tasks), is_random, size
    self._dataset = dataset

  @property
  def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{feature: (shape, dtype)} of an example.

    Raises:
      ValueError: a shape is not known beforehand.
    """
    found = {}
    for name, spec in self._dataset.element_spec[0].items():
      if not spec.shape.is_fully_defined():
        raise ValueError(f"Feature '{name}' has the shape {spec.shape}, but a batch needs examples of one shape: give its "
                         'length in TASK_FEATURE_LENGTHS.')
      found[name] = (tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype))
    return found

  def slabs(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields features {name: [n, ...]} of some examples, and the number of the task of each, [n] int64."""
    import tensorflow as tf
    options = tf.data.Options()
    options.deterministic = True
    yield from self._dataset.batch(_SLAB).prefetch(2).with_options(options).as_numpy_iterator()


def open_pipelines(tasks: Sequence[seqio.Task], alone: Sequence[bool], conversion: Conversion) -> list[Pipeline]:
  """Opens tasks with as few pipelines as possible.

  Args:
    tasks: the tasks; pipelines number them as they stand here.
    alone: of each task, whether it gets a pipeline of its own in any case.
    conversion: what to make of them.

  Returns:
    Pipelines that hold each task once.

  Raises:
    Whatever sources and preprocessors raise.
  """
  groups: dict[Any, list[tuple[int, Any]]] = {}
  pipelines = []
  for number, task in enumerate(tasks):
    if alone[number] or _opens_itself(task, conversion):
      pipelines.append(_open_alone(number, task, conversion))
      continue
    rows = task.source.get_dataset(split=conversion.split, shuffle=False, seed=conversion.seed, shard_info=None)
    key = (*map(_identity, task.preprocessors), str(rows.element_spec))
    groups.setdefault(key, []).append((number, rows))
  for members in groups.values():
    pipelines += _open_group(tasks, members, conversion)
  return pipelines


def _identity(preprocessor: Any) -> Any:
  """What two preprocessors have in common only if they do the same."""
  import seqio
  # Each task has a marker of its own of where its cache would begin; it does nothing here.
  if isinstance(preprocessor, seqio.CacheDatasetPlaceholder):
    return 'cache', preprocessor.required
  return id(preprocessor)


def _opens_itself(task: seqio.Task, conversion: Conversion) -> bool:
  """Whether a task is opened through its own `get_dataset`, because it is cached or has rules of its own."""
  import seqio
  return type(task).get_dataset is not seqio.Task.get_dataset or bool(conversion.use_cached and task.supports_caching)


def _open_alone(number: int, task: seqio.Task, conversion: Conversion) -> Pipeline:
  """Opens a task with a pipeline of its own, whose size tf.data may know."""
  import tensorflow as tf
  probe = _SeedProbe(task, conversion)
  dataset = conversion.converter(probe.open(), task_feature_lengths=conversion.feature_lengths)
  size = int(dataset.cardinality())
  numbered = tf.data.Dataset.zip((dataset, tf.data.Dataset.from_tensors(np.int64(number)).repeat()))
  return Pipeline([number], numbered, probe.is_random, size if size >= 0 else None)


def _open_group(tasks: Sequence[seqio.Task], members: Sequence[tuple[int, Any]],
                conversion: Conversion) -> Iterator[Pipeline]:
  """Opens tasks that share their preprocessors with one pipeline for those that share their output features too."""
  while members:
    like = tasks[members[0][0]]
    same = [number for number, _ in members if tasks[number].output_features == like.output_features]
    together = [member for member in members if member[0] in set(same)]
    members = [member for member in members if member[0] not in set(same)]
    try:
      if len(together) > 1:
        yield _open_together(like, together, conversion)
        continue
    except Exception as error:  # Whatever a preprocessor cannot do inside a function; alone it may, or tells its fault.
      logging.info('%d tasks like %s are opened one by one: %s', len(together), like.name, error)
    for number, _ in together:
      yield _open_alone(number, tasks[number], conversion)


def _open_together(like: seqio.Task, members: Sequence[tuple[int, Any]], conversion: Conversion) -> Pipeline:
  """Opens the tasks `members`, (number, rows), with the pipeline of the task `like`, which is traced once."""
  import seqio
  import tensorflow as tf
  layout = members[0][1].element_spec
  numbers = [number for number, _ in members]
  rows = tf.stack([tf.data.experimental.to_variant(source) for _, source in members])
  found = {}

  def examples(rows_of_task):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.experimental.from_variant(rows_of_task, layout),
        splits=[conversion.split])
    task = seqio.Task(like.name, source=source, preprocessors=like.preprocessors, output_features=like.output_features)
    probe = _SeedProbe(task, conversion)
    dataset = conversion.converter(probe.open(), task_feature_lengths=conversion.feature_lengths)
    found.update(spec=dataset.element_spec, is_random=probe.is_random)
    return tf.data.experimental.to_variant(dataset)

  # Unlike a function given to `flat_map`, this one is not rewritten by AutoGraph, which would go through all of SeqIO's code;
  # the functions that preprocessors map over examples are, as ever.
  traced = tf.compat.v1.wrap_function(examples, [tf.TensorSpec([], tf.variant)])

  def numbered(rows_of_task, number):
    dataset = tf.data.experimental.from_variant(traced(rows_of_task), found['spec'])
    return tf.data.Dataset.zip((dataset, tf.data.Dataset.from_tensors(number).repeat()))

  dataset = tf.data.Dataset.from_tensor_slices((rows, np.asarray(numbers, np.int64))).flat_map(numbered)
  return Pipeline(numbers, dataset, found['is_random'], None)


class _SeedProbe:
  """Opens a task and sees whether its preprocessors take seeds from SeqIO's counter, that is, draw random numbers."""

  def __init__(self, task: seqio.Task, conversion: Conversion):
    self._task, self._conversion = task, conversion
    self.is_random = False

  def open(self) -> tf.data.Dataset:
    """Returns the preprocessed examples of the task."""
    import seqio
    task, conversion = self._task, self._conversion
    if type(task).get_dataset is seqio.Task.get_dataset:
      task = seqio.Task(task.name, source=task.source, preprocessors=[*task.preprocessors, self._look],
                        output_features=task.output_features)
    return task.get_dataset(
        sequence_length=conversion.feature_lengths, split=conversion.split, use_cached=conversion.use_cached, shuffle=False,
        seed=conversion.seed, num_epochs=1, trim_output_features=conversion.trim_output_features, try_in_mem_cache=False)

  def _look(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The last preprocessor: compares SeqIO's next seed with the one that it began with."""
    import seqio
    cache_steps = [i for i, p in enumerate(self._task.preprocessors) if isinstance(p, seqio.CacheDatasetPlaceholder)]
    first = self._conversion.seed + 42 * sum(cache_steps)
    self.is_random = seqio.utils._NEXT_MAP_SEED != first  # pylint: disable=protected-access
    return dataset
