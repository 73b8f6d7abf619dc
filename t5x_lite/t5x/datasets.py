"""From a `DatasetConfig` to batches: SeqIO converts the examples, this file chooses how they are read and tells plain errors.

Examples that fit into memory are *indexed*: converted once, then looked up in an order that is a function of the seed, so that
a run starts and resumes anywhere (`indexed`). All others are *streamed* through SeqIO's own pipeline. Whatever a feature
converter emits (task ids, say) passes through: no feature is named here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging
import gin
import numpy as np

from t5x import example_order
from t5x import example_store
from t5x import indexed
from t5x import multihost
from t5x import packing
from t5x import task_pipelines

if TYPE_CHECKING:
  import seqio
  import tensorflow as tf

# Passed on where a configuration gives no seed and the order need not vary.
_DEFAULT_SEED = 42


@dataclasses.dataclass
class DatasetConfig:
  """What to read and how to batch it.

  Attributes:
    mixture_or_task_name: a registered name, or the Task or Mixture itself.
    task_feature_lengths: feature name -> length; None: as long as the longest example.
    split: split of each task.
    batch_size: examples in a global batch.
    shuffle: whether to shuffle.
    seed: of shuffling and of random preprocessing; None: the run's seed.
    use_cached: read SeqIO's offline cache.
    pack: several examples in a row; `task_feature_lengths` of a feature that is neither of the encoder nor of the decoder is
      then the number of examples that a row has room for.
    use_custom_packing_ops: SeqIO's faster packing, where its op is installed.
    module: imported first, to register the task.
    use_memory_cache: keep evaluation batches in memory.
    trim_output_features: cut features to their length.
    runtime_preprocessors: accepted for compatibility, not used.
    num_prefetch_threads: accepted for compatibility, not used.
    num_workers: accepted for compatibility, not used.
  """
  mixture_or_task_name: str | Any
  task_feature_lengths: Mapping[str, int] | None
  split: str
  batch_size: int
  shuffle: bool
  seed: int | None
  use_cached: bool = False
  pack: bool = False
  use_custom_packing_ops: bool = False
  module: str | None = None
  use_memory_cache: bool = True
  trim_output_features: bool = True
  runtime_preprocessors: Sequence[Any] | None = None
  num_prefetch_threads: int | None = None
  num_workers: int | None = 0


def import_module(module: str) -> Any:
  """Imports the module that registers tasks.

  Args:
    module: dotted name.

  Returns:
    The module.

  Raises:
    ValueError: one line, where there is no such module.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as e:
    if e.name and (module == e.name or module.startswith(e.name + '.')):
      raise ValueError(f"MIXTURE_OR_TASK_MODULE '{module}' cannot be imported ({e}): install it, or put the "
                       'folder that holds it on PYTHONPATH.') from e
    raise


