"""Tests of the C-Poly model under a provider of t5x: mixed tasks in training, scoring, greedy and beam decoding; unknown
tasks, priors and the clock."""

import functools
import importlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np
import seqio
from t5x import decoding
from t5x import models
import tensorflow as tf

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.routing import priors
from cpoly_jax.routing import schedules
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex, task_key
from cpoly_jax.training import optimizers
from cpoly_jax.training.models import CPolyModel

INDEX = TaskIndex(('a', 'b', 'c'))
TARGETS = '.*(query|value|wo)'
FEW = '.*attention/query'  # Three projections.
setUpModule, tearDownModule = testing.quick_compilation()


def _model(decode_fn=decoding.temperature_sample, adapter=True, router=None, targets=TARGETS, **kwargs):
  config = testing.small_config(vocab_size=264)
  module = network.Transformer(config, testing.cpoly_adapter(len(INDEX), router=router, targets=targets) if adapter else None)
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


def _few_params():
  """Of a model with few targets."""
  few = re.compile(FEW)
  keep = lambda path: not {'skills', 'routing'} & set(path) or few.fullmatch('/'.join(path[:-2]))
  return flax.traverse_util.unflatten_dict({k: v for k, v in flax.traverse_util.flatten_dict(_params()).items() if keep(k)})


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


class UnknownTaskTest(absltest.TestCase):

  def _example(self, model, task):
    """One example of a task as it comes out of the model's feature converter."""
    row = {'inputs': [70, 80, 90, 1], 'targets': [70, 99, 1], 'task_id': [task_key(task)]}
    signature = {k: tf.TensorSpec([len(v)] if k == 'task_id' else [None], tf.int32) for k, v in row.items()}
    data = tf.data.Dataset.from_generator(lambda: iter([row]), output_signature=signature)
    converted = model.FEATURE_CONVERTER_CLS(pack=False)(data, {'inputs': 7, 'targets': 7})
    (example,) = converted.batch(1).as_numpy_iterator()
    return example

  def test_by_default_it_is_refused_before_it_reaches_the_network(self):
    with self.assertRaisesRegex(tf.errors.InvalidArgumentError, 'no routing row'):
      self._example(_model(), 'x')

  def test_by_default_a_row_that_is_not_there_gives_no_number(self):
    batch = {**_batch(), 'task_id': np.array([[2], [routing.UNKNOWN], [1]], np.int32)}
    scores = np.asarray(jax.jit(functools.partial(_model().score_batch, _params()))(batch))
    np.testing.assert_array_equal(np.isnan(scores), [False, True, False])

  def test_average_on_request(self):
    model = _model(unknown_task='average', router=dict(unknown_task='average'))
    unknown = self._example(model, 'x')
    self.assertEqual(unknown['task_id'].tolist(), [[routing.UNKNOWN]])
    score = jax.jit(model.score_batch)
    # The reference: task a with the mean of all rows in every table.
    is_routing = lambda path: any(getattr(k, 'key', None) == 'routing' for k in path)
    averaged = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[0].set(jnp.mean(leaf, axis=0)) if is_routing(path) else leaf, _params())
    found = score(_params(), unknown)
    np.testing.assert_allclose(found, score(averaged, self._example(model, 'a')), rtol=1e-5)
    self.assertGreater(abs(float(found[0] - score(_params(), self._example(model, 'a'))[0])), 1e-3)

  def test_mixtures_are_checked_unless_unknown_tasks_get_the_average(self):
    importlib.import_module('tasks')
    mixture = seqio.MixtureRegistry.get('latent_skills')
    with self.assertRaisesRegex(ValueError, '16 of 16 tasks have no routing row: latent_bodu'):
      _model().check_mixture(mixture)
    _model(unknown_task='average').check_mixture(mixture)


class PriorTest(absltest.TestCase):

  def test_is_added_to_the_training_loss_and_told(self):
    prior = priors.Entropy()
    models_ = _model(targets=FEW), _model(targets=FEW, prior=prior, prior_weight=3.)
    params = _few_params()
    (plain, plain_aux), (found, aux) = jax.jit(
        lambda params: [model.loss_fn(params, _batch(), jax.random.PRNGKey(0)) for model in models_])(params)
    tables = [leaf for path, leaf in flax.traverse_util.flatten_dict(params).items() if path[-2:] == ('routing', 'common')]
    self.assertLen(tables, 3)
    penalty = sum(float(prior(table)) for table in tables)
    self.assertAlmostEqual(float(found), float(plain) + 3. * penalty, delta=1e-5 * float(found))
    self.assertGreater(float(found - plain), 1.)
    self.assertNotIn('routing_prior', plain_aux)
    self.assertEqual(set(aux), {*plain_aux, 'routing_prior'})
    told = aux['routing_prior']
    self.assertAlmostEqual(float(told.total / told.steps), penalty, places=4)
    # What is told of the loss itself stays that of the data.
    self.assertEqual(float(aux['cross_ent_loss'].total), float(plain_aux['cross_ent_loss'].total))

  def test_is_no_part_of_evaluation(self):
    model = _model(targets=FEW, prior=lambda table: self.fail('evaluation asks for the prior'))
    evaluate = lambda model: jax.eval_shape(lambda params: model.eval_fn(params, _batch()), _few_params())[1]
    self.assertEqual(set(evaluate(model)), set(evaluate(_model(targets=FEW))))

  def test_a_system_without_tables_is_refused(self):
    model = _model(router=dict(num_common=0), prior=priors.Sparsity())
    without = {k: v for k, v in flax.traverse_util.flatten_dict(_params()).items() if k[-1] != 'common'}
    for path in list(without):
      if path[-2] == 'skills':  # Without the three common skills.
        without[path] = without[path][3:]
    with self.assertRaisesRegex(ValueError, 'PRIOR is set, but this system has no table of logits'):
      jax.eval_shape(lambda p: model.loss_fn(p, _batch(), jax.random.PRNGKey(0)), flax.traverse_util.unflatten_dict(without))


