"""docs/evaluation.md: its commands are configured as it says, and its names exist."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
from t5x import utils

from cpoly_jax import task_index
from tests.docs import docs_page

PAGE = docs_page.Page('evaluation')
# What a command needs besides what the text shows: data and a vocabulary that are here.
HERE = ("VOCABULARY_PATH = 'bytes'",)


class EvaluationDocsTest(docs_page.DocsTestCase):

  page = PAGE

  def test_there_are_commands(self):
    self.assertLen(PAGE.lines(), 4)
    self.assertEqual([program for program, _ in PAGE.programs()], ['t5x.train', 't5x.eval', 't5x.train', 't5x.train'])

  @parameterized.parameters((0, 'superglue_both'), (1, 'superglue_both'), (3, 'latent_skills_held_out'))
  def test_evaluates_what_it_says(self, number, mixture):
    program, arguments = PAGE.programs()[number]
    self.configure(arguments, *HERE, program=program)
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
    program, arguments = PAGE.programs()[2]
    self.assertEqual(program, 't5x.train')
    self.configure(arguments, *HERE, "MIXTURE_OR_TASK_NAME = 'superglue_cb'", 'LENGTH_NORMALISED = True')
    with gin.config_scope('infer_eval'):
      name = gin.get_configurable(utils.DatasetConfig)().mixture_or_task_name
    self.assertEqual(sorted(task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))),
                     ['superglue_cb', 'superglue_cb_rank'])
    from tasks import rank_classification  # What gin bound.
    self.assertEqual(gin.get_configurable(rank_classification.best_choice)([-4.8, -6], [4, 6]), 1)

  def test_names_exist(self):
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    named = set(re.findall(r'`(superglue_\w+|superni\w*|latent_skills_\w+)`', PAGE.text))
    self.assertNotEmpty(named)
    self.assertEqual(named - registered, set())

  def test_macros_exist(self):
    self.assertEqual(PAGE.unknown_macros(), set())


if __name__ == '__main__':
  absltest.main()
