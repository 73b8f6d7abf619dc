"""Any task or mixture with k training examples of each task: the same k everywhere for the same seed.

    train/utils.DatasetConfig.mixture_or_task_name = @shots.mixture()
    shots.mixture.mixture_or_task_name = 'latent_skills_held_out'
    shots.mixture.shots = 32

The copies differ from their tasks in the training split alone, and are routed as these.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import seqio
import tensorflow as tf

from cpoly_jax import task_index
from tasks import few_shot

TRAIN = 'train'


class ShotsSource(seqio.DataSource):
  """A source whose training split has k of another's examples.

  Args:
    source: the other one.
    shots: k; a split with fewer examples is taken as it is.
    seed: another one chooses others.
  """

  def __init__(self, source: seqio.DataSource, shots: int, seed: int):
    super().__init__(splits=())
    self._source, self._shots, self._seed = source, shots, seed

  @property
  def splits(self) -> Sequence[str]:
    """Those of the other source."""
    return self._source.splits

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """One; the chosen examples are few."""
    return [split]

  def num_input_examples(self, split: str) -> int | None:
    """k, or as many as there are."""
    number = self._source.num_input_examples(split)
    if split != TRAIN:
      return number
    return None if number is None else min(number, self._shots)

  def get_dataset(self, split: str = TRAIN, shuffle: bool = True, seed: int | None = None, shard_info=None, *,
                  sequence_length=None, use_cached: bool = False, num_epochs: int | None = 1) -> tf.data.Dataset:
    """As of the other source, with the chosen examples, in their order unless shuffled."""
    del sequence_length, use_cached
    if split != TRAIN:
      return self._source.get_dataset(split, shuffle, seed, shard_info, num_epochs=num_epochs)
    dataset = self._source.get_dataset(split, shuffle=False)
    number = self._source.num_input_examples(split) or sum(1 for _ in dataset)
    chosen = few_shot.sample(range(number), self._shots, self._seed)
    keep = tf.constant([i in set(chosen) for i in range(number)])
    dataset = dataset.enumerate().filter(lambda i, _: keep[i]).map(lambda _, example: example)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(chosen)))
    if shard_info is not None:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      dataset = dataset.shuffle(len(chosen), seed=seed)
    return dataset.repeat(num_epochs)


def mixture(mixture_or_task_name: str, shots: int | None, seed: int = 0, module: str | None = None) -> str:
  """Returns the name of a mixture, registered if need be, with k training examples of each task; for gin.

  Args:
    mixture_or_task_name: a registered mixture or task, of which only the training split differs.
    shots: k; None: the mixture itself.
    seed: of the choice (`few_shot.sample`).
    module: a module to import first, which registers it.

  Raises:
    ValueError: nothing has that name, or k is below 1.
  """
  if module:
    importlib.import_module(module)
  if shots is None:
    return mixture_or_task_name
  if not isinstance(shots, int) or shots < 1:
    raise ValueError(f'NUM_SHOTS = {shots!r}: write a whole number of 1 or more, or None for all examples')
  provider = seqio.get_mixture_or_task(mixture_or_task_name)
  suffix = f'_{shots}_shots_{seed}'
  name = mixture_or_task_name + suffix
  if name in seqio.MixtureRegistry.names() or name in seqio.TaskRegistry.names():
    return name
  if isinstance(provider, seqio.Task):
    return _copy(provider, shots, seed, suffix)
  rates = [(_copy(task, shots, seed, suffix), provider.get_rate(task)) for task in provider.tasks]
  seqio.MixtureRegistry.add(name, rates)
  return name


def _copy(task: seqio.Task, shots: int, seed: int, suffix: str) -> str:
  """Registers a task's copy and returns its name."""
  name = task.name + suffix
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
        name, source=ShotsSource(task.source, shots, seed), preprocessors=task.preprocessors,
        postprocess_fn=task.postprocess_fn, metric_fns=task.metric_fns, output_features=task.output_features)
    task_index.route_as(name, task.name)
  return name
