"""Support for the tests of Super-NI: a folder in its layout, made on the spot, and the tasks registered from it."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import gin
import seqio
import tensorflow_datasets as tfds

from tasks import superni


def task(number=12, **changes):
  """Returns the contents of a task file with `number` instances, each with three references."""
  return {
      'Definition': ['Say the opposite'],
      'Categories': ['Word Semantics'],
      'Positive Examples': [
          {'input': 'hot', 'output': 'cold', 'explanation': 'They differ'},
          {'input': 'up? ', 'output': 'down.', 'explanation': 'So do they!'},
          {'input': 'in', 'output': 'out'}],
      'Negative Examples': [{'input': 'wet', 'output': 'damp', 'explanation': 'Alike'}],
      'Instances': [{'id': f'task1-{i}', 'input': f'word {i}', 'output': [f'a{i}', f'b{i}', f'c{i}']} for i in range(number)],
      **changes}


class SuperNiTestCase(parameterized.TestCase):
  """A test with a folder of its own, and nothing left in gin."""

  def setUp(self):
    super().setUp()
    self.addCleanup(superni.register)  # The last to run: with the variables of the process again.
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {superni.SPLITS_VARIABLE: ''}))
    self.addCleanup(gin.clear_config)

  def register(self, train=(), test=(), variable=superni.VARIABLE, tasks=None, excluded=None):
    """Writes task files and lists, and registers them."""
    lists = self.folder / 'splits' / 'default'
    for path in (lists, self.folder / 'tasks'):
      path.mkdir(parents=True, exist_ok=True)
    for name, content in (tasks or {}).items():
      (self.folder / 'tasks' / f'{name}.json').write_text(content if isinstance(content, str) else json.dumps(content))
    for kind, names in (('train', train), ('test', test), ('excluded', excluded)):
      if names is not None:
        (lists / f'{kind}_tasks.txt').write_text(''.join(f'{name}\n' for name in names))
    folder = self.folder if variable == superni.VARIABLE else lists
    self.enter_context(mock.patch.dict(os.environ, {superni.VARIABLE: '', variable: str(folder)}))
    superni.register()

  def examples(self, name, split, lengths=None, **kwargs):
    """The examples of a task, in their order."""
    dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, split, shuffle=False, **kwargs)
    return list(tfds.as_numpy(dataset))

  def members(self, mixture):
    """The names of a mixture's tasks."""
    return [member.name for member in seqio.MixtureRegistry.get(mixture).tasks]
