"""Adapter folders of PEFT without PEFT: what is read and refused, exact and truncated LoRAs, and the two commands."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as safetensors_numpy

from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import __main__ as command
from cpoly_jax.checkpoints import adapter_file, loading, merging, peft, peft_export, peft_targets, t5x_files
from cpoly_jax.t5 import network

setUpModule, tearDownModule = testing.quick_compilation()

part = functools.partial
TASKS, S, R = 3, 4, 2
CONFIG = testing.small_config()
KNOWN = network.projection_paths(CONFIG)
POLY = part(routing.PolyRouter, num_tasks=TASKS, num_skills=S)
LORA = part(skills.LoRA, rank=R, mixing=skills.FACTORS)
QUERY = 'encoder/layers_0/attention/query'


def make(router=POLY, inventory=LORA, targets='encoder/.*/(query|wo)', granularity='projection'):
  """Returns a network, and its skills and routing off their start, flat by name."""
  transformer = network.Transformer(CONFIG, Adapter(router, inventory, targets, granularity))
  rng = np.random.default_rng(0)
  draw = lambda name, shape: rng.integers(0, 4, shape) if name.endswith('indices') else rng.normal(size=shape)
  return transformer, {name: draw(name, leaf.shape).astype(np.float32)
                       for name, leaf in loading.shapes(transformer).items() if merging.is_added(name)}


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'poly')
    transformer, self.params = make(part(POLY, num_heads=2))
    peft.write(self.folder, transformer, self.params)

  def change_config(self, **settings):
    file = pathlib.Path(self.folder, peft.CONFIG_FILE)
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))

  def change_tensors(self, change):
    file = os.path.join(self.folder, peft.TENSOR_FILE)
    tensors = safetensors_numpy.load_file(file)
    change(tensors)
    safetensors_numpy.save_file(tensors, file)

  def test_there_and_back(self):
    adapter, params = peft.read(self.folder, CONFIG)
    self.assertEqual(params.keys(), self.params.keys())
    for name, value in self.params.items():
      np.testing.assert_array_equal(params[name], value)
    router, lora = adapter.describe(), adapter.inventory(num_skills=S, features=1, parent=None)
    self.assertEqual((router.num_tasks, router.num_skills, router.num_heads), (TASKS, S, 2))
    self.assertEqual((lora.rank, lora.alpha, lora.mixing), (R, 1., 'factors'))
    self.assertEqual([path for path in KNOWN if adapter.is_target(path)],
                     ['encoder/layers_0/attention/query', 'encoder/layers_0/mlp/wo'])

  def test_layout_by_hand(self):
    """Head 1 of skill 2 has the second half of the inputs of A, and of the outputs of B."""
    tensors = safetensors_numpy.load_file(os.path.join(self.folder, peft.TENSOR_FILE))
    module = 'base_model.model.encoder.block.0.layer.0.SelfAttention.q'
    np.testing.assert_array_equal(tensors[f'{module}.poly_lora_A'][1, 2], self.params[f'{QUERY}/skills/down'][2, 8:])
    np.testing.assert_array_equal(tensors[f'{module}.poly_lora_B'][1, 2], self.params[f'{QUERY}/skills/up'][2, :, 8:])
    np.testing.assert_array_equal(tensors[f'{module}.poly_router.module_logits'][:, S:],
                                  self.params[f'{QUERY}/routing/common'][:, 1])

  @parameterized.parameters(
      (dict(peft_type='LORA'), "an adapter of kind 'LORA'"), (dict(poly_type='moe'), "poly_type 'moe'"),
      (dict(modules_to_save=['shared']), r"modules_to_save = \['shared'\]"), (dict(n_tasks=True), 'n_tasks in .* is True'),
      (dict(r='2'), "r in .* is '2'"), (dict(n_skills=None), 'n_skills in .* is None'),
      (dict(r=3), r'poly_lora_A has shape \[2, 4, 8, 2\], and .* \[2, 4, 8, 3\]'), (dict(n_splits=3), 'does not divide'))
  def test_configurations_that_are_refused(self, settings, message):
    self.change_config(**settings)
    with self.assertRaisesRegex(ValueError, message):
      peft.read(self.folder, CONFIG)

  def test_tensors_that_are_refused(self):
    module = 'base_model.model.encoder.block.0.layer.0.SelfAttention.q'
    self.change_tensors(lambda tensors: tensors.pop(f'{module}.poly_router.module_logits'))
    with self.assertRaisesRegex(ValueError, r'SelfAttention\.q has no poly_router\.module_logits'):
      peft.read(self.folder, CONFIG)
    self.change_tensors(lambda tensors: tensors.update({'base_model.model.lm_head.poly_lora_A': np.zeros(1, np.float32)}))
    with self.assertRaisesRegex(ValueError, 'the adapter is on lm_head, which is no adapted projection'):
      peft.read(self.folder, CONFIG)
    self.change_tensors(lambda tensors: (tensors.clear(), tensors.update({'x': np.zeros(1, np.float32)})))
    with self.assertRaisesRegex(ValueError, 'x is no tensor of a POLY adapter'):
      peft.read(self.folder, CONFIG)
    self.change_tensors(lambda tensors: tensors.clear())
    with self.assertRaisesRegex(ValueError, 'has no tensors'):
      peft.read(self.folder, CONFIG)

  def test_files_that_are_refused(self):
    file = pathlib.Path(self.folder, peft.TENSOR_FILE)
    file.write_bytes(file.read_bytes()[:-4])
    with self.assertRaisesRegex(ValueError, 'not a whole safetensors file'):
      peft.read(self.folder, CONFIG)
    file.rename(file.with_name('adapter_model.bin'))
    with self.assertRaisesRegex(ValueError, 'a pickle, which can run any code'):
      peft.read(self.folder, CONFIG)
    pathlib.Path(self.folder, peft.CONFIG_FILE).write_text('[]')
    with self.assertRaisesRegex(ValueError, 'is not a JSON object'):
      peft.read(self.folder, CONFIG)
    with self.assertRaisesRegex(FileNotFoundError, 'has no adapter_config.json'):
      peft.read(os.path.dirname(self.folder), CONFIG)


class WriteTest(parameterized.TestCase):

  @parameterized.parameters(
      (part(routing.CPolyRouter, num_tasks=TASKS), LORA, 'no CPolyRouter of LoRA'), (POLY, skills.SFT, 'no PolyRouter of SFT'),
      (POLY, part(LORA, mixing=skills.PRODUCTS), "mixed as 'products'"),
      (part(POLY, sampling=routing.Sampling(hard_evaluation=True)), LORA, 'hard_evaluation'),
      (part(POLY, sampling=routing.Sampling(uniform=0.5)), LORA, 'uniform share'))
  def test_what_has_no_counterpart(self, router, inventory, message):
    out = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')
    with self.assertRaisesRegex(ValueError, f'{message}.*--task=NAME'):
      peft.write(out, *make(router, inventory))
    self.assertFalse(os.path.exists(out))

  def test_is_not_overwritten(self):
    out = self.enterContext(tempfile.TemporaryDirectory())
    pathlib.Path(out, 'x').touch()
    with self.assertRaises(FileExistsError):
      peft.write(out, *make())


class TargetsTest(parameterized.TestCase):

  @parameterized.parameters(
      ('.*attention/(query|value)', '.*/(query|value)', ['q', 'v']), ('.*/wo', '.*/wo', ['wo']),
      ('decoder/.*/(wo|query)', None, None), ('decoder/layers_1/mlp/wi_1', 'decoder/layers_1/mlp/wi_1',
                                              ['decoder.block.1.layer.2.DenseReluDense.wi_1']))
  def test_the_same_projections(self, pattern, ours, theirs):
    known = network.projection_paths(testing.small_config(num_encoder_layers=2, num_decoder_layers=2))
    chosen = [path for path in known if re.fullmatch(pattern, path)]
    found = peft_targets.to_pattern(chosen, known)
    self.assertEqual([path for path in known if re.fullmatch(found, path)], chosen)
    modules = peft_targets.to_modules(chosen, known)
    if ours:
      self.assertEqual((found, modules), (ours, theirs))
    else:
      self.assertNotIn('layers_0', found)  # One pattern for both layers.
      self.assertLen(modules, 2 * 3)


def change(folder, path=QUERY):
  """The kernel's change [d, o] that PEFT computes from a LoRA folder."""
  config = json.loads(pathlib.Path(folder, peft.CONFIG_FILE).read_text())
  tensors = safetensors_numpy.load_file(os.path.join(folder, peft.TENSOR_FILE))
  module = {QUERY: 'encoder.block.0.layer.0.SelfAttention.q'}[path]
  a, b = (tensors[f'base_model.model.{module}.lora_{x}.weight'] for x in 'AB')
  assert a.shape[0] == config['r']
  return config['lora_alpha'] / config['r'] * (b @ a).T


class ExportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.out = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')

  @parameterized.parameters(
      (POLY, part(LORA, alpha=3.), R), (part(POLY, num_heads=4), LORA, R),
      (part(routing.CPolyRouter, num_tasks=TASKS), part(LORA, mixing=skills.GROUP_FACTORS), 2 * R),
      (part(POLY, num_skills=3), part(LORA, mixing=skills.PRODUCTS, alpha=0.5), 3 * R),
      # Skills of weight zero are left out: of the five, task 1 has two.
      (part(routing.ExpertRouter, num_tasks=TASKS, matrix=((1., 0., 1., 1., 1.), (0., 1., 0., 1., 0.), (1.,) * 5)),
       part(LORA, mixing=skills.PRODUCTS), 2 * R))
  def test_exact(self, router, inventory, rank):
    transformer, params = make(router, inventory)
    exported = peft_export.export(self.out, transformer, params, 1)
    self.assertEqual((exported.rank, exported.errors), (rank, {}))
    expected = merging.Task(transformer, params, 1).kernel(QUERY, np.zeros((16, 16)))
    np.testing.assert_allclose(change(self.out), expected, rtol=1e-4, atol=1e-5)
    # A rank that is large enough changes nothing.
    again = f'{self.out}_again'
    peft_export.export(again, transformer, params, 1, rank=rank)
    np.testing.assert_array_equal(change(again), change(self.out))

  @parameterized.parameters((POLY, part(LORA, rank=4, alpha=3.)), (POLY, skills.SFT), (POLY, skills.Dense))
  def test_truncated(self, router, inventory):
    transformer, params = make(router, inventory)
    exported = peft_export.export(self.out, transformer, params, 1, rank=2)
    whole = merging.Task(transformer, params, 1).kernel(QUERY, np.zeros((16, 16))).astype(np.float64)
    u, values, v = np.linalg.svd(whole)
    np.testing.assert_allclose(change(self.out), (u[:, :2] * values[:2]) @ v[:2], rtol=1e-4, atol=1e-5)
    self.assertAlmostEqual(exported.errors[QUERY], np.linalg.norm(values[2:]) / np.linalg.norm(values), places=5)
    self.assertGreater(exported.errors[QUERY], 0.1)
    self.assertCountEqual(exported.errors, merging.targets(transformer))

  def test_truncated_zero_and_tall(self):
    (a, b), error = peft_export.truncated(np.zeros((5, 3)), np.zeros((3, 4)), 2)
    self.assertEqual((a.shape, b.shape, error), ((5, 2), (2, 4), 0.))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 9)), rng.normal(size=(9, 4))  # More columns than the product has rank.
    (c, d), error = peft_export.truncated(a, b, 3)
    np.testing.assert_allclose(c @ d, a @ b, atol=1e-5)
    self.assertLess(error, 1e-6)

  def test_refusals(self):
    for router, inventory, rank, message in (
        (POLY, skills.SFT, None, 'SFT skills change whole kernels.*--rank=16'), (POLY, skills.IA3, 2, 'has no rank'),
        (POLY, LORA, 0, 'rank 0: write 1 or more'),
        (part(routing.TokenRouter, num_tasks=TASKS), part(LORA, mixing=skills.PRODUCTS), None, 'for each token')):
      with self.assertRaisesRegex(ValueError, message):
        peft_export.export(self.out, *make(router, inventory), 1, rank=rank)
    with self.assertRaisesRegex(ValueError, 'routing row 3 are not finite'):
      peft_export.export(self.out, *make(), TASKS)
    self.assertFalse(os.path.exists(self.out))


