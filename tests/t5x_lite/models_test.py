"""Tests for t5x.models: golden losses, gradients, scores and decodes; a small network otherwise."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from t5x import decoding
from t5x import losses
from t5x import metrics as metrics_lib
from t5x import models
from t5x.examples.t5 import network

_GOLDEN_MODELS = ('t5_1_1', 't5_1_0')
_DECODE_CASES = (
    'greedy_topk1', 'greedy_topk1_unscaled_scores', 'greedy_temperature0',
    'greedy_temperature0_topk0', 'greedy_prompt_with_targets', 'greedy_max_decode_steps5',
    'beam4_alpha0.6_all', 'beam4_alpha0.6_best', 'beam4_alpha0_all', 'beam2_alpha1.5_all',
    'beam1_default_args')


class _Vocabulary:
  """All that a model reads of a seqio vocabulary."""

  eos_id = 1


def _model(module, cls=models.EncoderDecoderModel, **kwargs):
  return cls(module, _Vocabulary(), _Vocabulary(), optimizer_def=None, **kwargs)


def _load(name):
  with np.load(testing.shared_data('golden') / name) as arrays:
    return {k: jnp.asarray(v) for k, v in arrays.items()}


def _read_json(name):
  return json.loads((testing.shared_data('golden') / name).read_text())


@functools.cache
def _golden_module(name):
  config = _read_json('network/tree.json')[name]['config']
  return network.Transformer(network.T5Config(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}))


@functools.cache
def _golden_params(name):
  return traverse_util.unflatten_dict(_load(f'network/params_{name}.npz'), sep='/')


def _golden_batch(name):
  if name == 'inputs_without_decoder_loss_weights':
    batch = _load('network/inputs.npz')
    del batch['decoder_loss_weights']
    return batch
  return _load(f'network/{name}.npz')


@functools.cache
def _golden_logits(params_name, batch_name):
  model = _model(_golden_module(params_name))
  return jax.jit(model._compute_logits)(_golden_params(params_name), _golden_batch(batch_name))


class GoldenTest(parameterized.TestCase):

  def test_losses_and_metrics(self):
    data = _read_json('scoring_decoding/loss.json')
    self.assertLen(data['cases'], 80)
    for case in data['cases']:
      # The network is run once per batch; test_gradients covers the way through it.
      logits = _golden_logits(case['params'], case['batch'])
      model = _model(
          _golden_module(case['params']), label_smoothing=case['label_smoothing'],
          z_loss=case['z_loss'], loss_normalizing_factor=case['loss_normalizing_factor'])
      with mock.patch.object(model, '_compute_logits', return_value=logits):
        loss, metrics = model.eval_fn({}, _golden_batch(case['batch']))
      self.assertEqual(set(metrics), set(case['metrics']))
      for name, metric in metrics.items():
        self.assertEqual(type(metric).__name__, data['metric_classes'][name], name)
      metrics = metrics_lib.set_time_metrics_duration(metrics, 2.0)
      metrics = metrics_lib.set_step_metrics_num_steps(metrics, 1)
      np.testing.assert_allclose(loss, case['loss'], rtol=1e-5, atol=1e-5)
      for name, expected in case['metrics'].items():
        np.testing.assert_allclose(
            metrics[name].compute(), expected, rtol=1e-5, atol=1e-5, err_msg=f'{name}: {case}')

  @parameterized.parameters(
      ('sum', 'inputs', dict(label_smoothing=0.1, z_loss=1e-4)),
      ('packed_average_per_sequence', 'packed_inputs',
       dict(z_loss=1e-2, loss_normalizing_factor='AVERAGE_PER_SEQUENCE')))
  def test_gradients(self, tag, batch_name, kwargs):
    expected = _load(f'scoring_decoding/grads_t5_1_1_{tag}.npz')
    model = _model(_golden_module('t5_1_1'), **kwargs)
    grads = jax.jit(jax.grad(lambda p, b: model.loss_fn(p, b, None)[0]))(
        _golden_params('t5_1_1'), _golden_batch(batch_name))
    grads = traverse_util.flatten_dict(grads, sep='/')
    self.assertEqual(set(grads), set(expected))
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in expected.values()))
    for name, value in expected.items():
      np.testing.assert_allclose(grads[name], value, rtol=1e-4, atol=1e-5 * norm, err_msg=name)

  @parameterized.product(name=_GOLDEN_MODELS, batch_name=('inputs', 'packed_inputs'))
  def test_scores_ignore_smoothing_and_z_loss(self, name, batch_name):
    expected = _load(f'scoring_decoding/score_batch_{name}.npz')
    model = _model(_golden_module(name), label_smoothing=0.1, z_loss=1e-2)
    params, batch = _golden_params(name), _golden_batch(batch_name)
    scores, intermediates = jax.jit(
        functools.partial(model.score_batch, return_intermediates=True))(params, batch)
    np.testing.assert_allclose(scores, expected[f'{batch_name}/sequence_scores'], atol=1e-4)
    decoder = intermediates['decoder']
    np.testing.assert_allclose(
        decoder['token_scores'][0], expected[f'{batch_name}/token_scores'], atol=1e-4)
    np.testing.assert_array_equal(decoder['target_tokens'][0], batch['decoder_target_tokens'])
    np.testing.assert_array_equal(decoder['loss_weights'][0], batch['decoder_loss_weights'])

  # How the tokens are found does not depend on the network: of T5 1.0 one case of each kind.
  @parameterized.parameters(*(('t5_1_1', case) for case in _DECODE_CASES), *(
      ('t5_1_0', case) for case in ('greedy_topk1', 'greedy_prompt_with_targets', 'beam4_alpha0.6_all')))
  def test_decodes(self, name, case):
    cases = _read_json('scoring_decoding/decode_cases.json')[name]
    self.assertEqual(set(cases), set(_DECODE_CASES))
    expected = _load(f'scoring_decoding/decode_{name}.npz')
    kwargs = cases[case]['predict_batch_with_aux_kwargs']
    prefix = 'prompt_' if kwargs.get('prompt_with_targets') else ''
    model = _model(_golden_module(name), decode_fn=getattr(decoding, cases[case]['decode_fn']))
    decodes, aux = jax.jit(functools.partial(model.predict_batch_with_aux, **kwargs))(
        _golden_params(name),
        {'encoder_input_tokens': expected['encoder_input_tokens'],
         'decoder_input_tokens': expected[f'{prefix}decoder_input_tokens']})
    np.testing.assert_array_equal(decodes, expected[f'{case}/decodes'])
    np.testing.assert_allclose(aux['scores'], expected[f'{case}/scores'], atol=5e-4)


class _RunningSum(nn.Module):
  """A network that hashes the tokens so far, with the encoder-decoder contract and prefill."""

  vocab_size: int = 7
  stacked: bool = False  # like scanned layers: an axis before the batch in the cache

  @property
  def scan_layers(self):
    return self.stacked

  @nn.compact
  def __call__(self, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
               encoder_segment_ids=None, decoder_segment_ids=None, encoder_positions=None,
               decoder_positions=None, decode=False, enable_dropout=True):
    encoded = self.encode(encoder_input_tokens, enable_dropout)
    return self.decode(encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
                       enable_dropout=enable_dropout, decode=decode)

  def encode(self, tokens, enable_dropout=True):
    return tokens[..., None].astype(jnp.float32)

  @nn.compact
  def decode(self, encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
             enable_dropout=True, decode=False, max_decode_length=None, prefill=False,
             prefill_lengths=None):
    table = self.param('table', nn.initializers.normal(2.0), (50, self.vocab_size))
    self.sow('intermediates', 'fed', decoder_input_tokens)
    batch, length = decoder_input_tokens.shape
    place = jnp.broadcast_to(jnp.arange(length), (batch, length))
    before = jnp.zeros((batch,), jnp.int32)
    if decode:
      exists = self.has_variable('cache', 'total')
      shape = (1, batch) if self.stacked else (batch,)
      total = self.variable('cache', 'total', jnp.zeros, shape, jnp.int32)
      index = self.variable('cache', 'cache_index', lambda: jnp.int32(0))
      if exists and prefill:
        # The last prompt token is not yet part of the cache: it is the first one to be fed.
        inside = place < prefill_lengths[:, None]
        hashed = jnp.sum(jnp.where(inside, decoder_input_tokens * (place % 5 + 1), 0), axis=1)
        total.value = hashed.reshape(shape)
        index.value = prefill_lengths
      elif exists:
        before = total.value.reshape(batch)
        place = place + jnp.reshape(index.value, (-1, 1))
        step = before + (decoder_input_tokens * (place % 5 + 1))[:, 0]
        total.value, index.value = step.reshape(shape), index.value + 1
    hashed = before[:, None] + jnp.cumsum(decoder_input_tokens * (place % 5 + 1), axis=1)
    context = jnp.sum(encoder_input_tokens, axis=1, keepdims=True)
    return table[(hashed + context) % 50]


def _running_sum_batch():
  return {
      'encoder_input_tokens': jnp.array([[3, 4, 0], [5, 0, 0]]),
      'decoder_input_tokens': jnp.array([[0, 2, 4, 0, 0, 0], [0, 6, 0, 0, 0, 0]]),
      'decoder_target_tokens': jnp.array([[2, 4, 5, 1, 0, 0], [6, 3, 1, 0, 0, 0]]),
  }


def _running_sum(stacked=False, **kwargs):
  return _model(_RunningSum(stacked=stacked), **kwargs), _running_sum_params(stacked)


@functools.cache
def _running_sum_params(stacked):
  shapes = {k: v.shape for k, v in _running_sum_batch().items()}
  return jax.jit(lambda key: _model(_RunningSum(stacked=stacked)).get_initial_variables(key, shapes)['params'])(
      jax.random.PRNGKey(0))


def _predict(model, params, batch, **kwargs):
  return jax.jit(functools.partial(model.predict_batch_with_aux, **kwargs))(params, batch)


class EncoderDecoderModelTest(parameterized.TestCase):

  def test_initial_variables_follow_shapes_and_types(self):
    module = mock.Mock()
    module.init.side_effect = lambda rng, *args, **kwargs: (args, kwargs)
    shapes = {'encoder_input_tokens': (2, 5), 'decoder_input_tokens': (2, 3),
              'decoder_target_tokens': (2, 4), 'encoder_positions': (2, 5)}
    args, kwargs = _model(module).get_initial_variables(
        jax.random.PRNGKey(0), shapes, {'encoder_input_tokens': jnp.float32})
    self.assertEqual([(x.shape, str(x.dtype)) for x in args],
                     [((2, 5), 'float32'), ((2, 3), 'int32'), ((2, 4), 'int32')])
    self.assertEqual(kwargs['encoder_positions'].shape, (2, 5))
    self.assertIsNone(kwargs['decoder_segment_ids'])
    self.assertFalse(kwargs['decode'])
    self.assertFalse(kwargs['enable_dropout'])

  def test_dropout_is_on_only_with_a_key(self):
    module = mock.Mock()
    module.apply.return_value = jnp.zeros((2, 6, 7))
    model, batch = _model(module), _running_sum_batch()
    model.eval_fn({}, batch)
    self.assertFalse(module.apply.call_args.kwargs['enable_dropout'])
    self.assertIsNone(module.apply.call_args.kwargs['rngs'])
    key = jax.random.PRNGKey(1)
    model.loss_fn({}, batch, key)
    self.assertTrue(module.apply.call_args.kwargs['enable_dropout'])
    self.assertIs(module.apply.call_args.kwargs['rngs']['dropout'], key)

  def test_mutable_collections_and_other_variables(self):
    model, params = _running_sum()
    logits, changed = model._compute_logits(
        params, _running_sum_batch(), mutable=['intermediates'], other_variables={'extra': {}})
    self.assertEqual(logits.shape, (2, 6, 7))
    self.assertIn('fed', changed['intermediates'])
    scores, intermediates = model.score_batch(
        params, _running_sum_batch(), return_intermediates=True)
    np.testing.assert_allclose(scores, model.score_batch(params, _running_sum_batch()), rtol=1e-6)
    self.assertIn('fed', intermediates)
    self.assertIn('token_scores', intermediates['decoder'])

  @parameterized.parameters(False, True)
  def test_decoding_agrees_with_teacher_forcing(self, stacked):
    """The tokens found, fed back as targets, have the scores that decoding reported."""
    model, params = _running_sum(stacked=stacked)
    batch = _running_sum_batch()
    decodes, aux = _predict(
        model, params, batch, num_decodes=3, return_all_decodes=True, decoder_params={'alpha': 0.0})
    self.assertEqual(decodes.shape, (2, 3, 6))
    score_batch = jax.jit(model.score_batch)
    for beam in range(3):
      targets = decodes[:, beam]
      scores = score_batch(params, {
          'encoder_input_tokens': batch['encoder_input_tokens'],
          'decoder_target_tokens': targets,
          'decoder_input_tokens': jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_loss_weights': (jnp.cumsum(targets == 1, axis=1) - (targets == 1)) == 0})
      found = np.asarray(aux['scores'][:, beam])
      taken = found > -1e6  # the other slots are empty
      np.testing.assert_allclose(found[taken], scores[taken], atol=1e-4)
    self.assertTrue(np.all(taken))  # those of the best beam
    best, best_aux = _predict(
        model, params, batch, num_decodes=3, decoder_params={'alpha': 0.0})
    np.testing.assert_array_equal(best, decodes[:, -1])
    np.testing.assert_array_equal(best_aux['scores'], aux['scores'][:, -1])

  @parameterized.product(
      decode_fn=(decoding.beam_search, decoding.temperature_sample), num_decodes=(1, 3))
  def test_prefilled_prompt_equals_fed_prompt(self, decode_fn, num_decodes):
    model, params = _running_sum(decode_fn=decode_fn)
    predict = functools.partial(
        _predict, model, params, _running_sum_batch(), num_decodes=num_decodes,
        return_all_decodes=True, prompt_with_targets=True)
    prefilled, prefilled_aux = predict()
    compute_kv_cache = model._compute_kv_cache

    def without_prefill(*args, prefill_decoder_prompt, **kwargs):
      del prefill_decoder_prompt
      return compute_kv_cache(*args, **kwargs)

    with mock.patch.object(model, '_compute_kv_cache', without_prefill):
      fed, fed_aux = predict()
    np.testing.assert_array_equal(prefilled, fed)
    np.testing.assert_allclose(prefilled_aux['scores'], fed_aux['scores'], atol=1e-5)
    np.testing.assert_array_equal(prefilled[0, -1, :2], [2, 4])
    self.assertEqual(prefilled[1, -1, 0], 6)

  def test_prompt_is_used_only_on_request_and_without_eos(self):
    decode_fn = mock.create_autospec(
        decoding.beam_search, return_value=(jnp.zeros((2, 1, 6)), jnp.zeros((2, 1))))
    model, params = _running_sum(decode_fn=decode_fn)
    batch = _running_sum_batch()
    model.predict_batch(params, batch)
    np.testing.assert_array_equal(decode_fn.call_args.kwargs['inputs'], np.zeros((2, 6)))
    self.assertIsNone(decode_fn.call_args.kwargs['initial_index'])
    batch['decoder_input_tokens'] = jnp.array([[0, 2, 4, 1, 0, 0], [0, 6, 1, 0, 0, 0]])
    model.predict_batch_with_aux(params, batch, prompt_with_targets=True)
    np.testing.assert_array_equal(
        decode_fn.call_args.kwargs['inputs'], [[0, 2, 4, 0, 0, 0], [0, 6, 0, 0, 0, 0]])
    np.testing.assert_array_equal(decode_fn.call_args.kwargs['initial_index'], [2, 1])

  def test_decode_fn_that_knows_no_prefilled_prompts(self):
    def decode_fn(inputs, cache, tokens_to_logits, **kwargs):
      kwargs.pop('decode_rng', None)
      return decoding.temperature_sample(inputs, cache, tokens_to_logits, **kwargs)

    predictions = [
        _predict(*_running_sum(decode_fn=fn), _running_sum_batch(), prompt_with_targets=True)[0]
        for fn in (decode_fn, decoding.temperature_sample)]
    np.testing.assert_array_equal(*predictions)

  def test_arguments_of_the_decode_fn(self):
    decode_fn = mock.Mock(return_value=(jnp.zeros((2, 4, 6)), jnp.zeros((2, 4))))
    model, params = _running_sum(
        stacked=True, decode_fn=decode_fn,
        default_decoder_params=models.DecoderParams(return_all_decodes=True, num_decodes=4))
    key = jax.random.PRNGKey(3)
    decodes, _ = model.predict_batch_with_aux(
        params, _running_sum_batch(), rng=key, decoder_params={'alpha': 0.1})
    kwargs = decode_fn.call_args.kwargs
    self.assertEqual(decodes.shape, (2, 4, 6))
    self.assertEqual(
        (kwargs['num_decodes'], kwargs['cache_offset'], kwargs['eos_id'], kwargs['alpha']),
        (4, 1, 1, 0.1))
    self.assertIs(kwargs['decode_rng'], key)
    self.assertEqual(kwargs['cache']['total'].shape, (1, 2))
    decodes, _ = model.predict_batch_with_aux(
        params, _running_sum_batch(), num_decodes=2, return_all_decodes=False)
    self.assertEqual(decodes.shape, (2, 6))
    self.assertEqual(decode_fn.call_args.kwargs['num_decodes'], 2)
    self.assertNotIn('decode_rng', decode_fn.call_args.kwargs)

  def test_key_given_twice(self):
    model, params = _running_sum()
    key = jax.random.PRNGKey(0)
    with self.assertRaisesRegex(ValueError, 'give only one'):
      model.predict_batch_with_aux(
          params, _running_sum_batch(), rng=key, decoder_params={'decode_rng': key})

  def test_module_can_be_wrapped(self):
    """Extensions bind further inputs by wrapping `apply`; nothing else may reach the network."""
    model, params = _running_sum(decode_fn=decoding.temperature_sample)
    calls = []

    class Wrapper:

      def __init__(self, module):
        self._module = module

      def apply(self, variables, *args, **kwargs):
        calls.append(kwargs.get('method'))
        return self._module.apply(variables, *args, **kwargs)

      def __getattr__(self, name):
        return getattr(self._module, name)

    class Extension(models.EncoderDecoderModel):

      def predict_batch_with_aux(self, *args, **kwargs):
        bound = copy.copy(self)
        bound.module = Wrapper(self.module)
        return super(Extension, bound).predict_batch_with_aux(*args, **kwargs)

    extension = _model(model.module, Extension, decode_fn=decoding.temperature_sample)
    expected = _predict(model, params, _running_sum_batch())[0]
    found = _predict(extension, params, _running_sum_batch())[0]
    np.testing.assert_array_equal(found, expected)
    self.assertEqual([m.__name__ for m in calls], ['encode', 'decode', 'decode'])

  def test_feature_converter(self):
    import seqio  # pylint: disable=g-import-not-at-top

    class Own(models.EncoderDecoderModel):
      FEATURE_CONVERTER_CLS = seqio.LMFeatureConverter

    model = _model(mock.Mock(), feature_converter_cls=seqio.PrefixLMFeatureConverter)
    self.assertIs(models.EncoderDecoderModel.FEATURE_CONVERTER_CLS, seqio.EncDecFeatureConverter)
    self.assertIs(_model(mock.Mock()).FEATURE_CONVERTER_CLS, seqio.EncDecFeatureConverter)
    self.assertIs(model.FEATURE_CONVERTER_CLS, seqio.PrefixLMFeatureConverter)
    self.assertIs(_model(mock.Mock(), Own).FEATURE_CONVERTER_CLS, seqio.LMFeatureConverter)

  def test_import_loads_no_data_library(self):
    code = ('import sys, t5x.models; '
            'print([m for m in ("seqio", "tensorflow", "orbax") if m in sys.modules])')
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True)
    self.assertEqual(result.stdout.strip(), '[]')

  def test_attributes(self):
    model = _model(
        mock.Mock(), label_smoothing=0.1, z_loss=0.2,
        loss_normalizing_factor=losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS)
    self.assertIs(model.decode_fn, decoding.beam_search)
    self.assertIs(models.get_input_vocabulary(model), model.input_vocabulary)
    self.assertIs(models.get_output_vocabulary(model), model.output_vocabulary)
    self.assertEqual((model._label_smoothing, model._z_loss), (0.1, 0.2))


class FunctionsTest(parameterized.TestCase):

  @parameterized.parameters(
      ([[1, 1, 2, 2, 3, 0]], 3),
      ([[1, 3, 3, 0], [2, 2, 0, 0]], 3),
      ([[0, 0, 0]], 0),
      ([[True, True, False], [True, False, False]], 2))
  def test_count_packed_examples(self, segment_ids, expected):
    self.assertEqual(int(models.count_packed_examples(jnp.array(segment_ids))), expected)

  def test_remove_prefix(self):
    np.testing.assert_array_equal(
        models.remove_prefix(jnp.array([[1, 2, 3, 4], [5, 6, 7, 0]]), jnp.array([2, 0])),
        [[3, 4, 0, 0], [5, 6, 7, 0]])

  def test_metrics_without_a_mask(self):
    logits = jax.nn.one_hot(jnp.array([[1, 2], [3, 3]]), 5)
    metrics = models.compute_base_metrics(
        logits, targets=jnp.array([[1, 2], [3, 0]]), mask=None, loss=6.0)
    self.assertEqual(float(metrics['accuracy'].compute()), 0.75)
    self.assertEqual(float(metrics['loss_per_nonpadding_target_token'].compute()), 1.5)
    self.assertNotIn('z_loss', metrics)
    self.assertNotIn('non_padding_fraction/overall', metrics)


if __name__ == '__main__':
  absltest.main()
