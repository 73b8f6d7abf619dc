"""The guides on settings and code of one's own: a new router, A, b and the rank, tasks from T5X."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import re
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import jax
import numpy as np
import pytest
import seqio

from cpoly_jax import command_line
from cpoly_jax import model_settings
from cpoly_jax import task_index
from cpoly_jax import testing
from cpoly_jax.systems import __main__ as systems
from cpoly_jax.systems import configured, counts
from cpoly_jax.t5 import network
from tests.docs import docs_page
from tests.docs import guides_case
from tests.tasks import command_case

setUpModule, tearDownModule = testing.quick_compilation()


class RouterTest(guides_case.InFolderTestCase):

  page = docs_page.Page('guides/new_router')

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(sys, 'path', [os.getcwd(), *sys.path]))
    self.enter_context(mock.patch.dict(model_settings._CLASSES))
    self.addCleanup(sys.modules.pop, 'my_routing', None)
    module, self.step = self.page.blocks('python')
    pathlib.Path('my_routing.py').write_text(module, encoding='utf-8')
    pathlib.Path('softmax.gin').write_text(*self.page.blocks('gin'), encoding='utf-8')
    self.module = importlib.import_module('my_routing')

  def test_step(self):
    names = {}
    exec(self.step, names)  # pylint: disable=exec-used
    self.assertEqual(names['used'].tolist(), [True, False, True])
    description = json.loads(json.dumps(model_settings.describe(names['t5'])))
    self.assertEqual(model_settings.build(description).adapter.describe().num_skills, 4)

  def test_weights(self):
    router = self.module.SoftmaxRouter(num_tasks=2, num_skills=2, temperature=0.5)
    variables = {'params': {'logits': np.log([[1., 2.], [3., 1.]], dtype=np.float32)}}
    group, = router.apply(variables, np.array([1, 0]), deterministic=True)
    np.testing.assert_allclose(group.weights, [[[.9, .1]], [[.2, .8]]], rtol=1e-6)  # Squares, by their sum.
    with self.assertRaisesRegex(ValueError, 'write a number above 0'):
      self.module.SoftmaxRouter(num_tasks=2, temperature=0.).init(jax.random.PRNGKey(0), np.array([0]), deterministic=True)

  def test_commands(self):
    (train, ), (count, ) = self.page.commands('t5x.train'), self.page.commands('cpoly_jax.systems')
    self.configure(train)
    transformer = gin.get_configurable(network.Transformer)()
    router = transformer.adapter.describe()
    self.assertIsInstance(router, self.module.SoftmaxRouter)
    self.assertEqual((router.num_tasks, router.num_skills, router.temperature), (16, 8, 0.5))
    self.assertNotEmpty(systems._parser().parse_args(count).systems)
    with configured.configured('softmax.gin', configured.Request('t5_1_1/tiny', 8)) as made:
      trained = counts.count(made).trained
    self.assertIn(f'{trained["skills"]:,} parameters of skills and {trained["routing"]:,} of routing', self.page.text)


class ChoosingTest(docs_page.DocsTestCase):

  page = docs_page.Page('guides/choosing_a_b_r')
  rows = page.table('flags') + re.findall(r'^\| (`--num_tasks.*?`) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$', page.text,
                                          re.MULTILINE)

  def _count(self, flags, costs=False):
    command = next(arguments for arguments in self.page.commands('cpoly_jax.systems') if '--systems=cpoly' in arguments)
    more = docs_page.shlex.split(flags.strip('`'))
    if costs:
      code, out, _ = command_case.run(systems.main, *command, *more, '--format=csv')
      self.assertEqual(code, 0)
      return round(float(out.splitlines()[1].split(',')[8]))
    bindings, others = command_line.split_bindings([*command, *more])
    options = systems._parser().parse_args(others)
    with configured.configured('cpoly', configured.Request(options.model, options.num_tasks, (), bindings)) as made:
      return counts.count(made)

  def test_there_are_rows(self):
    self.assertLen(self.rows, 11)

  @parameterized.parameters(*rows)
  def test_parameters(self, flags, skills, bank, routing, active, _):
    found = self._count(flags)
    told = [int(cell.replace(',', '')) for cell in (skills, bank, routing, active)]
    self.assertEqual([found.num_skills, found.trained['skills'], found.trained['routing'], found.active], told)

  def test_defaults_are_those_of_the_table_of_systems(self):
    line = next(line for line in docs_page.Page('systems').text.splitlines() if line.startswith('| cpoly '))
    self.assertIn(self.rows[0][-1], line)

  @pytest.mark.slow
  def test_flops(self):
    for flags, *_, told in self.rows:
      self.assertEqual(f'{self._count(flags, costs=True):,}', told, flags)


class MovingTest(docs_page.DocsTestCase):

  page = docs_page.Page('guides/moving_from')

  def test_own_task(self):
    block, = self.page.blocks('python')
    self.addCleanup(seqio.TaskRegistry.remove, 'my_reviews')
    names = {}
    exec(block, names)  # pylint: disable=exec-used
    command = self.page.commands('t5x.train')[-1]
    self.assertIn("--gin.MIXTURE_OR_TASK_NAME='my_reviews'", command)
    lengths = {'inputs': 16, 'targets': 8, 'task_id': 1}
    dataset = seqio.get_mixture_or_task('my_reviews').get_dataset(lengths, 'train', shuffle=False)
    example = next(dataset.as_numpy_iterator())
    self.assertEqual(example['task_id'].tolist(), [task_index.task_key('my_reviews')])
    self.assertEqual(seqio.ByteVocabulary().decode(example['targets'].tolist()), 'good')
    self.assertEqual(names['accuracy'](['good', 'bad'], ['good', 'good']), {'accuracy': .5})

  def test_files_of_t5x(self):
    for name in re.findall(r'`(t5x/[\w/]+\.(?:gin|py))`', self.page.text):
      self.assertTrue((docs_page.ROOT / 't5x_lite' / name).is_file(), name)

  def test_names_of_peft(self):
    spec = importlib.util.find_spec('peft')
    if spec is None:
      self.skipTest('peft is absent; its names are compared under: bash launch/test.sh --all')
    source = (pathlib.Path(spec.origin).parent / 'tuners' / 'poly' / 'config.py').read_text(encoding='utf-8')
    told, = re.findall(r'`PolyConfig\((.*?)\)`', self.page.text)
    for name in (*told.split(', '), 'poly_type'):
      self.assertRegex(source, rf'(?m)^    {name}: ')

if __name__ == '__main__':
  absltest.main()
