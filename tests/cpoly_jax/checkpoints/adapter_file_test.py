"""Tests of shared adapters: what they hold, that they compute what their checkpoint does, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy
from t5x import checkpoint_reader
from t5x import utils

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import small_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from cpoly_jax.checkpoints import adapter_file
from cpoly_jax.checkpoints import loading

setUpModule, tearDownModule = testing.quick_compilation()
DOWN = 'encoder/layers_0/attention/query/skills/down'


class _SharedTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    files = small_runs.files()
    cls.base, cls.other, cls.run_dir = files.base, files.other, files.run
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.shared = os.path.join(folder.name, 'shared')
    cls.settings = adapter_file.save(cls.run_dir, cls.shared)
    cls.loaded = loading.load(cls.run_dir)

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.out = os.path.join(self.folder, 'out')

  def assert_params(self, actual, expected):
    actual, expected = small_runs.flat(actual), small_runs.flat(expected)
    self.assertEqual(actual.keys(), expected.keys())
    for name, value in expected.items():
      self.assertEqual(actual[name].dtype, value.dtype, name)
      np.testing.assert_array_equal(actual[name], value, err_msg=name)


class SaveTest(_SharedTest):

  def test_files(self):
    self.assertEqual(sorted(os.listdir(self.shared)), ['adapter.json', 'adapter.safetensors'])
    content = pathlib.Path(self.shared, 'adapter.safetensors').read_bytes()
    tensors = safetensors_numpy.load(content)
    expected = small_runs.flat(self.loaded.params)
    self.assertEqual(tensors.keys(), {name for name in expected if not small_runs.is_base(name)})
    for name, value in tensors.items():
      np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for name in small_runs.base_params():
      self.assertNotIn(f'"{name}"'.encode(), content)
    told = json.loads(pathlib.Path(self.shared, 'adapter.json').read_text())
    self.assertEqual(told, self.settings)
    self.assertEqual((told['format'], told['step'], told['bytes']), (1, 107, len(content)))
    self.assertEqual(told['sha256'], hashlib.sha256(content).hexdigest())
    self.assertEqual(told['model'], json.loads(json.dumps(small_runs.model().checkpoint_metadata())))
    self.assertEqual(told['base'], dict(self.loaded.base))
    self.assertEqual(told['base'].keys(), {'path', 'digest', 'parameters', 'bytes'})

  def test_a_loaded_model_is_shared_with_its_values(self):
    flat = small_runs.flat(self.loaded.params)
    changed = {**flat, DOWN: flat[DOWN] + 1}
    adapter_file.save(dataclasses.replace(self.loaded, params=traverse_util.unflatten_dict(changed, sep='/')), self.out)
    np.testing.assert_array_equal(adapter_file.read(self.out)[DOWN].read(), flat[DOWN] + 1)

  def test_an_adapter_can_be_shared_on(self):
    adapter_file.save(self.shared, self.out)
    self.assertEqual(adapter_file.read(self.out).settings, self.settings)

  def test_the_base_is_not_needed(self):
    with mock.patch.object(checkpoint_reader, 'open_checkpoint', wraps=checkpoint_reader.open_checkpoint) as opened:
      adapter_file.save(self.run_dir, self.out)
    self.assertEqual({call.args[0] for call in opened.call_args_list}, {os.path.join(self.run_dir, 'checkpoint_107')})

  def test_the_base_can_be_named_by_another_place(self):
    moved = shutil.copytree(self.base, os.path.join(self.folder, 'public/checkpoint_100'))
    adapter_file.save(self.run_dir, self.out, base=moved)
    self.assertEqual(adapter_file.read(self.out).settings['base'], {**self.loaded.base, 'path': moved})
    self.assert_params(loading.load(self.out).params, self.loaded.params)
    with self.assertRaisesRegex(ValueError, 'base_1/checkpoint_100 .*is not the one that .*was trained on'):
      adapter_file.save(self.run_dir, os.path.join(self.folder, 'second'), base=self.other)
    self.assertFalse(os.path.exists(os.path.join(self.folder, 'second')))

  def test_a_complete_checkpoint_needs_its_base(self):
    run = small_runs.write_complete_run(self.folder)
    with self.assertRaisesRegex(ValueError, r'complete/checkpoint_107 holds all .*--base=PATH'):
      adapter_file.save(run, self.out)
    settings = adapter_file.save(run, self.out, base=self.base)
    self.assertEqual(settings['base'], self.settings['base'])
    self.assertEqual(adapter_file.read(self.out).keys(), adapter_file.read(self.shared).keys())
    self.assert_params(loading.load(self.out).params, self.loaded.params)
    with self.assertRaisesRegex(ValueError, 'base_1/checkpoint_100 is not the base of'):
      adapter_file.save(run, os.path.join(self.folder, 'second'), base=self.other)

  def test_what_else_was_trained_is_shared_too(self):
    params = small_runs.flat(self.loaded.params)
    norm = 'decoder/decoder_norm/scale'
    params[norm] = params[norm] + 1
    run = os.path.join(self.folder, 'tuned')
    small_runs.write_native(run, 5, params)
    shutil.copy(os.path.join(small_runs.write_complete_run(self.folder), 'model.json'), run)
    adapter_file.save(run, self.out, base=self.base)
    self.assertEqual({name for name in adapter_file.read(self.out) if small_runs.is_base(name)}, {norm})
    np.testing.assert_array_equal(small_runs.flat(loading.load(self.out).params)[norm], params[norm])

  def test_nothing_is_overwritten(self):
    with self.assertRaisesRegex(FileExistsError, 'shared exists and is not overwritten'):
      adapter_file.save(self.run_dir, self.shared)

  def test_command(self):
    planned = adapter_file.share(self.run_dir, self.out, dry_run=True)
    self.assertFalse(os.path.exists(self.out))
    count = sum(value.size for name, value in small_runs.flat(self.loaded.params).items() if not small_runs.is_base(name))
    self.assertRegex(planned, f'would write .*/out: 12 arrays, {count:,} parameters, 0.01 MB, step 107\nbase .*base_0')
    self.assertRegex(adapter_file.share(self.run_dir, self.out), 'wrote .*/out: 12 arrays, ')
    self.assertEqual(adapter_file.read(self.out).settings, self.settings)


class LoadTest(_SharedTest):

  def test_computes_what_its_checkpoint_does(self):
    shared = loading.load(self.shared)
    self.assertEqual((shared.step, shared.base, shared.own), (107, self.loaded.base, self.loaded.own))
    self.assertEqual((shared.task_index, shared.description), (self.loaded.task_index, self.loaded.description))
    self.assert_params(shared.params, self.loaded.params)
    np.testing.assert_array_equal(small_runs.logits(shared.params, shared.transformer), small_runs.logits(self.loaded.params))

  def test_another_base_is_refused_unless_forced(self):
    with self.assertRaisesRegex(ValueError, 'base_1/checkpoint_100 .*is not the one that .*shared was trained on'):
      loading.load(self.shared, base=self.other)
    forced = small_runs.flat(loading.load(self.shared, base=self.other, force_base=True).params)
    np.testing.assert_array_equal(forced['token_embedder/embedding'], small_runs.base_params(1)['token_embedder/embedding'])
    np.testing.assert_array_equal(forced[DOWN], small_runs.flat(self.loaded.params)[DOWN])

  def test_t5x_takes_it_for_a_checkpoint(self):
    """As `CHECKPOINT_PATH` of evaluation and inference, by the entry point alone."""
    point = importlib.metadata.EntryPoint('shared_adapter', 'cpoly_jax.checkpoints.adapter_file:open_checkpoint_folder',
                                          checkpoint_reader.FORMATS_GROUP)

    def restored(**settings):
      cfg = utils.RestoreCheckpointConfig(path=self.shared, mode='specific', **settings)
      cfg.strict = False
      initializer = small_runs.initializer(False)
      return utils.create_checkpoint_manager_and_restore(initializer, small_runs.partitioner(), cfg, self.shared, None,
                                                         use_orbax=True)[0]

    with mock.patch.object(checkpoint_reader, '_registered', {}), \
        mock.patch.object(importlib.metadata, 'entry_points', return_value=[point]):
      state = restored()
      self.assert_params(jax.tree.map(np.asarray, state.params), self.loaded.params)
      self.assertEqual(int(state.step), 107)
      with self.assertRaisesRegex(ValueError, 'is not the one that'):
        restored(base_path=self.other)
      restored(base_path=self.other, force_base=True)


class DamageTest(_SharedTest):

  def setUp(self):
    super().setUp()
    self.copy = shutil.copytree(self.shared, os.path.join(self.folder, 'copy'))
    self.json = pathlib.Path(self.copy, 'adapter.json')
    self.tensors = pathlib.Path(self.copy, 'adapter.safetensors')

  def assert_refused(self, message: str, error: type[Exception] = ValueError):
    for use in (adapter_file.read, loading.load, lambda path: adapter_file.save(path, self.out)):
      with self.assertRaisesRegex(error, message) as caught:
        use(self.copy)
      self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(self.out))

  def test_one_altered_bit_of_a_value(self):
    content = bytearray(self.tensors.read_bytes())
    content[-3] ^= 1
    self.tensors.write_bytes(content)
    self.assert_refused('adapter.safetensors was altered: its SHA-256')

  @parameterized.parameters(1, 1000, 10**9)
  def test_truncated_tensors(self, cut):
    self.tensors.write_bytes(self.tensors.read_bytes()[:-cut])
    self.assert_refused('adapter.safetensors is truncated or altered: it has [0-9]+ bytes, and had [0-9]+')

  def test_longer_tensors(self):
    self.tensors.write_bytes(self.tensors.read_bytes() + b'x')
    self.assert_refused('adapter.safetensors is truncated or altered')

  def test_truncated_json(self):
    self.json.write_text(self.json.read_text()[:-20])
    self.assert_refused('adapter.json is truncated or altered: it is not JSON')

  @parameterized.parameters('model', 'base', 'step', 'sha256', 'frozen', 'bytes', 'digest')
  def test_altered_json(self, key):
    told = json.loads(self.json.read_text())
    if key == 'model':
      told['model']['task_index']['tasks'].reverse()
    elif key == 'base':
      told['base']['digest'] = '0' * 32
    else:
      told[key] = told[key][:-1] if isinstance(told[key], (str, list)) else told[key] + 1
    self.json.write_text(json.dumps(told))
    self.assert_refused('adapter.json was altered: its content has not the digest in it')

  @parameterized.parameters(2, '1', None)
  def test_another_version(self, version):
    told = json.loads(self.json.read_text())
    told['format'] = version
    self.json.write_text(json.dumps(told))
    self.assert_refused('adapter.json has format .*, and this version reads 1: upgrade cpoly_jax')

  @parameterized.parameters('[]', '{}', 'null')
  def test_other_json(self, text):
    self.json.write_text(text)
    self.assert_refused('adapter.json was not written by this project, or altered: it tells no format')

  def test_fields_of_another_kind(self):
    told = json.loads(self.json.read_text()) | {'frozen': {'a': 1}}
    self.json.write_text(json.dumps(told | {'digest': adapter_file._digest(told)}))
    self.assert_refused("adapter.json has frozen = {'a': 1}: it was not written by this version")

  def test_a_tensor_of_the_base(self):
    told = json.loads(self.json.read_text())
    told['frozen'].append(f'target/{DOWN}')
    self.json.write_text(json.dumps(told | {'digest': adapter_file._digest(told)}))
    self.assert_refused(f'adapter.safetensors holds {DOWN}, which adapter.json leaves to the base')

  def test_absent_tensors(self):
    self.tensors.unlink()
    self.assert_refused('copy is no shared adapter, it has no adapter.safetensors', FileNotFoundError)

  def test_absent_json(self):
    self.json.unlink()
    self.assertIsNone(adapter_file.open_checkpoint_folder(self.copy))
    with self.assertRaisesRegex(FileNotFoundError, 'it has no adapter.json: copy the whole folder'):
      adapter_file.read(self.copy)
    with self.assertRaisesRegex(ValueError, 'is not a checkpoint'):
      loading.load(self.copy)


if __name__ == '__main__':
  absltest.main()
