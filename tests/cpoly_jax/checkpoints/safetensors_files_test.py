"""Tests of reading parts of safetensors files, against the `safetensors` library and by hand."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from cpoly_jax.checkpoints import safetensors_files


def _write(path, header, values=b''):
  """Writes a file with any header: a dict, or bytes."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  with open(path, 'wb') as f:
    f.write(len(header).to_bytes(8, 'little') + header + values)


def _entry(start=0, stop=8, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, stop]}


class _FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'x.safetensors')


class ReadTest(_FileTest):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.tensors = {
        'matrix': rng.normal(size=(37, 11)).astype(np.float32), 'half': rng.normal(size=(5, 3)).astype(ml_dtypes.bfloat16),
        'cube': rng.normal(size=(4, 3, 5)).astype(np.float16), 'scalar': np.full((), 3, np.float32),
        'none': np.zeros((0, 4), np.int8), 'ints': np.arange(9)}
    safetensors_numpy.save_file(self.tensors, self.path, {'format': 'pt', 'note': 'text'})
    self.found = safetensors_files.open_file(self.path)

  def test_all_tensors(self):
    self.assertEqual(self.found.keys(), self.tensors.keys())
    for name, value in self.tensors.items():
      read = self.found[name].read()
      self.assertEqual((self.found[name].shape, self.found[name].dtype, read.dtype), (value.shape, value.dtype, value.dtype))
      np.testing.assert_array_equal(read, value, err_msg=name)
    self.assertEqual(safetensors_files.metadata(self.path), {'format': 'pt', 'note': 'text'})

  @parameterized.product(rows=(slice(None), slice(3, 20), slice(36, 99), slice(5, 5)), columns=(slice(None), slice(2, 9), None),
                         dtype=(None, np.float16), block=(1, 100, 2**22))
  def test_parts(self, rows, columns, dtype, block):
    index = (rows,) if columns is None else (rows, columns)
    self.enterContext(mock.patch.object(safetensors_files, '_BLOCK_BYTES', block))
    read = self.found['matrix'].read(index, dtype)
    np.testing.assert_array_equal(read, self.tensors['matrix'][index].astype(dtype or np.float32))
    self.assertEqual(read.dtype, dtype or np.float32)

  def test_three_dimensions_and_arrays_with_their_own_pages(self):
    self.enterContext(mock.patch.object(safetensors_files, '_OWN_PAGES_BYTES', 1))
    index = (slice(1, 3), slice(0, 2), slice(4, 5))
    np.testing.assert_array_equal(self.found['cube'].read(index), self.tensors['cube'][index])
    self.assertEqual(self.found['none'].read().shape, (0, 4))

  def test_a_bucket_whose_files_only_read(self):
    class File:
      """What TensorFlow's files offer; reads short, as sockets do."""

      def __init__(self, path):
        self._file = open(path, 'rb')
        self.seek = self._file.seek

      def read(self, size):
        return self._file.read(min(size, 50))

      def __enter__(self):
        return self

      def __exit__(self, *_):
        self._file.close()

    self.enterContext(mock.patch.object(safetensors_files, '_opened', File))
    np.testing.assert_array_equal(self.found['matrix'].read(), self.tensors['matrix'])
    np.testing.assert_array_equal(self.found['matrix'].read((slice(2, 9),), np.float16),
                                  self.tensors['matrix'][2:9].astype(np.float16))

  def test_into_a_transposed_view(self):
    out = np.zeros((11, 37))
    self.found['matrix'].read_into(out.T)
    np.testing.assert_array_equal(out, self.tensors['matrix'].T.astype(np.float64))
    with self.assertRaisesRegex(ValueError, r'does not fit an array of shape \[11, 37\]'):
      self.found['matrix'].read_into(out)

  @parameterized.parameters(((slice(0, 4, 2),),), ((3,),), ((slice(None),) * 3,))
  def test_other_indices(self, index):
    with self.assertRaisesRegex(ValueError, 'give slices without a step'):
      self.found['matrix'].read(index)

  def test_a_file_cut_after_it_was_opened(self):
    with open(self.path, 'r+b') as f:
      f.truncate(os.path.getsize(self.path) - 4)
    last = max((t for t in self.found.values() if 0 not in t.shape), key=lambda tensor: tensor._offset)
    with self.assertRaisesRegex(ValueError, 'ends too early'):
      last.read()

  def test_every_cut_is_found_when_it_is_opened(self):
    content = open(self.path, 'rb').read()
    for size in (0, 7, 8, 50, len(content) - 1):
      with open(self.path, 'wb') as f:
        f.write(content[:size])
      with self.assertRaisesRegex(ValueError, f'^{self.path} is not a whole safetensors file: .+$'):
        safetensors_files.open_file(self.path)
    with open(self.path, 'wb') as f:
      f.write(content + b'x')
    with self.assertRaisesRegex(ValueError, 'its values would end at'):
      safetensors_files.open_file(self.path)


