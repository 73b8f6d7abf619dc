"""Tests of starting from, continuing, and adapting checkpoints."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from cpoly_jax import testing
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoint_testing  # pylint: disable=g-import-not-at-top
from t5x import checkpoint_state
from t5x import checkpoints
from t5x import optimizers
from t5x import restore

RNG = jax.random.PRNGKey(0)


def _start(init, path, *, model_dir=None, save=None, rng=RNG, use_orbax=True, **cfg):
  """create_checkpoint_manager_and_restore with the usual arguments; `path` may be a whole configuration."""
  cfg = restore.RestoreCheckpointConfig(path=path, **{'mode': 'specific', 'fallback_to_scratch': True, **cfg})
  found, paths = restore.get_first_valid_restore_config_and_paths([cfg])
  return restore.create_checkpoint_manager_and_restore(
      init, checkpoint_testing.partitioner(), found, paths[0], rng, save_checkpoint_cfg=save, model_dir=model_dir,
      use_orbax=use_orbax)


class _FolderTest(parameterized.TestCase):
  """Has a base checkpoint (no skills) at step 100."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    base_model = checkpoint_testing.Model(skills=False)
    cls.base_state = checkpoint_testing.initializer(None, base_model).from_scratch(jax.random.PRNGKey(42))

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.model_dir = os.path.join(self.folder, 'model')
    self.base = checkpoint_testing.save_single_file(os.path.join(self.folder, 'base'), 100, self.base_state.params)

  def assert_same(self, first, second):
    first, second = checkpoint_testing.flat(first), checkpoint_testing.flat(second)
    self.assertEqual(first.keys(), second.keys())
    for name, value in second.items():
      self.assertEqual(first[name].dtype, value.dtype, name)
      np.testing.assert_array_equal(first[name], value, err_msg=name)

  def run_to(self, *steps, optimizer=None, model=None, dtype=None):
    """Trains from the base, saving at each of the steps (counted from the base); returns the last state."""
    init = checkpoint_testing.initializer(optimizer or checkpoint_testing.frozen_base(), model)
    state, manager = _start(init, self.base, model_dir=self.model_dir, dtype=dtype,
                            save=restore.SaveCheckpointConfig(period=1))
    done = 0
    for step in steps:
      state = checkpoint_testing.train(state, step - done)
      done = step
      manager.save(state)
    manager.close()
    return state

  def resume(self, optimizer=None, model=None, **cfg):
    init = checkpoint_testing.initializer(optimizer or checkpoint_testing.frozen_base(), model)
    return _start(init, self.model_dir, mode='latest', model_dir=self.model_dir,
                  save=restore.SaveCheckpointConfig(period=1), **cfg)


