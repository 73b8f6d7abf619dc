"""Tests of routers that compute weights from a task embedding, against NumPy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.t5 import layers

setUpModule, tearDownModule = testing.quick_compilation()
T, E, H, S, D, O, R = 3, 5, 6, 4, 7, 8, 2
TASKS = np.array([0, 2, 2], np.int32)


class HyperTest(absltest.TestCase):

  def test_equals_the_hyper_network_by_hand(self):
    """Embedding -> linear -> ReLU -> linear -> linear maps without bias to the parameters of each task's LoRA."""
    adapter = adapters.Adapter(
        lambda **kw: routing.HyperRouter(num_tasks=T, num_skills=S, embedding_size=E, hidden_size=H, **kw),
        lambda **kw: skills.LoRA(rank=R, mixing='factors', **kw), targets='.*')
    layer = layers.Projection(O, ('embed', 'joined_kv'))
    routed = adapters.Routed(jnp.asarray(TASKS), True, adapter)
    x = np.random.default_rng(0).normal(size=(3, 2, D)).astype(np.float32)
    params = testing.randomized(layer.init(jax.random.PRNGKey(0), x, routed)['params'])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    self.assertEqual({k: v.shape for k, v in params['routing'].items()}, {
        'embedding': (T, E), 'hidden_kernel': (E, H), 'hidden_bias': (H,), 'weights_kernel': (H, S), 'weights_bias': (S,)})
    expected = []
    for b, task in enumerate(TASKS):
      hidden = np.maximum(p['routing']['embedding'][task] @ p['routing']['hidden_kernel'] + p['routing']['hidden_bias'], 0)
      code = hidden @ p['routing']['weights_kernel'] + p['routing']['weights_bias']
      down = sum(code[s] * p['skills']['down'][s] for s in range(S))
      up = sum(code[s] * p['skills']['up'][s] for s in range(S))
      expected.append(x[b] @ p['kernel'] + x[b] @ down @ up / R)
    np.testing.assert_allclose(layer.apply({'params': params}, x, routed), expected, rtol=1e-4, atol=1e-5)

  def test_evaluation_and_training_are_alike(self):
    router = routing.HyperRouter(num_tasks=T, num_skills=S)
    variables = router.init(jax.random.PRNGKey(0), TASKS, deterministic=True)
    (quiet,), (training,) = (router.apply(variables, TASKS, deterministic=d) for d in (True, False))
    np.testing.assert_array_equal(quiet.weights, training.weights)
    self.assertGreater(np.abs(quiet.weights[0] - quiet.weights[1]).max(), 1e-2)


class TaskMoETest(parameterized.TestCase):

  def _router(self, top_k):
    return routing.TaskMoERouter(num_tasks=T, num_skills=S, embedding_size=E, top_k=top_k)

  @parameterized.parameters(2, 3, S, None)
  def test_rows_sum_to_one_over_the_k_largest(self, top_k):
    router = self._router(top_k)
    params = {'embedding': np.random.default_rng(0).normal(size=(T, E)).astype(np.float32),
              'gate': np.random.default_rng(1).normal(size=(E, S)).astype(np.float32)}
    (group,) = router.apply({'params': params}, TASKS, deterministic=True)
    logits = (params['embedding'] @ params['gate'])[TASKS].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = np.where(p >= np.sort(p)[:, -(top_k or S)][:, None], p, 0)
    np.testing.assert_allclose(group.weights[:, 0], kept / kept.sum(-1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(np.sum(group.weights, -1), 1., rtol=1e-5)
    self.assertEqual(router.active_skills, top_k or S)

  @parameterized.parameters(2, None)
  def test_the_router_gets_a_gradient(self, top_k):
    router = self._router(top_k)
    params = router.init(jax.random.PRNGKey(0), TASKS, deterministic=True)['params']
    slopes = np.random.default_rng(0).normal(size=S)
    grads = jax.grad(lambda p: jnp.sum(router.apply({'params': p}, TASKS, deterministic=False)[0].weights * slopes))(params)
    for name, grad in grads.items():
      self.assertGreater(np.abs(grad).max(), 1e-4, name)
    np.testing.assert_array_equal(np.any(grads['embedding'], axis=1), [True, False, True])

  @parameterized.parameters(0, 1, S + 1)
  def test_k_that_teaches_nothing_or_does_not_exist_is_refused(self, top_k):
    with self.assertRaisesRegex(ValueError, f'TaskMoERouter.top_k = {top_k} of 4 skills: write a number from 2 to 4, or None'):
      self._router(top_k).init(jax.random.PRNGKey(0), TASKS, deterministic=True)


if __name__ == '__main__':
  absltest.main()
