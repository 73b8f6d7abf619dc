"""docs/evaluation.md: its commands are configured as it says, and its names exist."""

import pathlib
import re
import shlex
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import eval as eval_lib
from t5x import gin_utils
from t5x import train
from t5x import utils

from cpoly_jax import task_index

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'docs' / 'evaluation.md').read_text(encoding='utf-8')
# What a command needs besides what the text shows: data and a vocabulary that are here.
HERE = ("VOCABULARY_PATH = 'bytes'",)


def _commands():
  """Returns (program, arguments) of each command of the bash blocks."""
  blocks = '\n'.join(re.findall(r'^```bash\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)).replace('\\\n', ' ')
  return [(words[2], tuple(words[3:])) for words in map(shlex.split, blocks.splitlines()) if words]


class EvaluationDocsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    for name, function in (('train', train.train), ('evaluate', eval_lib.evaluate)):
      patch = mock.patch.object(sys.modules['__main__'], name, function, create=True)
      patch.start()
      self.addCleanup(patch.stop)

  def _parse(self, arguments, *more):
    files = [argument.removeprefix('--gin_file=') for argument in arguments if argument.startswith('--gin_file=')]
    bindings = [argument.removeprefix('--gin_bindings=') for argument in gin_utils.rewrite_gin_args(arguments)
                if argument.startswith('--gin_bindings=')]
    self.assertLen(files + bindings, len(arguments))
    gin_utils.parse_gin_flags([str(ROOT)], files, [*bindings, *HERE, *more])

  def test_there_are_commands(self):
    self.assertEqual([program for program, _ in _commands()], ['t5x.train', 't5x.eval', 't5x.train', 't5x.train'])

  @parameterized.parameters((0, 'superglue_both'), (1, 'superglue_both'), (3, 'latent_skills_held_out'))
  def test_evaluates_what_it_says(self, number, mixture):
    program, arguments = _commands()[number]
    self._parse(arguments)
    scope = 'infer_eval/' if program == 't5x.train' else ''
    with gin.config_scope(scope.rstrip('/') or None):
      dataset = gin.get_configurable(utils.DatasetConfig)()
    self.assertEqual(dataset.mixture_or_task_name, mixture)
    index = gin.get_configurable(task_index.from_mixture)()
    trained = 'latent_skills' if 'latent' in mixture else 'superglue'
    self.assertEqual(index, task_index.from_mixture(trained))
    if program == 't5x.train':
      with gin.config_scope('train'):
        self.assertEqual(gin.get_configurable(utils.DatasetConfig)().mixture_or_task_name, trained)

  def test_any_mixture(self):
    program, arguments = _commands()[2]
    self.assertEqual(program, 't5x.train')
    self._parse(arguments, "MIXTURE_OR_TASK_NAME = 'superglue_cb'", 'LENGTH_NORMALISED = True')
    with gin.config_scope('infer_eval'):
      name = gin.get_configurable(utils.DatasetConfig)().mixture_or_task_name
    self.assertEqual(sorted(task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))),
                     ['superglue_cb', 'superglue_cb_rank'])
    from tasks import rank_classification  # What gin bound.
    self.assertEqual(gin.get_configurable(rank_classification.best_choice)([-4.8, -6], [4, 6]), 1)

  def test_names_exist(self):
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    named = set(re.findall(r'`(superglue_\w+|superni\w*|latent_skills_\w+)`', TEXT))
    self.assertNotEmpty(named)
    self.assertEqual(named - registered, set())
    self.assertEqual({name for name in re.findall(r'gin_configs/[\w/]+\.gin', TEXT) if not (ROOT / name).is_file()}, set())

  def test_macros_exist(self):
    set_somewhere = {name for path in (ROOT / 'gin_configs').rglob('*.gin')
                     for name in re.findall(r'^([A-Z][A-Z_]+) = ', path.read_text(encoding='utf-8'), re.MULTILINE)}
    named = set(re.findall(r'`([A-Z][A-Z]*_[A-Z_]+)\b', TEXT)) | set(re.findall(r'--gin\.([A-Z_]+)=', TEXT))
    self.assertEqual(named - set_somewhere, set())


if __name__ == '__main__':
  absltest.main()