def get_mixture_or_task(cfg: DatasetConfig) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of `cfg`, after importing its module.

  Raises:
    ValueError: one line with near matches, where the name is not registered.
  """
  import seqio
  if cfg.module:
    import_module(cfg.module)
  name = cfg.mixture_or_task_name
  if not isinstance(name, str):
    return name
  tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
  if name in tasks or name in mixtures:
    return seqio.get_mixture_or_task(name)
  known = sorted(set(tasks) | set(mixtures))
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
  hint = f"did you mean {' or '.join(near)}?" if near else (
      f'{len(known)} names are registered.' if known else 'no name is registered at all.')
  raise ValueError(f"There is no task or mixture '{name}': {hint} The module that registers it must be imported, "
                   'by an import line in the gin file or by MIXTURE_OR_TASK_MODULE.')


def _has_split(task: seqio.Task, split: str) -> bool:
  return split.split('[')[0] in task.splits


def tasks_with_split(cfg: DatasetConfig, warn: bool = True) -> list[seqio.Task]:
  """Returns the tasks of `cfg` that have its split, and warns in one line of those that do not.

  Args:
    cfg: mixture or task, and split.
    warn: False: no warning.

  Raises:
    ValueError: where no task has the split, or one says that its split is empty.
  """
  import seqio
  tasks = seqio.get_subtasks(get_mixture_or_task(cfg))
  found, missing = [], []
  for task in tasks:
    (found if _has_split(task, cfg.split) else missing).append(task)
  if not found:
    raise ValueError(f"No task of '{name_of(cfg)}' has a split '{cfg.split}': {tasks[0].name} has "
                     f"{', '.join(sorted(tasks[0].splits)) or 'none'}.")
  if missing and warn:
    logging.warning("No split '%s', skipped: %s", cfg.split, ', '.join(task.name for task in missing))
  for task in found:
    if '[' not in cfg.split and stated_examples(task, cfg.split) == 0:
      raise ValueError(f"Task '{task.name}' has no examples in its split '{cfg.split}': check its data files.")
  return found


def stated_examples(task: seqio.Task, split: str) -> int | None:
  """Returns how many examples a task states, None where it does not know; faults of its files are raised."""
  try:
    return task.num_input_examples(split)
  except (KeyError, TypeError, NotImplementedError):
    return None


def name_of(cfg: DatasetConfig) -> str:
  """Returns the name of the task or mixture."""
  return getattr(cfg.mixture_or_task_name, 'name', cfg.mixture_or_task_name)


def with_seed(cfg: DatasetConfig, seed: int) -> DatasetConfig:
  """Returns `cfg` itself, or a copy with `seed` where it has none."""
  if cfg.seed is not None:
    return cfg
  # Not dataclasses.replace: it would call the constructor, which gin may have bound to values.
  copied = DatasetConfig.__new__(DatasetConfig)
  copied.__dict__.update(cfg.__dict__, seed=seed)
  return copied


def check_feature_lengths(cfg: DatasetConfig) -> None:
  """Raises ValueError where no lengths are given: batches of training and inference have one shape."""
  if not cfg.task_feature_lengths:
    raise ValueError("TASK_FEATURE_LENGTHS is not set: give the length of each feature, e.g. "
                     "{'inputs': 512, 'targets': 128}.")


def _shard_batch_size(cfg: DatasetConfig, num_shards: int) -> int:
  if cfg.batch_size % num_shards:
    raise ValueError(f'BATCH_SIZE={cfg.batch_size} cannot be split over {num_shards} data shards: use a multiple '
                     f'of {num_shards}.')
  return cfg.batch_size // num_shards


def _finish(ds: tf.data.Dataset) -> tf.data.Dataset:
  """Prefetches, and asks tf.data for one order on any number of threads."""
  import tensorflow as tf
  options = tf.data.Options()
  options.deterministic = True
  return ds.with_options(options).prefetch(tf.data.AUTOTUNE)


@gin.configurable(module='t5x.datasets')
def in_memory_limit(examples: int = 3_000_000) -> int:
  """Returns how many examples a data set may have to be indexed in memory; 0: all are streamed by SeqIO's pipeline."""
  return examples


class _NotIndexed(Exception):
  """Says why a data set is streamed."""


def _source_examples(task: seqio.Task, cfg: DatasetConfig) -> int | None:
  """Number of examples that a task reads, None where it does not know.

  Raises:
    ValueError: its cache is to be read, and there is none.
  """
  import seqio
  if cfg.use_cached and task.supports_caching:
    if not task.cache_dir:
      folders = ', '.join(map(str, seqio.get_global_cache_dirs())) or 'none is given'
      raise ValueError(f"Task '{task.name}' is in none of the cache folders ({folders}): write it there with "
                       'seqio_cache_tasks, name its folder with --seqio_additional_cache_dirs, or set USE_CACHED_TASKS=False.')
    return task.get_cached_stats(cfg.split)['examples']
  return stated_examples(task, cfg.split)


def _open_store(cfg: DatasetConfig, mixture_or_task: Any, feature_converter_cls: type, seed: int,
                epochs_differ: bool) -> tuple[list[seqio.Task], example_store.ExampleStore]:
  """Returns the tasks of `cfg` and the store of their examples.

  Raises:
    _NotIndexed: they must be streamed; `epochs_differ` where random preprocessors are to be run in each epoch.
    ValueError: as `get_dataset`.
  """
  import seqio
  limit = in_memory_limit()
  if not limit:
    raise _NotIndexed('datasets.in_memory_limit.examples is 0')
  if cfg.pack and cfg.use_custom_packing_ops:
    raise _NotIndexed('use_custom_packing_ops is set')
  default = inspect.signature(seqio.Mixture.__init__).parameters['sample_fn'].default
  if getattr(mixture_or_task, '_sample_fn', default) is not default:
    raise _NotIndexed('the mixture has a sample_fn of its own')
  tasks = tasks_with_split(cfg, warn=False)
  numbers = [_source_examples(task, cfg) for task in tasks]
  unknown = [task.name for task, number in zip(tasks, numbers) if number is None]
  if unknown:
    raise _NotIndexed(f'{unknown[0]} does not know how many examples it has')
  if sum(numbers) > limit:
    raise _NotIndexed(f'{sum(numbers)} examples are more than datasets.in_memory_limit.examples = {limit}')
  conversion = task_pipelines.Conversion(
      cfg.split, cfg.task_feature_lengths, feature_converter_cls(pack=False), seed, cfg.use_cached, cfg.trim_output_features)
  large = [number > example_order.LARGE for number in numbers]
  pipelines = task_pipelines.open_pipelines(tasks, large, conversion)
  for pipeline in pipelines:
    if pipeline.is_random and epochs_differ:
      raise _NotIndexed(f'{tasks[pipeline.tasks[0]].name} preprocesses at random, anew in each epoch')
    if pipeline.size is None and max(numbers[task] for task in pipeline.tasks) > example_store.READ_WHOLE:
      raise _NotIndexed(f'{tasks[pipeline.tasks[0]].name} is large and makes an unknown number of examples')
  return tasks, example_store.ExampleStore([task.name for task in tasks], pipelines)


