"""Every gin file parses with its imports and uses what it sets; every system adapts every size of base."""

import pathlib
import re
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
from t5x import eval as eval_lib
from t5x import infer
from t5x import train

from cpoly_jax.systems import configured, counts
from cpoly_jax.systems.configured import Request

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

# Read by programs from the configuration, or by an entry point that these files do not belong to.
READ_OTHERWISE = {'MODEL'}


def _unused_macros():
  """Names of macros that are set, and that nothing uses."""
  text = gin.config_str()
  return set(re.findall(r'^(\w+) =', text, re.MULTILINE)) - set(re.findall(r'%(\w+)', text)) - READ_OTHERWISE


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
    return sum(leaf.size for leaf in counts.parameters(net).values())

  @parameterized.parameters(*((family, size) for family in ('t5_1_0', 't5_1_1', 'flan') for size in SIZES[1:]))
  def test_sizes_are_the_published_ones(self, family, size):
    self._parse([f'gin_configs/models/{family}/{size}.gin'])
    self.assertEqual(self._base_parameters(), BASE_PARAMETERS[family.replace('flan', 't5_1_1')][size])

  @parameterized.parameters('cpoly', 'poly')
  def test_the_tasks_of_a_mixture_have_rows(self, system):
    bindings = ["MIXTURE_OR_TASK_NAME = 'latent_skills'", "MIXTURE_OR_TASK_MODULE = 'tasks'", 'OPTIMIZER = None',
                "VOCABULARY_PATH = 'bytes'"]
    self._parse(['gin_configs/models/t5_1_0/tiny.gin', f'gin_configs/systems/{system}.gin'], bindings)
    model = gin.query_parameter('%MODEL').scoped_configurable_fn()
    self.assertEqual(model.module.adapter.is_target('encoder/layers_0/attention/key'), True)
    self.assertLen(model.task_index, 16)

  @parameterized.parameters(*TOP)
  def test_what_is_set_is_used(self, file):
    self._parse([file])
    self.assertEqual(_unused_macros(), set())

  @parameterized.parameters('eval', 'infer')
  def test_what_is_set_for_reading_is_used(self, run):
    self._parse(['gin_configs/models/t5_1_1/tiny.gin', 'gin_configs/systems/cpoly.gin', f'gin_configs/runs/{run}.gin'])
    # The optimizer belongs to training; gin reads it, and nothing uses it.
    self.assertEqual(_unused_macros(), set())


class SystemsTest(parameterized.TestCase):
  """Shapes only: nothing is allocated."""

  def _builds(self, system, model, *files):
    bindings = []
    if system == 'expert':
      tasks = [f'superglue_{name}' for name in ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc')]
      matrix = pathlib.Path(tempfile.mkdtemp(), 'skills.csv')
      matrix.write_text('task,a,b\n' + ''.join(f'{task},1,{i % 2}\n' for i, task in enumerate(tasks)))
      bindings = [f"EXPERT_MATRIX = '{matrix}'", "MIXTURE_OR_TASK_NAME = 'superglue'"]
    with configured.configured(system, Request(model, None if bindings else 3, files, bindings)) as made:
      found = counts.count(made)
      unused = _unused_macros()
    self.assertEqual(unused, set())
    family, size = model.split('/')
    # A macro of the system that has the name of one of the model's would change the base.
    if size != 'tiny':
      self.assertEqual(found.base, BASE_PARAMETERS[family.replace('flan', 't5_1_1')][size])
    self.assertGreater(found.trainable, 0)

  @parameterized.parameters(*configured.systems())
  def test_every_system(self, system):
    self._builds(system, 't5_1_1/small')

  @parameterized.product(system=('cpoly', 'mhr', 'mmoe'), model=configured.models())
  def test_every_model(self, system, model):
    self._builds(system, model)

  @parameterized.product(system=('cpoly', 'poly'), file=[f for f in GIN_FILES if '/skills/' in f])
  def test_every_kind_of_skill(self, system, file):
    self._builds(system, 't5_1_1/small', file)

  @parameterized.product(system=('cpoly', 'poly'), file=[f for f in GIN_FILES if '/routing/' in f])
  def test_every_setting_of_routing(self, system, file):
    self._builds(system, 't5_1_1/small', file)

  def test_a_misspelt_macro_is_noticed(self):
    with configured.configured('cpoly', Request('t5_1_1/tiny', 3, (), ['RNK = 3'])):
      self.assertEqual(_unused_macros(), {'RNK'})


if __name__ == '__main__':
  absltest.main()
