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

  def test_of_a_network(self):
    model, params, batches = sample_runs.with_batches(('a', 'b', 'c'))
    found = conflict.pulls(model, params, batches, np.array([-1, -1, 0, 1, 2]))
    self.assertEqual(sorted(found.cosine), ['common', 'specific'])
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
    model, params, batches = sample_runs.with_batches(('a', 'b'), functools.partial(routing.PolyRouter, num_skills=2))
    self.assertEqual(list(conflict.pulls(model, params, batches, np.array([-1, -1])).cosine), ['all'])


if __name__ == '__main__':
  absltest.main()
