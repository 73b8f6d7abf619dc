"""Packed rows of several tasks train as padded ones do: losses of each example and gradients of the whole model."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex, task_key
from cpoly_jax.training import features, optimizers
from cpoly_jax.training.models import CPolyModel

INDEX = TaskIndex(('a', 'b', 'c'))
TASKS = ('c', 'a', 'b', 'c', 'a')
setUpModule, tearDownModule = testing.quick_compilation()

_noise = routing.Sampling(noise='task')
# A system of each family: by task, by token, and shared by projections.
ADAPTERS = {
    'poly': dict(router=functools.partial(routing.PolyRouter, num_skills=4, sampling=_noise), mixing='factors'),
    'cpoly': dict(router=functools.partial(routing.CPolyRouter, num_common=2, num_specific=2, sampling=_noise)),
    'cpoly_of_the_model': dict(router=functools.partial(routing.CPolyRouter, sampling=_noise), granularity=adapters.MODEL),
    'cgc': dict(router=functools.partial(routing.TokenRouter, num_common=2, num_specific=1, per_task=True), mixing='products'),
}


def _model(router, mixing='group_factors', granularity=adapters.PROJECTION):
  adapter = adapters.Adapter(functools.partial(router, num_tasks=len(INDEX)), functools.partial(skills.LoRA, mixing=mixing),
                             targets='.*', granularity=granularity)
  vocabulary = seqio.ByteVocabulary()
  return CPolyModel(network.Transformer(testing.small_config(vocab_size=264), adapter), vocabulary, vocabulary,
                    optimizers.GroupedAdamW(), task_index=INDEX)


def _examples():
  rng = np.random.default_rng(5)
  lengths = [(4, 3), (6, 2), (3, 4), (9, 1), (2, 2)]
  rows = [{'inputs': rng.integers(3, 250, size=n).astype(np.int32), 'targets': rng.integers(3, 250, size=m).astype(np.int32),
           'task_id': [task_key(task)]} for (n, m), task in zip(lengths, TASKS)]
  signature = {k: tf.TensorSpec([1] if k == 'task_id' else [None], tf.int32) for k in rows[0]}
  return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


def _batch(pack):
  """All examples: five padded rows, or two packed ones of three examples and of two."""
  converter = features.converter_for(INDEX)(pack=pack)
  lengths = {'inputs': 14, 'targets': 10, 'task_id': 3}
  (batch,) = converter(_examples(), lengths).batch(5).as_numpy_iterator()
  return batch


def _losses(model, params, batch):
  """The loss of each example [N], in the order of the data."""
  logits = model._compute_logits(params, batch)
  of_token = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['decoder_target_tokens'][..., None], axis=-1)[..., 0]
  segments = batch.get('decoder_segment_ids', batch['decoder_loss_weights'])
  per_row = int(np.max(segments))
  sums = [jnp.sum(of_token * (segments == n + 1), axis=1) for n in range(per_row)]
  found = [np.any(segments == n + 1, axis=1) for n in range(per_row)]
  return jnp.stack(sums, axis=1)[np.stack(found, axis=1)]


class PackingTest(parameterized.TestCase):

  @parameterized.parameters('cpoly', 'cgc')
  def test_equals_padded(self, name):
    self._assert_equals_padded(name)

  @parameterized.parameters('poly', 'cpoly_of_the_model')
  @pytest.mark.slow
  def test_others_equal_padded(self, name):
    self._assert_equals_padded(name)

  def _assert_equals_padded(self, name):
    model = _model(**ADAPTERS[name])
    padded, packed = _batch(False), _batch(True)
    self.assertEqual(padded['encoder_input_tokens'].shape, (5, 14))
    self.assertEqual(packed['encoder_input_tokens'].shape, (2, 14))
    self.assertEqual(packed['task_id'].tolist(), [[2, 0, 1], [2, 0, 0]])
    init = lambda batch: model.get_initial_variables(
        jax.random.key(0), {k: v.shape for k, v in batch.items()}, {k: v.dtype for k, v in batch.items()})['params']
    params = testing.randomized(init(padded))

    with self.subTest('same parameters'):
      shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
      self.assertEqual(shapes(jax.eval_shape(lambda: init(packed))), shapes(params))

    with self.subTest('losses'):
      losses = [jax.jit(functools.partial(_losses, model, batch=batch))(params) for batch in (padded, packed)]
      self.assertLen(losses[0], len(TASKS))
      np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)

    with self.subTest('gradients, in training'):
      loss = lambda params, batch: model.loss_fn(params, batch, jax.random.key(7))[0]
      expected, actual = (jax.jit(jax.value_and_grad(functools.partial(loss, batch=batch)))(params)
                          for batch in (padded, packed))
      np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
      for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(expected[1])[0], jax.tree.leaves(actual[1])):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * np.abs(a).max() + 1e-6, err_msg=str(path))

  def test_tasks_without_segments_are_refused(self):
    model, batch = _model(**ADAPTERS['poly']), _batch(True)
    params = jax.eval_shape(lambda: model.get_initial_variables(
        jax.random.key(0), {k: v.shape for k, v in batch.items()}, {k: v.dtype for k, v in batch.items()})['params'])
    bare = {k: v for k, v in batch.items() if not k.endswith('segment_ids')}
    with self.assertRaisesRegex(ValueError, '6 task ids for 2 rows: rows of several examples need segment ids'):
      jax.eval_shape(lambda params: model._compute_logits(params, bare), params)


if __name__ == '__main__':
  absltest.main()
