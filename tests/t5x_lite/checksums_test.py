"""Tests of the checksums of arrays and metadata: what is found, what must not be found, and what it costs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import checkpoint_testing  # pylint: disable=g-import-not-at-top
from t5x import checkpoint_reader
from t5x import checkpoint_state
from t5x import checkpoints
from t5x import checksums
from t5x import restore

RNG = jax.random.PRNGKey(0)
SKILL = 'target/encoder/skills/a'


def _values(dtype, shape=(3, 4, 5)) -> np.ndarray:
  return (100 * np.random.default_rng(0).normal(size=shape)).astype(jnp.dtype(dtype))


def _by_hand(values: np.ndarray) -> str:
  """The checksum by the formula of the module's docstring, in Python's own integers."""
  first = second = 0
  for i, word in enumerate(values.reshape(-1).view(f'u{min(values.dtype.itemsize, 4)}').tolist()):
    h = (word + 0x9E3779B1 * i) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    h ^= h >> 16
    first, second = (first + h) % 2**32, (second + (2 * i + 1) * h) % 2**32
  return f'{first:08x}{second:08x}'


class SumsTest(parameterized.TestCase):

  @parameterized.parameters('float32', 'bfloat16', 'float16', 'float64', 'int64', 'int32', 'int8', 'bool')
  def test_formula_on_the_host(self, dtype):
    values = _values(dtype)
    self.assertEqual(checksums.compute({'x': values}), {'x': _by_hand(values)})
    self.assertEqual(checksums.compute({'x': np.asfortranarray(values)}), {'x': _by_hand(values)})

  @parameterized.parameters('float32', 'bfloat16', 'int32', 'bool')
  def test_formula_on_a_device(self, dtype):
    values = _values(dtype)
    with mock.patch.object(checksums, '_is_on_host', return_value=False):
      self.assertEqual(checksums.compute({'x': jnp.asarray(values)}), {'x': _by_hand(values)})

  def test_scalars_and_empty_arrays(self):
    found = checksums.compute({'scalar': np.int32(7), 'empty': np.zeros((0, 3), np.float32)})
    self.assertEqual(found, {'scalar': _by_hand(np.int32([7])), 'empty': '0' * 16})

  def test_parts_add_up_in_any_cut(self):
    values = _values('float32', (6, 5, 7))
    whole = checksums.sums_of_part(values, (0, 0, 0), values.shape)
    for cuts in ((6, 5, 3), (6, 2, 7), (4, 5, 7), (1, 2, 3)):
      starts = [range(0, size, cut) for size, cut in zip(values.shape, cuts)]
      total = np.zeros(2, np.uint32)
      for a in starts[0]:
        for b in starts[1]:
          for c in starts[2]:
            part = values[a:a + cuts[0], b:b + cuts[1], c:c + cuts[2]]
            total += checksums.sums_of_part(part, (a, b, c), values.shape)
      np.testing.assert_array_equal(total, whole, err_msg=str(cuts))

  def test_blocks_add_up(self):
    values = _values('float32', (300,))
    with mock.patch.object(checksums, '_BLOCK', 7):
      self.assertEqual(checksums.compute({'x': values}), {'x': _by_hand(values)})

  def test_each_bit_and_the_order_matter(self):
    values = _values('float32')
    seen = {_by_hand(values), _by_hand(values.reshape(-1)[::-1].copy())}
    swapped = values.copy()
    swapped[0, 0, :2] = swapped[0, 0, 1::-1]
    seen.add(checksums.compute({'x': swapped})['x'])
    for bit in range(32):
      altered = values.copy()
      altered.view(np.uint32)[1, 2, 3] ^= np.uint32(1 << bit)
      seen.add(checksums.compute({'x': altered})['x'])
    zeros = np.zeros_like(values)
    seen |= {checksums.compute({'x': zeros})['x'], checksums.compute({'x': -zeros})['x']}
    self.assertLen(seen, 3 + 32 + 2)

  def test_a_program_is_compiled_once_for_a_shape(self):
    program = checksums._compiled(None)
    with mock.patch.object(checksums, '_is_on_host', return_value=False):
      checksums.compute({'x': jnp.zeros((3, 11)), 'y': jnp.ones((3, 11))})
      compiled = program._cache_size()
      checksums.compute({'x': jnp.ones((3, 11)), 'z': jnp.ones((3, 11))})
    self.assertEqual(program._cache_size(), compiled)

  def test_digest_of_json_is_that_of_what_was_stored(self):
    content = {'b': (1, 2.5), 'a': {'x': None, 3: 'ü'}}
    sealed = checksums.sealed(content)
    stored = json.loads(json.dumps(sealed, indent=3))
    self.assertEqual(checksums.digest_of_json(stored), sealed['digest'])
    stored['a']['x'] = 0
    self.assertNotEqual(checksums.digest_of_json(stored), sealed['digest'])


class _RunTest(parameterized.TestCase):
  """A run on a base at step 100 that saved its steps 102 and 104."""

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.model_dir = os.path.join(self.folder, 'model')
    base = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False)).from_scratch(jax.random.PRNGKey(42))
    self.base = checkpoint_testing.save_single_file(os.path.join(self.folder, 'base'), 100, base.params)
    self.init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())

  def start(self, path, init=None, save=False, model_dir=None, **cfg):
    cfg = restore.RestoreCheckpointConfig(path=path, **{'mode': 'specific', **cfg})
    cfg, paths = restore.get_first_valid_restore_config_and_paths([cfg])
    return restore.create_checkpoint_manager_and_restore(
        init or self.init, checkpoint_testing.partitioner(), cfg, paths[0], RNG, model_dir=model_dir, use_orbax=True,
        save_checkpoint_cfg=save or None)

  def train(self, **save):
    state, manager = self.start(self.base, fallback_to_scratch=True, model_dir=self.model_dir,
                                save=restore.SaveCheckpointConfig(period=1, **save))
    for _ in range(2):
      state = checkpoint_testing.train(state, 2)
      manager.save(state)
    manager.close()
    return state

  def resume(self):
    return self.start(self.model_dir, mode='latest', model_dir=self.model_dir, save=restore.SaveCheckpointConfig(period=1))[0]

  def inference(self, **cfg):
    return self.start(f'{self.model_dir}/checkpoint_104', checkpoint_testing.initializer(None), **cfg)[0]

  def alter(self, name: str, step: int = 104) -> None:
    """Changes one value of a stored array by its lowest bit, and writes the chunk as TensorStore does."""
    import tensorstore as ts
    array = checkpoints.open_checkpoint(f'{self.model_dir}/checkpoint_{step}').arrays[name]
    context = ts.Context({'cache_pool#ocdbt': {'total_bytes_limit': 0}})
    store = ts.open(ts.Spec(array._spec), open=True, read=True, write=True, context=context).result()
    values = np.array(store.read().result())
    values.reshape(-1).view(f'u{values.dtype.itemsize}')[-1] ^= 1
    store.write(values).result()

  def edit(self, change, step: int = 104) -> None:
    """Rewrites the metadata."""
    file = pathlib.Path(self.model_dir, f'checkpoint_{step}/metadata/metadata')
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def _damage_value(test):
  test.alter(SKILL)


def _damage_optimizer_state(test):
  names = checkpoints.open_checkpoint(f'{test.model_dir}/checkpoint_104').arrays
  test.alter(next(name for name in names if name.endswith('/mu/encoder/skills/b')))


def _damage_file(test):
  for file in pathlib.Path(test.model_dir, 'checkpoint_104/state').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:-5])


def _damage_tasks(test):
  test.edit(lambda metadata: metadata['model']['tasks'].append('cb'))


def _damage_place(test):
  test.edit(lambda metadata: metadata.update(data_place={'example': 1}))


def _damage_checksum(test):
  test.edit(lambda metadata: metadata['checksums'].pop(SKILL))


def _drop_digest(test):
  test.edit(lambda metadata: metadata.pop('digest'))


def _drop_array(test):
  file = pathlib.Path(test.model_dir, 'checkpoint_104/state/_METADATA')
  index = json.loads(file.read_text())
  index['tree_metadata'] = {k: v for k, v in index['tree_metadata'].items() if "'skills', 'a'" not in k}
  file.write_text(json.dumps(index))


def _damage_json(test):
  pathlib.Path(test.model_dir, 'checkpoint_104/metadata/metadata').write_text('["format", 1]')


class DamageTest(_RunTest):

  @parameterized.parameters(
      (_damage_value, "'target/encoder/skills/a' of .*checkpoint_104 cannot be trusted"),
      (_damage_optimizer_state, "mu/encoder/skills/b' of .*checkpoint_104 cannot be trusted"),
      (_damage_file, 'checkpoint_104 cannot be read'),
      (_damage_tasks, 'metadata of .*checkpoint_104 .*altered'),
      (_damage_place, 'metadata of .*checkpoint_104 .*altered'),
      (_damage_checksum, 'metadata of .*checkpoint_104 .*altered'),
      (_drop_digest, 'metadata of .*checkpoint_104 .*altered'),
      (_drop_array, 'checkpoint_104 lost or gained .*skills/a'),
      (_damage_json, 'metadata of .*checkpoint_104 .*altered'))
  def test_gives_way_to_the_checkpoint_before_it(self, damage, message):
    self.train()
    good = self.start(f'{self.model_dir}/checkpoint_102')[0]
    damage(self)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, message) as caught:
      self.start(f'{self.model_dir}/checkpoint_104')
    self.assertNotIn('\n', str(caught.exception))
    with self.assertLogs(level='ERROR') as logs:
      restored = self.resume()
    self.assertRegex(logs.output[0], message)
    self.assertRegex(logs.output[-1], 'Continuing from .*checkpoint_102')
    for name, value in checkpoint_testing.flat(good).items():
      np.testing.assert_array_equal(checkpoint_testing.flat(restored)[name], value, err_msg=name)
    self.assertIn('damaged-checkpoint_104', os.listdir(self.model_dir))

  @parameterized.parameters('float32', 'bfloat16', 'float16', None)
  def test_is_found_under_any_cast(self, dtype):
    state = self.train()
    restored = self.inference(dtype=dtype)
    expected = np.asarray(state.params['encoder']['skills']['a']).astype(dtype or 'float32')
    np.testing.assert_array_equal(restored.params['encoder']['skills']['a'], expected)
    self.alter(SKILL)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'skills/a.* cannot be trusted'):
      self.inference(dtype=dtype)

  def test_is_found_in_values_saved_as_bfloat16(self):
    state = self.train(dtype='bfloat16')
    arrays = checkpoints.open_checked(f'{self.model_dir}/checkpoint_104').arrays
    self.assertEqual(arrays[SKILL].dtype, jnp.bfloat16)
    expected = np.asarray(state.params['encoder']['skills']['a'], jnp.bfloat16)
    self.assertEqual(arrays[SKILL].checksum, _by_hand(expected))
    restored = self.resume().params['encoder']['skills']['a']
    self.assertEqual(restored.dtype, np.float32)
    np.testing.assert_array_equal(restored, expected.astype(np.float32))
    self.alter(SKILL)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'cannot be trusted'):
      self.start(f'{self.model_dir}/checkpoint_104')

  @parameterized.parameters((None,), ('bfloat16',))
  def test_is_found_where_files_are_read_without_a_model(self, dtype):
    self.train()
    path = f'{self.model_dir}/checkpoint_104'
    checkpoints.load_t5x_checkpoint(path, restore_dtype=dtype and jnp.dtype(dtype))
    self.alter(SKILL)
    lazy = checkpoints.load_t5x_checkpoint(path, lazy_parameters=True)['target']['encoder']['skills']
    lazy['b'].get()
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'cannot be trusted'):
      lazy['a'].get()
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'cannot be trusted'):
      checkpoints.load_t5x_checkpoint(path, restore_dtype=dtype and jnp.dtype(dtype))

  def test_is_found_in_a_base_that_was_saved_with_checksums(self):
    state = self.train()
    run = self.model_dir
    self.model_dir = os.path.join(self.folder, 'second')
    restored, manager = self.start(f'{run}/checkpoint_104', model_dir=self.model_dir,
                                   save=restore.SaveCheckpointConfig(period=1))
    np.testing.assert_array_equal(restored.params['encoder']['skills']['a'], state.params['encoder']['skills']['a'])
    # The second run takes its base from the first base, which has no checksums.
    manager.save(restored)
    manager.close()
    full = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False))
    base_manager = checkpoints.OrbaxCheckpointManagerInterface(
        os.path.join(self.folder, 'orbax'), full.global_train_state_shape, checkpoint_testing.partitioner())
    base_manager.save(self.start(self.base, full)[0])
    base_manager.close()
    self.start(f'{self.model_dir}/checkpoint_104', base_path=f'{self.folder}/orbax/checkpoint_100')
    self.model_dir = os.path.join(self.folder, 'orbax')
    self.alter('target/encoder/base/kernel', 100)
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'base/kernel.*orbax/checkpoint_100 cannot be trusted'):
      self.start(f'{self.folder}/second/checkpoint_104', base_path=f'{self.folder}/orbax/checkpoint_100')


class NoDamageTest(_RunTest):

  def test_older_checkpoints_load_with_a_line(self):
    state = self.train()

    def older(metadata):
      del metadata['checksums'], metadata['digest']
      metadata['base'] = {key: metadata['base'][key] for key in ('path', 'digest')}

    self.edit(older)
    with self.assertLogs(level='INFO') as logs:
      restored = self.resume()
    self.assertRegex(' '.join(logs.output), 'checkpoint_104 has no checksums')
    for name, value in checkpoint_testing.flat(state).items():
      np.testing.assert_array_equal(checkpoint_testing.flat(restored)[name], value, err_msg=name)

  def test_what_is_saved_has_checksums_and_the_base_its_size(self):
    self.train()
    stored = checkpoints.open_checkpoint(f'{self.model_dir}/checkpoint_104')
    self.assertEqual(stored.metadata['checksums'], {n: _by_hand(np.atleast_1d(a.get())) for n, a in stored.arrays.items()})
    base = stored.metadata['base']
    self.assertEqual((base['parameters'], base['bytes']), (8 * 16 + 16 * 8 + 8, 4 * (8 * 16 + 16 * 8 + 8)))

  def test_user_transformations_get_the_values_and_the_damage(self):
    self.train()
    double = lambda state, model_state, is_resuming: {
        **state, 'target': {**state['target'], 'encoder': {
            **state['target']['encoder'], 'skills': jax.tree.map(lambda a: 2 * a.get(), state['target']['encoder']['skills'])}}}
    once = self.inference().params['encoder']['skills']['b']
    np.testing.assert_array_equal(self.inference(state_transformation_fns=[double]).params['encoder']['skills']['b'], 2 * once)
    self.alter('target/encoder/skills/b')
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, 'cannot be trusted'):
      self.inference(state_transformation_fns=[double])


class BaseTest(_RunTest):

  def setUp(self):
    super().setUp()
    other = checkpoint_testing.initializer(None, checkpoint_testing.Model(skills=False)).from_scratch(jax.random.PRNGKey(7))
    self.other_params = other.params
    self.other = checkpoint_testing.save_single_file(os.path.join(self.folder, 'other'), 100, other.params)

  @parameterized.parameters((None,), ('bfloat16',), ('float16',))
  def test_another_base_is_refused_unless_forced(self, dtype):
    self.train()
    self.inference(dtype=dtype, base_path=self.base)
    with self.assertRaisesRegex(ValueError, 'other/checkpoint_100 .*is not the one .*force_base=True') as caught:
      self.inference(dtype=dtype, base_path=self.other)
    self.assertNotIn('\n', str(caught.exception))
    with self.assertLogs(level='WARNING') as logs:
      state = self.inference(dtype=dtype, base_path=self.other, force_base=True)
    self.assertIn('used all the same', logs.output[0])
    expected = np.asarray(self.other_params['encoder']['base']['kernel'])
    np.testing.assert_array_equal(state.params['encoder']['base']['kernel'], expected.astype(dtype or 'float32'))

  def test_a_run_on_a_forced_base_names_it(self):
    self.train()
    second = os.path.join(self.folder, 'second')
    state, manager = self.start(f'{self.model_dir}/checkpoint_104', base_path=self.other, force_base=True, model_dir=second,
                                save=restore.SaveCheckpointConfig(period=1))
    manager.save(state)
    manager.close()
    self.assertEqual(checkpoints.open_checkpoint(f'{second}/checkpoint_104').metadata['base']['path'], self.other)
    self.start(f'{second}/checkpoint_104')


class ShardedTest(_RunTest):

  def test_eight_devices_write_and_check_what_one_does(self):
    """The other process has a mesh of 4 x 2; the checksums are the same there, and damage is found there, too."""
    state = self.train()
    program = textwrap.dedent(f'''
        import sys
        sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
        import checkpoint_testing, jax
        from t5x import checkpoints, checksums
        assert jax.device_count() == 8
        init = checkpoint_testing.initializer(checkpoint_testing.frozen_base())
        manager = lambda folder: checkpoints.OrbaxCheckpointManagerInterface(
            folder, init.global_train_state_shape, checkpoint_testing.partitioner())
        first = manager({self.model_dir!r})
        state = first.restore(step=104)
        kernel = state.params['encoder']['base']['kernel']
        assert len({{str(i) for i in kernel.sharding.devices_indices_map(kernel.shape).values()}}) > 1, kernel.sharding
        print(checksums.compute({{'kernel': kernel}})['kernel'])
        second = manager({os.path.join(self.folder, 'eight')!r})
        second.base_reference = first.base_reference
        second.save(state)
        second.close()
        try:
          first.restore(step=102)
        except checkpoints.CheckpointReadError as error:
          print(error)
    ''')
    self.alter(SKILL, 102)
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu',
                   'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    kernel, error = [line for line in done.stdout.splitlines() if not line.startswith('Reading ')]
    self.assertEqual(kernel, _by_hand(np.asarray(state.params['encoder']['base']['kernel'])))
    self.assertRegex(error, "'target/encoder/skills/a' of .*checkpoint_102 cannot be trusted")
    sums = [checkpoints.open_checkpoint(f'{folder}/checkpoint_104').metadata['checksums']
            for folder in (self.model_dir, os.path.join(self.folder, 'eight'))]
    self.assertEqual(*sums)
    self.start(f'{self.folder}/eight/checkpoint_104')


class PlacesTest(absltest.TestCase):

  def test_a_part_counts_once_for_several_processes(self):
    """Two processes have read the same half: the sums are those of the first of them only."""
    values = _values('float32', (4, 6))
    array = checkpoint_reader.StoredArray('x', '/checkpoint_1', value=values)
    array.checksum = _by_hand(values)
    devices = [mock.Mock(process_index=i) for i in (0, 0, 1, 1)]
    top, bottom = (slice(0, 2), slice(None)), (slice(2, 4), slice(None))
    sharding = mock.Mock(devices_indices_map=lambda shape: dict(zip(devices, (top, bottom, top, bottom))))
    for process in (0, 1):
      summed = checksums.Summed(array)
      for part in (top, bottom):
        np.testing.assert_array_equal(summed.read(part, np.float16), values[part].astype(np.float16))
      whole = checksums.sums_of_part(values, (0, 0), values.shape)
      gather = mock.Mock(side_effect=lambda totals, whole=whole: np.stack([totals, whole - totals]))
      with mock.patch.object(jax, 'process_index', return_value=process), \
          mock.patch.object(jax, 'process_count', return_value=2), \
          mock.patch('jax.experimental.multihost_utils.process_allgather', gather):
        checksums.check_read({'x': summed}, {'x': sharding})
      np.testing.assert_array_equal(gather.call_args.args[0][0], whole if process == 0 else [0, 0])

  def test_names_are_those_of_the_checkpoint(self):
    array = checkpoint_reader.StoredArray('target/old', '/checkpoint_1', value=np.ones(3, np.float32))
    array.checksum = 'x' * 16
    with self.assertRaisesRegex(checkpoints.CheckpointReadError, "'target/old' and 1 more of /checkpoint_1"):
      checksums.check({'target/new': array, 'target/newer': array}, {'target/new': 'y', 'target/newer': 'z'})

  def test_metadata_says_nothing_of_arrays_that_are_not_saved(self):
    state = checkpoint_testing.initializer(None).from_scratch(RNG)
    self.assertEqual(checkpoint_state.make_metadata(None, state)['checksums'], {})


if __name__ == '__main__':
  absltest.main()
