"""Limits in which one system is another, and routers that projections share."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.t5 import layers
from cpoly_jax.t5 import network

T, D, O = 4, 6, 8
TASKS = np.array([2, 0, 2, 1], np.int32)
X = np.random.default_rng(0).normal(size=(4, 3, D)).astype(np.float32)
KEY = jax.random.PRNGKey(5)
LAYER = layers.Projection(O, ('embed', 'joined_kv'))
setUpModule, tearDownModule = testing.quick_compilation()

_poly = functools.partial(routing.PolyRouter, num_tasks=T)
_cpoly = functools.partial(routing.CPolyRouter, num_tasks=T)


def _routed(router, mixing='factors', deterministic=True):
  adapter = adapters.Adapter(router, functools.partial(skills.LoRA, rank=2, mixing=mixing), targets='.*')
  return adapters.Routed(jnp.asarray(TASKS), deterministic, adapter)


@functools.cache
def _params(router):
  return testing.randomized(LAYER.init(jax.random.PRNGKey(0), X, _routed(router))['params'])


def _output(router, params, mixing='factors', deterministic=True):
  return np.asarray(LAYER.apply({'params': params}, X, _routed(router, mixing, deterministic), rngs={'routing': KEY}))


class LimitsTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_cpoly_without_specific_skills_is_poly(self, deterministic):
    poly = functools.partial(_poly, num_skills=3)
    params = _params(poly)
    for none in (0, (0,) * T):
      cpoly = functools.partial(_cpoly, num_common=3, num_specific=none)
      self.assertEqual(jax.tree.map(jnp.shape, _params(cpoly)), jax.tree.map(jnp.shape, params))
      np.testing.assert_array_equal(_output(cpoly, params, deterministic=deterministic),
                                    _output(poly, params, deterministic=deterministic))

  @parameterized.parameters(True, False)
  def test_cpoly_without_common_skills_and_fixed_is_private(self, deterministic):
    """PRIVATE, written out: each example on its own through its task's LoRA alone."""
    private = functools.partial(_cpoly, num_common=0, specific='fixed')
    params = _params(private)
    self.assertNotIn('routing', params)
    found = _output(private, params, deterministic=deterministic)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for b, task in enumerate(TASKS):
      expected = X[b] @ (p['kernel'] + p['skills']['down'][task] @ p['skills']['up'][task] / 2)
      np.testing.assert_allclose(found[b], expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(True, False)
  def test_poly_with_one_skill_is_shared(self, deterministic):
    params = _params(functools.partial(_poly, num_skills=1))
    shared = {k: v for k, v in params.items() if k != 'routing'}
    np.testing.assert_allclose(_output(functools.partial(_poly, num_skills=1), params, deterministic=deterministic),
                               _output(functools.partial(routing.SharedRouter, num_tasks=T), shared), rtol=1e-5, atol=1e-6)

  def test_expert_with_the_identity_is_private(self):
    private = functools.partial(_cpoly, num_common=0, specific='fixed')
    expert = functools.partial(routing.ExpertRouter, num_tasks=T, matrix=tuple(map(tuple, np.eye(T).tolist())))
    params = _params(private)
    np.testing.assert_allclose(_output(expert, params), _output(private, params), rtol=1e-5, atol=1e-6)

  def test_expert_with_ones_is_uniform(self):
    expert = functools.partial(routing.ExpertRouter, num_tasks=T, matrix=((1., 1., 1.),) * T)
    uniform = functools.partial(routing.UniformRouter, num_tasks=T, num_skills=3)
    params = _params(uniform)
    np.testing.assert_allclose(_output(expert, params), _output(uniform, params), rtol=1e-5, atol=1e-6)

  def test_learned_and_fixed_cpoly_agree_at_the_start(self):
    learned, fixed = (functools.partial(_cpoly, num_common=2, num_specific=(0, 3, 1, 1), specific=kind)
                      for kind in ('learned', 'fixed'))
    params = _params(learned)
    own = routing.block_diagonal((0, 3, 1, 1))
    start = {**params, 'routing': {'common': params['routing']['common'], 'specific': own}}
    without = {**params, 'routing': {'common': params['routing']['common']}}
    for mixing in skills.MIXINGS:
      np.testing.assert_allclose(_output(learned, start, mixing), _output(fixed, without, mixing), rtol=1e-4, atol=1e-5)

  def test_poly_is_multi_head_routing_with_one_head_or_equal_heads(self):
    poly, one, two = (functools.partial(_poly, num_skills=3, **heads) for heads in ({}, dict(num_heads=1), dict(num_heads=2)))
    params = _params(poly)
    np.testing.assert_array_equal(_output(one, params, deterministic=False), _output(poly, params, deterministic=False))
    equal = {**params, 'routing': {'common': jnp.repeat(params['routing']['common'][:, None], 2, axis=1)}}
    np.testing.assert_allclose(_output(two, equal), _output(poly, params), rtol=1e-5, atol=1e-6)
    # And it matters which head routes what.
    self.assertGreater(np.abs(_output(two, _params(two)) - _output(poly, params)).max(), 1e-2)

  def test_moe_lora_with_equal_logits_is_uniform(self):
    moe = functools.partial(routing.TokenRouter, num_tasks=T, num_common=3)
    uniform = functools.partial(routing.UniformRouter, num_tasks=T, num_skills=3)
    params = {**_params(uniform), 'routing': {'gate': jnp.zeros((D, 3))}}
    np.testing.assert_allclose(_output(moe, params, 'products'), _output(uniform, _params(uniform), 'products'),
                               rtol=1e-5, atol=1e-6)

  def test_mmoe_with_equal_gates_is_moe_lora(self):
    moe = functools.partial(routing.TokenRouter, num_tasks=T, num_common=3)
    mmoe = functools.partial(moe, per_task=True)
    router = functools.partial(routing.UniformRouter, num_tasks=T, num_skills=3)
    gate = np.random.default_rng(0).normal(size=(D, 3)).astype(np.float32)
    make = lambda g: {**_params(router), 'routing': {'gate': jnp.asarray(g)}}
    np.testing.assert_allclose(_output(mmoe, make(np.stack([gate] * T)), 'products'), _output(moe, make(gate), 'products'),
                               rtol=1e-5, atol=1e-6)


class MixingLimitsTest(absltest.TestCase):

  def test_the_three_agree_for_one_hot_weights_and_differ_for_soft_ones(self):
    private = functools.partial(_cpoly, num_common=0, specific='fixed')
    cpoly = functools.partial(_cpoly, num_common=3)
    hot, soft = ([_output(router, _params(router), mixing) for mixing in skills.MIXINGS] for router in (private, cpoly))
    for a, b in ((0, 1), (1, 2), (0, 2)):
      np.testing.assert_allclose(hot[a], hot[b], rtol=1e-4, atol=1e-5)
      self.assertGreater(np.abs(soft[a] - soft[b]).max(), 5e-2)


TARGETS = r'.*layers_\d+/.*attention/(query|value)'
PATHS = {
    'layer': {'encoder/layers_0/routing', 'encoder/layers_1/routing', 'decoder/layers_0/routing'},
    'stack': {'encoder/routing', 'decoder/routing'},
    'model': {'routing'},
}


def _tokens():
  rng = np.random.default_rng(1)
  inputs, targets = (rng.integers(2, 32, size=(4, 5), dtype=np.int32) for _ in range(2))
  return inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets


@functools.cache
def _network(granularity):
  adapter = testing.cpoly_adapter(T, router=dict(num_common=2), targets=TARGETS, granularity=granularity)
  net = network.Transformer(testing.small_config(num_encoder_layers=2), adapter)
  init = lambda: net.init(jax.random.PRNGKey(0), *_tokens(), enable_dropout=False, task_ids=jnp.asarray(TASKS))
  return net, jax.eval_shape(init)['params']


@functools.cache
def _random_params(granularity):
  shapes = _network(granularity)[1]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: jnp.asarray(.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def _logits(granularity, params):
  net, _ = _network(granularity)
  return jax.jit(lambda p: net.apply({'params': p}, *_tokens(), enable_dropout=False, task_ids=jnp.asarray(TASKS)))(params)


class GranularityTest(parameterized.TestCase):

  @parameterized.parameters(*PATHS)
  def test_one_router_lies_where_it_is_shared(self, granularity):
    _, params = _network(granularity)
    names = flax.traverse_util.flatten_dict(params, sep='/')
    self.assertEqual({name.rpartition('/')[0] for name in names if 'routing' in name}, PATHS[granularity])
    _, own = _network('projection')
    without = lambda tree: {name for name in flax.traverse_util.flatten_dict(tree, sep='/') if 'routing' not in name}
    self.assertEqual(without(params), without(own))

  def test_by_default_each_projection_has_its_own(self):
    net, params = _network('projection')
    names = flax.traverse_util.flatten_dict(params, sep='/')
    self.assertEqual({name.rpartition('/routing/')[0] for name in names if '/routing/' in name},
                     set(filter(net.adapter.is_target, network.projection_paths(net.config))))

  @parameterized.parameters(*PATHS)
  def test_copies_of_the_shared_rows_in_every_projection_give_equal_logits(self, granularity):
    shared = flax.traverse_util.flatten_dict(_random_params(granularity), sep='/')
    copied = {}
    for name in flax.traverse_util.flatten_dict(_network('projection')[1], sep='/'):
      path, at, leaf = name.rpartition('routing/')
      owner = max((p for p in PATHS[granularity] if name.startswith(p.removesuffix('routing'))), key=len, default=None)
      copied[name] = shared[f'{owner}/{leaf}'] if at else shared[name]
    found = _logits(granularity, _random_params(granularity))
    own = _logits('projection', flax.traverse_util.unflatten_dict(copied, sep='/'))
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-4)
    # The routing is used at all: other rows give other logits.
    other = {name: -leaf if 'routing' in name else leaf for name, leaf in shared.items()}
    self.assertGreater(np.abs(found - _logits(granularity, flax.traverse_util.unflatten_dict(other, sep='/'))).max(), 1e-2)

  @parameterized.parameters(('model', 1), ('stack', 2), ('layer', 3), ('projection', 8))
  def test_training_draws_once_for_each_router(self, granularity, draws):
    net, _ = _network(granularity)
    seen = {}

    def record(next_method, args, kwargs, context):
      if isinstance(context.module, skills.LoRA) and context.method_name == '__call__':
        seen['/'.join(context.module.path)] = np.asarray(args[1][0].weights)
      return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
      net.apply({'params': _random_params(granularity)}, *_tokens(), enable_dropout=True, task_ids=jnp.asarray(TASKS),
                rngs={'routing': KEY, 'dropout': KEY})
    self.assertLen(seen, 8)
    self.assertLen({weights.tobytes() for weights in seen.values()}, draws)
    # Noise there is: two examples of one task differ.
    for weights in seen.values():
      self.assertGreater(np.abs(weights[0] - weights[2]).max(), 1e-3)
    if granularity == 'model':
      np.testing.assert_array_equal(seen['encoder/layers_0/attention/query/skills'],
                                    seen['decoder/layers_0/encoder_decoder_attention/value/skills'])

  def test_a_router_by_token_cannot_be_shared(self):
    adapter = adapters.Adapter(functools.partial(routing.TokenRouter, num_tasks=T),
                               functools.partial(skills.LoRA, mixing='products'), granularity='layer')
    net = network.Transformer(testing.small_config(), adapter)
    with self.assertRaisesRegex(ValueError, "set ROUTER_GRANULARITY = 'projection'"):
      jax.eval_shape(lambda: net.init(jax.random.PRNGKey(0), *_tokens(), enable_dropout=False, task_ids=jnp.asarray(TASKS)))


if __name__ == '__main__':
  absltest.main()
