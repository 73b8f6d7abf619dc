"""Super-NaturalInstructions (arXiv 2204.07705): one SeqIO task for each task file, with Tk-Instruct's prompts.

SUPERNI_DIR names a folder in the layout of the official repository: `tasks/<name>.json` and
`splits/default/{train_tasks,test_tasks}.txt`. Every file becomes the task `superni_<name>`; the mixtures `superni` and
`superni_test` hold the tasks of the two lists, `superni_all` both, and `superni_selection` makes smaller ones by a seed; tasks
are drawn in proportion to their training instances. Registration reads the lists, never a task file.

Where SUPERNI_DIR is not set, instances come from a `natural_instructions` that TFDS has prepared, for the tasks that the two
lists in SUPERNI_SPLITS name. It has neither worked examples (prompts then are definition and input) nor categories nor further
references, and stores instances in another order, so its test instances are not the benchmark's.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

import seqio

from tasks import features
from tasks import mixtures
from tasks import summaries
from tasks import superni_files
from tasks import superni_metrics
from tasks import superni_prompts
from tasks import superni_source

VARIABLE, SPLITS_VARIABLE = superni_files.VARIABLE, superni_files.SPLITS_VARIABLE
MIXTURES = ('superni', 'superni_test', 'superni_all')

_registered_tasks: list[str] = []

benchmark_scores = superni_metrics.benchmark_scores


def categories(names: Iterable[str]) -> dict[str, str]:
  """Returns the category of each task; reads the files of those that no dataset has been built of."""
  return {name: seqio.TaskRegistry.get(name).source.category() for name in names}


def summary(metrics_by_task: Mapping[str, Mapping[str, float]], num_examples: Mapping[str, int]) -> dict[str, float]:
  """The summary of a mixture of Super-NI tasks: see `superni_metrics.official_scores`."""
  return superni_metrics.official_scores(metrics_by_task, num_examples, categories(metrics_by_task))


def add_mixture(name: str, members: Iterable[str]) -> None:
  """Registers a mixture of Super-NI tasks, in the place of an earlier one of this name.

  Args:
    name: SeqIO name.
    members: names of registered tasks.
  """
  if name in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(name)
  seqio.MixtureRegistry.add(name, list(members), default_rate=mixtures.proportional_rate)
  summaries.register(name, summary, counted=True)


def register() -> None:
  """Registers the tasks that SUPERNI_DIR (or SUPERNI_SPLITS) lists.

  Called on import; call it again after setting a variable: it then replaces what it registered before. Where neither is set,
  the mixtures hold one task, whose only use is the error that says what to set.

  Raises:
    FileNotFoundError: a folder or list is missing, or a list names a task without a file.
    ValueError: a list is empty, a task is in two, or two names become the same.
  """
  unset = [superni_source.UNSET_TASK]
  lists = superni_files.read_lists() or superni_files.Lists(unset, unset, unset)
  names = {stem: superni_files.task_name(stem) for stem in lists.every}
  name, number = collections.Counter(names.values()).most_common(1)[0]
  if number > 1:
    raise ValueError(f'{number} task files become {name}; rename all but one of them')
  while _registered_tasks:
    seqio.TaskRegistry.remove(_registered_tasks.pop())
  shared = dict(
      output_features=features.output_features(),
      preprocessors=[superni_prompts.join_pieces, seqio.preprocessors.tokenize, superni_prompts.truncate,
                     seqio.preprocessors.append_eos, features.add_task_id],
      postprocess_fn=superni_metrics.references)
  is_test = set(lists.test)
  for stem, name in names.items():
    source = superni_source.InstanceSource(stem, is_test=stem in is_test)
    seqio.TaskRegistry.add(
        name, source=source, metric_fns=[superni_metrics.rouge, superni_metrics.exact_match, source.category_metric],
        # The source has shuffled the task as a whole; SeqIO's buffer of 1000 would format so many of each before step 1.
        shuffle_buffer_size=100, **shared)
    _registered_tasks.append(name)
  for mixture, stems in zip(MIXTURES, (lists.train, lists.test, dict.fromkeys([*lists.train, *lists.test]))):
    add_mixture(mixture, [names[stem] for stem in stems])


register()
