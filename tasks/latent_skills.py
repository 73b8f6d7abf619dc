"""SeqIO tasks of the latent-skill suite (see `latent_strings`): embedded, so they need no file and no network.

Tasks `latent_<code name>`; mixtures `latent_skills` (16 seen tasks), `latent_skills_4` and `latent_skills_8` (the first ones of
these) and `latent_skills_held_out` (8 recombinations), with equal rates. Metrics: `exact_match`, and
`baseline_copy_exact_match`, which an output equal to the input string would have. `latent_pretraining` is what the small base
of the project is pretrained on.
"""

from __future__ import annotations

import functools
import random
from typing import Any
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from tasks import features
from tasks import latent_strings
from tasks.latent_strings import LatentTask

SEEN = 'latent_skills'
HELD_OUT = 'latent_skills_held_out'
# What a task gains from the others' company is seen where fewer of them are trained.
SMALLER = (4, 8)
PRETRAINING = 'latent_pretraining'
PRETRAINING_SIZES = {'train': 400_000, 'validation': 200}


def _strings_dataset(rows: Sequence[Mapping[str, str]]) -> tf.data.Dataset:
  return tf.data.Dataset.from_tensor_slices({key: [row[key] for row in rows] for key in rows[0]})


def _task_dataset(split: str, shuffle_files: bool, seed: int | None = None, *, task: LatentTask) -> tf.data.Dataset:
  del shuffle_files, seed  # There are no files.
  return _strings_dataset(latent_strings.examples(task, split))


def _pretraining_dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
  del shuffle_files, seed

  def rows():
    rng = random.Random(f'{PRETRAINING}/{split}')
    for _ in range(PRETRAINING_SIZES[split]):
      yield latent_strings.pretraining_example(rng)

  text = tf.TensorSpec([], tf.string)
  dataset = tf.data.Dataset.from_generator(rows, output_signature={'inputs': text, 'targets': text})
  return dataset.apply(tf.data.experimental.assert_cardinality(PRETRAINING_SIZES[split]))


def with_copy(text: str, *, example: Mapping[str, Any], is_target: bool) -> Any:
  """Post-processes a target to (target, what a copy of the input would be), a prediction to itself."""
  if not is_target:
    return text
  return text, tf.compat.as_text(example['string'])


def exact_match(targets: Sequence[tuple[str, str]], predictions: Sequence[str]) -> Mapping[str, float]:
  """Share of predictions equal to the target, and the share that copying the input string would reach."""
  pairs = list(zip(targets, predictions))
  return {
      'exact_match': sum(target == prediction for (target, _), prediction in pairs) / len(pairs),
      'baseline_copy_exact_match': sum(target == copy for (target, copy), _ in pairs) / len(pairs),
  }


def _register_task(task: LatentTask) -> str:
  seqio.TaskRegistry.add(
      task.name,
      source=seqio.FunctionDataSource(
          features.with_task_key(functools.partial(_task_dataset, task=task), task.name),
          splits=tuple(latent_strings.SPLIT_SIZES), num_input_examples=latent_strings.SPLIT_SIZES),
      preprocessors=features.pipeline(),
      postprocess_fn=with_copy,
      metric_fns=[exact_match],
      output_features=features.output_features())
  return task.name


def _register() -> None:
  for mixture, group in ((SEEN, latent_strings.TASKS), (HELD_OUT, latent_strings.HELD_OUT)):
    seqio.MixtureRegistry.add(mixture, [_register_task(task) for task in group], default_rate=1.0)
  for count in SMALLER:
    seqio.MixtureRegistry.add(f'{SEEN}_{count}', [task.name for task in latent_strings.TASKS[:count]], default_rate=1.0)
  seqio.TaskRegistry.add(
      PRETRAINING,
      source=seqio.FunctionDataSource(features.with_task_key(_pretraining_dataset, PRETRAINING),
                                      splits=tuple(PRETRAINING_SIZES), num_input_examples=PRETRAINING_SIZES),
      preprocessors=features.pipeline(),
      metric_fns=[lambda targets, predictions: {
          'exact_match': sum(t == p for t, p in zip(targets, predictions)) / len(targets)}],
      output_features=features.output_features())


_register()
