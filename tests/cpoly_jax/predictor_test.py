"""Tests of the predictor: results of the model itself, whatever the batch; few compilations; mistakes in one line."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cpoly_jax
from cpoly_jax import decoding
from cpoly_jax import predictor as predictor_lib
from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.training import trained
from tests.cpoly_jax.checkpoints import small_runs

setUpModule, tearDownModule = testing.quick_compilation()
LENGTHS = {'inputs': 40, 'targets': 6}
TEXTS = ['a short one', 'x', 'more letters', 'another']
TASKS = ['rte', 'cb', 'copa', 'rte']


class _PredictorTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    files = tempfile.TemporaryDirectory()
    cls.addClassCleanup(files.cleanup)
    cls.run_dir = small_runs.write_run(files.name, small_runs.write_base(files.name))
    cls.predictor = cpoly_jax.Predictor(cls.run_dir, lengths=LENGTHS, batch_size=3)
    cls.model, cls.params = cls.predictor.model, cls.predictor._params


def _tokens(text):
  return [byte + 3 for byte in text.encode()] + [1]


def _batch(text, task):
  """The batch of one text, without any padding."""
  return {'encoder_input_tokens': np.array([_tokens(text)], np.int32), 'decoder_input_tokens': np.zeros((1, 6), np.int32),
          'task_id': np.array([[small_runs.INDEX.row(task)]], np.int32)}


class PredictTest(_PredictorTest):

  def test_predicts_what_the_model_does(self):
    predictions, scores = self.predictor.predict(TEXTS, TASKS, return_scores=True)
    self.assertEqual(scores.dtype, np.float32)
    tokens, told = jax.jit(self.model.predict_batch_with_aux)(self.params, _batch(TEXTS[3], TASKS[3]))
    self.assertEqual(predictions[3], self.model.output_vocabulary.decode(tokens[0].tolist()))
    np.testing.assert_allclose(scores[3], told['scores'][0], rtol=1e-4)

  def test_order_and_company_do_not_matter(self):
    together = self.predictor.predict(TEXTS, TASKS, return_scores=True)
    turned = self.predictor.predict(TEXTS[::-1], TASKS[::-1], return_scores=True)
    self.assertEqual(turned[0], together[0][::-1])
    np.testing.assert_array_equal(turned[1], together[1][::-1])
    alone = [self.predictor.predict([text], task, return_scores=True) for text, task in zip(TEXTS, TASKS)]
    self.assertEqual([p for (p,), _ in alone], together[0])
    np.testing.assert_array_equal([s for _, (s,) in alone], together[1])

  def test_each_text_is_routed_by_its_task(self):
    _, scores = self.predictor.predict(['the same'] * 3, small_runs.INDEX.names, return_scores=True)
    self.assertLen(set(scores.tolist()), 3)

  def test_compiles_once_a_bucket(self):
    predictor = predictor_lib.Predictor.of(self.model, self.params, lengths=LENGTHS, batch_size=3)
    score = lambda texts: predictor.score(texts, ['yes'], 'cb')
    score(['a' * 15, 'b'] * 3)
    self.assertEqual(predictor.compilations, 1)
    score(['c' * 7])
    self.assertEqual(predictor.compilations, 1)
    score(['c' * 16])
    self.assertEqual(predictor.compilations, 2)
    score(['d' * 31, 'e' * 20, 'f'])
    self.assertEqual(predictor.compilations, 2)
    self.predictor.predict(TEXTS, 'cb')
    before = self.predictor.compilations
    self.predictor.predict(['another one', 'b'], 'rte')
    self.assertEqual(self.predictor.compilations, before)

  def test_nothing_is_nothing(self):
    self.assertEqual(self.predictor.predict([], 'cb'), [])
    self.assertEqual(self.predictor.score([], ['a', 'b'], 'cb').shape, (0, 2))

  def test_cut_texts_are_those_of_training(self):
    cut = predictor_lib.Predictor.of(self.model, self.params, lengths={'inputs': 8, 'targets': 6}, batch_size=3, truncate=True)
    cut.model = mocked = copy.copy(self.model)
    seen = []
    mocked.score_batch = lambda params, batch: (seen.append(batch), jnp.zeros(3))[1]
    with jax.disable_jit():
      cut.score(['a longer text'], ['also longer'], 'cb')
    self.assertEqual(seen[0]['encoder_input_tokens'][0].tolist(), _tokens('a longe'))
    self.assertEqual(seen[0]['decoder_target_tokens'][0].tolist(), _tokens('also '))

  def test_buckets(self):
    self.assertEqual([predictor_lib.bucket(n, 100) for n in (1, 16, 17, 32, 33, 65, 100)], [16, 16, 32, 32, 64, 100, 100])
    self.assertEqual(predictor_lib.bucket(5, 8), 8)


class DecodingTest(_PredictorTest):

  def test_drawn_texts_do_not_depend_on_their_place(self):
    texts = [*TEXTS[:3], TEXTS[0]]
    draw = lambda texts, seed=5: self.predictor.predict(texts, 'cb', temperature=2.0, seed=seed, return_scores=True)[1].tolist()
    drawn = draw(texts)
    self.assertEqual(draw(texts), drawn)
    self.assertNotEqual(drawn[0], drawn[3])  # The second one of equal texts.
    self.assertEqual(draw(texts[2::-1]), drawn[2::-1])
    self.assertNotEqual(draw(texts, seed=6), drawn)

  @pytest.mark.slow
  def test_drawing_from_the_best_token_is_greedy(self):
    greedy = self.predictor.predict(TEXTS[:2], 'cb')
    self.assertEqual(self.predictor.predict(TEXTS[:2], 'cb', top_k=1), greedy)

  @pytest.mark.slow
  def test_beams_are_those_of_the_decoding_function(self):
    predictions, scores = self.predictor.predict(TEXTS[:2], 'cb', num_beams=3, length_penalty=0.5, return_scores=True)
    model = copy.copy(self.model)
    model._decode_fn = functools.partial(decoding.beam_search, length_penalty=0.5)
    predict = jax.jit(functools.partial(model.predict_batch_with_aux, num_decodes=3))
    tokens, told = predict(self.params, _batch(TEXTS[1], 'cb'))
    self.assertEqual(predictions[1], model.output_vocabulary.decode(tokens[0].tolist()))
    np.testing.assert_allclose(scores[1], told['scores'][0], rtol=1e-4)

  def test_options_choose_the_decoding_function(self):
    for options, early_stopping in (({}, False), ({'num_beams': 3}, False), ({'num_beams': 3, 'early_stopping': True}, True)):
      search = trained.decoder(**options, length_penalty=0.5)
      self.assertEqual((search.func, search.keywords),
                       (decoding.beam_search, {'length_penalty': 0.5, 'early_stopping': early_stopping}))
    for options, wanted in (({'top_k': 4}, {'temperature': 1.0, 'topk': 4, 'topp': 0.0}),
                            ({'temperature': 0.5, 'top_p': 0.9}, {'temperature': 0.5, 'topk': 0, 'topp': 0.9})):
      self.assertEqual(trained.decoder(**options).keywords, {'rescale_log_probs': False, **wanted})

  @parameterized.parameters(
      (dict(num_beams=0), 'num_beams=0: give a whole number of 1 or more'),
      (dict(num_beams=2, top_k=3), 'draws nothing: leave out temperature, top_k and top_p'),
      (dict(top_k=3, top_p=0.5), 'exclude each other'),
      (dict(temperature=0.0, top_k=3), 'temperature=0 draws nothing'),
      (dict(top_p=1.5), 'top_p from 0 to 1'),
      (dict(max_length=0), 'max_length=0: give a whole number'))
  def test_wrong_options(self, options, told):
    with self.assertRaisesRegex(ValueError, told):
      self.predictor.predict(['a'], 'cb', **options)


class ScoreTest(_PredictorTest):

  def test_scores_are_log_probabilities(self):
    scores = self.predictor.score(TEXTS[:2], ['yes', 'no'], ['cb', 'rte'])
    self.assertEqual((scores.shape, scores.dtype), ((2, 2), np.float32))
    tokens = np.array([_tokens('no')], np.int32)
    apply = jax.jit(functools.partial(self.model.module.apply, enable_dropout=False))
    logits = apply({'params': self.params}, _batch(TEXTS[1], 'rte')['encoder_input_tokens'],
                   np.pad(tokens, ((0, 0), (1, 0)))[:, :-1], tokens, task_ids=np.array([2]))
    wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1).sum()
    np.testing.assert_allclose(scores[1, 1], wanted, rtol=1e-4)

  def test_choices_of_each_text_and_the_best(self):
    own = [['yes', 'no'], ['no', 'yes']]
    scores = self.predictor.score(['a', 'a'], own, 'cb')
    np.testing.assert_array_equal(scores[0], scores[1, ::-1])
    best = own[0][int(scores[0].argmax())]
    self.assertEqual(self.predictor.best(['a', 'a'], own, 'cb'), [best, best])
    self.assertEqual(self.predictor.best(['a'], iter(own[1]), 'cb'), [best])

  @parameterized.parameters(
      ('yes', 'write choices='), ([], 'at least one'), ([['yes']], 'choices for 1 texts were given for 2'),
      ([['yes'], ['yes', 'no']], 'same number'), ([['yes'], 'no'], 'texts beside lists'))
  def test_wrong_choices(self, choices, told):
    with self.assertRaisesRegex(ValueError, told):
      self.predictor.score(['a', 'b'], choices, 'cb')


class MistakesTest(_PredictorTest):

  @parameterized.parameters(
      ('a', 'cb', r'write \[text\]'),
      (['a'], 'rtd', "task 'rtd' has no routing row; did you mean 'rte'"),
      (['a'], None, "the model has 3 tasks: give task=, e.g. 'cb'"),
      (['a', 'b'], ['cb'], '1 tasks were given for 2 texts'),
      (['a', 'b' * 40], 'cb', 'text 1 has 41 tokens with its end, more than 40: shorten it, .*lengths=.*truncate=True'),
      ([None], 'cb', 'text 0 is None: wanted a str'))
  def test_texts(self, texts, task, told):
    with self.assertRaisesRegex(ValueError, told) as error:
      self.predictor.predict(texts, task)
    self.assertNotIn('\n', str(error.exception))

  def test_settings(self):
    for settings in (dict(lengths={'input': 3}), dict(batch_size=0), dict(lengths={'inputs': 1})):
      with self.assertRaisesRegex(ValueError, next(iter(settings))):
        cpoly_jax.Predictor(self.run_dir, **settings)
    with self.assertRaisesRegex(FileNotFoundError, 'absent'):
      cpoly_jax.Predictor(os.path.join(self.run_dir, 'absent'))

  def test_unknown_tasks_may_get_the_average(self):
    model = copy.copy(self.model)
    model.unknown_task = routing.AVERAGE
    rows = predictor_lib.Predictor.of(model, self.params)._rows(['a', 'b'], ['rtd', 'rte'])[1]
    self.assertEqual(rows.tolist(), [[routing.UNKNOWN], [2]])


class FilesTest(_PredictorTest):

  def test_the_package_alone_loads_nothing(self):
    code = ('import cpoly_jax, sys; assert "Predictor" in dir(cpoly_jax); '
            'print(sorted({"jax", "numpy", "flax", "tensorflow"} & set(sys.modules)))')
    shown = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
                           capture_output=True, text=True, check=True).stdout
    self.assertEqual(shown.strip(), '[]')
    with self.assertRaises(AttributeError):
      cpoly_jax.predictors  # noqa: B018

  def test_dtype(self):
    loaded = cpoly_jax.Predictor(self.run_dir, dtype='bfloat16')
    self.assertEqual(loaded.model.module.config.dtype, jnp.bfloat16)
    dtypes = {small_runs.is_base(name): value.dtype for name, value in small_runs.flat(loaded._params).items()}
    self.assertEqual(dtypes, {True: jnp.bfloat16, False: jnp.float32})

  def test_vocabulary_that_files_cannot_tell(self):
    told = {**small_runs.model().checkpoint_metadata(), 'vocabularies': {'input': None, 'output': None}}
    with self.assertRaisesRegex(ValueError, 'does not describe its input vocabulary.*give vocabulary='):
      trained.model(description=told)
    vocabulary = small_runs.model().input_vocabulary
    self.assertIs(trained.model(description=told, vocabulary=vocabulary).output_vocabulary, vocabulary)
    with self.assertRaisesRegex(ValueError, 'tells of no tasks'):
      trained.model(description={**told, 'task_index': None})


if __name__ == '__main__':
  absltest.main()
