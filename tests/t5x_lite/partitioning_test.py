"""Tests for partitioning; those that need eight devices run in a process of their own."""

from __future__ import annotations

import functools
import types
import unittest

from absl.testing import absltest
from absl.testing import parameterized
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from t5x import optimizers
from t5x import partitioning
from t5x import train_state
from tests.t5x_lite import eight_devices


def _state(shape=(8, 16), names=('embed', 'mlp'), definition=None):
  variables = {
      'params': {'w': jnp.ones(shape)},
      'params_axes': {'w_axes': flax_partitioning.AxisMetadata(names)}}
  return train_state.FlaxOptimTrainState.create(definition or optimizers.adam(0.1), variables)


def _with_devices(partitioner, processes):
  """Gives a partitioner a mesh of made-up devices with the process numbers [data, model]."""
  devices = np.empty(np.shape(processes), object)
  for index, process in np.ndenumerate(np.asarray(processes)):
    devices[index] = types.SimpleNamespace(process_index=int(process))
  partitioner._mesh = types.SimpleNamespace(
      devices=devices, shape={'data': devices.shape[0], 'model': devices.shape[1]})
  return partitioner


class RulesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('neither', 1, 1, [('embed', None)]),
      ('activations', 2, 1, [('embed', 'model')]),
      ('parameters', 1, 2, [('embed', 'data')]),
      ('both', 2, 2, [('embed', 'model'), ('embed', 'data')]),
  )
  def test_embed(self, activations, parameters, expected):
    rules = partitioning.standard_logical_axis_rules(activations, parameters, [('skill', None)])
    self.assertEqual([rule for rule in rules if rule[0] == 'embed'], expected)
    self.assertEqual(rules[-1], ('skill', None))
    for name in ('vocab', 'mlp', 'heads', 'joined_kv'):
      self.assertIn((name, 'model'), rules)
    self.assertIn(('batch', 'data'), rules)

  def test_parameters_over_both_axes(self):
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=partitioning.standard_logical_axis_rules(2, 2))
    self.assertEqual(partitioner.get_mesh_axes(_state()).params['w'], P('data', 'model'))

  def test_unknown_names_and_mesh_axes_are_refused(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    with self.assertRaisesRegex(ValueError, r"target/w: no rule.* 'skill'.*\('skill', None\)"):
      partitioner.get_mesh_axes(_state(names=('skill', 'mlp')))
    with self.assertRaisesRegex(ValueError, "'mlp', 'tensor'"):
      partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=[('mlp', 'tensor')])
    with self.assertRaisesRegex(ValueError, 'must be 1 or 2'):
      partitioning.standard_logical_axis_rules(3, 1)


class MeshTest(absltest.TestCase):

  def test_bad_sizes_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'=3 does not divide the \d devices; use one of \[1'):
      _ = partitioning.PjitPartitioner(num_partitions=3).mesh
    with self.assertRaisesRegex(ValueError, 'needs num_partitions'):
      partitioning.PjitPartitioner()
    with self.assertRaisesRegex(ValueError, 'contradicts'):
      partitioning.PjitPartitioner(num_partitions=2, model_parallel_submesh=(2, 2, 1, 1))
    with self.assertRaisesRegex(ValueError, 'pairs whose product'):
      _ = partitioning.PjitPartitioner(ici_mesh_shape=(3, 5)).mesh
    with self.assertRaisesRegex(ValueError, 'needs ici_mesh_shape'):
      _ = partitioning.PjitPartitioner(num_partitions=1, dcn_mesh_shape=(1, 1)).mesh


class DataLayoutTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # (process of each device [data, model], expected (shard_id, num_shards, first) by process)
      ('one_process', [[0, 0], [0, 0]], [(0, 1, True)]),
      ('data_over_processes', [[0], [0], [1], [1]], [(0, 2, True), (1, 2, True)]),
      ('model_over_processes', [[0, 1], [2, 3]],
       [(0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)]),
      ('model_over_all', [[0, 1, 2]], [(0, 1, True), (0, 1, False), (0, 1, False)]),
  )
  def test_parts(self, processes, expected):
    partitioner = _with_devices(partitioning.PjitPartitioner(num_partitions=1), processes)
    batch_size = 4 * len(processes)
    for process, (shard, shards, first) in enumerate(expected):
      self.assertEqual(
          partitioner.get_data_layout(batch_size, process),
          partitioning.DataLayout(batch_size, shard, shards, first))

  def test_smallest_batch(self):
    partitioner = _with_devices(partitioning.PjitPartitioner(num_partitions=1), [[0], [0]])
    self.assertEqual(partitioner.get_data_layout().batch_size, 2)

  def test_indivisible_batches_are_refused(self):
    partitioner = _with_devices(partitioning.PjitPartitioner(num_partitions=1), [[0]] * 4)
    with self.assertRaisesRegex(ValueError, 'Batch size 10 is not.*multiple of 4, e.g. 8'):
      partitioner.get_data_layout(10)

  def test_uneven_processes_are_refused(self):
    partitioner = _with_devices(partitioning.PjitPartitioner(num_partitions=1), [[0], [0], [1]])
    with self.assertRaisesRegex(ValueError, 'equal parts'):
      partitioner.get_data_layout(3)


