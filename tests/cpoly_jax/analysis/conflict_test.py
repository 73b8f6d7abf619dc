"""Gradients of tasks, where they are known."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from cpoly_jax.analysis import conflict


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

  def test_single_task(self):
    self.assertTrue(np.isnan(conflict.conflicting(np.ones((1, 1)))))


if __name__ == '__main__':
  absltest.main()
