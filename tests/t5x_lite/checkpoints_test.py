"""Tests of reading and writing checkpoints."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from cpoly_jax import testing
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoint_testing  # pylint: disable=g-import-not-at-top
from t5x import checkpoint_reader
from t5x import checkpoint_state
from t5x import checkpoints
from t5x import optimizers


def _size(folder) -> int:
  return sum(p.stat().st_size for p in pathlib.Path(folder).rglob('*') if p.is_file())


def _names(folder) -> set[str]:
  """Dotted names of the arrays of an Orbax folder, from its index."""
  index = json.loads((pathlib.Path(folder) / 'state' / '_METADATA').read_text())
  return {'.'.join(k['key'] for k in e['key_metadata']) for e in index['tree_metadata'].values()}


class GoldenTest(parameterized.TestCase):
  """Against checkpoints that T5X wrote."""

  @parameterized.parameters('legacy', 'orbax')
  def test_values_are_exact(self, kind):
    golden = testing.shared_data('golden')
    flat = checkpoint_state.flatten(checkpoints.load_t5x_checkpoint(golden / 'checkpoints' / kind / 'checkpoint_7'))
    params = np.load(golden / 'network/params_t5_1_1.npz', allow_pickle=False)
    state = np.load(golden / 'checkpoints/state_at_step_7.npz', allow_pickle=False)
    self.assertLen(flat, len(params.files) + len(state.files))
    for name in params.files:
      np.testing.assert_array_equal(flat[f'target/{name}'], params[name], err_msg=name)
    for name in state.files:
      np.testing.assert_array_equal(flat[name], state[name], err_msg=name)

  def test_bfloat16_target(self):
    golden = testing.shared_data('golden')
    flat = checkpoint_state.flatten(checkpoints.load_t5x_checkpoint(golden / 'checkpoints/legacy_bfloat16', step=7))
    params = np.load(golden / 'network/params_t5_1_1.npz', allow_pickle=False)
    for name in params.files:
      self.assertEqual(flat[f'target/{name}'].dtype, jnp.bfloat16)
      np.testing.assert_array_equal(flat[f'target/{name}'], params[name].astype(jnp.bfloat16))
    self.assertEqual(flat['state/param_states/token_embedder/embedding/v_row'].dtype, np.float32)

  def test_lazy_parameters_and_dtype(self):
    path = testing.shared_data('golden/checkpoints/orbax/checkpoint_7')
    state = checkpoints.load_t5x_checkpoint(path, restore_dtype=jnp.bfloat16, lazy_parameters=True)
    leaf = state['target']['encoder']['encoder_norm']['scale']
    self.assertIsInstance(leaf, checkpoints.LazyArray)
    self.assertEqual((leaf.shape, leaf.dtype, leaf.get().dtype), ((32,), jnp.bfloat16, jnp.bfloat16))
    self.assertEqual(state['state']['step'].dtype, np.int32)

  def test_one_file_with_inline_arrays(self):
    path = testing.shared_data('t5x_checkpoints/test_t5_tiny.checkpoint_0')
    flat = checkpoint_state.flatten(checkpoints.load_t5x_checkpoint(path))
    self.assertLen(flat, 261)
    self.assertEqual(flat['target/token_embedder/embedding'].shape, (32128, 8))

  @parameterized.parameters(('tiny_t5/checkpoint_1', '', 'gzip'), ('tiny_orbax/1', '_optimizer.', 'zstd'))
  def test_zarr_folders(self, entry, prefix, compressor):
    copy = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'checkpoint_1'
    shutil.copytree(testing.shared_data('t5x_checkpoints') / entry, copy)
    arrays = {'bias': ([5], '<f4'), 'kernel': ([10, 5], '<f8'), 'step': ([], '<i4')}
    folders = {f'{prefix}state.param_states.{k}': v for k, v in arrays.items()}
    if prefix:
      folders[f'{prefix}state.step'] = ([], '<i4')
    for folder, (shape, dtype) in folders.items():
      os.chmod(copy / folder, 0o755)
      (copy / folder / '.zarray').write_text(json.dumps({
          'zarr_format': 2, 'order': 'C', 'filters': None, 'fill_value': None, 'dimension_separator': '.',
          'dtype': dtype, 'shape': shape, 'chunks': shape, 'compressor': {'id': compressor, 'level': 1}}))
    state = checkpoints.load_t5x_checkpoint(copy)['state']
    np.testing.assert_array_equal(state['param_states']['bias'], np.ones(5, np.float32))
    self.assertEqual(state['param_states']['kernel'].shape, (10, 5))
    self.assertEqual((int(state['step']), int(state['param_states']['step'])), (1, 1))


  def test_a_missing_chunk_is_not_read_as_zeros(self):
    copy = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'checkpoint_7'
    shutil.copytree(testing.shared_data('golden/checkpoints/legacy/checkpoint_7'), copy, copy_function=shutil.copyfile)
    folder = copy / 'target.token_embedder.embedding'
    folder.chmod(0o755)
    (folder / '0.0').unlink()
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, "'target/token_embedder/embedding' of .*corrupt"):
      checkpoints.load_t5x_checkpoint(copy)


class PathsTest(parameterized.TestCase):

  def test_steps(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for name in ('checkpoint_10', 'checkpoint_9', 'checkpoint_11.tmp-1', 'checkpoint_12.orbax-checkpoint-tmp', 'x'):
      os.makedirs(os.path.join(folder, name))
    self.assertEqual(checkpoints.all_steps(folder), [9, 10])
    self.assertEqual(checkpoints.latest_step(folder), 10)
    self.assertIsNone(checkpoints.latest_step(os.path.join(folder, 'absent')))
    path = checkpoints.get_checkpoint_dir('/a', 7)
    self.assertEqual(path, '/a/checkpoint_7')
    self.assertEqual(checkpoints.get_step_from_checkpoint_dir(path), ('/a', 7))
    self.assertEqual(checkpoints.normalize_path('/a/checkpoint_7/checkpoint'), '/a/checkpoint_7')

  def test_wrong_paths(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(FileNotFoundError, 'no checkpoint at .*absent'):
      checkpoints.load_t5x_checkpoint(os.path.join(folder, 'absent'))
    with self.assertRaisesRegex(ValueError, 'restore path is empty'):
      checkpoints.load_t5x_checkpoint('')
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'not a checkpoint'):
      checkpoints.load_t5x_checkpoint(folder)

  def test_unreachable_bucket(self):
    def never_answers():
      raise RuntimeError('no network')

    with self.assertRaisesRegex(FileNotFoundError, 'cannot reach gs://b/x: check the network and credentials'):
      checkpoint_reader._with_deadline(never_answers, 'gs://b/x')


class DigestTest(parameterized.TestCase):

  def test_precision_does_not_matter_but_values_names_and_shapes_do(self):
    values = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    digest = checkpoints.digest({'a': jnp.asarray(values)})
    self.assertEqual(digest, checkpoints.digest({'a': jnp.asarray(values, jnp.bfloat16)}))
    self.assertEqual(digest, checkpoints.digest({'a': values}))
    self.assertNotEqual(digest, checkpoints.digest({'b': values}))
    self.assertNotEqual(digest, checkpoints.digest({'a': values.T}))
    changed = values.copy()
    changed[-1, -1] += 1
    self.assertNotEqual(digest, checkpoints.digest({'a': changed}))
    self.assertIsNone(checkpoints.digest({'a': values.astype(np.float16)}))


class OrbaxManagerTest(parameterized.TestCase):

  def _manager(self, initializer, folder, **kwargs):
    return checkpoints.OrbaxCheckpointManagerInterface(
        folder, initializer.global_train_state_shape, checkpoint_testing.partitioner(), **kwargs)

  def test_round_trip_of_a_state_that_trains_on(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(optimizers.adamw(1e-2))
    state = checkpoint_testing.train(init.from_scratch(jax.random.PRNGKey(0)), 2)
    expected = {k: v.copy() for k, v in checkpoint_testing.flat(state).items()}
    manager = self._manager(init, folder)
    self.assertTrue(manager.save(state))
    # The next step may take the buffers that are still being written.
    checkpoint_testing.train(state, 3, copy=False)
    manager.wait_until_finished()
    restored = checkpoint_testing.flat(manager.restore())
    self.assertEqual(manager.all_steps(), [2])
    self.assertIsNone(manager.base_reference)
    self.assertEqual(restored.keys(), expected.keys())
    for name, value in expected.items():
      self.assertEqual(restored[name].dtype, value.dtype, name)
      np.testing.assert_array_equal(restored[name], value, err_msg=name)
    self.assertEqual(restored['state/step'], 2)
    manager.close()

  def test_layout_is_t5x_s(self):
    golden = testing.shared_data('golden/checkpoints/orbax/checkpoint_7')
    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(None)
    manager = self._manager(init, folder)
    manager.save(init.from_scratch(jax.random.PRNGKey(0)))
    manager.close()
    mine = pathlib.Path(folder) / 'checkpoint_0'
    self.assertEqual(_names(mine), {f'target.{n.replace("/", ".")}' for n in checkpoint_testing.BASE +
                                    checkpoint_testing.SKILLS} | {'state.step'})
    self.assertContainsSubset({n.name for n in golden.iterdir()} - {'dataset', 'commit_success.txt'},
                              {n.name for n in mine.iterdir()})
    theirs = json.loads((golden / 'state/_METADATA').read_text())
    ours = json.loads((mine / 'state/_METADATA').read_text())
    self.assertEqual({k: v for k, v in ours.items() if k != 'tree_metadata'},
                     {k: v for k, v in theirs.items() if k != 'tree_metadata'})

  def test_keep_period_and_steps(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(None)
    state = init.from_scratch(jax.random.PRNGKey(0))
    manager = self._manager(init, folder, keep=2, period=10, checkpoint_steps=[3], force_keep_period=20)
    self.assertEqual([s for s in range(1, 31) if manager.should_save(s)], [3, 10, 20, 30])
    at = lambda step: state.replace_step(jnp.int32(step))
    self.assertFalse(manager.save(at(4), force=False))
    for step in (3, 10, 20, 30, 40, 45):
      self.assertTrue(manager.save(at(step), force=True))
    self.assertFalse(manager.save(at(45)))
    manager.close()
    self.assertEqual(manager.all_steps(), [20, 40, 45])
    with self.assertRaisesRegex(ValueError, 'metric_name_to_monitor'):
      self._manager(init, folder, metric_name_to_monitor='x')

  def test_save_dtype_casts_parameters_only(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(optimizers.adamw(1e-2))
    manager = self._manager(init, folder, save_dtype='bfloat16')
    manager.save(init.from_scratch(jax.random.PRNGKey(0)))
    manager.close()
    arrays = checkpoints.open_checkpoint(os.path.join(folder, 'checkpoint_0')).arrays
    self.assertEqual({a.dtype.name for n, a in arrays.items() if n.startswith('target/')}, {'bfloat16'})
    self.assertEqual({a.dtype.name for n, a in arrays.items() if n.startswith('state/')}, {'float32', 'int32'})
    # The resumed job keeps its float32 masters.
    self.assertEqual({v.dtype.name for k, v in checkpoint_testing.flat(manager.restore()).items()},
                     {'float32', 'int32'})

  def test_state_transformations(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(None)
    manager = self._manager(init, folder)

    def only_encoder(state, infos):
      self.assertEqual(infos['target']['decoder']['out']['kernel'].shape, (16, 8))
      return {'target': {'encoder': state['target']['encoder']}, 'state': state['state']}, infos

    manager.save(init.from_scratch(jax.random.PRNGKey(0)), [only_encoder])
    manager.close()
    self.assertNotIn('target.decoder.out.kernel', _names(os.path.join(folder, 'checkpoint_0')))
    with self.assertRaisesRegex(ValueError, r'lacks target/decoder/out/kernel'):
      manager.restore()

  def test_dataset_iterator(self):
    import tensorflow as tf
    from clu.data import dataset_iterator

    folder = self.enterContext(tempfile.TemporaryDirectory())
    init = checkpoint_testing.initializer(None)
    dataset = tf.data.Dataset.range(9).batch(1).map(lambda x: {'x': x})
    make = lambda: dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)
    first = make()
    next(first), next(first)
    manager = self._manager(init, folder, dataset_iterator=first)
    manager.save(init.from_scratch(jax.random.PRNGKey(0)))
    manager.close()
    self.assertTrue(os.path.exists(os.path.join(folder, 'checkpoint_0/dataset/train_ds-000-of-001.index')))
    second = make()
    manager = self._manager(init, folder, dataset_iterator=second)
    manager.restore_dataset = True
    manager.restore()
    self.assertEqual(int(next(second)['x'][0]), 2)


class FailedSaveTest(parameterized.TestCase):

  def test_full_disk_names_the_folder_and_leaves_the_last_checkpoint(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    program = textwrap.dedent('''
        import resource, sys, jax, numpy as np, jax.numpy as jnp
        from t5x import checkpoints
        import checkpoint_testing
        init = checkpoint_testing.initializer(None, checkpoint_testing.Model(features=4096))
        state = init.from_scratch(jax.random.PRNGKey(0))
        manager = checkpoints.OrbaxCheckpointManagerInterface(
            sys.argv[1], init.global_train_state_shape, checkpoint_testing.partitioner())
        manager.save(state)
        manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
          manager.save(state.replace_step(jnp.int32(5)))
          manager.wait_until_finished()
        except OSError as error:
          print('ERROR:', error)
        restored = checkpoint_testing.flat(manager.restore())
        print('INTACT:', all((restored[k] == v).all() for k, v in checkpoint_testing.flat(state).items()))
        ''')
    here = pathlib.Path(__file__).resolve().parent
    paths = [str(here), str(here.parents[1] / 't5x_lite'), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run([sys.executable, '-c', program, folder], capture_output=True, text=True, check=False,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})
    self.assertIn('ERROR: Could not save checkpoint_5 in ' + folder, done.stdout, done.stderr[-2000:])
    self.assertIn('File too large; checkpoint_0 is intact', done.stdout)
    self.assertIn('INTACT: True', done.stdout, done.stderr[-2000:])
    self.assertEqual(sorted(os.listdir(folder)), ['checkpoint_0'])


class LegacyTest(parameterized.TestCase):

  def test_round_trip(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    model = checkpoint_testing.Model(features=1024)  # Large enough for zarr folders.
    init = checkpoint_testing.initializer(checkpoint_testing.multi_optimizer(), model)
    state = checkpoint_testing.train(init.from_scratch(jax.random.PRNGKey(0)), 1)
    saver = checkpoints.Checkpointer(
        init.global_train_state_shape, checkpoint_testing.partitioner(), folder, keep=2)
    for step in (1, 2, 3):
      saver.save(state.replace_step(jnp.int32(step)))
    self.assertEqual(saver.all_steps(), [2, 3])
    self.assertTrue(os.path.exists(os.path.join(folder, 'checkpoint_3/target.encoder.base.kernel/.zarray')))
    restored, expected = checkpoint_testing.flat(saver.restore(step=3)), checkpoint_testing.flat(state)
    for name, value in expected.items():
      np.testing.assert_array_equal(restored[name], 3 if name == 'state/step' else value, err_msg=name)

  def test_failed_write_leaves_nothing(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())

    def full(*_, **__):
      raise OSError(28, 'No space left on device')

    init = checkpoint_testing.initializer(None)
    saver = checkpoints.Checkpointer(init.global_train_state_shape, checkpoint_testing.partitioner(), folder)
    with mock.patch.object(checkpoint_reader.serialization, 'msgpack_serialize', full):
      with self.assertRaisesRegex(OSError, 'No space left on device; there is no earlier checkpoint'):
        saver.save(init.from_scratch(jax.random.PRNGKey(0)))
    self.assertEmpty(os.listdir(folder))


if __name__ == '__main__':
  absltest.main()
