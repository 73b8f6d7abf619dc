"""Gradients of tasks, where they are known, and of a network."""

import functools
import os
import sys
from unittest import mock

from absl.testing import absltest
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.analysis import conflict
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

setUpModule, tearDownModule = testing.quick_compilation()


class ConflictTest(absltest.TestCase):

  def test_quadratic_losses(self):
    # The gradient of |p - c|^2 / 2 is p - c.
    loss = lambda params, centre: .5 * (jnp.sum((params['a'] - centre[:1]) ** 2) + jnp.sum((params['b'] - centre[1:]) ** 2))
    params = {'a': jnp.zeros(1), 'b': jnp.zeros((1, 1))}
    batches = {'east': jnp.array([1., 0.]), 'west': jnp.array([-2., 0.]), 'north east': jnp.array([3., 4.])}
    gradients = conflict.task_gradients(loss, params, batches)
    np.testing.assert_allclose(gradients, [[-1, 0], [2, 0], [-3, -4]])
    found = conflict.cosines(gradients)
    np.testing.assert_allclose(found, [[1, -1, .6], [-1, 1, -.6], [.6, -.6, 1]], atol=1e-7)
    self.assertAlmostEqual(conflict.conflicting(found), 2 / 3)

  def test_a_gradient_of_zeros_and_blocks_of_columns(self):
    gradients = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    gradients[2] = 0
    unit = gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-9)
    expected = unit @ unit.T
    expected[2, 2] = 1
    self.enterContext(mock.patch.object(conflict, '_COLUMNS', 3))
    np.testing.assert_allclose(conflict.cosines(gradients), expected, atol=1e-6)

  def test_single_task(self):
    self.assertTrue(np.isnan(conflict.conflicting(np.ones((1, 1)))))


class PullsTest(absltest.TestCase):

  def _pulls(self, *arguments, tasks=3):
    """Returns the model, its parameters, batches of 4 examples for each task, and their pulls."""
    network = sample_runs.transformer(tasks, *arguments, layers=1)
    model = CPolyModel(network, None, None, None, task_index=TaskIndex(tuple('abc'[:tasks])))
    params = traverse_util.unflatten_dict(sample_runs.drawn(network), sep='/')
    rng = np.random.default_rng(1)
    batches = {}
    for row, task in enumerate('abc'[:tasks]):
      tokens = rng.integers(2, 16, (2, 4, 5)).astype(np.int32)
      batches[task] = {'encoder_input_tokens': tokens[0], 'decoder_target_tokens': tokens[1],
                       'decoder_input_tokens': np.pad(tokens[1], ((0, 0), (1, 0)))[:, :-1],
                       'decoder_loss_weights': np.ones((4, 5), np.int32), 'task_id': np.full((4, 1), row, np.int32)}
    owners = np.array([-1, -1, *range(tasks)])[:network.adapter.describe().num_skills]
    return model, params, batches, conflict.pulls(model, params, batches, owners)

  def test_of_a_network(self):
    model, params, batches, found = self._pulls()
    self.assertEqual((found.tasks, found.examples, sorted(found.cosine)), (('a', 'b', 'c'), 4, ['common', 'specific']))
    whole = jax.jit(jax.grad(lambda params, batch: model.loss_fn(params, batch, None)[0]))

    def gradient(task, skills, rows=slice(None)):
      flat = traverse_util.flatten_dict(whole(params, {name: value[rows] for name, value in batches[task].items()}), sep='/')
      return np.concatenate([np.ravel(value[skills]) for name, value in sorted(flat.items()) if 'skills' in name.split('/')])

    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    for kind, skills in (('common', slice(0, 2)), ('specific', slice(2, 5))):
      # The loss is a sum over tokens, so the gradients of the halves add up to that of the whole.
      self.assertAlmostEqual(found.cosine[kind][0, 2], cosine(gradient('a', skills), gradient('c', skills)), places=4)
      halves = cosine(gradient('b', skills, slice(0, 2)), gradient('b', skills, slice(2, 4)))
      self.assertAlmostEqual(found.halves[kind][1], halves, places=4)

  def test_skills_without_owners(self):
    _, _, _, found = self._pulls(functools.partial(routing.PolyRouter, num_skills=2))
    self.assertEqual(list(found.cosine), ['all'])


if __name__ == '__main__':
  absltest.main()
