"""From a `DatasetConfig` to batches: SeqIO does the work, this file fixes order, shards and plain errors.

The order of examples depends on the seed alone, so that a resumed run can skip what it has seen and go on
exactly. Whatever a feature converter emits (task ids, say) passes through: no feature is named here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

from t5x import multihost

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
    pack: several examples in a row.
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
  found = [t for t in tasks if _has_split(t, cfg.split)]
  missing = [t.name for t in tasks if t not in found]
  if not found:
    raise ValueError(f"No task of '{name_of(cfg)}' has a split '{cfg.split}': {tasks[0].name} has "
                     f"{', '.join(sorted(tasks[0].splits)) or 'none'}.")
  if missing and warn:
    logging.warning("No split '%s', skipped: %s", cfg.split, ', '.join(missing))
  for task in found:
    if '[' not in cfg.split and _num_examples(task, cfg.split) == 0:
      raise ValueError(f"Task '{task.name}' has no examples in its split '{cfg.split}': check its data files.")
  return found


def _num_examples(task: seqio.Task, split: str) -> int | None:
  """Number of examples that the task itself states, None where it does not know; faults of its files are raised."""
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


def get_dataset(cfg: DatasetConfig, shard_id: int, num_shards: int, feature_converter_cls: type,
                num_epochs: int | None = None, continue_from_last_checkpoint: bool = False,
                skip_batches: int = 0) -> tf.data.Dataset:
  """Builds the batched training data of one shard.

  Args:
    cfg: what to read.
    shard_id: this shard, from 0.
    num_shards: number of shards; the global batch is split over them.
    feature_converter_cls: class of the SeqIO feature converter.
    num_epochs: passes over the data; None: forever.
    continue_from_last_checkpoint: must be False, SeqIO's pipelines start at an example, not at a file.
    skip_batches: batches to leave out at the start, those that an earlier part of the run has used.

  Returns:
    Dataset of {feature: [B / num_shards, ...]}.

  Raises:
    ValueError: on an unknown task, an absent split, a batch size that does not divide.
  """
  import seqio
  if continue_from_last_checkpoint:
    raise ValueError('continue_from_last_checkpoint is not offered by get_dataset: a resumed run skips the batches '
                     'that it has used by itself.')
  batch_size = _shard_batch_size(cfg, num_shards)
  check_feature_lengths(cfg)
  mixture_or_task = get_mixture_or_task(cfg)
  seed = cfg.seed
  if seed is None:
    seed = multihost.broadcast_int(int(time.time()) % 2**31)
  ds = _open(cfg, mixture_or_task, feature_converter_cls, seed, num_epochs=num_epochs, batch_size=batch_size,
             shard_info=seqio.ShardInfo(index=shard_id, num_shards=num_shards))
  return _finish(ds.skip(skip_batches) if skip_batches else ds)


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
                               model_dir: str | None = None, start_step: int = 0) -> dict[str, tf.data.Dataset]:
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
  batch_size = _shard_batch_size(cfg, num_shards)
  check_feature_lengths(cfg)
  mixture_or_task = get_mixture_or_task(cfg)
  sources = list(tasks_with_split(cfg))
  if isinstance(mixture_or_task, seqio.Mixture):
    sources.append(mixture_or_task)
  seed = _DEFAULT_SEED if cfg.seed is None else cfg.seed
  datasets = {}
  for source in sources:
    ds = _open(cfg, source, feature_converter_cls, seed, num_epochs=1)
    # Repeated before it is sharded: a split smaller than the number of shards leaves no shard empty.
    ds = ds.repeat().shard(num_shards, shard_id).batch(batch_size, drop_remainder=True).take(eval_steps)
    datasets[source.name] = _finish(ds.cache() if cfg.use_memory_cache else ds)
  return datasets


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


def get_zeros_batch_like_dataset(dataset: tf.data.Dataset, batch_size: int | None = None) -> dict[str, np.ndarray]:
  """Returns a batch of zeros like those of `dataset`, with another batch size where one is given."""
  def zeros(spec):
    shape = tuple(spec.shape)
    return np.zeros((batch_size, *shape[1:]) if batch_size else shape, spec.dtype.as_numpy_dtype)
  return {k: zeros(spec) for k, spec in dataset.element_spec.items()}