class CommandTest(absltest.TestCase):

  def test_both_ways(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    base, poly, ours, again, one = (os.path.join(folder, name) for name in ('checkpoint_4', 'poly', 'ours', 'again', 'one'))
    transformer, params = make()
    rng = np.random.default_rng(1)
    t5x_files.write_checkpoint(base, {name: rng.normal(size=leaf.shape).astype(np.float32)
                                      for name, leaf in loading.shapes(merging.plain(transformer)).items()})
    peft.write(poly, transformer, params)
    text, code = command.run(['from_peft', poly, ours, f'--base={base}', '--task_names=cb,rte,wic'])
    self.assertEqual(code, 0)
    self.assertIn('3 tasks, 4 skills, 1 heads', text)
    self.assertEqual(adapter_file.read(ours).keys(), params.keys())
    loaded = loading.load(ours)
    self.assertEqual(loaded.task_index.names, ('cb', 'rte', 'wic'))
    self.assertEqual(loaded.own, params.keys())

    text, _ = command.run(['to_peft', ours, again])
    self.assertIn('task_ids: 0 cb, 1 rte, 2 wic', text)
    files = [pathlib.Path(name, peft.TENSOR_FILE).read_bytes() for name in (poly, again)]
    self.assertEqual(*files)

    text, _ = command.run(['to_peft', ours, one, '--task=rte', '--rank=1', '--base_name=google/t5'])
    self.assertRegex(text, r'rte as LORA of rank 1 on 2 projections, .* leaves out \d.* % .* on average, \d.* % at worst \(')
    config = json.loads(pathlib.Path(one, peft.CONFIG_FILE).read_text())
    self.assertEqual((config['base_model_name_or_path'], config['r']), ('google/t5', 1))

    for arguments, message in (
        (['from_peft', poly, again, f'--base={base}', '--task_names=a,b,c'], 'is not overwritten'),
        (['from_peft', poly, f'{ours}2', f'--base={base}', '--task_names=a,b'], 'has 3 tasks, and --task_names has 2 names'),
        (['from_peft', poly, f'{ours}2', f'--base={base}', '--task_names=a,b,c', '--vocabulary=x'],
         'no SentencePiece model at x'),
        (['to_peft', ours, f'{ours}2', '--rank=1'], 'give --task=NAME'),
        (['to_peft', ours, f'{ours}2', '--task=rtf'], "did you mean 'rte'?")):
      errors = io.StringIO()
      with contextlib.redirect_stderr(errors):
        self.assertEqual(command.main(arguments), 1)
      self.assertRegex(errors.getvalue(), rf'^error: [^\n]*{re.escape(message)}[^\n]*\n$')
      self.assertFalse(os.path.exists(f'{ours}2'))


if __name__ == '__main__':
  absltest.main()
