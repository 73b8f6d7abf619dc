"""Tests for trainer: golden runs, the loop, frozen parameters, microbatches and sharding."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized
from clu import values as clu_values
from cpoly_jax import testing
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x import adafactor
from t5x import metrics as metrics_lib
from t5x import optimizers
from t5x import partitioning
from t5x import state_utils
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib
from tests.t5x_lite import eight_devices
from tests.t5x_lite import small_t5


def _golden_model():
  return small_t5.model(num_encoder_layers=2, num_decoder_layers=2)


def _is_scale(name):
  return name.endswith('/scale')


class ScalesOnly(optimizers.OptaxWrapper):
  """Trains the scales of the layer norms."""

  def trainable_mask(self, params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'scale', params)


def _scales_by_multi_transform():
  def labels(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: 'train' if path[-1].key == 'scale' else 'freeze', params)
  return optimizers.OptaxWrapper(optax.multi_transform(
      {'train': optax.adamw(1e-3), 'freeze': optax.set_to_zero()}, labels))


def _scales_by_multi_optimizer():
  return optimizers.MultiOptimizer((
      (traverse_util.ModelParamTraversal(lambda path, _: _is_scale(path)), adafactor.Adafactor()),))


def _records(trainer):
  """Collects (step, loss) of each step on the host, after the run."""
  records = []
  trainer.on_step = lambda step, metrics: records.append((step, metrics['loss']))
  return records


def _loss(metric):
  return float(metric.replace_steps(1).compute())


class GoldenTest(parameterized.TestCase):
  """Twenty steps recorded with T5X."""

  @parameterized.named_parameters(
      ('a', 'a_adafactor_default', adafactor.Adafactor),
      ('a_microbatches', 'a_adafactor_default_2_microbatches', adafactor.Adafactor),
      ('a2', 'a2_adafactor_factored',
       functools.partial(adafactor.Adafactor, min_dim_size_to_factor=16)),
      ('a3', 'a3_adafactor_momentum_decay', functools.partial(
          adafactor.Adafactor, min_dim_size_to_factor=16, beta1=0.9, weight_decay_rate=0.01,
          multiply_by_parameter_scale=False, clipping_threshold=0.5)),
      ('a4', 'a4_adafactor_preset_factor_rules', lambda: adafactor.Adafactor(
          min_dim_size_to_factor=16,
          logical_factor_rules=adafactor.standard_logical_factor_rules())),
      ('b', 'b_adamw', lambda: optimizers.adamw(learning_rate=1e-3)),
      ('c', 'c_multi_transform_scales_only', _scales_by_multi_transform),
      ('c_trainable_subtree', 'c_multi_transform_scales_only',
       lambda: ScalesOnly(optax.adamw(1e-3))),
      ('d', 'd_multioptimizer_scales_only', _scales_by_multi_optimizer),
  )
  def test_run(self, name, make_optimizer):
    folder = testing.shared_data('golden/training')
    golden = json.loads((folder / 'runs.json').read_text())['runs'][name]
    params = state_utils.unflatten_state_dict(dict(np.load(
        testing.shared_data('golden/network') / 'params_t5_1_1.npz', allow_pickle=False)))
    data = np.load(folder / 'batches.npz', allow_pickle=False)
    batches = [{k: data[k][i] for k in data.files} for i in range(20)]

    trainer = small_t5.make_trainer(
        _golden_model(), make_optimizer(), params, num_microbatches=golden['num_microbatches'])
    trainer.compile_train(batches[0])
    records = _records(trainer)
    trainer.train(iter(batches), 20).result()

    self.assertEqual([step for step, _ in records], list(range(1, 21)))
    np.testing.assert_allclose([_loss(metric) for _, metric in records], golden['loss'], atol=5e-4)
    state = state_utils.flatten_state_dict(trainer.train_state.state_dict())
    self.assertEqual(int(state['state/step']), golden['final_step'])
    before = state_utils.flatten_state_dict({'target': params})
    changed = 0
    for key, digest in golden['param_digest_after_step_20'].items():
      value = np.asarray(state[f'target/{key}'], np.float64)
      changed += not np.array_equal(value, before[f'target/{key}'])
      np.testing.assert_allclose(value.mean(), digest['mean'], atol=2e-6, err_msg=key)
      np.testing.assert_allclose(value.std(), digest['std'], atol=2e-6, err_msg=key)
      np.testing.assert_allclose(np.linalg.norm(value), digest['l2'], rtol=1e-5, err_msg=key)
    self.assertEqual(changed, golden['number_of_changed_tensors'])
    final = folder / f'final_params_{name}.npz'
    if final.exists():
      for key, value in np.load(final, allow_pickle=False).items():
        np.testing.assert_allclose(state[f'target/{key}'], value, atol=2e-5, err_msg=key)
    if name == 'c_multi_transform_scales_only' and isinstance(
        trainer.train_state._optimizer.optimizer_def, ScalesOnly):
      return  # the same moments under shorter names
    kept = {k for k, v in state.items() if k.startswith('state/') and v is not None}
    self.assertEqual(kept, set(golden['state_digest_after_step_20']))
    self.assertEqual(
        {k for k, v in state.items() if v is None}, set(golden['state_keys_none']))
    for key, digest in golden['state_digest_after_step_20'].items():
      np.testing.assert_allclose(
          np.linalg.norm(np.asarray(state[key], np.float64)), digest['l2'], rtol=1e-4,
          err_msg=key)


class LoopTest(parameterized.TestCase):

  def test_metrics_summary_and_event_files(self):
    with tempfile.TemporaryDirectory() as folder:
      with small_t5.make_trainer(
          small_t5.model(), optimizers.sgd(0.0), summary_dir=folder,
          eval_names=['task']) as trainer:
        batches = small_t5.batches(3)
        trainer.compile_train(batches[0])
        trainer.compile_eval({'task': batches[0]})
        summary = trainer.train(iter(batches), 3).result()
        evaluated = trainer.eval({'task': iter(batches)})['task']
      self.assertIsInstance(summary['loss'], clu_values.Scalar)
      # Without dropout and learning, training and evaluation see the same losses.
      np.testing.assert_allclose(summary['loss'].value, evaluated['loss'].value, rtol=1e-5)
      self.assertAlmostEqual(float(summary['learning_rate'].value), 1e-3, places=8)
      self.assertAlmostEqual(float(summary['learning_rate/current'].value), 1e-3, places=8)
      self.assertEqual(float(summary['timing/seqs'].value), 24)
      np.testing.assert_allclose(
          summary['timing/steps_per_second'].value * summary['timing/seconds'].value, 3, rtol=1e-4)
      for name, extra in (
          ('train', {'timing/uptime', 'learning_rate'}), ('training_eval/task', set())):
        self.assertLessEqual(
            {'loss', 'accuracy', 'timing/compilation_seconds'} | extra,
            _tags(os.path.join(folder, name)))

  def test_learning_rate_is_averaged_over_steps_and_follows_the_step(self):
    trainer = _linear_trainer(optimizers.sgd(0.0), lambda step: 0.1 * (step + 1))
    summary = trainer.train(_linear_batches(3), 3).result()
    self.assertAlmostEqual(float(summary['learning_rate'].value), 0.2, places=6)
    self.assertAlmostEqual(float(summary['learning_rate/current'].value), 0.3, places=6)

  @parameterized.parameters(False, True)
  def test_a_resumed_run_is_the_same_run(self, compiled):
    whole, resumed = (
        _linear_trainer(optimizers.adam(lambda step: 0.1 / (step + 1))) for _ in range(2))
    whole_records, resumed_records = _records(whole), _records(resumed)
    if compiled:
      whole.compile_train(next(_linear_batches(1)))
    batches = _linear_batches(4)
    whole.train(batches, 2)
    saved = jax.device_get(whole.train_state.state_dict())
    whole.train(batches, 2)
    resumed.train_state = resumed.train_state.restore_state(saved)
    batches = _linear_batches(4)
    next(batches), next(batches)  # made before
    resumed.train(batches, 2, start_step=2)
    self.assertEqual([(step, _loss(m)) for step, m in whole_records[2:]],
                     [(step, _loss(m)) for step, m in resumed_records])
    np.testing.assert_array_equal(whole.train_state.params['w'], resumed.train_state.params['w'])

  def test_each_step_has_its_own_key(self):
    trainer = _linear_trainer(optimizers.sgd(0.0))
    records = _records(trainer)
    batch = next(_linear_batches(1))
    trainer.train(iter([batch] * 3), 3)
    self.assertLen({_loss(m) for _, m in records}, 3)

  def test_one_compilation_and_donated_state(self):
    trainer = _linear_trainer(adafactor.Adafactor())
    trainer.compile_train({k: jax.ShapeDtypeStruct(v.shape, v.dtype)
                           for k, v in next(_linear_batches(1)).items()})
    self.assertGreater(trainer.train_step_compiled.cost_analysis()['flops'], 0)
    self.assertGreater(trainer.train_step_compiled.memory_analysis().alias_size_in_bytes, 0)
    before = trainer.train_state.params['w']
    trainer.train(_linear_batches(3), 3)
    self.assertTrue(before.is_deleted())
    self.assertEqual(trainer._partitioned_train_step._jitted_fn._cache_size(), 0)
    lazy = _linear_trainer(adafactor.Adafactor())
    lazy.train(_linear_batches(3), 3)
    self.assertEqual(lazy._partitioned_train_step._jitted_fn._cache_size(), 1)
    np.testing.assert_array_equal(lazy.train_state.params['w'], trainer.train_state.params['w'])

  def test_stopping_early(self):
    trainer = _linear_trainer(optimizers.sgd(0.0))

    def stop(step, metrics):
      trainer.stop_training = step == 2

    trainer.on_step = stop
    summary = trainer.train(_linear_batches(4), 4).result()
    self.assertEqual(int(trainer.train_state.step), 2)
    self.assertEqual(float(summary['seqs'].value), 16)

  def test_data_that_ends_is_an_error(self):
    trainer = _linear_trainer(optimizers.sgd(0.0))
    with self.assertRaisesRegex(ValueError, 'ended before step 3'):
      trainer.train(_linear_batches(2), 3)
    self.assertEqual(int(trainer.train_state.step), 2)
    with self.assertRaisesRegex(ValueError, 'No evaluation batch for task'):
      trainer.eval({'task': iter([])})


class _Linear:
  """Least squares with noise that shows the key."""

  def loss_fn(self, params, batch, rng):
    noise = 0.0 if rng is None else jax.random.normal(rng, batch['y'].shape)
    loss = jnp.sum(jnp.square(batch['x'] @ params['w'] - batch['y'] + noise))
    return loss, {'loss': metrics_lib.AveragePerStep.from_model_output(loss),
                  'seqs': metrics_lib.Sum.from_model_output(jnp.float32(batch['y'].shape[0]))}

  def eval_fn(self, params, batch):
    return self.loss_fn(params, batch, None)


def _linear_batches(number):
  """Yields {x [8, 3], y [8]}."""
  rng = np.random.default_rng(0)
  for _ in range(number):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    yield {'x': x, 'y': x.sum(1)}


def _linear_trainer(definition, learning_rate_fn=lambda step: 1e-3):
  state = train_state_lib.FlaxOptimTrainState.create(definition, {
      'params': {'w': jnp.ones(3)},
      'params_axes': {'w_axes': flax_partitioning.AxisMetadata(('embed',))}})
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  return trainer_lib.Trainer(
      _Linear(), state, partitioner, ['task'], None, partitioner.get_mesh_axes(state),
      jax.random.PRNGKey(1), learning_rate_fn, num_microbatches=None)


def _tags(folder):
  """Returns the tags of the event files in a folder."""
  import tensorflow as tf
  tags = set()
  for name in os.listdir(folder):
    if name.startswith('events.'):
      for event in tf.compat.v1.train.summary_iterator(os.path.join(folder, name)):
        tags |= {value.tag for value in event.summary.value}
  return tags


class FrozenTest(parameterized.TestCase):

  @parameterized.parameters(None, 2)
  def test_no_gradient_for_frozen_parameters(self, num_microbatches):
    t5, batches = small_t5.model(), small_t5.batches(2)
    params = jax.tree.map(np.asarray, small_t5.variables(t5)['params'])
    full = small_t5.make_trainer(
        t5, optimizers.adam(1e-3), params, num_microbatches=num_microbatches)
    frozen = small_t5.make_trainer(
        t5, ScalesOnly(optax.adam(1e-3)), params, num_microbatches=num_microbatches)
    for trainer in (full, frozen):
      trainer.compile_train(batches[0])
    frozen.train(iter(batches), 2).result()
    for name, value in state_utils.flatten_state_dict(frozen.train_state.params).items():
      same = np.array_equal(value, state_utils.flatten_state_dict(params)[name])
      self.assertEqual(same, not _is_scale(name), name)
    # Weight gradients are a third of the work; adapters need but a little of it.
    flops = [trainer.train_step_compiled.cost_analysis()['flops'] for trainer in (frozen, full)]
    self.assertLess(flops[0], 0.85 * flops[1])

  def test_frozen_parameters_may_be_of_other_dtypes(self):
    t5 = small_t5.model()
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == 'scale' else x.astype(jnp.bfloat16),
        small_t5.variables(t5)['params'])
    trainer = small_t5.make_trainer(t5, ScalesOnly(optax.adam(1e-3)), params)
    trainer.train(iter(small_t5.batches(2)), 2).result()
    state = trainer.train_state
    self.assertEqual(state.params['token_embedder']['embedding'].dtype, jnp.bfloat16)
    self.assertEqual(state.params['encoder']['encoder_norm']['scale'].dtype, jnp.float32)


class MicrobatchTest(parameterized.TestCase):

  @parameterized.parameters(1, 4)
  def test_equals_the_full_batch(self, n):
    t5, batch = small_t5.model(), small_t5.batches(1)[0]
    state = train_state_lib.FlaxOptimTrainState.create(optimizers.sgd(0.1), small_t5.variables(t5))
    grad = functools.partial(trainer_lib.accumulate_grads_microbatched, t5, state, batch, None)
    (grads, metrics, _), (expected, expected_metrics, _) = jax.jit(lambda: (grad(n), grad(None)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, expected)
    self.assertEqual({x.dtype for x in jax.tree.leaves(grads)}, {jnp.dtype('float32')})
    self.assertEqual(set(metrics), set(expected_metrics))
    self.assertAlmostEqual(_loss(metrics['loss']) / _loss(expected_metrics['loss']), 1, places=5)

  def test_indivisible_batches_are_refused(self):
    trainer = small_t5.make_trainer(small_t5.model(), optimizers.sgd(0.1), num_microbatches=3)
    with self.assertRaisesRegex(ValueError, 'num_microbatches=3 does not divide the batch size 8'):
      trainer.compile_train(small_t5.batches(1)[0])

  @parameterized.parameters(None, 2)
  def test_mutable_collections(self, num_microbatches):
    class Counting:
      """Counts examples in a mutable collection."""

      def loss_fn(self, params, batch, rng, flax_mutables):
        loss = jnp.sum(params['w'] * batch['x'])
        counts = {'counts': {'n': flax_mutables['counts']['n'] + batch['x'].shape[0]}}
        return loss, ({'loss': metrics_lib.Sum.from_model_output(loss)}, counts)

      def eval_fn(self, params, batch, flax_mutables):
        return self.loss_fn(params, batch, None, flax_mutables)

    state = train_state_lib.FlaxOptimTrainState.create(
        optimizers.sgd(1.0), {'params': {'w': jnp.zeros(())}, 'counts': {'n': jnp.int32(0)}})
    batch = {'x': jnp.arange(4.0)}
    new, metrics = trainer_lib.train_with_lr(
        state, batch, 0.1, jax.random.PRNGKey(0), Counting(), num_microbatches)
    self.assertEqual(int(new.flax_mutables['counts']['n']), 4)
    self.assertEqual(float(new.params['w']), -6.0)
    self.assertEqual(
        float(trainer_lib.eval_step(Counting(), new, batch)['loss'].compute()), -36.0)


class MetricsManagerTest(absltest.TestCase):

  def test_the_timer_must_be_started(self):
    manager = trainer_lib.MetricsManager('train')
    with self.assertRaisesRegex(ValueError, 'start_duration_timer'):
      manager.write_metrics_summary({}, 1, 1)
    manager.close()

  def test_errors_in_the_background_reach_the_caller(self):
    manager = trainer_lib.MetricsManager('train')
    manager.start_duration_timer()
    future = manager.write_metrics_summary({'x': jnp.zeros(())}, 1, 1)  # no metric
    with self.assertRaises(AttributeError):
      future.result()
    with self.assertRaises(AttributeError):
      manager.close()


@unittest.skipUnless(jax.device_count() == 8, 'needs eight devices; InOwnProcessTest runs it')
class EightDevices(parameterized.TestCase):

  def _run(self, partitioner, make_optimizer, num_microbatches):
    t5 = small_t5.model()
    params = jax.tree.map(np.asarray, small_t5.variables(t5)['params'])
    trainer = small_t5.make_trainer(
        t5, make_optimizer(), params, partitioner, num_microbatches=num_microbatches)
    records = _records(trainer)
    batches = small_t5.batches(3, batch_size=16)
    trainer.compile_train(batches[0])
    trainer.train(iter(batches), 3)
    return trainer, [_loss(m) for _, m in records]

  @parameterized.parameters(('adamw', None, (1, 4)), ('adafactor', 2, (4,)), ('frozen', None, (4,)))
  def test_sharded_equals_unsharded(self, optimizer, num_microbatches, partitions):
    make = {
        'adamw': lambda: optimizers.adamw(1e-3),
        'adafactor': lambda: adafactor.Adafactor(min_dim_size_to_factor=16),
        'frozen': lambda: ScalesOnly(optax.adam(1e-3)),
    }[optimizer]
    single = partitioning.PjitPartitioner(num_partitions=1)
    single._mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ('data', 'model'))
    expected, expected_losses = self._run(single, make, num_microbatches)
    for num_partitions in partitions:
      trainer, losses = self._run(
          partitioning.PjitPartitioner(num_partitions=num_partitions), make, num_microbatches)
      kernel = trainer.train_state.params['encoder']['layers_0']['mlp']['wi_0']['kernel']
      self.assertEqual(kernel.addressable_shards[0].data.shape, (32, 64 // num_partitions))
      np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
                   trainer.train_state.params, expected.train_state.params)


class InOwnProcessTest(absltest.TestCase):

  @unittest.skipIf(jax.device_count() == 8, 'this is that process')
  def test_eight_devices(self):
    eight_devices.run(self, __file__, JAX_DISABLE_MOST_OPTIMIZATIONS='1')


if __name__ == '__main__':
  absltest.main()
