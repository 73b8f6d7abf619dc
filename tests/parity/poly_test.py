"""Poly and multi-head routing against PEFT's: the same weights, routing and noise give the same outputs and gradients."""

import functools
import os
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax import routing, skills
from cpoly_jax.adapters import Adapter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers


def setUpModule():
  peers.require()


def _adapter(tasks, num_skills, heads, rank, targets='.*'):
  return Adapter(router=functools.partial(routing.PolyRouter, num_tasks=tasks, num_skills=num_skills, num_heads=heads),
                 inventory=functools.partial(skills.LoRA, rank=rank, mixing=skills.FACTORS), targets=targets)


def _config(tasks, num_skills, heads, rank, targets, **settings):
  return peers.peft.PolyConfig(r=rank, n_tasks=tasks, n_skills=num_skills, n_splits=heads, target_modules=targets, **settings)


class LinearTest(parameterized.TestCase):

  @parameterized.product(
      # T, S, H, r, d, o, length, tasks of the batch
      sizes=((3, 2, 1, 2, 8, 8, 5, (0, 2, 2, 1)), (5, 8, 1, 4, 12, 20, 3, (4, 0, 1)), (1, 1, 1, 1, 4, 6, 2, (0, 0)),
             (3, 4, 2, 2, 8, 12, 4, (2, 0, 1, 0, 1)), (2, 3, 4, 3, 16, 8, 6, (1, 0)), (4, 2, 4, 1, 8, 4, 1, (3, 3, 3))),
      training=(False, True))
  def test_outputs_and_gradients(self, sizes, training):
    t, s, h, r, d, o, length, tasks = sizes
    rng = np.random.default_rng(1)
    x, cotangent = (rng.normal(size=(len(tasks), length, n)).astype(np.float32) for n in (d, o))
    model = peers.adapted_linear(_config(t, s, h, r, ['0']), d, o).train(training)
    kernel = peers.array(model.base_model.model[0].base_layer.weight).T
    with peers.same_noise() as drawn:
      y, by_x = peers.run_linear(model, x, cotangent, task_ids=peers.torch.tensor(tasks))
      values, gradients = peers.values_and_gradients(model, lambda p: peers.poly_parameters(p, h))
      self.assertLen(drawn, int(training))
      self.assertEqual(set(values), {'skills/down', 'skills/up', 'routing/common'})
      our_y, our_gradients, our_by_x = peers.run_our_linear(
          _adapter(t, s, h, r), values, kernel, x, cotangent, np.asarray(tasks), not training)
    self.assertGreater(np.abs(y - x @ kernel).max(), 0.01)
    if s > 1:  # The weight of an only skill is 1, whatever its logit.
      self.assertGreater(np.abs(gradients['routing/common']).max(), 1e-3)
    peers.assert_close({'y': our_y, 'x': our_by_x, **our_gradients}, {'y': y, 'x': by_x, **gradients}, 1e-5)

  def test_the_noise_matters(self):
    """Otherwise agreement in training would say no more than agreement in evaluation."""
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    model = peers.adapted_linear(_config(3, 2, 1, 2, ['0']), 8, 8)
    run = lambda: peers.run_linear(model, x, np.ones_like(x), task_ids=peers.torch.tensor([0, 1]))[0]
    model.eval()
    quiet = run()
    model.train()
    with mock.patch.object(peers.torch, 'rand', lambda shape, **_: peers.torch.full(shape, 0.9)):
      self.assertGreater(np.abs(run() - quiet).max(), 1e-2)


class T5Test(parameterized.TestCase):

  @parameterized.product(heads=(1, 2), training=(False, True))
  def test_logits_and_gradients(self, heads, training):
    t, s, r = 3, 4, 2
    tasks = np.asarray([2, 0, 1, 0])
    model = peers.adapted_t5(_config(t, s, heads, r, ['q', 'v'], task_type='SEQ_2_SEQ_LM')).train(training)
    adapter = _adapter(t, s, heads, r, targets='.*attention/(query|value)')
    with peers.same_noise() as drawn:
      logits = peers.run_t5(model, task_ids=peers.torch.tensor(tasks))
      values, gradients = peers.values_and_gradients(model, lambda p: peers.poly_parameters(p, heads))
      self.assertLen(values, 3 * 12)  # Query and value of 2 + 2 * 2 attentions.
      self.assertLen(drawn, 12 * training)
      our_logits, our_gradients = peers.run_our_t5(adapter, values, tasks, not training)
    self.assertGreater(np.abs(logits).max(), 0.1)
    peers.assert_close(our_logits, logits, 1e-4)
    peers.assert_close(our_gradients, gradients, 1e-4)


if __name__ == '__main__':
  absltest.main()
