"""Super-NaturalInstructions: one SeqIO task per task file, with Tk-Instruct's prompts.

SUPERNI_DIR names a folder in the layout of the official repository: `tasks/<name>.json` and
`splits/default/{train_tasks,test_tasks}.txt`. Every file becomes the task `superni_<name>`
(characters that SeqIO does not allow become `_`); the mixtures `superni` and `superni_test` hold
the tasks of the two lists, at most 100 examples of each counting. Registration reads the lists,
never a task file.

Splits are made by position in the file, so that nobody can train on what is reported:

*   `test`, test tasks only: the first 100 instances, as in the benchmark. What follows them is
there
    for adaptation to the task.
*   `validation`: of the rest (of all, for the other tasks) the first 50, or 20 % where that is
less;
    at least one.
*   `train`: the next 100 at most.

Where SUPERNI_DIR is not set, instances come from a `natural_instructions` that TFDS has prepared,
for the tasks that the two lists in SUPERNI_SPLITS name. It has neither worked examples (prompts
then are definition and input) nor further references, and stores instances in another order, so its
test instances are not the benchmark's.

Training targets are one reference of each instance, drawn by a hash of its id and the data seed.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
from typing import Any
from collections.abc import Mapping, Sequence

from etils import epath
import seqio

from tasks import features
from tasks import mixtures
from tasks import records
from tasks import sources
from tasks import superni_metrics
from tasks import superni_prompts

VARIABLE = 'SUPERNI_DIR'
SPLITS_VARIABLE = 'SUPERNI_SPLITS'
LAYOUT = 'tasks/<name>.json and splits/default/{train_tasks,test_tasks}.txt'
MAX_TRAIN, MAX_VALIDATION, NUM_TEST = 100, 50, 100
MIXTURES = ('superni', 'superni_test')
UNSET_TASK = 'needs_SUPERNI_DIR'
# After the test instances, enough for 20 % of the rest to reach MAX_VALIDATION.
_TFDS_INSTANCES = NUM_TEST + 5 * MAX_VALIDATION
_TASK_FIELDS = {'Definition': (list, str), 'Positive Examples': list, 'Negative Examples': list,
                'Instances': list}

_registered_tasks: list[str] = []

benchmark_scores = superni_metrics.benchmark_scores


class InstanceSource(sources.RowSource):
  """Instances of one task, from its file or from TFDS."""

  def __init__(self, stem: str, is_test: bool):
    """Args: stem: the task's name upstream; is_test: whether its first instances are for `test`."""
    super().__init__(task_name(stem))
    self._stem = stem
    self._is_test = is_test

  def origin(self) -> str:
    folder = records.folder_of(VARIABLE, LAYOUT)
    return str(folder / 'tasks' / f'{self._stem}.json') if folder else f'TFDS {self._stem}'

  @property
  def splits(self) -> Sequence[str]:
    return ('train', 'validation', 'test') if self._is_test else ('train', 'validation')

  def read(self, split: str) -> Sequence[sources.Row]:
    folder = records.folder_of(VARIABLE, LAYOUT)
    if folder is not None:
      instances = read_task(folder / 'tasks' / f'{self._stem}.json')
    elif self._stem == UNSET_TASK:
      raise FileNotFoundError(f'{VARIABLE} is not set; set it, before tasks.superni is imported, '
                              f'to a folder with {LAYOUT}')
    else:
      instances = _tfds_instances().get(self._stem, [])
    return select(instances, split, self._is_test)

  def to_example(self, row: sources.Row, split: str, seed: int) -> dict[str, Any]:
    pieces = superni_prompts.prompt_pieces(
        self._stem, row['definition'], row['positive'], row['negative'], row['input'],
        superni_prompts.prompt_options())
    outputs = row['output']
    chosen = _draw(row['id'], seed, len(outputs)) if split == 'train' else 0
    return {**pieces, 'targets': outputs[chosen].strip(), 'references': list(outputs),
            'id': row['id']}


