"""Tests of loading a trained model from files alone."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import t5x

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import small_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import model_settings
from cpoly_jax import testing
from cpoly_jax.checkpoints import loading

setUpModule, tearDownModule = testing.quick_compilation()


class _FilesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    files = small_runs.files()
    cls.base, cls.other, cls.run_dir = files.base, files.other, files.run
    cls.checkpoint = os.path.join(cls.run_dir, 'checkpoint_107')

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def copied(self) -> str:
    """A copy of the run, to be damaged."""
    return shutil.copytree(self.run_dir, os.path.join(self.folder, 'copy'))

  def assert_refused(self, message: str, error: type[Exception], **arguments):
    with self.assertRaisesRegex(error, message) as caught:
      loading.load(**arguments)
    self.assertNotIn('\n', str(caught.exception))


class LoadTest(_FilesTest):

  @parameterized.parameters('run_dir', 'checkpoint')
  def test_what_is_loaded(self, which):
    loaded = loading.load(getattr(self, which))
    self.assertEqual((loaded.path, loaded.step, loaded.task_index), (self.checkpoint, 107, small_runs.INDEX))
    self.assertEqual(loaded.description, json.loads(json.dumps(small_runs.model().checkpoint_metadata())))
    self.assertEqual(model_settings.describe(loaded.transformer), model_settings.describe(small_runs.model().module))
    self.assertIsInstance(loaded.vocabularies['input'], seqio.ByteVocabulary)
    self.assertIsInstance(loaded.vocabularies['output'], seqio.ByteVocabulary)
    base = small_runs.base_params()
    size = sum(value.size for value in base.values())
    self.assertEqual({key: loaded.base[key] for key in ('path', 'parameters', 'bytes')},
                     {'path': self.base, 'parameters': size, 'bytes': 4 * size})
    self.assertLen(loaded.base['digest'], 32)
    params = small_runs.flat(loaded.params)
    for name, value in base.items():
      self.assertIsInstance(params[name], np.ndarray)
      np.testing.assert_array_equal(params[name], value, err_msg=name)
    self.assertEqual(loaded.own, params.keys() - base.keys())
    self.assertEqual(loaded.own, small_runs.stored_names(self.checkpoint))
    np.testing.assert_array_equal(small_runs.logits(loaded.params, loaded.transformer), small_runs.logits(loaded.params))

  def test_dtype_is_that_of_the_base_alone(self):
    loaded, exact = loading.load(self.run_dir, dtype='bfloat16'), loading.load(self.run_dir)
    exact = small_runs.flat(exact.params)
    for name, value in small_runs.flat(loaded.params).items():
      self.assertEqual(value.dtype, jnp.bfloat16 if small_runs.is_base(name) else np.float32, name)
      np.testing.assert_array_equal(value, exact[name].astype(value.dtype), err_msg=name)

  def test_a_complete_checkpoint_with_model_json_beside(self):
    run = small_runs.write_complete_run(self.folder)
    loaded = loading.load(run)
    self.assertEqual((loaded.step, loaded.base, loaded.task_index), (107, None, small_runs.INDEX))
    self.assertEqual(loaded.own, small_runs.flat(loaded.params).keys())
    np.testing.assert_array_equal(small_runs.logits(loaded.params), small_runs.logits(loading.load(self.run_dir).params))
    dtypes = {small_runs.is_base(n): v.dtype for n, v in small_runs.flat(loading.load(run, dtype='bfloat16').params).items()}
    self.assertEqual(dtypes, {True: jnp.bfloat16, False: np.float32})
    self.assert_refused('complete/checkpoint_107 holds all of its parameters and needs no base', ValueError, path=run,
                        base=self.base)

  def test_opening_reads_no_values_of_parameters(self):
    from t5x import checkpoints
    with mock.patch.object(checkpoints.StoredArray, 'read', autospec=True, side_effect=checkpoints.StoredArray.read) as read:
      opened = loading.open_files(self.run_dir)
    self.assertEqual({call.args[0].name for call in read.call_args_list}, {'state/step'})
    self.assertEqual((opened.base_path, opened.step), (self.base, 107))
    self.assertEqual(opened.arrays['token_embedder/embedding'].shape, (264, 16))
    self.assertEqual(opened.frozen, small_runs.base_params().keys())
    own = loading.open_own(self.run_dir)
    self.assertEqual((own.arrays.keys(), own.base_path), (small_runs.stored_names(self.checkpoint), None))

  def test_vocabularies_of_an_unknown_kind_are_none(self):
    loaded = loading.load(self.run_dir)
    told = {**loaded.description, 'vocabularies': {'input': None}}
    self.assertEqual(loading.Loaded(loaded.transformer, {}, None, None, '', None, told).vocabularies,
                     {'input': None, 'output': None})


class BaseTest(_FilesTest):

  def test_the_base_elsewhere(self):
    moved = shutil.copytree(self.base, os.path.join(self.folder, 'checkpoint_100'))
    loaded = loading.load(self.run_dir, base=moved)
    np.testing.assert_array_equal(small_runs.logits(loaded.params), small_runs.logits(loading.load(self.run_dir).params))
    self.assertEqual(loading.open_files(self.run_dir, base=moved).base_path, moved)

  @parameterized.parameters(None, 'bfloat16', 'float16')
  def test_another_base_is_refused_unless_forced(self, dtype):
    self.assert_refused('base_1/checkpoint_100 .*is not the one that .*checkpoint_107 was trained on, .*force_base=True',
                        ValueError, path=self.run_dir, base=self.other, dtype=dtype)
    loaded = loading.load(self.run_dir, base=self.other, force_base=True)
    np.testing.assert_array_equal(loaded.params['token_embedder']['embedding'],
                                  small_runs.base_params(1)['token_embedder/embedding'])

  def test_no_base(self):
    self.assert_refused("absent cannot be opened: .*base", FileNotFoundError, path=self.run_dir,
                        base=os.path.join(self.folder, 'absent'))

  def test_a_base_of_another_size(self):
    params = small_runs.base_params() | {'encoder/encoder_norm/scale': np.ones(24, np.float32)}
    other = small_runs.write_native(os.path.join(self.folder, 'other'), 100, params)
    self.assert_refused(r'has encoder/encoder_norm/scale \(24,\) where the network has \(16,\)', ValueError,
                        path=self.run_dir, base=other, force_base=True)


class WrongFilesTest(_FilesTest):

  def edit(self, run: str, change) -> None:
    """Rewrites the metadata as an older version would have, without checksums."""
    file = pathlib.Path(run, 'checkpoint_107/metadata/metadata')
    metadata = json.loads(file.read_text())
    del metadata['checksums'], metadata['digest']
    change(metadata)
    file.write_text(json.dumps(metadata))

  def test_no_checkpoint(self):
    self.assert_refused('no checkpoint at .*absent', FileNotFoundError, path=os.path.join(self.folder, 'absent'))
    self.assert_refused('is not a checkpoint', ValueError, path=self.folder)

  def test_no_description(self):
    self.assert_refused('base_0/checkpoint_100 does not describe its network, and there is no .*base_0/model.json', ValueError,
                        path=self.base)

  @parameterized.parameters('{"network": ', '[1]')
  def test_a_damaged_description(self, text):
    run = small_runs.write_complete_run(self.folder)
    pathlib.Path(run, 'model.json').write_text(text)
    self.assert_refused('model.json is damaged', ValueError, path=run)

  def test_an_unknown_class_is_not_run(self):
    run = self.copied()
    self.edit(run, lambda metadata: metadata['model']['adapter']['router'].update(kind='os.system'))
    self.assert_refused("'os.system' is no class of this project", ValueError, path=run)

  def test_parameters_that_differ_are_named(self):
    run = self.copied()
    self.edit(run, lambda metadata: metadata['model']['adapter'].update(targets='.*attention/(query|key)'))
    self.assert_refused(r'has no decoder/layers_0/encoder_decoder_attention/key/routing/common; it .* and \d+ more', ValueError,
                        path=run)
    run = shutil.copytree(self.run_dir, os.path.join(self.folder, 'again'))
    self.edit(run, lambda metadata: metadata['model']['adapter']['inventory'].update(rank=2))
    self.assert_refused(r'has decoder/.*/query/skills/down \(\d, 16, \d\) where the network has \(\d, 16, 2\)', ValueError,
                        path=run)
    run = shutil.copytree(self.run_dir, os.path.join(self.folder, 'third'))
    self.edit(run, lambda metadata: metadata['model'].update(adapter=None))
    self.assert_refused('has decoder/.*, which the network lacks', ValueError, path=run)

  def test_altered_values(self):
    run = self.copied()
    file = pathlib.Path(run, 'checkpoint_107/metadata/metadata')
    metadata = json.loads(file.read_text())
    metadata['model']['task_index']['tasks'].reverse()
    file.write_text(json.dumps(metadata))
    self.assert_refused('metadata of .*checkpoint_107 .*altered', ValueError, path=run)

  def test_a_t5x_without_the_reader(self):
    with mock.patch.dict(sys.modules, {'t5x.checkpoints': types.ModuleType('t5x.checkpoints')}), \
        mock.patch.object(t5x, 'checkpoints', types.ModuleType('t5x.checkpoints')):
      self.assert_refused('install t5x_lite', ValueError, path=self.run_dir)


class ShapesTest(absltest.TestCase):

  def test_nothing_is_allocated(self):
    shapes = loading.shapes(small_runs.model().module)
    self.assertTrue(all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes.values()))
    self.assertEqual(shapes['token_embedder/embedding'].shape, (264, 16))
    self.assertIn('encoder/layers_0/attention/query/routing/common', shapes)


if __name__ == '__main__':
  absltest.main()
