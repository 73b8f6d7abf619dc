"""Adapter folders of PEFT: theirs read as ours, ours loaded by PEFT itself, with the same logits."""

import functools
import os
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from cpoly_jax import routing, skills, testing
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import huggingface, merging, peft, peft_export
from cpoly_jax.t5 import network

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers

TASKS, S, R = 3, 4, 2


_quick, tearDownModule = testing.quick_compilation()


def setUpModule():
  peers.require()
  _quick()


def _ours(adapter, skills_and_routing, *rows):
  """Our logits of the shared batch for some tasks, [4, Lt, V] each, zero at padding."""
  b = peers.batch()
  net = network.Transformer(peers.our_config(), adapter)
  params = traverse_util.unflatten_dict({**peers.base_parameters(), **skills_and_routing}, sep='/')
  # Not compiled as a whole: the networks differ only in a few operations.
  run = lambda tasks: net.apply({'params': params}, b['inputs'], b['decoder_inputs'], b['targets'], enable_dropout=False,
                                task_ids=tasks)
  return [np.asarray(run(np.full(4, row))) * (b['targets'] > 0)[..., None] for row in rows]


def _random(adapter, seed=0):
  """Skills and routing of an adapter on the small T5, flat by name, nothing zero by its start."""
  transformer = network.Transformer(peers.our_config(), adapter)
  tokens = np.ones((1, 1), np.int32)
  rows = np.zeros(1, np.int32)
  shapes = jax.eval_shape(lambda: transformer.init(
      jax.random.PRNGKey(0), tokens, tokens, tokens, task_ids=rows, enable_dropout=False))['params']
  rng = np.random.default_rng(seed)
  flat = {'/'.join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
  return {name: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32) for name, leaf in flat.items() if merging.is_added(name)}


def _loaded_by_peft(folder):
  base = peers.transformers.T5ForConditionalGeneration(peers._base_t5().config)
  base.load_state_dict(peers._base_t5().state_dict())
  model = peers.peft.PeftModel.from_pretrained(base, folder, is_trainable=True)  # Trainable: run_t5 goes backward, too.
  return model.eval()


class PolyTest(parameterized.TestCase):

  @parameterized.parameters((1, ['q', 'v'], '.*/(query|value)'),
                            (2, r'decoder.*EncDecAttention.*(q|k)$|.*\.wo',
                             r'encoder/layers_\d+/mlp/wo|decoder/layers_\d+/encoder_decoder_attention/(key|query)|'
                             r'decoder/layers_\d+/mlp/wo'))
  def test_there_and_back(self, heads, modules, pattern):
    model = peers.adapted_t5(peers.peft.PolyConfig(
        r=R, n_tasks=TASKS, n_skills=S, n_splits=heads, target_modules=modules, task_type='SEQ_2_SEQ_LM')).eval()
    row = 1
    expected = peers.run_t5(model, task_ids=peers.torch.full((4,), row))
    with tempfile.TemporaryDirectory() as folder:
      theirs, again = os.path.join(folder, 'theirs'), os.path.join(folder, 'again')
      model.save_pretrained(theirs)
      adapter, params = peft.read(theirs, peers.our_config())
      self.assertEqual(adapter.targets, pattern)
      self.assertEqual((adapter.describe().num_tasks, adapter.describe().num_heads), (TASKS, heads))
      peers.assert_close(_ours(adapter, params, row)[0], expected, 1e-5)

      peft.write(again, network.Transformer(peers.our_config(), adapter), params, 'google/t5-small')
      first, second = (safetensors_numpy.load_file(os.path.join(name, peft.TENSOR_FILE)) for name in (theirs, again))
      self.assertEqual(first.keys(), second.keys())
      for name, value in first.items():
        self.assertEqual(value.tobytes(), second[name].tobytes(), name)
        self.assertEqual(value.shape, second[name].shape)
      loaded = _loaded_by_peft(again)
      self.assertEqual(loaded.peft_config['default'].base_model_name_or_path, 'google/t5-small')
      peers.assert_close(peers.run_t5(loaded, task_ids=peers.torch.full((4,), row)), expected, 1e-6)

  @pytest.mark.slow
  def test_alpha_and_shared_routers(self):
    adapter = Adapter(functools.partial(routing.PolyRouter, num_tasks=TASKS, num_skills=S),
                      functools.partial(skills.LoRA, rank=R, alpha=3.), '.*attention/(query|out)', 'layer')
    params = _random(adapter)
    with tempfile.TemporaryDirectory() as folder:
      peft.write(os.path.join(folder, 'poly'), network.Transformer(peers.our_config(), adapter), params)
      logits = peers.run_t5(_loaded_by_peft(os.path.join(folder, 'poly')), task_ids=peers.torch.full((4,), 2))
    peers.assert_close(_ours(adapter, params, 2)[0], logits, 1e-5)


