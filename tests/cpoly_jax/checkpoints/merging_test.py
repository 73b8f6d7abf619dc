"""A task merged into the base is a plain T5 with the same logits, for every router by task and every inventory."""

from __future__ import annotations

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from t5x.examples.t5 import network as t5x_network

from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.adapters import Adapter
from cpoly_jax.checkpoints import merging
from cpoly_jax.routing import schedules
from cpoly_jax.t5 import network

setUpModule, tearDownModule = testing.quick_compilation()

TASKS = 3
SIZES = dict(vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1, num_decoder_layers=1,
             mlp_activations=('gelu', 'linear'), dropout_rate=0.)
CONFIG = network.T5Config(**SIZES)
TARGETS = 'encoder/.*/query|decoder/.*/wo'

part = functools.partial


def lora(mixing, **settings):
  return part(skills.LoRA, rank=2, alpha=3., mixing=mixing, **settings)


FIXED = part(routing.CPolyRouter, num_common=2, num_specific=2, specific=routing.FIXED)
ANNEALED = routing.Sampling(uniform=schedules.Linear(0., 1., 10))
SYSTEMS = {
    'poly_factors': (part(routing.PolyRouter, num_skills=3), lora(skills.FACTORS)),
    'mhr': (part(routing.PolyRouter, num_skills=3, num_heads=4), lora(skills.FACTORS)),
    'mhr_dense': (part(routing.PolyRouter, num_skills=3, num_heads=4), skills.Dense),
    'cpoly_learned_factors': (part(routing.CPolyRouter, num_common=2), lora(skills.FACTORS)),
    'cpoly_learned_group_factors': (part(routing.CPolyRouter, num_common=2), lora(skills.GROUP_FACTORS)),
    'cpoly_gumbel': (part(routing.CPolyRouter, num_common=2, specific=routing.GUMBEL), lora(skills.GROUP_FACTORS)),
    'cpoly_fixed': (FIXED, lora(skills.GROUP_FACTORS)),
    'cpoly_fixed_products': (FIXED, lora(skills.PRODUCTS)),
    'cpoly_uneven_sft': (part(routing.CPolyRouter, num_common=1, num_specific=(1, 0, 2), specific=routing.FIXED),
                         part(skills.SFT, density=0.3)),
    'cpoly_ia3': (part(routing.CPolyRouter, num_common=2), skills.IA3),
    'shared': (routing.SharedRouter, lora(skills.GROUP_FACTORS)),
    'private': (part(routing.CPolyRouter, num_common=0, specific=routing.FIXED), lora(skills.GROUP_FACTORS)),
    'average': (part(routing.UniformRouter, num_skills=3), skills.Dense),
    'expert': (part(routing.ExpertRouter, matrix=((1., 0.), (0., 1.), (1., 1.))), lora(skills.PRODUCTS)),
    'hyper': (part(routing.HyperRouter, num_skills=3, embedding_size=4, hidden_size=4), lora(skills.GROUP_FACTORS)),
    'task_moe': (part(routing.TaskMoERouter, num_skills=3, embedding_size=4), skills.SFT),
}
INPUTS = np.array([[3, 5, 7, 0], [4, 4, 9, 2]], np.int32)
SHIFTED = np.array([[0, 2, 8], [0, 6, 2]], np.int32)
OUTPUTS = np.array([[2, 8, 1], [6, 2, 1]], np.int32)


def make(router, inventory, granularity='projection', targets=TARGETS, seed=0):
  """Returns a network and its parameters, moved off their start, nested."""
  adapter = Adapter(part(router, num_tasks=TASKS), inventory, targets=targets, granularity=granularity)
  transformer = network.Transformer(CONFIG, adapter)
  init = lambda key: transformer.init(key, INPUTS, SHIFTED, OUTPUTS, task_ids=jnp.zeros(2, jnp.int32), enable_dropout=False)
  shapes = jax.eval_shape(init, jax.random.PRNGKey(0))['params']
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    if path[-1].key == 'indices':
      return rng.integers(0, 3, shape.shape).astype(shape.dtype)
    return np.asarray(4 if path[-1].key == network.CLOCK else 0.4 * rng.normal(size=shape.shape), shape.dtype)

  return transformer, jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def _plain():
  plain = t5x_network.Transformer(t5x_network.T5Config(**SIZES))
  return jax.jit(lambda params: plain.apply({'params': params}, INPUTS, SHIFTED, OUTPUTS, enable_dropout=False))


def plain_logits(params):
  """Returns T5X's own logits [2, 3, 16]."""
  return np.asarray(_plain()(params))