class ConfigTest(parameterized.TestCase):

  def test_defaults_and_validation(self):
    save, cfg = restore.SaveCheckpointConfig(), restore.RestoreCheckpointConfig(path='/x')
    self.assertEqual((save.dtype, save.period, save.keep, save.save_dataset), (None, None, None, False))
    self.assertIs(save.checkpointer_cls, checkpoints.Checkpointer)
    self.assertEqual((cfg.mode, cfg.strict, cfg.fallback_to_scratch, cfg.dtype), ('latest', True, False, None))
    self.assertIs(cfg.checkpoint_manager_cls, checkpoints.OrbaxCheckpointManagerInterface)
    with self.assertRaisesRegex(ValueError, "mode='newest'"):
      restore.RestoreCheckpointConfig(path='/x', mode='newest')
    with self.assertRaisesRegex(ValueError, "dtype='int8'"):
      restore.RestoreCheckpointConfig(path='/x', dtype='int8')
    with self.assertRaisesRegex(ValueError, "dtype='float16'"):
      restore.SaveCheckpointConfig(dtype='float16')
    with self.assertRaisesRegex(ValueError, 'keep=0'):
      restore.SaveCheckpointConfig(keep=0)
    self.assertEqual(restore.RestoreCheckpointConfig(path='/x', dtype=jnp.bfloat16).dtype, 'bfloat16')

  def test_first_valid_configuration(self):
    with tempfile.TemporaryDirectory() as folder:
      for name in ('run/checkpoint_3', 'run/checkpoint_20', 'init/checkpoint_100'):
        os.makedirs(os.path.join(folder, name))
      run, init = f'{folder}/run', f'{folder}/init/checkpoint_100'
      make = restore.RestoreCheckpointConfig
      find = restore.get_first_valid_restore_config_and_paths
      cfg, paths = find([make(run), make(init, mode='specific')])
      self.assertEqual((cfg.path, list(paths)), (run, [f'{run}/checkpoint_20']))
      self.assertEqual(cfg.fallback_base_path, init)
      cfg, paths = find([make(f'{folder}/new'), make(f'{init}/checkpoint', mode='specific')])
      self.assertEqual(list(paths), [init])
      self.assertEqual(list(find([make(run, mode='all')])[1]), [f'{run}/checkpoint_3', f'{run}/checkpoint_20'])
      self.assertEqual(find([make(f'{folder}/new'), make([], mode='specific')]), (None, []))
      self.assertEqual(find([make(f'{folder}/new'), None]), (None, []))
      with self.assertRaisesRegex(FileNotFoundError, 'no checkpoint at .*checkpoint_1'):
        find([make(f'{folder}/init/checkpoint_1', mode='specific')])
      with self.assertRaisesRegex(FileNotFoundError, 'no checkpoint in .*typo'):
        find([make(f'{folder}/new'), make(f'{folder}/typo')])
      with self.assertRaisesRegex(ValueError, 'INITIAL_CHECKPOINT_PATH'):
        find([make('', mode='specific')])

  def test_extra_steps(self):
    self.assertEqual([restore.find_first_checkpoint_step(0, [5, 10], s, s) for s in (0, 5, 7, 20)], [0, 1, 1, 1])
    self.assertEqual(restore.find_next_checkpoint_step(0, 10, False, 0, [5, 8], 10, 10, 0), (5, True))
    self.assertEqual(restore.find_next_checkpoint_step(0, 10, False, 0, [], 10, 10, 0), (10, False))


class InitializerTest(parameterized.TestCase):

  def test_shapes_and_partial_initialization(self):
    init = checkpoint_testing.initializer(optimizers.adamw(1e-2))
    state = init.from_scratch(RNG)
    flat = checkpoint_testing.flat(state)
    shapes = init.global_train_state_shape
    self.assertTrue(all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes)))
    self.assertEqual({k: v.shape for k, v in checkpoint_state.flatten(shapes.state_dict()).items()},
                     {k: v.shape for k, v in flat.items()})
    for names in (['target/encoder/skills/b'], ['state/step', 'target/decoder/out/kernel', 'target/encoder/skills/b']):
      some = init.scratch_leaves(RNG, names)
      self.assertCountEqual(some, names)
      for name in names:
        np.testing.assert_array_equal(some[name], flat[name])
        self.assertTrue(some[name].sharding.is_equivalent_to(
            checkpoint_state.flatten(state.state_dict())[name].sharding, some[name].ndim))