class ClockTest(absltest.TestCase):

  def _annealed(self):
    return _model(targets=FEW, router=dict(sampling=routing.Sampling(temperature=schedules.Linear(4., .5, 10))))

  def test_only_a_schedule_makes_a_clock(self):
    shapes = {k: v.shape for k, v in _batch().items()}
    init = lambda model: jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)['params'])
    self.assertEqual(init(self._annealed())['clock'].shape, ())
    self.assertNotIn('clock', init(_model(targets=FEW)))

  def test_the_network_reads_the_temperature_at_the_clock_in_training_only(self):
    key = jax.random.PRNGKey(0)
    annealed = jax.jit(lambda params: self._annealed().loss_fn(params, _batch(), key)[0])
    at = lambda step: annealed({**_few_params(), 'clock': jnp.float32(step)})
    constant = _model(targets=FEW, router=dict(sampling=routing.Sampling(temperature=2.6)))
    expected = jax.jit(lambda params: constant.loss_fn(params, _batch(), key)[0])(_few_params())
    self.assertAlmostEqual(float(at(4)), float(expected), delta=1e-5 * float(expected))
    self.assertGreater(abs(float(at(0) - at(30))), 1e-2)
    evaluate = jax.jit(lambda params: self._annealed().eval_fn(params, _batch())[0])
    self.assertEqual(float(evaluate({**_few_params(), 'clock': jnp.float32(0)})),
                     float(evaluate({**_few_params(), 'clock': jnp.float32(30)})))

  def test_the_optimizer_drives_it(self):
    model, optimizer = self._annealed(), optimizers.GroupedAdamW()
    params = {**_few_params(), 'clock': jnp.zeros(())}
    state = optimizer.init_state(params)

    @jax.jit
    def step(params, state, key):
      grads = jax.grad(lambda p: model.loss_fn(p, _batch(), key)[0])(params)
      return *optimizer.apply_gradient(optimizer.hyper_params, params, state, grads), grads['clock']

    for n in range(1, 4):
      params, state, gradient = step(params, state, jax.random.PRNGKey(n))
      self.assertEqual((float(params['clock']), float(gradient)), (n, 0.))


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

  def test_checkpoints_of_other_tasks_are_refused_unless_allowed(self):
    model = _model()
    model.check_checkpoint_metadata(model.checkpoint_metadata())
    other = {'task_index': {'tasks': ['a', 'b', 'x']}}
    with self.assertRaisesRegex(ValueError, 'run/checkpoint_3 was trained with another TaskIndex.*only there: x'):
      model.check_checkpoint_metadata(other, 'run/checkpoint_3')
    _model(other_tasks=True).check_checkpoint_metadata(other, 'run/checkpoint_3')

  def test_a_base_may_have_been_pretrained_on_other_tasks(self):
    base = _model(adapter=False).checkpoint_metadata()
    self.assertIsNone(base['adapter'])
    _model().check_checkpoint_metadata({**base, 'task_index': {'tasks': ['gap_filling']}})

  def test_checkpoints_of_other_skills_are_refused(self):
    """Parameters of the same shapes would compute something else."""
    model = _model()
    metadata = model.checkpoint_metadata()
    kept = metadata['adapter']['inventory']
    self.assertEqual(kept, {'kind': 'LoRA', 'rank': 4, 'alpha': 1.0, 'mixing': 'group_factors'})
    metadata['adapter']['inventory'] = {**kept, 'mixing': 'products'}
    with self.assertRaisesRegex(ValueError, "checkpoint_3 has skills with mixing = 'products', and this run mixing = 'group_"):
      model.check_checkpoint_metadata(metadata, 'run/checkpoint_3')
    del metadata['adapter']  # As in checkpoints that do not tell.
    model.check_checkpoint_metadata(metadata)

  def test_checkpoints_of_another_routing_are_refused(self):
    model = _model()
    metadata = model.checkpoint_metadata()
    router = metadata['adapter']['router']
    router['sampling']['noise'] = 'task'  # How it trains may change.
    model.check_checkpoint_metadata(metadata)
    router['specific'] = 'gumbel'
    with self.assertRaisesRegex(ValueError, "checkpoint_3 has a router with specific = 'gumbel', and this run specific = 'lea"):
      model.check_checkpoint_metadata(metadata, 'run/checkpoint_3')
    _model(other_tasks=True).check_checkpoint_metadata(metadata)


if __name__ == '__main__':
  absltest.main()