class HeaderTest(_FileTest):

  @parameterized.parameters(
      (b'{"a"', 'not JSON'), (b'\xff\xfe', 'not JSON'), (b'[' * 100_000, 'not JSON'), (b'[]', 'not a JSON object'),
      (b'{"a": 1, "a": 2}', 'twice'), ({'a': 3}, 'lacks one of'), ({'a': {'dtype': 'F32'}}, 'lacks one of'),
      ({'a': _entry(dtype='F33')}, "has dtype 'F33'"), ({'a': _entry(dtype=['F32'])}, 'has dtype'),
      ({'a': _entry(shape=(-2,))}, 'has shape'), ({'a': _entry(shape=(True, 2))}, 'has shape'),
      ({'a': _entry(shape=(3,))}, 'has the data_offsets'),
      ({'a': _entry(shape=(2**62, 2**62))}, 'has the data_offsets'), ({'a': _entry(8, 0)}, 'has the data_offsets'),
      ({'a': _entry(0, 16, (4,))}, 'its values would end at'), ({'a': _entry(), 'b': _entry(4, 12)}, 'begins at 4'),
      ({'a': _entry(4, 12)}, 'begins at 4'), ({'a': _entry(), 'b': _entry()}, 'begins at 0'))
  def test_altered(self, header, message):
    _write(self.path, header, bytes(8))
    with self.assertRaisesRegex(ValueError, message) as caught:
      safetensors_files.open_file(self.path)
    self.assertNotIn('\n', str(caught.exception))

  def test_a_header_longer_than_the_file(self):
    with open(self.path, 'wb') as f:
      f.write((2**63).to_bytes(8, 'little') + bytes(100))
    with self.assertRaisesRegex(ValueError, f'its header would have {2**63} bytes, and the file has 108'):
      safetensors_files.open_file(self.path)

  def test_no_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'there is no file'):
      safetensors_files.open_file(self.path)


class ShardedTest(_FileTest):

  def setUp(self):
    super().setUp()
    self.index = os.path.join(self.folder, 'model' + safetensors_files.INDEX_SUFFIX)
    for name in 'ab':
      safetensors_numpy.save_file({name: np.full(3, ord(name))}, os.path.join(self.folder, f'{name}.safetensors'))

  def _open(self, weight_map):
    with open(self.index, 'w') as f:
      json.dump({'weight_map': weight_map}, f)
    return safetensors_files.open_sharded(self.index)

  def test_values(self):
    found = self._open({'a': 'a.safetensors', 'b': 'b.safetensors'})
    self.assertEqual({name: tensor.read().tolist() for name, tensor in found.items()}, {'a': [97] * 3, 'b': [98] * 3})

  @parameterized.parameters(
      '../x', '../a.safetensors', '/tmp/a.safetensors', 'x/../a.safetensors', '..\\a.safetensors', 'a.bin', '')
  def test_a_file_elsewhere_is_refused(self, file):
    with self.assertRaisesRegex(ValueError, 'only a .safetensors file beside the index is read'):
      self._open({'a': file})

  @parameterized.parameters(
      ({'a': 'b.safetensors'}, "does not say that 'b' is in b.safetensors"),
      ({'a': 'a.safetensors', 'c': 'a.safetensors'}, "says that 'c' is in a.safetensors, where it is not"),
      ({'a': 3}, 'is not an index'), ([], 'is not an index'))
  def test_an_index_that_does_not_agree(self, weight_map, message):
    with self.assertRaisesRegex(ValueError, message):
      self._open(weight_map)

  def test_a_file_that_is_absent(self):
    with self.assertRaisesRegex(FileNotFoundError, 'c.safetensors'):
      self._open({'c': 'c.safetensors'})


if __name__ == '__main__':
  absltest.main()
