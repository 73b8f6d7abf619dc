"""Training examples of each task, as the config.gin of a run tells."""

from __future__ import annotations

import pathlib
import tempfile
import types

from absl.testing import absltest
import gin
import numpy as np
import seqio

from cpoly_jax import task_index
from cpoly_jax.analysis import task_batches
from cpoly_jax.training import features

CONFIG = """
MIXTURE_OR_TASK_MODULE = 'tasks'
MIXTURE_OR_TASK_NAME = 'latent_skills_4'
TASK_FEATURE_LENGTHS = {'inputs': 24, 'targets': 28}
"""


class TaskBatchesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / 'config.gin').write_text(CONFIG)
    self.index = task_index.from_mixture('latent_skills', 'tasks')
    self.model = types.SimpleNamespace(FEATURE_CONVERTER_CLS=features.converter_for(self.index))

  def test_each_task(self):
    found = task_batches.read(self.folder, self.model, 6)
    self.assertEqual(list(found), [f'latent_{name}' for name in ('bodu', 'cifa', 'dema', 'fipo')])
    for task, batch in found.items():
      self.assertEqual(batch['task_id'].tolist(), [[self.index.row(task)]] * 6)
      self.assertEqual((batch['encoder_input_tokens'].shape, batch['decoder_target_tokens'].shape), ((6, 24), (6, 28)))
      told = [seqio.ByteVocabulary().decode(row.tolist()) for row in batch['encoder_input_tokens']]
      self.assertLen({text for text in told if text.startswith(f'{task.removeprefix("latent_")}: ')}, 6)
    again = task_batches.read(self.folder, self.model, 6)['latent_cifa']['encoder_input_tokens']
    np.testing.assert_array_equal(again, found['latent_cifa']['encoder_input_tokens'])
    self.assertEqual(gin.config_str().strip(), '')

  def test_some_tasks(self):
    self.assertEqual(list(task_batches.read(self.folder, self.model, 2, ['latent_dema'])), ['latent_dema'])
    with self.assertRaisesRegex(ValueError, 'no task latent_demo; it has latent_bodu, '):
      task_batches.read(self.folder, self.model, 2, ['latent_demo'])

  def test_without_a_configuration(self):
    (self.folder / 'config.gin').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'config.gin is not there'):
      task_batches.read(self.folder, self.model, 2)


if __name__ == '__main__':
  absltest.main()