CPOLY = functools.partial(routing.CPolyRouter, num_common=2)
POLY = functools.partial(routing.PolyRouter, num_skills=S)
ALL = '.*attention/(query|value)|.*/mlp/wo'


class TaskTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('factors', CPOLY, skills.FACTORS, R), ('group_factors', CPOLY, skills.GROUP_FACTORS, 2 * R),
      ('products', functools.partial(CPOLY, specific=routing.FIXED, num_specific=2), skills.PRODUCTS, 4 * R),
      ('heads', functools.partial(POLY, num_heads=4), skills.FACTORS, R))
  def test_lora(self, router, mixing, rank):
    inventory = functools.partial(skills.LoRA, rank=R, alpha=3., mixing=mixing)
    adapter = Adapter(functools.partial(router, num_tasks=TASKS), inventory, ALL)
    params, row = _random(adapter), 1
    with tempfile.TemporaryDirectory() as folder:
      out = os.path.join(folder, 'lora')
      exported = peft_export.export(out, network.Transformer(peers.our_config(), adapter), params, row)
      self.assertEqual((exported.kind, exported.rank, exported.errors), ('LORA', rank, {}))
      model = _loaded_by_peft(out)
      logits = peers.run_t5(model)
    self.assertEqual(model.peft_config['default'].r, rank)
    ours, other = _ours(adapter, params, row, 0)
    peers.assert_close(ours, logits, 1e-5)
    self.assertGreater(np.abs(ours - other).max(), 1e-2)

  @parameterized.parameters('.*attention/(key|value)|.*/mlp/wo', '.*/attention/(value|out)|.*/mlp/(wi_0|wo)')
  def test_ia3(self, targets):
    adapter = Adapter(functools.partial(CPOLY, num_tasks=TASKS), skills.IA3, targets)
    params, row = _random(adapter), 1
    with tempfile.TemporaryDirectory() as folder:
      out = os.path.join(folder, 'ia3')
      exported = peft_export.export(out, network.Transformer(peers.our_config(), adapter), params, row)
      self.assertEqual(exported.kind, 'IA3')
      logits = peers.run_t5(_loaded_by_peft(out))
    peers.assert_close(_ours(adapter, params, row)[0], logits, 1e-5)

  @pytest.mark.slow
  def test_dense_of_full_rank(self):
    adapter = Adapter(functools.partial(POLY, num_tasks=TASKS), skills.Dense, '.*/mlp/wo')
    params, row = _random(adapter), 1
    with tempfile.TemporaryDirectory() as folder:
      out = os.path.join(folder, 'lora')
      transformer = network.Transformer(peers.our_config(), adapter)
      peft_export.export(out, transformer, {**peers.base_parameters(), **params}, row, rank=16)
      logits = peers.run_t5(_loaded_by_peft(out))
    peers.assert_close(_ours(adapter, params, row)[0], logits, 1e-5)


class MergedTest(absltest.TestCase):

  def test_transformers_loads_what_is_merged(self):
    adapter = Adapter(functools.partial(CPOLY, num_tasks=TASKS), functools.partial(skills.LoRA, rank=R), ALL)
    params, row = _random(adapter), 2
    transformer = network.Transformer(peers.our_config(), adapter)
    with tempfile.TemporaryDirectory() as folder:
      out = os.path.join(folder, 'merged')
      merged = merging.merge_lazily(transformer, {**peers.base_parameters(), **params}, row)
      huggingface.write_folder(out, merged, transformer.config, dtype=np.dtype(np.float32))
      logits = peers.run_t5(peers.transformers.T5ForConditionalGeneration.from_pretrained(out).eval())
    peers.assert_close(_ours(adapter, params, row)[0], logits, 1e-5)


if __name__ == '__main__':
  absltest.main()