def read_task(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads a task file.

  Returns:
    One row per instance: `id`, `input`, `output` (the acceptable outputs), and the task's
    `definition`, `positive` and `negative` examples.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a fault of the file, with the place of it.
  """
  path = epath.Path(path)
  task = records.read_json(path, _TASK_FIELDS)
  definition = task['Definition']
  if isinstance(definition, list):
    if not definition or not isinstance(definition[0], str):
      raise ValueError(f"{path}: field 'Definition' has no text; wanted a list of strings")
    definition = definition[0]
  for kind in ('Positive Examples', 'Negative Examples'):
    for number, example in enumerate(task[kind], start=1):
      records.check_fields(example, {'input': str, 'output': str}, f'{path}: {kind} {number}')
  common = {'definition': definition, 'positive': task['Positive Examples'],
            'negative': task['Negative Examples']}
  return [{**common, **_instance(instance, path.stem, number, f'{path}: Instances {number}')}
          for number, instance in enumerate(task['Instances'], start=1)]


def _instance(instance: Any, stem: str, number: int, where: str) -> dict[str, Any]:
  records.check_fields(instance, {'input': str, 'output': (list, str)}, where)
  outputs = [instance['output']] if isinstance(instance['output'], str) else instance['output']
  if not outputs or not all(isinstance(output, str) for output in outputs):
    raise ValueError(f"{where}: field 'output' is {outputs!r:.40}; wanted at least one text")
  return {'id': str(instance.get('id', f'{stem}-{number}')), 'input': instance['input'],
          'output': outputs}


def select(instances: Sequence[Any], split: str, is_test: bool) -> Sequence[Any]:
  """Returns the instances of a split, as the module's docstring says."""
  if split == 'test':
    return instances[:NUM_TEST]
  rest = instances[NUM_TEST:] if is_test else instances
  num_validation = min(MAX_VALIDATION, max(1, len(rest) // 5))
  if split == 'validation':
    return rest[:num_validation]
  return rest[num_validation:num_validation + MAX_TRAIN]


def task_name(stem: str) -> str:
  """SeqIO name of a task file: `superni_` and its stem, with `_` for disallowed characters."""
  return 'superni_' + re.sub(r'[^\w.:#]', '_', stem)


def categories(folder: epath.PathLike, stems: Sequence[str]) -> Mapping[str, str]:
  """Reads the categories of tasks: SeqIO name -> first of its `Categories`."""
  found = {}
  for stem in stems:
    path = epath.Path(folder) / 'tasks' / f'{stem}.json'
    task = records.read_json(path, {'Categories': list})
    if not task['Categories']:
      raise ValueError(f"{path}: field 'Categories' is empty; name at least one")
    found[task_name(stem)] = task['Categories'][0]
  return found


def task_list(path: epath.PathLike) -> list[str]:
  """Reads a list of task names, one a line.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it names no task.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'no file {path}; {VARIABLE} must name a folder with {LAYOUT}')
  lines = map(str.strip, path.read_text().splitlines())
  stems = [line.removesuffix('.json') for line in lines if line]
  if not stems:
    raise ValueError(f'{path}: no task in the list; write one task name a line')
  return list(dict.fromkeys(stems))


def _draw(instance: str, seed: int, number: int) -> int:
  """A number below `number` that depends on the instance and the seed alone, on any machine."""
  digest = hashlib.sha256(f'{seed}:{instance}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') % number


@functools.cache
def _tfds_instances() -> Mapping[str, list[dict[str, Any]]]:
  """Reads TFDS's `natural_instructions` once; keeps only the instances that the splits can use."""
  found = collections.defaultdict(list)
  for row in sources.prepared_tfds('natural_instructions', 'train', VARIABLE, LAYOUT):
    rows = found[row['task_name']]
    if len(rows) < _TFDS_INSTANCES:
      rows.append({'id': row['id'], 'input': row['input'], 'output': [row['output']],
                   'definition': row['definition'], 'positive': [], 'negative': []})
  return found


def _add_task(name: str, source: seqio.DataSource) -> None:
  seqio.TaskRegistry.add(
      name,
      source=source,
      output_features=features.output_features(),
      preprocessors=[
          superni_prompts.join_pieces, seqio.preprocessors.tokenize, superni_prompts.truncate,
          seqio.preprocessors.append_eos, features.add_task_id
      ],
      postprocess_fn=superni_metrics.references,
      metric_fns=[superni_metrics.rouge, superni_metrics.exact_match],
      # One epoch: SeqIO's 1000 would format ten of every task before the first step.
      shuffle_buffer_size=MAX_TRAIN)
  _registered_tasks.append(name)


def _read_lists(
    folder: epath.Path | None) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
  """Returns the training tasks, the test tasks, and all tasks to register, as stems of files."""
  lists = (folder / 'splits' / 'default' if folder else
           records.folder_of(SPLITS_VARIABLE, 'train_tasks.txt and test_tasks.txt'))
  if lists is None:
    return [UNSET_TASK], [UNSET_TASK], [UNSET_TASK]
  train, test = task_list(lists / 'train_tasks.txt'), task_list(lists / 'test_tasks.txt')
  both = sorted(set(train) & set(test))
  if both:
    raise ValueError(
        f'{lists}: train_tasks.txt and test_tasks.txt both list {both[0]}; keep it in one')
  if folder is None:
    return train, test, train + test
  files = sorted(path.stem for path in (folder / 'tasks').glob('*.json'))
  absent = sorted(set(train + test) - set(files))
  if absent:
    raise FileNotFoundError(
        f'{lists} lists {len(absent)} tasks without a file in {folder}/tasks, e.g. '
        f'{absent[0]}.json; add the files or remove the names')
  return train, test, files


def register() -> None:
  """Registers the tasks that SUPERNI_DIR (or SUPERNI_SPLITS) lists.

  Called on import; call it again after setting a variable: it then replaces what it registered
  before. Where neither is set, the mixtures hold one task, whose only use is the error that says
  what to set.

  Raises:
    FileNotFoundError: a folder or list is missing, or a list names a task without a file.
    ValueError: a list is empty, a task is in both, or two names become the same.
  """
  folder = records.folder_of(VARIABLE, LAYOUT)
  train, test, stems = _read_lists(folder)
  names = collections.Counter(map(task_name, stems))
  name, number = names.most_common(1)[0]
  if number > 1:
    raise ValueError(f'{number} task files become {name}; rename all but one of them')
  if _registered_tasks:
    for name in _registered_tasks:
      seqio.TaskRegistry.remove(name)
    for name in MIXTURES:
      seqio.MixtureRegistry.remove(name)
    _registered_tasks.clear()
  is_test = set(test)
  for stem in stems:
    _add_task(task_name(stem), InstanceSource(stem, is_test=stem in is_test))
  rate = functools.partial(mixtures.proportional_rate, maximum=MAX_TRAIN)
  for name, members in zip(MIXTURES, (train, test)):
    seqio.MixtureRegistry.add(name, [task_name(stem) for stem in members], default_rate=rate)


register()