def routed_logits(transformer, params, row):
  """Returns the routed network's logits of a task [2, 3, 16]."""
  return np.asarray(transformer.apply({'params': params}, INPUTS, SHIFTED, OUTPUTS, enable_dropout=False,
                                      task_ids=jnp.full(2, row, jnp.int32)))


class LogitsTest(parameterized.TestCase):

  @parameterized.named_parameters((name, *system) for name, system in SYSTEMS.items())
  def test_system(self, router, inventory):
    transformer, params = make(router, inventory)
    row = 2
    merged = merging.merge(transformer, params, row)
    expected = routed_logits(transformer, params, row)
    np.testing.assert_allclose(plain_logits(merged), expected, atol=1e-5, rtol=1e-5)
    base = {k: v for k, v in traverse_util.flatten_dict(params, sep='/').items() if not merging.is_added(k)}
    self.assertGreater(np.abs(plain_logits(traverse_util.unflatten_dict(base, sep='/')) - expected).max(), 1e-3)

  @parameterized.parameters(('layer', routing.Sampling()), ('stack', ANNEALED), ('model', routing.Sampling()))
  def test_shared_routers(self, granularity, sampling):
    router = part(routing.PolyRouter, num_skills=3, sampling=sampling)
    transformer, params = make(router, lora(skills.FACTORS), granularity)
    np.testing.assert_allclose(plain_logits(merging.merge(transformer, params, 1)), routed_logits(transformer, params, 1),
                               atol=1e-5, rtol=1e-5)


class MergeTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.transformer, cls.params = make(*SYSTEMS['private'])
    cls.flat = traverse_util.flatten_dict(cls.params, sep='/')

  def test_by_hand(self):
    merged = traverse_util.flatten_dict(merging.merge(self.transformer, self.params, 1), sep='/')
    for path in ('encoder/layers_0/attention/query', 'decoder/layers_0/mlp/wo'):
      change = 3 / 2 * self.flat[f'{path}/skills/down'][1] @ self.flat[f'{path}/skills/up'][1]
      np.testing.assert_allclose(merged[f'{path}/kernel'], self.flat[f'{path}/kernel'] + change, rtol=1e-5, atol=1e-6)
    same = 'encoder/layers_0/attention/key/kernel'
    self.assertIs(merged[same], self.flat[same])

  def test_names_and_shapes_are_those_of_t5x(self):
    shapes = jax.eval_shape(lambda: t5x_network.Transformer(t5x_network.T5Config(**SIZES)).init(
        jax.random.PRNGKey(0), INPUTS, SHIFTED, OUTPUTS, enable_dropout=False))['params']
    self.assertEqual(jax.tree.map(np.shape, merging.merge(self.transformer, self.params, 0)),
                     jax.tree.map(lambda x: x.shape, shapes))

  def test_dtype(self):
    flat = {k: v if merging.is_added(k) else v.astype(jnp.bfloat16) for k, v in self.flat.items()}
    params = traverse_util.unflatten_dict(flat, sep='/')
    path = 'encoder/layers_0/attention/query'
    whole = (flat[f'{path}/kernel'].astype(np.float32)
             + 3 / 2 * flat[f'{path}/skills/down'][0] @ flat[f'{path}/skills/up'][0])
    for dtype, tolerance in ((None, 2 ** -8), (np.float32, 1e-5)):
      merged = traverse_util.flatten_dict(merging.merge(self.transformer, params, 0, dtype=dtype), sep='/')
      self.assertEqual({leaf.dtype for leaf in merged.values()}, {np.dtype(dtype or jnp.bfloat16)})
      np.testing.assert_allclose(merged[f'{path}/kernel'].astype(np.float32), whole, rtol=tolerance, atol=1e-6)

  def test_unknown_rows(self):
    for row in (-1, TASKS):
      with self.assertRaisesRegex(ValueError, f'routing row {row} is not finite'):
        merging.merge(*make(part(routing.PolyRouter, num_skills=3), lora(skills.FACTORS)), row)

  def test_average_row(self):
    """An unknown task of a run that takes the average for it can be merged too."""
    transformer, params = make(part(routing.PolyRouter, num_skills=3, unknown_task=routing.AVERAGE), lora(skills.FACTORS))
    np.testing.assert_allclose(plain_logits(merging.merge(transformer, params, -1)), routed_logits(transformer, params, -1),
                               atol=1e-5, rtol=1e-5)

  def test_refusals(self):
    transformer, params = make(part(routing.TokenRouter, num_common=2), lora(skills.PRODUCTS))
    with self.assertRaisesRegex(ValueError, 'TokenRouter weighs skills for each token'):
      merging.merge(transformer, params, 0)
    with self.assertRaisesRegex(ValueError, 'has no skills: it is a plain T5 already'):
      merging.merge(merging.plain(transformer), params, 0)


if __name__ == '__main__':
  absltest.main()