class GoldenTest(parameterized.TestCase):
  """The golden network, restored from checkpoints that T5X wrote."""

  def _initializer(self, optimizer):
    from t5x.examples.t5 import network

    config = network.T5Config(
        vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2,
        num_decoder_layers=2, mlp_activations=('gelu', 'linear'), dropout_rate=0.0)

    class GoldenModel:

      def get_initial_variables(self, rng, input_shapes, input_types=None):
        ones = [jnp.ones(input_shapes[k], jnp.int32) for k in ('encoder', 'decoder', 'decoder')]
        return network.Transformer(config).init(rng, *ones, enable_dropout=False)

    return restore.TrainStateInitializer(
        optimizer, GoldenModel().get_initial_variables, {'encoder': (2, 4), 'decoder': (2, 4)},
        checkpoint_testing.partitioner())

  @parameterized.product(kind=('legacy', 'orbax'), use_orbax=(True, False))
  def test_exact(self, kind, use_orbax):
    from t5x import adafactor

    golden = testing.shared_data('golden')
    path = str(golden / 'checkpoints' / kind / 'checkpoint_7')
    init = self._initializer(adafactor.Adafactor(min_dim_size_to_factor=16))
    state, _ = _start(init, path, dtype='float32', fallback_to_scratch=False, use_orbax=use_orbax)
    flat = checkpoint_testing.flat(state)
    params = np.load(golden / 'network/params_t5_1_1.npz', allow_pickle=False)
    states = np.load(golden / 'checkpoints/state_at_step_7.npz', allow_pickle=False)
    self.assertLen(flat, len(params.files) + len(states.files))
    for name in params.files:
      np.testing.assert_array_equal(flat[f'target/{name}'], params[name], err_msg=name)
    for name in states.files:
      np.testing.assert_array_equal(flat[name], states[name], err_msg=name)
    self.assertEqual(flat['state/step'].dtype, np.int32)

  def test_inference_in_bfloat16(self):
    golden = testing.shared_data('golden')
    state, _ = _start(self._initializer(None), str(golden / 'checkpoints/orbax/checkpoint_7'), dtype='bfloat16',
                      strict=False, fallback_to_scratch=False)
    params = np.load(golden / 'network/params_t5_1_1.npz', allow_pickle=False)
    flat = checkpoint_testing.flat(state)
    for name in params.files:
      np.testing.assert_array_equal(flat[f'target/{name}'], params[name].astype(jnp.bfloat16))
    self.assertEqual((flat['state/step'].dtype, flat['state/step']), (np.int32, 7))


class FromBaseTest(_FolderTest):

  def test_missing_parameters_are_initialised_and_named(self):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    with self.assertLogs(level='INFO') as logs:
      state, manager = _start(init, self.base)
    flat, scratch = checkpoint_testing.flat(state), checkpoint_testing.flat(init.from_scratch(RNG))
    base = checkpoint_testing.flat(self.base_state)
    for name in checkpoint_testing.BASE:
      np.testing.assert_array_equal(flat[f'target/{name}'], base[f'target/{name}'])
    for name in checkpoint_testing.SKILLS:
      np.testing.assert_array_equal(flat[f'target/{name}'], scratch[f'target/{name}'])
      self.assertTrue(any(f'target/{name}' in line for line in logs.output))
    self.assertEqual(flat['state/step'], 100)
    self.assertEqual(manager.base_reference.path, self.base)
    self.assertCountEqual(manager.base_reference.sources, [f'target/{n}' for n in checkpoint_testing.BASE])

  def test_missing_parameters_without_fallback(self):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    with self.assertRaisesRegex(ValueError, r'^The checkpoint .*checkpoint_100 lacks .* and \d+ more; set fallb'):
      _start(init, self.base, fallback_to_scratch=False)
    with self.assertRaisesRegex(ValueError, 'needs a key'):
      _start(init, self.base, rng=None)

  def test_unexpected_parameters(self):
    run = checkpoint_testing.initializer(None)
    full = checkpoint_testing.save_single_file(self.folder, 1, run.from_scratch(RNG).params)
    small = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False))
    with self.assertRaisesRegex(ValueError, 'the model lacks: target/encoder/skills/a, target/encoder/skills/b; use'):
      _start(small, full, fallback_to_scratch=False)
    state, _ = _start(small, full, fallback_to_scratch=False, strict=False)
    self.assertNotIn('skills', state.params['encoder'])

  def test_other_shapes_are_told_before_anything_is_made(self):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base(), checkpoint_testing.Model(features=32))
    with mock.patch.object(init, 'scratch_leaves') as scratch:
      with mock.patch.object(checkpoints.StoredArray, 'read') as read:
        with self.assertRaises(ValueError) as raised:
          _start(init, self.base)
    text = str(raised.exception)
    self.assertIn('target/decoder/out/kernel is (16, 8) there and (32, 8) in the model', text)
    self.assertIn('target/encoder/base/kernel is (8, 16) there and (8, 32) in the model', text)
    self.assertIn(self.base, text)
    self.assertNotIn('\n', text)
    scratch.assert_not_called()
    read.assert_not_called()

  @parameterized.parameters('bfloat16', 'float16', None)
  def test_dtype_is_that_of_frozen_parameters(self, dtype):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    flat = checkpoint_testing.flat(_start(init, self.base, dtype=dtype)[0])
    for name, value in flat.items():
      frozen = name.removeprefix('target/') in checkpoint_testing.BASE
      expected = (dtype or 'float32') if frozen else 'float32'
      if not name.endswith(('step', 'count')):
        self.assertEqual(value.dtype, expected, name)
    self.assertEqual(flat['state/step'].dtype, np.int32)

  def test_assignment_map(self):
    init = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False))
    rules = [(r'target/encoder/norm/.*', None), (r'target/(.*)/base/kernel', r'target/\1/base/kernel')]
    state, _ = _start(init, self.base, assignment_map=rules)
    flat, scratch = checkpoint_testing.flat(state), checkpoint_testing.flat(init.from_scratch(RNG))
    np.testing.assert_array_equal(flat['target/encoder/norm/scale'], scratch['target/encoder/norm/scale'])
    kernel = self.base_state.params['encoder']['base']['kernel']
    np.testing.assert_array_equal(flat['target/encoder/base/kernel'], kernel)
    with self.assertRaisesRegex(ValueError, 'target/absent'):
      _start(init, self.base, assignment_map=[('target/encoder/norm/scale', 'target/absent')])