def _stream(cfg: DatasetConfig, store: example_store.ExampleStore, rates: Sequence[float], seed: int,
            one_pass: bool = False) -> indexed.PaddedStream | packing.PackedStream:
  """Returns the rows of the examples of a store, drawn with the rates [T] of its tasks."""
  order = functools.cache(lambda: example_order.ExampleOrder(store.sizes, rates, seed, cfg.shuffle))
  if not cfg.pack:
    return indexed.PaddedStream(store, order)
  layout = packing.RowLayout.of(store.spec, cfg.task_feature_lengths)
  return packing.PackedStream(store, order, layout, seed, cfg.shuffle, one_pass=one_pass)


def _rates(mixture_or_task: seqio.Task | seqio.Mixture, tasks: Sequence[seqio.Task]) -> list[float]:
  """Returns the rate of each of its tasks."""
  return [mixture_or_task.get_rate(task) if hasattr(mixture_or_task, 'get_rate') else 1.0 for task in tasks]


def get_dataset(cfg: DatasetConfig, shard_id: int, num_shards: int, feature_converter_cls: type,
                num_epochs: int | None = None,
                continue_from_last_checkpoint: bool = False) -> indexed.IndexedDataset | tf.data.Dataset:
  """Builds the batched training data of one shard.

  Args:
    cfg: what to read.
    shard_id: this shard, from 0.
    num_shards: number of shards; the global batch is split over them.
    feature_converter_cls: class of the SeqIO feature converter.
    num_epochs: passes over the data, which are then streamed; None: forever.
    continue_from_last_checkpoint: must be False, a run finds its place itself.

  Returns:
    Data set of {feature: [B / num_shards, ...]}.

  Raises:
    ValueError: on an unknown task, an absent split, a batch size that does not divide.
  """
  if continue_from_last_checkpoint:
    raise ValueError('continue_from_last_checkpoint is not offered by get_dataset: a resumed run finds its place in the data '
                     'by itself.')
  batch_size = _shard_batch_size(cfg, num_shards)
  check_feature_lengths(cfg)
  mixture_or_task = get_mixture_or_task(cfg)
  seed = cfg.seed
  if seed is None:
    seed = multihost.broadcast_int(int(time.time()) % 2**31)
  try:
    if num_epochs is not None:
      raise _NotIndexed(f'num_epochs is {num_epochs}')
    tasks, store = _open_store(cfg, mixture_or_task, feature_converter_cls, seed, epochs_differ=True)
  except _NotIndexed as reason:
    import seqio
    logging.info("'%s' (%s) is streamed: %s.", name_of(cfg), cfg.split, reason)
    return _finish(_open(cfg, mixture_or_task, feature_converter_cls, seed, num_epochs=num_epochs, batch_size=batch_size,
                         shard_info=seqio.ShardInfo(index=shard_id, num_shards=num_shards)))
  logging.info("'%s' (%s) is indexed in memory: %d tasks.", name_of(cfg), cfg.split, len(tasks))
  stream = _stream(cfg, store, _rates(mixture_or_task, tasks), seed)
  store.start()
  return indexed.IndexedDataset(stream, cfg.batch_size, shard_id, num_shards)


def _open(cfg: DatasetConfig, source: Any, feature_converter_cls: type, seed: int, **kwargs) -> tf.data.Dataset:
  """Returns the dataset of a task or mixture as the configuration wants it; `kwargs` go to `seqio.get_dataset`."""
  import seqio
  converter = feature_converter_cls(pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops)
  return seqio.get_dataset(
      source, task_feature_lengths=cfg.task_feature_lengths, dataset_split=cfg.split, shuffle=cfg.shuffle, seed=seed,
      use_cached=cfg.use_cached, trim_output_features=cfg.trim_output_features, feature_converter=converter,
      verbose=False, **kwargs)


