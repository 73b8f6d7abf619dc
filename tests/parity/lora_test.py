"""SHARED and PRIVATE systems of LoRA skills against PEFT's LoRA."""

import functools
import os
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax import routing, skills
from cpoly_jax.adapters import Adapter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers


def setUpModule():
  peers.require()


def _adapter(rank, alpha, *, router=routing.SharedRouter, tasks=3, mixing=skills.GROUP_FACTORS, targets='.*'):
  return Adapter(router=functools.partial(router, num_tasks=tasks),
                 inventory=functools.partial(skills.LoRA, rank=rank, alpha=alpha, mixing=mixing), targets=targets)


def _config(rank, alpha, targets, **settings):
  return peers.peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0., target_modules=targets, **settings)


class SharedTest(parameterized.TestCase):

  @parameterized.product(
      sizes=((4, 1, 8, 8), (2, 16, 12, 6), (1, 3, 5, 9)),  # r, alpha, d, o
      mixing=skills.MIXINGS)
  def test_outputs_and_gradients(self, sizes, mixing):
    r, alpha, d, o = sizes
    rng = np.random.default_rng(2)
    x, cotangent = (rng.normal(size=(3, 5, n)).astype(np.float32) for n in (d, o))
    model = peers.adapted_linear(_config(r, alpha, ['0']), d, o)
    kernel = peers.array(model.base_model.model[0].base_layer.weight).T
    y, by_x = peers.run_linear(model, x, cotangent)
    values, gradients = peers.values_and_gradients(model, peers.lora_parameters)
    self.assertGreater(np.abs(y - x @ kernel).max(), 0.01)
    our_y, our_gradients, our_by_x = peers.run_our_linear(
        _adapter(r, alpha, mixing=mixing), values, kernel, x, cotangent, np.asarray([2, 0, 2]), False)
    peers.assert_close({'y': our_y, 'x': our_by_x, **our_gradients}, {'y': y, 'x': by_x, **gradients}, 1e-5)

  def test_whole_t5(self):
    r, alpha = 4, 2
    model = peers.adapted_t5(_config(r, alpha, ['q', 'v', 'wi_0', 'wo'], task_type='SEQ_2_SEQ_LM'))
    logits = peers.run_t5(model)
    values, gradients = peers.values_and_gradients(model, peers.lora_parameters)
    self.assertLen(values, 2 * (12 + 8))
    our_logits, our_gradients = peers.run_our_t5(
        _adapter(r, alpha, targets='.*attention/(query|value)|.*/mlp/(wi_0|wo)'), values, np.asarray([0, 1, 2, 0]), False)
    peers.assert_close(our_logits, logits, 1e-4)
    peers.assert_close(our_gradients, gradients, 1e-4)


class PrivateTest(absltest.TestCase):

  def test_mixed_batch_of_separate_adapters(self):
    """Each example has the adapter of its task, which PEFT keeps as separate ones of one model."""
    tasks, r, alpha, d, o = np.asarray([2, 0, 1, 2]), 3, 2, 6, 8
    rng = np.random.default_rng(3)
    x, cotangent = (rng.normal(size=(len(tasks), 4, n)).astype(np.float32) for n in (d, o))
    config = _config(r, alpha, ['0'])
    model = peers.adapted_linear(config, d, o)
    adapters = ['default', 'second', 'third']
    for seed, name in enumerate(adapters[1:], 1):
      model.add_adapter(name, config)
      model.set_adapter(name)
      peers.randomize(model, seed)
    layer = model.base_model.model[0]
    banks = {f'skills/{ours}': np.stack([peers.array(bank[name].weight).T for name in adapters])
             for ours, bank in (('down', layer.lora_A), ('up', layer.lora_B))}
    inputs = peers.torch.tensor(x, requires_grad=True)
    y = model.eval()(inputs, adapter_names=[adapters[t] for t in tasks])
    (y * peers.torch.tensor(cotangent)).sum().backward()
    private = functools.partial(routing.CPolyRouter, num_common=0, specific=routing.FIXED)
    our_y, _, our_by_x = peers.run_our_linear(
        _adapter(r, alpha, router=private), banks, peers.array(layer.base_layer.weight).T, x, cotangent, tasks, True)
    peers.assert_close({'y': our_y, 'x': our_by_x}, {'y': peers.array(y), 'x': peers.array(inputs.grad)}, 1e-5)


if __name__ == '__main__':
  absltest.main()
