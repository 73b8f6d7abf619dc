"""(IA)^3 skills in a SHARED system against PEFT's (IA)^3: outputs of attention projections, inputs of feed-forward ones."""

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


def _adapter(targets='.*', **inventory):
  return Adapter(router=functools.partial(routing.SharedRouter, num_tasks=3),
                 inventory=functools.partial(skills.IA3, **inventory), targets=targets)


class IA3Test(parameterized.TestCase):

  @parameterized.product(of_inputs=(False, True), sizes=((8, 8), (5, 12)))
  def test_outputs_and_gradients(self, of_inputs, sizes):
    d, o = sizes
    rng = np.random.default_rng(4)
    x, cotangent = (rng.normal(size=(3, 5, n)).astype(np.float32) for n in (d, o))
    config = peers.peft.IA3Config(target_modules=['0'], feedforward_modules=['0'] if of_inputs else [])
    model = peers.adapted_linear(config, d, o)
    kernel = peers.array(model.base_model.model[0].base_layer.weight).T
    y, by_x = peers.run_linear(model, x, cotangent)
    values, gradients = peers.values_and_gradients(model, peers.ia3_parameters, peers.ia3_gradients)
    self.assertEqual(values['skills/scale'].shape, (1, d if of_inputs else o))
    self.assertGreater(np.abs(y - x @ kernel).max(), 0.01)
    inventory = {'input_targets': '.*'} if of_inputs else {}
    our_y, our_gradients, our_by_x = peers.run_our_linear(
        _adapter(**inventory), values, kernel, x, cotangent, np.asarray([2, 0, 2]), False)
    peers.assert_close({'y': our_y, 'x': our_by_x, **our_gradients}, {'y': y, 'x': by_x, **gradients}, 1e-5)

  def test_whole_t5(self):
    """Keys, values and the hidden units of the feed-forward blocks, as the paper adapts; each by our default."""
    model = peers.adapted_t5(peers.peft.IA3Config(
        target_modules=['k', 'v', 'wo'], feedforward_modules=['wo'], task_type='SEQ_2_SEQ_LM'))
    logits = peers.run_t5(model)
    values, gradients = peers.values_and_gradients(model, peers.ia3_parameters, peers.ia3_gradients)
    self.assertLen(values, 12 + 4)
    our_logits, our_gradients = peers.run_our_t5(
        _adapter('.*attention/(key|value)|.*/mlp/wo'), values, np.asarray([0, 1, 2, 0]), False)
    peers.assert_close(our_logits, logits, 1e-4)
    peers.assert_close(our_gradients, gradients, 1e-4)


if __name__ == '__main__':
  absltest.main()
