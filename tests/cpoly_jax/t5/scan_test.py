"""Scanned layers and rematerialisation compute what unrolled layers compute, from the same parameters, with less."""

from __future__ import annotations

import functools
import re
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import flax
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x import partitioning

from cpoly_jax import adapters
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.systems import configured
from cpoly_jax.t5 import network
from cpoly_jax.t5 import scan
from cpoly_jax.training import partitioning as rules
from tests.t5x_lite import eight_devices

setUpModule, tearDownModule = testing.quick_compilation()

T = 3
B = 4
SCANNED = scan.Execution(scan_layers=True)
TASKS = np.array([2, 0, 1, 2], np.int32)
# Row 0 has two examples and padding, row 1 one.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1] * 6, [1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 2, 2]], np.int32)


def _config(layers=2, **overrides):
  return testing.small_config(**dict(num_encoder_layers=layers, num_decoder_layers=layers) | overrides)


def _batch(packed=False):
  rng = np.random.default_rng(0)
  inputs, targets = (rng.integers(2, 32, size=(B, 6), dtype=np.int32) for _ in range(2))
  inputs[1, 4:] = 0
  batch = dict(encoder_input_tokens=inputs, decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
               decoder_target_tokens=targets, task_ids=TASKS)
  if packed:
    batch |= dict(encoder_input_tokens=np.where(SEGMENTS, targets, 0), encoder_segment_ids=SEGMENTS,
                  decoder_segment_ids=SEGMENTS, task_ids=np.stack([TASKS, TASKS[::-1]], 1))
  return batch


def _shapes(net, batch):
  return flax.core.unfreeze(jax.eval_shape(lambda: net.init(jax.random.PRNGKey(0), **batch, enable_dropout=False)))


