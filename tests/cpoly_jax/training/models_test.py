"""Tests of the C-Poly model under a provider of t5x: mixed tasks in training, scoring, greedy and beam decoding."""

import functools
import importlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import decoding
from t5x import models

from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

INDEX = TaskIndex(('a', 'b', 'c'))


def _model(decode_fn=decoding.temperature_sample, adapter=True, **kwargs):
  config = testing.small_config(vocab_size=264)
  module = network.Transformer(config, testing.cpoly_adapter(len(INDEX)) if adapter else None)
  vocabulary = seqio.ByteVocabulary()
  return CPolyModel(module, vocabulary, vocabulary, None, decode_fn=decode_fn, task_index=INDEX, **kwargs)


def _batch():
  rng = np.random.default_rng(3)
  inputs, targets = (rng.integers(3, 200, size=(3, 7), dtype=np.int32) for _ in range(2))
  inputs[1, 4:] = 0
  targets[0, 5:] = 0
  return {'encoder_input_tokens': inputs, 'decoder_target_tokens': targets,
          'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_loss_weights': (targets > 0).astype(np.int32), 'task_id': np.array([[2], [0], [1]], np.int32)}


@functools.cache
def _params():
  shapes = {k: v.shape for k, v in _batch().items()}
  types = {k: v.dtype for k, v in _batch().items()}
  variables = _model().get_initial_variables(jax.random.PRNGKey(0), shapes, types)
  return testing.randomized(variables['params'])


def _row(row):
  return {k: v[row:row + 1] for k, v in _batch().items()}


class MixedTasksTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    _params()  # Made here, as the first use may be inside of a jitted function.

  @parameterized.named_parameters(
      ('greedy', decoding.temperature_sample, {}),
      ('beam', decoding.beam_search, dict(num_decodes=3, return_all_decodes=True)))
  def test_decoding_equals_one_task_at_a_time(self, decode_fn, kwargs):
    model = _model(decode_fn)
    predict = jax.jit(lambda batch: model.predict_batch_with_aux(_params(), batch, **kwargs))
    together, aux = predict(_batch())
    self.assertEqual(together.shape, (3, 3, 7) if kwargs else (3, 7))
    for row in range(3):
      alone, aux_alone = predict(_row(row))
      np.testing.assert_array_equal(together[row], alone[0])
      np.testing.assert_allclose(aux['scores'][row], aux_alone['scores'][0], atol=1e-4)

  def test_tasks_decode_differently(self):
    predict = jax.jit(functools.partial(_model().predict_batch, _params()))
    same_inputs = {k: np.repeat(v[:1], 3, axis=0) for k, v in _batch().items()} | {'task_id': _batch()['task_id']}
    self.assertGreater(len({tuple(map(int, row)) for row in predict(same_inputs)}), 1)

  def test_scores_equal_one_task_at_a_time(self):
    score = jax.jit(functools.partial(_model().score_batch, _params()))
    np.testing.assert_allclose(score(_batch()), np.concatenate([score(_row(r)) for r in range(3)]), rtol=1e-5)

  def test_loss_is_noisy_in_training_only(self):
    loss = jax.jit(lambda key: _model().loss_fn(_params(), _batch(), key)[0])
    evaluate = jax.jit(lambda: _model().eval_fn(_params(), _batch())[0])
    self.assertEqual(float(evaluate()), float(evaluate()))
    first, second = (float(loss(jax.random.PRNGKey(i))) for i in range(2))
    self.assertGreater(abs(first - second), 1e-4)
    self.assertEqual(first, float(loss(jax.random.PRNGKey(0))))

  def test_greedy_decoding_follows_the_scores(self):
    """Each greedy token is the best one of the whole pass without a cache."""
    model = _model()
    tokens = np.asarray(jax.jit(functools.partial(model.predict_batch, _params()))(_batch()))
    shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    logits = model._compute_logits(_params(), {**_batch(), 'decoder_target_tokens': np.maximum(tokens, 3),
                                               'decoder_input_tokens': shifted})
    best = np.asarray(jnp.argmax(logits, -1))
    for row in range(3):
      length = list(tokens[row]).index(1) + 1 if 1 in tokens[row] else tokens.shape[1]
      np.testing.assert_array_equal(tokens[row, :length], best[row, :length])


class ModelTest(absltest.TestCase):

  def test_is_t5xs_model(self):
    model = _model()
    self.assertIsInstance(model, models.EncoderDecoderModel)
    self.assertEqual(set(model.FEATURE_CONVERTER_CLS(pack=False).MODEL_FEATURES), set(_batch()))

  def test_starts_as_the_base(self):
    shapes = {k: v.shape for k, v in _batch().items()}
    variables = _model().get_initial_variables(jax.random.PRNGKey(0), shapes)
    adapted = _model().eval_fn(variables['params'], _batch())[0]
    plain = lambda tree: {k: plain(v) if isinstance(v, dict) else v for k, v in tree.items() if k not in ('skills', 'routing')}
    base = _model(adapter=False).eval_fn(plain(variables['params']), _batch())[0]
    self.assertEqual(float(adapted), float(base))

  def test_more_tasks_than_rows(self):
    with self.assertRaisesRegex(ValueError, '3 tasks do not fit 2 routing rows: raise NUM_TASKS to 3'):
      _model(num_tasks=2)

  def test_batch_without_tasks(self):
    batch = _batch()
    del batch['task_id']
    with self.assertRaisesRegex(ValueError, "no 'task_id'"):
      _model().eval_fn(_params(), batch)

  def test_unknown_tasks(self):
    importlib.import_module('tasks')
    with self.assertRaisesRegex(ValueError, '16 of 16 tasks have no routing row: latent_bodu'):
      _model().check_mixture(seqio.MixtureRegistry.get('latent_skills'))

  def test_checkpoints_of_other_tasks_are_refused(self):
    model = _model()
    model.check_checkpoint_metadata(model.checkpoint_metadata())
    with self.assertRaisesRegex(ValueError, 'run/checkpoint_3 was trained with another TaskIndex.*only there: x'):
      model.check_checkpoint_metadata({'task_index': {'tasks': ['a', 'b', 'x']}}, 'run/checkpoint_3')


if __name__ == '__main__':
  absltest.main()
