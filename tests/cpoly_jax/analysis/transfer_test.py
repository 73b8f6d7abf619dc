"""Losses of tasks that are routed as others."""

import os
import sys

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from cpoly_jax.analysis import transfer

setUpModule, tearDownModule = testing.quick_compilation()


class TransferTest(absltest.TestCase):

  def test_each_task_routed_as_each(self):
    model, params, batches = sample_runs.with_batches(('a', 'b', 'c'))
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
