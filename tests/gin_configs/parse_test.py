"""Every gin file parses with its imports, and those on top build the model that their name says."""

import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import jax
import numpy as np
from t5x import eval as eval_lib
from t5x import infer
from t5x import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIN_FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'gin_configs').rglob('*.gin'))
SIZES = ('tiny', 'small', 'base', 'large', 'xl', 'xxl')
TOP = [f'gin_configs/cpoly_{size}.gin' for size in SIZES]
MODEL_FILES = [f'gin_configs/models/{family}/{size}.gin' for family in ('t5_1_0', 't5_1_1', 'flan') for size in SIZES]
# Parameters of the published models, tied logits counted once.
BASE_PARAMETERS = {
    't5_1_1': dict(small=76_961_152, base=247_577_856, large=783_150_080, xl=2_849_757_184, xxl=11_135_332_352),
    't5_1_0': dict(small=60_506_624, base=222_903_552, large=737_668_096, xl=2_851_598_336, xxl=11_307_321_344),
}


class GinTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    gin.add_config_file_search_path(str(ROOT))
    for name, function in (('train', train.train), ('evaluate', eval_lib.evaluate), ('infer', infer.infer)):
      patch = mock.patch.object(sys.modules['__main__'], name, function, create=True)
      patch.start()
      self.addCleanup(patch.stop)

  def _parse(self, files, bindings=()):
    gin.parse_config_files_and_bindings(files, list(bindings), finalize_config=False)

  def test_there_are_files(self):
    self.assertContainsSubset(TOP + MODEL_FILES, GIN_FILES)

  @parameterized.parameters(*GIN_FILES)
  def test_parses(self, file):
    self._parse([file])
    self.assertNotEmpty(gin.config_str())

  @parameterized.parameters(*TOP)
  def test_needs_nothing_else(self, file):
    self._parse([file])
    self.assertNotIn('gin.REQUIRED', gin.config_str())

  def _base_parameters(self):
    from cpoly_jax.t5 import network  # What gin bound.
    net = gin.get_configurable(network.Transformer)(adapter=None)
    tokens = jax.ShapeDtypeStruct((1, 4), np.int32)
    shapes = jax.eval_shape(lambda *args: net.init(jax.random.PRNGKey(0), *args, enable_dropout=False), tokens, tokens, tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))

  @parameterized.parameters(*((family, size) for family in ('t5_1_0', 't5_1_1', 'flan') for size in SIZES[1:]))
  def test_sizes_are_the_published_ones(self, family, size):
    self._parse([f'gin_configs/models/{family}/{size}.gin'])
    self.assertEqual(self._base_parameters(), BASE_PARAMETERS[family.replace('flan', 't5_1_1')][size])

  @parameterized.parameters('cpoly', 'poly')
  def test_systems_adapt_any_model(self, system):
    bindings = ["MIXTURE_OR_TASK_NAME = 'latent_skills'", "MIXTURE_OR_TASK_MODULE = 'tasks'", 'OPTIMIZER = None',
                "VOCABULARY_PATH = 'bytes'"]
    self._parse(['gin_configs/models/t5_1_0/tiny.gin', f'gin_configs/systems/{system}.gin'], bindings)
    model = gin.query_parameter('%MODEL').scoped_configurable_fn()
    self.assertEqual(model.module.adapter.is_target('encoder/layers_0/attention/key'), True)
    self.assertLen(model.task_index, 16)


if __name__ == '__main__':
  absltest.main()
