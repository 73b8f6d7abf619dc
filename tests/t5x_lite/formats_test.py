"""Tests of checkpoints in the formats of other packages, and of what reading takes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoint_testing  # pylint: disable=g-import-not-at-top
from t5x import array_reader
from t5x import checkpoint_reader
from t5x import checkpoints
from t5x import restore


class _Tensor:
  """A tensor of the other format."""

  def __init__(self, value):
    self._value, self.shape, self.dtype, self.read_parts = value, value.shape, value.dtype, []

  def read(self, index=(), dtype=None):
    self.read_parts.append(index)
    return self._value[index].astype(dtype or self.dtype)


class _Entry:
  """An installed reader of files named `weights.other`."""

  name = 'other'

  def __init__(self, tensors):
    self.tensors = tensors

  def load(self):
    return lambda path: self.tensors if os.path.exists(os.path.join(path, 'weights.other')) else None


class OtherFormatTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path, self.empty = os.path.join(folder, 'base'), os.path.join(folder, 'empty')
    os.mkdir(self.path)
    os.mkdir(self.empty)
    open(os.path.join(self.path, 'weights.other'), 'w').close()
    state = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False)).from_scratch(jax.random.PRNGKey(1))
    self.values = {name.removeprefix('target/'): value for name, value in checkpoint_testing.flat(state).items()
                   if name.startswith('target/')}
    self.tensors = {name: _Tensor(value.astype(jnp.bfloat16)) for name, value in self.values.items()}
    entries = importlib.metadata.entry_points
    self.enterContext(mock.patch.object(
        importlib.metadata, 'entry_points',
        lambda **kw: [_Entry(self.tensors)] if kw.get('group') == 't5x.checkpoint_formats' else entries(**kw)))

  def _start(self, path, **settings):
    cfg, paths = restore.get_first_valid_restore_config_and_paths(
        [restore.RestoreCheckpointConfig(path='/absent/model_dir'), restore.RestoreCheckpointConfig(path=path, **settings)])
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    return restore.create_checkpoint_manager_and_restore(
        init, checkpoint_testing.partitioner(), cfg, paths[0], jax.random.PRNGKey(0), use_orbax=True)

  @parameterized.parameters('specific', 'latest')
  def test_is_a_base_like_any_other(self, mode):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      state, manager = self._start(self.path, mode=mode, fallback_to_scratch=True, dtype='float32')
    found = checkpoint_testing.flat(state)
    for name, value in self.values.items():
      self.assertEqual(found[f'target/{name}'].dtype, np.float32)
      np.testing.assert_array_equal(found[f'target/{name}'], value.astype(jnp.bfloat16).astype(np.float32), err_msg=name)
    self.assertEqual(int(state.step), 0)
    self.assertEqual(manager.base_reference.path, self.path)
    self.assertCountEqual(manager.base_reference.sources.values(), [f'target/{name}' for name in self.values])
    count = sum(value.size for value in self.values.values())
    # The optimizer state is new, and so is not read; the step is.
    arrays = len(self.values) + 1
    self.assertIn(f'Reading {self.path} (other): {arrays} arrays, {count:,} parameters, bfloat16\n', out.getvalue())

  def test_load_without_a_model(self):
    state = checkpoints.load_t5x_checkpoint(self.path, lazy_parameters=True)
    self.assertEqual(int(state['state']['step'].get()), 0)
    leaf = state['target']['encoder']['norm']['scale']
    self.assertEqual((leaf.shape, leaf.dtype, leaf.kind), ((8,), jnp.bfloat16, 'other'))
    self.assertEmpty(self.tensors['encoder/norm/scale'].read_parts)
    self.assertEqual(leaf.astype(np.float32).get().dtype, np.float32)

  def test_parameters_of_another_shape_are_told_with_both(self):
    self.tensors['encoder/norm/scale'] = _Tensor(np.zeros(9, np.float32))
    with self.assertRaisesRegex(ValueError, r'target/encoder/norm/scale is \(9,\) there and \(8,\) in the model'):
      self._start(self.path, mode='specific', fallback_to_scratch=True)

  def test_what_no_reader_knows(self):
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, r'no reader of other formats \(.*other.*\) knows it'):
      checkpoint_reader.open_checkpoint(self.empty)
    with self.assertRaisesRegex(FileNotFoundError, 'There is no checkpoint in'):
      self._start(self.empty, mode='latest')
    self.assertIsNone(checkpoint_reader.open_other_format(os.path.join(self.empty, 'absent')))

  def test_errors_of_a_reader_are_told_as_they_are(self):
    self.tensors = mock.Mock()
    self.tensors.items.side_effect = ValueError('the header is cut')
    with self.assertRaisesRegex(ValueError, '^the header is cut$') as caught:
      checkpoint_reader.open_checkpoint(self.path)
    self.assertNotIsInstance(caught.exception, checkpoints.CheckpointReadError)

  def test_each_shard_is_read_once(self):
    devices = np.array(jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ('x',)), jax.sharding.PartitionSpec())
    array = checkpoint_reader.StoredArray('target/a', 'p', tensor=(tensor := _Tensor(np.arange(6.).reshape(2, 3))))
    read = array_reader.read_arrays({'a': (array, sharding, np.dtype(np.float32))})
    np.testing.assert_array_equal(read['a'], np.arange(6.).reshape(2, 3))
    self.assertLen(tensor.read_parts, 1)


class BlocksTest(parameterized.TestCase):

  @parameterized.product(index=((), (slice(3, 17),), (slice(0, 20), slice(2, 5)), (slice(4, 5),)), block=(1, 200, 2**20),
                         dtype=(None, np.float64))
  def test_the_same_values(self, index, block, dtype):
    value = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    store = ts.open({'driver': 'zarr', 'kvstore': 'memory://', 'metadata': {'chunks': [6, 4]}}, dtype=ts.float32, shape=[20, 7],
                    create=True, open=True).result()
    store[...] = value
    with mock.patch.object(array_reader, '_BLOCK_BYTES', block):
      read = array_reader.read_blocks(store, index, dtype)
    np.testing.assert_array_equal(read, value[index])
    self.assertEqual(read.dtype, dtype or np.float32)

  def test_a_scalar(self):
    store = ts.array(np.float32(3))
    self.assertEqual(float(array_reader.read_blocks(store, (), None)), 3)


class BudgetTest(absltest.TestCase):

  def test_threads_never_hold_more_than_the_limit(self):
    budget, lock, held, seen = array_reader._Budget(10), threading.Lock(), [0], []

    def work(size):
      for _ in range(20):
        with budget.holding(size):
          with lock:
            held[0] += size
            seen.append(held[0])
          with lock:
            held[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 7, 4, 3, 1)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(timeout=60)
    self.assertLen(seen, 100)
    self.assertLessEqual(max(seen), 10)

  def test_what_failed_gives_back_what_it_held(self):
    budget = array_reader._Budget(10)
    with self.assertRaises(KeyError), budget.holding(10):
      raise KeyError
    with budget.holding(10):
      pass


class OwnedTest(absltest.TestCase):

  def test_a_restored_array_is_not_the_memory_of_the_host(self):
    raw = np.zeros(2**16, np.float32)
    aligned = raw[(-raw.ctypes.data % 64) // 4:][:2**15]
    array = array_reader._put(aligned, jax.devices()[0])
    aligned[0] = 7
    self.assertEqual(float(array[0]), 0)


if __name__ == '__main__':
  absltest.main()