class TrainableOnlyTest(_FolderTest):

  @parameterized.parameters((checkpoint_testing.frozen_base, None), (checkpoint_testing.multi_optimizer, None),
                            (checkpoint_testing.frozen_base, 'bfloat16'))
  def test_resumes_exactly(self, make_optimizer, dtype):
    state = self.run_to(2, 4, optimizer=make_optimizer(), dtype=dtype)
    # The resumed process need not repeat the dtype of the base.
    restored, _ = self.resume(optimizer=make_optimizer())
    self.assert_same(restored, state)
    self.assert_same(checkpoint_testing.train(restored, 3), checkpoint_testing.train(state, 3))

  def test_frozen_parameters_are_not_on_disk(self):
    self.run_to(1)
    folder = pathlib.Path(self.model_dir) / 'checkpoint_101'
    arrays = checkpoints.open_checkpoint(folder).arrays
    self.assertEqual({n for n in arrays if n.startswith('target/')}, {f'target/{n}' for n in checkpoint_testing.SKILLS})
    content = b''.join(p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != 'metadata')
    for name in checkpoint_testing.BASE:
      self.assertNotIn(name.replace('/', '.').encode(), content)
    metadata = json.loads((folder / 'metadata/metadata').read_text())
    self.assertEqual(metadata['base']['path'], self.base)
    self.assertEqual(metadata['frozen'], sorted(f'target/{n}' for n in checkpoint_testing.BASE))
    self.assertEqual((metadata['format'], metadata['model']), (1, {'tasks': ['rte']}))

  def test_bytes_do_not_grow_with_the_base(self):
    init = checkpoint_testing.initializer(None, checkpoint_testing.Model(features=20_000, skills=False))
    self.base = checkpoint_testing.save_single_file(os.path.join(self.folder, 'big'), 100, init.from_scratch(RNG).params)
    model = checkpoint_testing.Model(features=20_000, skills=False)

    class NormOnly(checkpoint_testing.FrozenBase):

      def trainable_mask(self, params):
        return jax.tree_util.tree_map_with_path(lambda path, _: 'norm' in str(path), params)

    self.run_to(1, optimizer=NormOnly(), model=model)
    size = sum(p.stat().st_size for p in pathlib.Path(self.model_dir).rglob('*') if p.is_file())
    self.assertLess(size, 50_000)
    self.assertGreater(os.path.getsize(os.path.join(self.base, 'checkpoint')), 1_000_000)

  def test_inference_reads_base_and_checkpoint(self):
    state = self.run_to(3)
    model = checkpoint_testing.Model()
    restored, _ = _start(checkpoint_testing.initializer(None, model), f'{self.model_dir}/checkpoint_103', strict=False,
                         fallback_to_scratch=False)
    flat, expected = checkpoint_testing.flat(restored), checkpoint_testing.flat(state)
    for name, value in flat.items():
      np.testing.assert_array_equal(value, expected[name], err_msg=name)
    self.assertEqual(model.checked, {'tasks': ['rte']})
    loaded = checkpoint_state.flatten(checkpoints.load_t5x_checkpoint(self.model_dir))
    np.testing.assert_array_equal(loaded['target/encoder/base/kernel'], expected['target/encoder/base/kernel'])

  def test_model_metadata_is_checked(self):
    self.run_to(1)
    with self.assertRaisesRegex(ValueError, "trained on .'rte'., asked for .'boolq'."):
      self.resume(model=checkpoint_testing.Model(tasks=['boolq']))

  def test_frozen_parameters_from_scratch_are_stored(self):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    _, manager = restore.create_checkpoint_manager_and_restore(
        init, checkpoint_testing.partitioner(), None, None, RNG,
        save_checkpoint_cfg=restore.SaveCheckpointConfig(period=1), model_dir=self.model_dir, use_orbax=True)
    state = checkpoint_testing.train(init.from_scratch(RNG), 1)
    manager.save(state)
    manager.close()
    restored, manager = self.resume()
    self.assert_same(restored, state)
    # Stored again, since this folder's checkpoints are no base: they are deleted.
    self.assertIsNone(manager.base_reference)

  def test_adaptation_keeps_the_first_base(self):
    first = self.run_to(2)
    second_dir = os.path.join(self.folder, 'second')

    class RoutingOnly(checkpoint_testing.FrozenBase):

      def trainable_mask(self, params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "'b'" in str(path), params)

    init = checkpoint_testing.initializer(RoutingOnly())
    state, manager = _start(init, f'{self.model_dir}/checkpoint_102', model_dir=second_dir,
                            save=restore.SaveCheckpointConfig(period=1),
                            assignment_map=[('state/param_states/.*', None)])
    np.testing.assert_array_equal(state.params['encoder']['skills']['a'], first.params['encoder']['skills']['a'])
    state = checkpoint_testing.train(state, 1)
    manager.save(state)
    manager.close()
    folder = os.path.join(second_dir, 'checkpoint_103')
    metadata = checkpoints.open_checkpoint(folder).metadata
    self.assertEqual(metadata['base']['path'], self.base)
    # The frozen skill is not in the base, so it is stored here.
    self.assertIn('target/encoder/skills/a', checkpoints.open_checkpoint(folder).arrays)
    shutil.rmtree(self.model_dir)
    restored, _ = _start(init, second_dir, mode='latest', model_dir=second_dir, fallback_to_scratch=False)
    self.assert_same(restored, state)