def _params(net, batch):
  """Random parameters, which take no compilation."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype), _shapes(net, batch)['params'])


def _loss(net, batch, train=True):
  """A function of trainable and frozen parameters: the loss of a training step, and the logits."""
  def loss(trainable, frozen):
    params = flax.traverse_util.unflatten_dict({**trainable, **frozen}, sep='/')
    logits = net.apply({'params': params}, **batch, enable_dropout=train,
                       rngs={'dropout': jax.random.PRNGKey(1), 'routing': jax.random.PRNGKey(2)})
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['decoder_target_tokens'][..., None], -1)
    return jnp.mean(nll), logits
  return loss


def _split(params):
  """Trainable and frozen parameters by path."""
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  trains = lambda path: bool({'skills', 'routing'} & set(path.split('/')))
  return {k: v for k, v in flat.items() if trains(k)}, {k: v for k, v in flat.items() if not trains(k)}


def _step(net, batch):
  return jax.value_and_grad(_loss(net, batch), has_aux=True)


class EqualTest(parameterized.TestCase):

  def _assert_same_step(self, make, execution, packed=False):
    batch = _batch(packed)
    nets = [make(scan.Execution()), make(execution)]
    trainable, frozen = _split(_params(nets[0], batch))
    self.assertNotEmpty(trainable)
    (expected, gradients), (found, found_gradients) = (jax.jit(_step(net, batch))(trainable, frozen) for net in nets)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    self.assertEqual(found_gradients.keys(), trainable.keys())
    for path, gradient in gradients.items():
      np.testing.assert_allclose(found_gradients[path], gradient, atol=1e-5, err_msg=path)
      self.assertGreater(float(jnp.abs(gradient).max()), 0., path)

  def _assert_system(self, system, execution, granularity, packed):
    binding = [f"ROUTER_GRANULARITY = '{granularity}'", "ADAPTER_TARGETS = '.*(query|wo)'"]
    with configured.configured(system, configured.Request('t5_1_1/tiny', T, bindings=binding)) as made:
      make = lambda execution: network.Transformer(_config(dropout_rate=0.1), made.transformer.adapter, execution)
      self._assert_same_step(make, execution, packed)

  @parameterized.parameters(('cpoly', 'projection', True), ('poly', 'layer', False), ('moe_lora', 'projection', False))
  def test_scanned(self, system, granularity, packed):
    self._assert_system(system, SCANNED, granularity, packed)

  @parameterized.product(system=('cpoly', 'poly', 'moe_lora', 'hyper'), granularity=adapters.GRANULARITIES,
                         policy=('none', 'full'), packed=(True, False))
  @pytest.mark.slow
  def test_every_granularity_and_policy(self, system, granularity, policy, packed):
    if system == 'moe_lora' and granularity != 'projection':
      self.skipTest('MoE-LoRA has a router at each projection only')
    self._assert_system(system, scan.Execution(True, policy), granularity, packed)

  @parameterized.parameters((False, 'minimal'), (True, 'full'))
  def test_policies(self, scanned, policy):
    make = lambda execution: network.Transformer(
        _config(dropout_rate=0.1), testing.cpoly_adapter(T, targets='.*(query|wo)', granularity='stack'), execution)
    self._assert_same_step(make, scan.Execution(scanned, policy))

  def test_layers_with_other_targets_are_runs_of_their_own(self):
    adapter = testing.cpoly_adapter(T, targets='.*layers_(1|2)/.*query')
    make = lambda execution: network.Transformer(_config(layers=4), adapter, execution)
    self._assert_same_step(make, SCANNED)
    text = _jaxpr(make(SCANNED), _batch())
    self.assertLen(re.findall(r'\bscan\[', text), 2)  # Layers 1 and 2 of each stack; 0 and 3 have no neighbour of their kind.

  def test_skills_that_look_at_paths_themselves(self):
    inventory = functools.partial(skills.IA3, input_targets='.*layers_0/.*query')
    adapter = adapters.Adapter(functools.partial(routing.SharedRouter, num_tasks=T), inventory, targets='.*query')
    make = lambda execution: network.Transformer(_config(layers=3), adapter, execution)
    self._assert_same_step(make, SCANNED)


def _jaxpr(net, batch):
  trainable, frozen = _split(_shapes(net, batch)['params'])
  return str(jax.make_jaxpr(_loss(net, batch))(trainable, frozen))


class TreeTest(parameterized.TestCase):

  def test_parameters_and_saved_settings_do_not_tell(self):
    executions = scan.Execution(), scan.Execution(True, 'full')
    nets = [network.Transformer(_config(), testing.cpoly_adapter(T), execution) for execution in executions]
    trees = [_shapes(net, _batch()) for net in nets]
    self.assertEqual(*trees)
    self.assertIn('layers_1', trees[1]['params']['encoder'])
    self.assertEqual(*map(model_settings.describe, nets))

  def test_decoding_and_intermediates_are_not_scanned(self):
    net, batch = network.Transformer(_config(), testing.cpoly_adapter(T), SCANNED), _batch()
    params = _shapes(net, batch)['params']
    cached = lambda params: net.apply({'params': params}, **batch, enable_dropout=False, decode=True, mutable=['cache'])
    self.assertNotIn('scan[', str(jax.make_jaxpr(cached)(params)))
    self.assertIn('layers_1', jax.eval_shape(cached, params)[1]['cache']['decoder'])

  @parameterized.parameters(('.*layers_(0|2)/.*query', 'no two layers of the encoder .* none can be scanned: set SCAN_LAYERS'),
                            ('decoder/layers_0/.*', None), ('.*', None))
  def test_says_if_nothing_can_be_scanned(self, targets, message):
    check = lambda: scan.check(network.projection_paths(_config(layers=3)), testing.cpoly_adapter(T, targets=targets))
    if message is None:
      return check()
    with self.assertRaisesRegex(ValueError, message):
      check()
    with self.assertRaisesRegex(ValueError, message):
      _shapes(network.Transformer(_config(layers=3), testing.cpoly_adapter(T, targets=targets), SCANNED), _batch())

  def test_unknown_policy(self):
    with self.assertRaisesRegex(ValueError, "remat_policy = 'some': write one of none, minimal, full"):
      scan.Execution(remat_policy='some')

  def test_gin(self):
    bindings = ['SCAN_LAYERS = True', "REMAT_POLICY = 'minimal'"]
    with configured.configured('cpoly', configured.Request('t5_1_1/tiny', T, bindings=bindings)) as made:
      self.assertEqual(made.transformer.execution, scan.Execution(True, 'minimal'))


class CostTest(parameterized.TestCase):
  """On the plain base, all of which trains."""

  def _lowered(self, execution, layers=3, length=6):
    net, batch = network.Transformer(_config(layers=layers, emb_dim=8, vocab_size=32), None, execution), _batch()
    batch = {k: np.resize(x, (B, length)) if x.ndim == 2 else x for k, x in batch.items()}
    params = flax.traverse_util.flatten_dict(_shapes(net, batch)['params'], sep='/')
    return jax.jit(_step(net, batch)).lower(params, {})

  @parameterized.parameters(False, True)
  def test_products(self, scanned):
    products = lambda policy: self._lowered(scan.Execution(scanned, policy)).as_text().count('stablehlo.dot_general')
    none, bodies = products('none'), 1 if scanned else 3
    # All but the last of a layer's products again: 9 in the encoder's (4 projections, 2 of attention, 3 of the MLP), and 15.
    self.assertEqual(products('full') - none, bodies * (8 + 14))
    # Those of attention alone: logits, and if their result is not kept, the weighted sum.
    self.assertEqual(products('minimal') - none, bodies * 2 * (1 + 2))
    if scanned:
      self.assertLess(none, self._lowered(scan.Execution()).as_text().count('stablehlo.dot_general') / 2)

  def test_full_needs_less_memory(self):
    # Scanned: unrolled, the CPU's compiler drops the barriers that keep the second computation from being moved to the first.
    compiled = lambda policy: self._lowered(scan.Execution(True, policy), layers=8, length=96).compile()
    none, full = (compiled(policy).memory_analysis().temp_size_in_bytes for policy in ('none', 'full'))
    self.assertLess(full, 0.3 * none)


@unittest.skipIf(jax.device_count() != 8, 'needs eight devices: see InOwnProcessTest')
class EightDevices(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_sharded(self, parameter_dims):
    # Five layers: common skills are three.
    config = _config(layers=5, num_heads=4, head_dim=8, mlp_dim=48)
    net = network.Transformer(config, testing.cpoly_adapter(T, targets='.*(query|wo)'), SCANNED)
    batch = _batch()
    trainable, frozen = _split(_params(net, batch))
    (expected, _), gradients = jax.jit(_step(net, batch))(trainable, frozen)

    partitioner = partitioning.PjitPartitioner(
        num_partitions=4, logical_axis_rules=rules.logical_axis_rules(parameter_partitioning_dims=parameter_dims))
    names = flax.traverse_util.flatten_dict(nn_partitioning.get_axis_names(_shapes(net, batch)['params_axes']), sep='/')
    axes = {path: nn_partitioning.logical_to_mesh_axes(names[path], partitioner.logical_axis_rules) for path in names}
    of = lambda tree: {path: axes[path] for path in tree}
    step = partitioner.partition(_step(net, batch), in_axis_resources=(of(trainable), of(frozen)),
                                 out_axis_resources=(None, of(trainable)))
    (found, _), found_gradients = step(trainable, frozen)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for path, gradient in gradients.items():
      np.testing.assert_allclose(found_gradients[path], gradient, atol=1e-5, err_msg=path)
    # Of the base nothing is gathered but one layer's kernels at a time, and those only if they are split over the data, too.
    gathered = re.findall(r'= f32\[([\d,]*)\]\S* all-gather\(', step.lower(trainable, frozen).compile().as_text())
    kernels = {f'{d},{o}' for d, o in ((16, 32), (32, 16), (16, 48), (48, 16))}
    self.assertFalse([shape for shape in gathered if shape.startswith('5,') and shape.count(',') == 2], gathered)
    if parameter_dims == 1:
      self.assertFalse(kernels & {shape.removeprefix('1,') for shape in gathered}, gathered)


class InOwnProcessTest(absltest.TestCase):

  @unittest.skipIf(jax.device_count() == 8, 'this is that process')
  def test_eight_devices(self):
    eight_devices.run(self, __file__)


if __name__ == '__main__':
  absltest.main()
