"""Tests of routing by token, against loops in NumPy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing

setUpModule, tearDownModule = testing.quick_compilation()
T, B, L, D = 3, 4, 2, 5
TASKS = np.array([2, 0, 2, 1], np.int32)
X = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
A, OWN = 3, 2  # Common skills, and skills of each task's own.

VARIANTS = dict(
    moe_lora=dict(num_common=A),
    mmoe=dict(num_common=A, per_task=True),
    cgc=dict(num_common=A, num_specific=OWN, per_task=True),
    only_own=dict(num_common=0, num_specific=OWN, per_task=True))


def _router(variant, **settings):
  return routing.TokenRouter(num_tasks=T, **{**VARIANTS[variant], **settings})


def _params(router):
  gate = router.init(jax.random.PRNGKey(0), TASKS, X, deterministic=True)['params']['gate']
  return {'gate': np.random.default_rng(1).normal(size=gate.shape).astype(np.float32)}


def _dense(groups, num_skills):
  """The weights [B, L, S] of all groups."""
  total = np.zeros((B, L, num_skills))
  for group in groups:
    for b in range(B):
      for l in range(L):
        for k in range(group.weights.shape[-1]):
          s = group.start + k if group.ids is None else group.ids[b, k]
          total[b, l, s] += group.weights[b, l, k]
  return total


def _loop(variant, gate, num_skills, top_k):
  """Reference: token by token."""
  total = np.zeros((B, L, num_skills))
  for b, task in enumerate(TASKS):
    mine = gate if variant == 'moe_lora' else gate[task]
    common = VARIANTS[variant]['num_common']
    own = VARIANTS[variant].get('num_specific', 0)
    names = [*range(common), *(common + task * own + i for i in range(own))]
    for l in range(L):
      logits = [float(np.dot(X[b, l].astype(np.float64), mine[:, i])) for i in range(len(names))]
      p = np.exp(logits) / np.sum(np.exp(logits))
      best = sorted(range(len(names)), key=lambda i: -p[i])[:top_k]
      for i in best:
        total[b, l, names[i]] = p[i] / sum(p[j] for j in best)
  return total


class TokenRouterTest(parameterized.TestCase):

  @parameterized.product(variant=list(VARIANTS), top_k=(None, 2))
  def test_equals_loop(self, variant, top_k):
    router = _router(variant, top_k=top_k)
    params = _params(router)
    groups = router.apply({'params': params}, TASKS, X, deterministic=False)
    self.assertTrue(all(g.per_token and g.heads == 1 for g in groups))
    weights = _dense(groups, router.num_skills)
    np.testing.assert_allclose(weights, _loop(variant, params['gate'], router.num_skills, top_k), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1., rtol=1e-5)
    self.assertEqual(np.count_nonzero(weights, axis=-1).max(), router.active_skills)
    self.assertTrue(router.reads_inputs)

  @parameterized.parameters(('moe_lora', (D, A), A), ('mmoe', (T, D, A), A), ('cgc', (T, D, A + OWN), A + T * OWN))
  def test_sizes(self, variant, gate, num_skills):
    router = _router(variant)
    self.assertEqual(_params(router)['gate'].shape, gate)
    self.assertEqual(router.num_skills, num_skills)

  def test_bfloat16_inputs_have_a_float32_softmax(self):
    router = _router('mmoe')
    params = _params(router)
    (group,) = router.apply({'params': params}, TASKS, jax.numpy.asarray(X, jax.numpy.bfloat16), deterministic=True)
    self.assertEqual(group.weights.dtype, np.float32)
    np.testing.assert_allclose(group.weights, _loop('mmoe', params['gate'], A, None), atol=.02)

  @parameterized.parameters(
      (dict(num_specific=1), "num_specific needs a gate of each task's own: set TokenRouter.per_task = True"),
      (dict(num_common=0), 'one must be above 0'),
      (dict(num_common=-1), 'neither may be negative'),
      (dict(top_k=1), 'TokenRouter.top_k = 1 of 3 skills: write a number from 2 to 3'),
      (dict(top_k=4), 'TokenRouter.top_k = 4 of 3 skills'),
      (dict(num_specific=1, per_task=True, unknown_task='average'), 'an unknown task has no skills of its own'))
  def test_wrong_settings_are_named(self, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      _params(_router('moe_lora', **settings))

  def test_it_cannot_be_shared_between_projections(self):
    with self.assertRaisesRegex(ValueError, "projections cannot share one: set ROUTER_GRANULARITY = 'projection'"):
      _router('moe_lora').init(jax.random.PRNGKey(0), TASKS, None, deterministic=True)


if __name__ == '__main__':
  absltest.main()