class BaseReferenceTest(_FolderTest):

  def test_renamed_base_parameters_are_found_again(self):
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    params = self.base_state.params
    moved = {'encoder': {'other': params['encoder']['base'], 'norm': params['encoder']['norm']},
             'decoder': params['decoder']}
    path = checkpoint_testing.save_single_file(self.folder, 9, moved)
    rules = [('target/encoder/base/(.*)', r'target/encoder/other/\1')]
    state, manager = _start(init, path, assignment_map=rules, model_dir=self.model_dir,
                            save=restore.SaveCheckpointConfig(period=1))
    manager.save(state)
    manager.close()
    self.assertNotIn('target/encoder/base/kernel', checkpoints.open_checkpoint(f'{self.model_dir}/checkpoint_9').arrays)
    restored, _ = self.resume(assignment_map=rules)
    self.assert_same(restored, state)

  def test_moved_base(self):
    state = self.run_to(1)
    moved = os.path.join(self.folder, 'moved')
    os.rename(os.path.dirname(self.base), moved)
    with self.assertRaisesRegex(FileNotFoundError, f'^{self.model_dir}/checkpoint_101 .* base checkpoint {self.base} '
                                'cannot be opened: .*INITIAL_CHECKPOINT_PATH'):
      self.resume()
    self.assert_same(self.resume(base_path=f'{moved}/checkpoint_100')[0], state)
    with mock.patch.dict(os.environ, {'T5X_BASE_CHECKPOINT': f'{moved}/checkpoint_100'}):
      self.assert_same(self.resume()[0], state)
    # What a training run does: its own folder first, then the user's INITIAL_CHECKPOINT_PATH.
    cfg, paths = restore.get_first_valid_restore_config_and_paths([
        restore.RestoreCheckpointConfig(self.model_dir),
        restore.RestoreCheckpointConfig(f'{moved}/checkpoint_100', mode='specific')])
    restored, _ = restore.create_checkpoint_manager_and_restore(
        checkpoint_testing.initializer(checkpoint_testing.frozen_base()), checkpoint_testing.partitioner(), cfg,
        paths[0], RNG, model_dir=self.model_dir, use_orbax=True)
    self.assert_same(restored, state)

  def test_another_base(self):
    self.run_to(1)
    other = jax.tree.map(lambda x: x + 1, self.base_state.params)
    path = checkpoint_testing.save_single_file(os.path.join(self.folder, 'other'), 100, other)
    with self.assertRaisesRegex(ValueError, f'^The base checkpoint {path} .digest .* is not the one .*{self.base} '):
      self.resume(base_path=path)

  def test_bfloat16_copy_of_the_base_is_accepted(self):
    self.run_to(1, dtype='bfloat16')
    path = checkpoint_testing.save_single_file(os.path.join(self.folder, 'half'), 100, self.base_state.params, 'bfloat16')
    restored, _ = self.resume(base_path=path)
    self.assertEqual(restored.params['encoder']['base']['kernel'].dtype, jnp.bfloat16)


