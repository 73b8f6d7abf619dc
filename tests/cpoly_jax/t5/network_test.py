"""Tests of the T5 network: golden values of google-research/t5x, decoding against the whole pass, adapters."""

import functools
import json

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.t5 import network

T = 3
TASKS = jnp.asarray([2, 0])


def _golden(model):
  folder = testing.shared_data('golden/network')
  tree = json.loads((folder / 'tree.json').read_text())[model]
  config = {k: tuple(v) if isinstance(v, list) else v for k, v in tree['config'].items()}
  params = flax.traverse_util.unflatten_dict(dict(np.load(folder / f'params_{model}.npz')), sep='/')
  return folder, tree, config, params


def _batch(seed=0, length=6):
  rng = np.random.default_rng(seed)
  inputs, targets = (rng.integers(2, 32, size=(2, length), dtype=np.int32) for _ in range(2))
  inputs[1, 4:] = 0
  targets[0, 5:] = 0
  return inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets


@functools.cache
def _adapted(**settings):
  net = network.Transformer(testing.small_config(), testing.cpoly_adapter(T, **settings))
  init = jax.jit(lambda key: net.init(key, *_batch(), enable_dropout=False, task_ids=TASKS))
  variables = init(jax.random.PRNGKey(0))
  return net, variables


class GoldenTest(parameterized.TestCase):

  @parameterized.parameters('t5_1_0', 't5_1_1')
  def test_parameters_have_t5x_names_shapes_and_axes(self, model):
    folder, tree, config, _ = _golden(model)
    inputs = np.load(folder / 'inputs.npz')
    net = network.Transformer(network.T5Config(**config))
    shapes = jax.eval_shape(lambda: net.init(
        jax.random.PRNGKey(0), inputs['encoder_input_tokens'], inputs['decoder_input_tokens'],
        inputs['decoder_target_tokens'], enable_dropout=False))
    axes = flax.traverse_util.flatten_dict(shapes['params_axes'], sep='/')
    found = {name: (list(leaf.shape), list(axes[f'{name}_axes'].names))
             for name, leaf in flax.traverse_util.flatten_dict(shapes['params'], sep='/').items()}
    self.assertEqual(found, {name: (p['shape'], p['logical_axes']) for name, p in tree['params'].items()})

  @parameterized.parameters(
      ('t5_1_0', 'inputs', 'logits'), ('t5_1_1', 'inputs', 'logits'), ('t5_1_1', 'packed_inputs', 'packed_logits'))
  def test_logits(self, model, inputs_name, logits_name):
    folder, _, config, params = _golden(model)
    batch = np.load(folder / f'{inputs_name}.npz')
    segments = {k: batch[k] for k in ('encoder_segment_ids', 'decoder_segment_ids') if k in batch}
    logits = network.Transformer(network.T5Config(**config)).apply(
        {'params': params}, batch['encoder_input_tokens'], batch['decoder_input_tokens'],
        batch['decoder_target_tokens'], enable_dropout=False, **segments)
    np.testing.assert_allclose(logits, np.load(folder / f'{logits_name}_{model}.npz')['logits'], atol=2e-5)

  @parameterized.parameters('t5_1_0', 't5_1_1')
  def test_long_inputs_reach_all_position_buckets(self, model):
    folder, _, config, params = _golden(model)
    batch, golden = np.load(folder / 'long_inputs.npz'), np.load(folder / f'long_logits_{model}.npz')
    logits = network.Transformer(network.T5Config(**config)).apply(
        {'params': params}, batch['encoder_input_tokens'], batch['decoder_input_tokens'],
        batch['decoder_target_tokens'], enable_dropout=False)
    np.testing.assert_allclose(logits[:, batch['positions']], golden['logits_at_positions'], atol=2e-5)

  def test_bfloat16_activations(self):
    folder, _, config, params = _golden('t5_1_1')
    batch = np.load(folder / 'inputs.npz')
    logits = network.Transformer(network.T5Config(**{**config, 'dtype': 'bfloat16'})).apply(
        {'params': params}, batch['encoder_input_tokens'], batch['decoder_input_tokens'],
        batch['decoder_target_tokens'], enable_dropout=False)
    golden = np.load(folder / 'logits_t5_1_1.npz')['logits_bfloat16_activations']
    np.testing.assert_allclose(np.asarray(logits, np.float32), golden, atol=0.25)