def get_training_eval_datasets(cfg: DatasetConfig, shard_id: int, num_shards: int, eval_steps: int,
                               feature_converter_cls: type, deterministic: bool = False,
                               model_dir: str | None = None,
                               start_step: int = 0) -> dict[str, indexed.IndexedDataset | tf.data.Dataset]:
  """Builds, per task, the batches on which the training loss is measured during training.

  Args:
    cfg: what to read.
    shard_id: this shard, from 0.
    num_shards: number of shards.
    eval_steps: batches per task.
    feature_converter_cls: class of the SeqIO feature converter.
    deterministic: accepted for compatibility; the order is always a function of the seed.
    model_dir: accepted for compatibility.
    start_step: accepted for compatibility.

  Returns:
    {task name: dataset}; a mixture adds one of its own under its name.

  Raises:
    ValueError: as `get_dataset`.
  """
  del deterministic, model_dir, start_step
  import seqio
  _shard_batch_size(cfg, num_shards)
  check_feature_lengths(cfg)
  mixture_or_task = get_mixture_or_task(cfg)
  sources = list(tasks_with_split(cfg))
  if isinstance(mixture_or_task, seqio.Mixture):
    sources.append(mixture_or_task)
  seed = _DEFAULT_SEED if cfg.seed is None else cfg.seed
  try:
    tasks, store = _open_store(cfg, mixture_or_task, feature_converter_cls, seed, epochs_differ=False)
  except _NotIndexed as reason:
    logging.info("'%s' (%s) is streamed: %s.", name_of(cfg), cfg.split, reason)
    return {source.name: _streamed_eval(cfg, source, feature_converter_cls, seed, shard_id, num_shards, eval_steps)
            for source in sources}
  rates = {task.name: [float(other is task) for other in tasks] for task in tasks}
  if isinstance(mixture_or_task, seqio.Mixture):
    rates[mixture_or_task.name] = _rates(mixture_or_task, tasks)
  return {name: indexed.IndexedDataset(_stream(cfg, store, of_task, seed, one_pass=True), cfg.batch_size, shard_id,
                                       num_shards).take(eval_steps) for name, of_task in rates.items()}


def _streamed_eval(cfg: DatasetConfig, source: Any, feature_converter_cls: type, seed: int, shard_id: int, num_shards: int,
                   eval_steps: int) -> tf.data.Dataset:
  """Returns `eval_steps` batches of a task or mixture, through SeqIO's pipeline."""
  ds = _open(cfg, source, feature_converter_cls, seed, num_epochs=1)
  # Repeated before it is sharded: a split smaller than the number of shards leaves no shard empty.
  ds = ds.repeat().shard(num_shards, shard_id).batch(_shard_batch_size(cfg, num_shards), drop_remainder=True).take(eval_steps)
  return _finish(ds.cache() if cfg.use_memory_cache else ds)


def get_vocabulary(cfg: DatasetConfig) -> tuple[seqio.Vocabulary, seqio.Vocabulary]:
  """Returns the vocabularies of the inputs and of the targets of a task or mixture.

  Raises:
    ValueError: where the task has neither both features nor one vocabulary for all of them.
  """
  task = get_mixture_or_task(cfg)
  features = task.output_features
  if 'inputs' in features and 'targets' in features:
    return features['inputs'].vocabulary, features['targets'].vocabulary
  vocabularies = [f.vocabulary for f in features.values()]
  if not vocabularies or any(v != vocabularies[0] for v in vocabularies):
    raise ValueError(f"'{task.name}' has the features {', '.join(features)} with several vocabularies: give it "
                     "'inputs' and 'targets'.")
  return vocabularies[0], vocabularies[0]


def vocabulary_name(vocabulary: Any) -> str:
  """Returns a short name: class, size and, where it has one, the file."""
  path = getattr(vocabulary, 'sentencepiece_model_file', None) or getattr(vocabulary, '_sentencepiece_model_file', '')
  details = [str(path)] if path else []
  details.append(f'{vocabulary.vocab_size} pieces')
  return f"{type(vocabulary).__name__}({', '.join(details)})"


def verify_matching_vocabs(cfg: DatasetConfig, model: Any) -> None:
  """Compares the vocabularies of the data with those of the model.

  Raises:
    ValueError: one line with both names, where they differ.
  """
  for kind, of_data in zip(('input', 'output'), get_vocabulary(cfg)):
    of_model = getattr(model, f'{kind}_vocabulary', None)
    if of_model is not None and of_data != of_model:
      raise ValueError(
          f"The {kind} vocabulary of '{name_of(cfg)}' is {vocabulary_name(of_data)} but that of the model is "
          f'{vocabulary_name(of_model)}: set VOCABULARY, or the vocabulary of the task, so that they are the same.')


def get_zeros_batch_like_spec(batch_spec: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns a batch of zeros with the shapes and dtypes of `batch_spec`."""
  return {k: np.zeros(v.shape, v.dtype) for k, v in batch_spec.items()}


def get_zeros_batch_like_dataset(dataset: indexed.IndexedDataset | tf.data.Dataset,
                                 batch_size: int | None = None) -> dict[str, np.ndarray]:
  """Returns a batch of zeros like those of `dataset`, with another batch size where one is given."""
  def zeros(spec):
    shape = tuple(spec.shape)
    return np.zeros((batch_size, *shape[1:]) if batch_size else shape, spec.dtype.as_numpy_dtype)
  return {k: zeros(spec) for k, spec in dataset.element_spec.items()}
