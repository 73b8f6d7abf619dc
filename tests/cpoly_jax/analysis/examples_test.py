"""What examples tell: gradients of tasks, where they are known and of a network, and transfer between tasks."""

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
from cpoly_jax.analysis import transfer
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


def _network(tasks, *arguments):
  """Returns a model, its parameters, and batches of 4 examples for each task."""
  network = sample_runs.transformer(len(tasks), *arguments, layers=1)
  model = CPolyModel(network, None, None, None, task_index=TaskIndex(tasks))
  params = traverse_util.unflatten_dict(sample_runs.drawn(network), sep='/')
  rng = np.random.default_rng(1)
  batches = {}
  for row, task in enumerate(tasks):
    tokens = rng.integers(2, 16, (2, 4, 5)).astype(np.int32)
    batches[task] = {'encoder_input_tokens': tokens[0], 'decoder_target_tokens': tokens[1],
                     'decoder_input_tokens': np.pad(tokens[1], ((0, 0), (1, 0)))[:, :-1],
                     'decoder_loss_weights': np.ones((4, 5), np.int32), 'task_id': np.full((4, 1), row, np.int32)}
  return model, params, batches


class PullsTest(absltest.TestCase):

  def test_of_a_network(self):
    model, params, batches = _network(('a', 'b', 'c'))
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
    model, params, batches = _network(('a', 'b'), functools.partial(routing.PolyRouter, num_skills=2))
    self.assertEqual(list(conflict.pulls(model, params, batches, np.array([-1, -1])).cosine), ['all'])


class TransferTest(absltest.TestCase):

  def test_each_task_routed_as_each(self):
    model, params, batches = _network(('a', 'b', 'c'))
    found = transfer.losses(model, params, batches)
    logits = model._compute_logits(params, {**batches['c'], 'task_id': np.zeros((4, 1), np.int32)})
    told = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    expected = -np.mean(np.take_along_axis(told, batches['c']['decoder_target_tokens'][..., None], axis=-1))
    self.assertAlmostEqual(found[2, 0], expected, places=4)
    self.assertGreater(np.ptp(found, axis=1).min(), 1e-3)

  def test_similarity(self):
    np.testing.assert_array_equal(transfer.similarity(np.array([[1., 3], [7, 2]])), [[0, -7], [-7, 0]])
    np.testing.assert_array_equal(transfer.similarity(np.array([[1., 1], [7, 7]])), np.zeros((2, 2)))

  def test_best_other(self):
    np.testing.assert_array_equal(transfer.best_other(np.array([[1., 3, 2], [0, 1, 5], [4, 0, 1]])), [2, 0, 1])


if __name__ == '__main__':
  absltest.main()