class AdaptedTest(parameterized.TestCase):

  def test_parameters_lie_beside_the_kernel(self):
    _, variables = _adapted(targets='.*/(attention|self_attention)/query')
    flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
    added = sorted(name for name in flat if 'skills' in name or 'routing' in name)
    blocks = ('decoder/layers_0/self_attention', 'encoder/layers_0/attention')
    self.assertEqual(added, [f'{block}/query/{leaf}' for block in blocks
                             for leaf in ('routing/common', 'routing/specific', 'skills/down', 'skills/up')])
    axes = flax.traverse_util.flatten_dict(variables['params_axes'], sep='/')
    self.assertEqual(axes['encoder/layers_0/attention/query/skills/up_axes'].names, ('skill', 'rank', 'joined_kv'))

  def test_starts_as_the_base(self):
    net, variables = _adapted()
    base = network.Transformer(testing.small_config())
    plain = lambda tree: {k: plain(v) if isinstance(v, dict) else v for k, v in tree.items() if k not in ('skills', 'routing')}
    np.testing.assert_array_equal(
        net.apply(variables, *_batch(), enable_dropout=False, task_ids=TASKS),
        base.apply({'params': plain(variables['params'])}, *_batch(), enable_dropout=False))

  @parameterized.parameters('factors', 'group_factors', 'products')
  def test_mixed_tasks_equal_one_task_at_a_time(self, mixing):
    net = network.Transformer(testing.small_config(), testing.cpoly_adapter(T, inventory={'mixing': mixing}))
    params = testing.randomized(_adapted()[1]['params'])
    run = lambda rows: net.apply({'params': params}, *(x[rows] for x in _batch()), enable_dropout=False, task_ids=TASKS[rows])
    together = run(slice(None))
    for row in (0, 1):
      np.testing.assert_allclose(together[row:row + 1], run(slice(row, row + 1)), atol=1e-5)
    other = net.apply({'params': params}, *_batch(), enable_dropout=False, task_ids=TASKS[::-1])
    self.assertGreater(float(jnp.abs(together - other).max()), 1e-2)

  def test_every_trainable_leaf_gets_a_finite_gradient(self):
    net, variables = _adapted()
    params = testing.randomized(variables['params'])
    tasks = jnp.arange(T)
    batch = [np.concatenate([x, x])[:T] for x in _batch()]

    def loss(params):
      logits = net.apply({'params': params}, *batch, enable_dropout=True, task_ids=tasks,
                         rngs={'dropout': jax.random.PRNGKey(0), 'routing': jax.random.PRNGKey(1)})
      return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

    for name, gradient in flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep='/').items():
      if 'skills' in name or 'routing' in name:
        self.assertTrue(bool(jnp.all(jnp.isfinite(gradient))), name)
        self.assertGreater(float(jnp.abs(gradient).max()), 0., name)

  def test_needs_task_ids_and_targets(self):
    net, variables = _adapted()
    with self.assertRaisesRegex(ValueError, 'routes by task: give task_ids'):
      net.apply(variables, *_batch(), enable_dropout=False)
    with self.assertRaisesRegex(ValueError, 'matches no projection'):
      _adapted(targets='nothing')


class DecodingTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_steps_with_the_cache_equal_the_whole_pass(self, keep_encoded):
    net, variables = _adapted()
    params = testing.randomized(variables['params'])
    inputs, shifted, targets = _batch()
    targets = np.where(targets, targets, 5)  # Padding is masked in the whole pass only.
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    call = lambda *args, variables=None, **kwargs: net.apply(
        {'params': params, **(variables or {})}, *args, task_ids=TASKS, **kwargs)
    whole = call(inputs, shifted, targets, enable_dropout=False)
    encoded = call(inputs, enable_dropout=False, method=net.encode)
    _, cache = call(encoded, inputs, shifted, targets, enable_dropout=False, decode=True, method=net.decode, mutable=['cache'])
    if keep_encoded:
      _, cache = call(encoded, variables=cache, method=net.keep_encoded, mutable=['cache'])
      self.assertIn('cross_key', cache['cache']['decoder']['layers_0']['encoder_decoder_attention'])
    for i in range(targets.shape[1]):
      step = shifted[:, i:i + 1]
      logits, cache = call(encoded, inputs, step, step, variables=cache, enable_dropout=False, decode=True,
                           max_decode_length=targets.shape[1], method=net.decode, mutable=['cache'])
      np.testing.assert_allclose(logits[:, 0], whole[:, i], atol=2e-5)

  def test_packed_inputs_cannot_be_decoded(self):
    net, variables = _adapted()
    inputs, shifted, targets = _batch()
    with self.assertRaisesRegex(ValueError, 'one example a row'):
      net.apply(variables, inputs, shifted, targets, encoder_segment_ids=np.ones_like(inputs),
                decoder_segment_ids=np.ones_like(targets), enable_dropout=False, decode=True, task_ids=TASKS,
                mutable=['cache'])


if __name__ == '__main__':
  absltest.main()
