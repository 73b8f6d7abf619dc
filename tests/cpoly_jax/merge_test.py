"""The command that writes tasks as plain T5s."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import ml_dtypes
import numpy as np
from t5x import checkpoints

from cpoly_jax import merge
from cpoly_jax import model_settings
from cpoly_jax import testing
from cpoly_jax.checkpoints import huggingface, loading, merging, t5x_files
from cpoly_jax.t5 import network

setUpModule, tearDownModule = testing.quick_compilation()

TASKS = ('glue:rte', 'b', '../c')


def write_run(folder, adapter, tasks=TASKS):
  """Writes a checkpoint of step 7 that holds everything, and its description; returns network and parameters."""
  transformer = network.Transformer(testing.small_config(), adapter)
  rng = np.random.default_rng(0)
  params = {name: (0.3 * rng.normal(size=shape.shape)).astype(np.float32)
            for name, shape in loading.shapes(transformer).items()}
  t5x_files.write_checkpoint(os.path.join(folder, 'checkpoint_7'), params)
  model_settings.save({**model_settings.describe(transformer), 'task_index': {'tasks': list(tasks)}}, folder)
  return transformer, traverse_util.unflatten_dict(params, sep='/')


def flat(params):
  return traverse_util.flatten_dict(params, sep='/')


class MergeTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.run_dir = os.path.join(cls.folder, 'run')
    cls.transformer, params = write_run(cls.run_dir, testing.cpoly_adapter(len(TASKS), targets='.*/query'))
    cls.merged = [flat(merging.merge(cls.transformer, params, row)) for row in range(len(TASKS))]

  def setUp(self):
    super().setUp()
    self.out = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')

  def assert_same(self, found, row, dtype=np.float32):
    self.assertEqual(found.keys(), self.merged[row].keys())
    for name, value in self.merged[row].items():
      self.assertEqual(found[name].dtype, dtype)
      np.testing.assert_array_equal(found[name], value.astype(dtype), err_msg=name)

  def test_one_task(self):
    text, code = merge.run([self.run_dir, self.out, '--task=b'])
    self.assertEqual((text, code), (f'wrote 1 plain T5 (t5x, float32) to {self.out}', 0))
    self.assert_same(flat(checkpoints.load_t5x_checkpoint(self.out, step=7)['target']), 1)
    loaded = loading.load(self.out)
    self.assertIsNone(loaded.transformer.adapter)
    self.assertEqual(loaded.transformer.config, self.transformer.config)
    self.assert_same(flat(loaded.params), 1)

  def test_all_tasks_for_transformers(self):
    merge.run([os.path.join(self.run_dir, 'checkpoint_7'), self.out, '--all_tasks', '--to=huggingface', '--dtype=bfloat16'])
    self.assertCountEqual(os.listdir(self.out), ['glue_rte', 'b', '__c', 'merged.json'])
    with open(os.path.join(self.out, 'merged.json')) as file:
      index = json.load(file)
    self.assertEqual(index['folders'], {'glue:rte': 'glue_rte', 'b': 'b', '../c': '__c'})
    self.assertEqual((index['step'], index['format'], index['dtype']), (7, 'huggingface', 'bfloat16'))
    for row, name in enumerate(TASKS):
      folder = os.path.join(self.out, index['folders'][name])
      found = {n: tensor.read() for n, tensor in huggingface.open_folder(folder).items()}
      self.assert_same(found, row, ml_dtypes.bfloat16)

  def test_dry_run(self):
    with mock.patch.object(loading, 'read', side_effect=AssertionError('values are read')):
      text, code = merge.run([self.run_dir, self.out, '--all_tasks', '--dry_run'])
    self.assertEqual(code, 0)
    base = sum(np.prod(leaf.shape) for leaf in self.merged[0].values())
    self.assertIn(f'base: {len(self.merged[0])} arrays, {base:,} parameters, {4 * base / 1e6:,.1f} MB', text)
    self.assertIn(f'would write 3 x {4 * base / 1e6:,.1f} MB', text)
    self.assertIn(f'3 of {len(self.merged[0])} arrays change', text)
    self.assertIn(f'  ../c -> {self.out}/__c', text)
    self.assertFalse(os.path.exists(self.out))

  def test_mistakes_are_one_line(self):
    token = os.path.join(self.folder, 'token')
    if not os.path.exists(token):
      write_run(token, _token_adapter())
    os.makedirs(os.path.join(self.folder, 'full', 'x'), exist_ok=True)
    for arguments, message in (
        ([self.run_dir, self.out, '--task=glue:rt'], "task 'glue:rt' has no routing row; did you mean 'glue:rte'?"),
        ([self.run_dir, self.out], 'one of the arguments --task --all_tasks is required'),
        ([self.run_dir, os.path.join(self.folder, 'full'), '--task=b'], 'full exists and is not overwritten'),
        ([token, self.out, '--task=b'], 'TokenRouter weighs skills for each token'),
        ([self.folder, self.out, '--task=b'], self.folder)):
      errors = io.StringIO()
      with contextlib.redirect_stderr(errors):
        self.assertEqual(merge.main(arguments), 1)
      self.assertRegex(errors.getvalue(), rf'^error: [^\n]*{re.escape(message)}[^\n]*\n$')
      self.assertFalse(os.path.exists(self.out))

  def test_progress(self):
    stream = io.StringIO()
    with mock.patch.object(merge.time, 'monotonic', side_effect=[1., 9., 10., 16.]):
      progress = merge._Progress(['a', 'b'], 2, stream)
      for _ in range(4):
        progress('name', 1)
    self.assertEqual(stream.getvalue(), 'task 1 of 2 (a): 2/4 arrays, 0.1 a second, 16 s left\n'
                                        'task 2 of 2 (b): 4/4 arrays, 0.2 a second, 0 s left\n')


class FolderNamesTest(parameterized.TestCase):

  @parameterized.parameters(('a/b', 'a_b'), ('..', '_'), ('../../x', '__.._x'), ('.hidden', '_hidden'), ('', '_'),
                            ('Ünï code', '_n_code'), ('x' * 300, 'x' * 200))
  def test_safe(self, task, folder):
    self.assertEqual(merge.folder_names([task]), {task: folder})

  @parameterized.parameters((('a:b', 'a/b'),), (('RTE', 'rte'),))
  def test_collision(self, tasks):
    with self.assertRaisesRegex(ValueError, f'{tasks[0]!r} and {tasks[1]!r} would both be written to the folder'):
      merge.folder_names(tasks)


def _token_adapter():
  import functools
  from cpoly_jax import adapters, routing, skills
  return adapters.Adapter(functools.partial(routing.TokenRouter, num_tasks=len(TASKS), num_common=2),
                          functools.partial(skills.LoRA, mixing=skills.PRODUCTS), targets='.*/query')


if __name__ == '__main__':
  absltest.main()