class DamagedTest(_FolderTest):

  def _truncate(self, step):
    for path in pathlib.Path(self.model_dir, f'checkpoint_{step}', 'state').rglob('*'):
      if path.is_file() and (path.parent.name == 'd' or path.name == 'manifest.ocdbt'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

  @parameterized.parameters('values', 'index', 'empty')
  def test_newest_is_damaged(self, how):
    self.run_to(2, 4)
    init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
    good, _ = _start(init, f'{self.model_dir}/checkpoint_102', model_dir=self.model_dir)
    newest = pathlib.Path(self.model_dir, 'checkpoint_104')
    if how == 'values':
      self._truncate(104)
    elif how == 'index':
      (newest / 'state/_METADATA').write_text('{"tree_meta')
    else:
      shutil.rmtree(newest)
      newest.mkdir()
    with self.assertLogs(level='ERROR') as logs:
      restored, manager = self.resume()
    self.assertIn('checkpoint_104', logs.output[0])
    self.assertIn('checkpoint_102', logs.output[-1])
    self.assert_same(restored, good)
    # The step is saved again and the damaged folder is kept aside.
    state = checkpoint_testing.train(restored, 2)
    self.assertTrue(manager.save(state))
    manager.close()
    self.assertEqual(sorted(n for n in os.listdir(self.model_dir)), ['checkpoint_102', 'checkpoint_104',
                                                                     'damaged-checkpoint_104'])
    self.assert_same(self.resume()[0], state)

  def test_a_named_checkpoint_is_never_replaced(self):
    self.run_to(2, 4)
    self._truncate(104)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'checkpoint_104 .*truncated or corrupt'):
      _start(checkpoint_testing.initializer(checkpoint_testing.frozen_base()), f'{self.model_dir}/checkpoint_104',
             model_dir=self.model_dir)

  def test_all_are_damaged(self):
    self.run_to(2, 4)
    self._truncate(102)
    self._truncate(104)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'checkpoint_104'):
      self.resume()
    self.assertEqual(checkpoints.all_steps(self.model_dir), [102, 104])

  def test_wrong_shape_is_no_damage(self):
    self.run_to(1, 2)
    with self.assertRaisesRegex(ValueError, 'checkpoint_102 does not fit the model'):
      self.resume(model=checkpoint_testing.Model(features=32))


if __name__ == '__main__':
  absltest.main()