class OneDeviceTest(absltest.TestCase):

  def test_partition(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    fn = partitioner.partition(
        lambda x, n: (x * n, {'sum': x.sum()}), (P('data'),), (P('data'), None), static_argnums=1)
    x = partitioner.shard_batch(np.arange(8.0 * partitioner.data_mesh_size, dtype=np.float32))
    doubled, total = fn(x, 2)
    np.testing.assert_array_equal(doubled, 2 * np.asarray(x))
    self.assertEqual(float(total['sum']), float(np.asarray(x).sum()))
    compiled = partitioner.compile(fn, x, 2)
    np.testing.assert_array_equal(compiled(x)[0], doubled)
    self.assertIn('flops', compiled.cost_analysis())

  def test_donation(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    fn = partitioner.partition(lambda x: x + 1, (None,), None, donate_argnums=(0,))
    x = jax.device_put(jnp.ones(4), partitioner.shardings(None))
    np.testing.assert_array_equal(fn(x), 2 * np.ones(4))
    self.assertTrue(x.is_deleted())

  def test_constraint_outside_a_mesh_does_nothing(self):
    x = jnp.ones(3)
    self.assertIs(partitioning.with_sharding_constraint(x, P('data')), x)


@unittest.skipUnless(jax.device_count() == 8, 'needs eight devices; InOwnProcessTest runs it')
class EightDevices(parameterized.TestCase):

  @parameterized.named_parameters(
      ('data', {'num_partitions': 1}, (8, 1)),
      ('both', {'num_partitions': 4}, (2, 4)),
      ('model', {'num_partitions': 8}, (1, 8)),
      ('submesh', {'model_parallel_submesh': (2, 1, 1, 1)}, (4, 2)),
      ('ici', {'ici_mesh_shape': (2, 4)}, (2, 4)),
  )
  def test_mesh(self, kwargs, shape):
    mesh = partitioning.PjitPartitioner(**kwargs).mesh
    self.assertEqual((mesh.axis_names, mesh.devices.shape), (('data', 'model'), shape))
    self.assertLen(set(mesh.devices.flat), 8)

  def test_parameters_and_their_states_are_split(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=4)
    init = functools.partial(_state, definition=optimizers.adam(0.1))
    axes = partitioner.get_mesh_axes(jax.eval_shape(init))
    state = partitioner.partition(init, (), axes)()
    for array in (state.params['w'], state.param_states[0].mu['w']):
      self.assertEqual(array.sharding.spec, P(None, 'model'))
      self.assertEqual(array.addressable_shards[0].data.shape, (8, 4))
    self.assertTrue(state.step.sharding.is_fully_replicated)
    moved = partitioner.move_params_to_devices(init(), axes)
    self.assertEqual(moved.params['w'].sharding, state.params['w'].sharding)

  def test_indivisible_dimensions_are_named(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=4)
    with self.assertRaisesRegex(
        ValueError, r"target/w: dimension 1 \('mlp', size 6\).*4 devices of mesh axis 'model'"):
      partitioner.get_mesh_axes(_state((8, 6)))

  def test_batches(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=2)
    batch = partitioner.shard_batch({'x': np.arange(16).reshape(8, 2)})
    self.assertEqual(batch['x'].addressable_shards[0].data.shape, (2, 2))
    np.testing.assert_array_equal(batch['x'], np.arange(16).reshape(8, 2))
    self.assertIs(partitioner.shard_batch(batch)['x'], batch['x'])

  def test_activations_follow_the_rules(self):
    partitioner = partitioning.PjitPartitioner(num_partitions=4)
    seen = []

    def fn(x):
      y = flax_partitioning.with_sharding_constraint(x * 2, ('batch', 'mlp'))
      jax.debug.inspect_array_sharding(y, callback=seen.append)
      return y.sum()

    partitioner.partition(fn, (P('data'),), None)(jnp.ones((4, 8)))
    self.assertEqual(seen[0].spec, P('data', 'model'))


class InOwnProcessTest(absltest.TestCase):

  @unittest.skipIf(jax.device_count() == 8, 'this is that process')
  def test_eight_devices(self):
    eight_devices.run(self, __file__)


if __name__ == '__main__':
  absltest.main()
