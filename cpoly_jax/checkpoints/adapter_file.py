"""A shared adapter: a folder with what was trained on a frozen base, to give to others who have that base.

    adapter.safetensors   skills, routing and what else was trained, by T5X name; nothing of the base
    adapter.json          format, step, network and tasks (`cpoly_jax.model_settings`), identity of the base, SHA-256 of both

It is opened only if both files are whole and unaltered, and used only with the base of that identity, unless forced
(`loading.load(folder, base=..., force_base=True)`). `open_checkpoint_folder` is the entry point, of the group
`t5x.checkpoint_formats`, by which t5x_lite takes such a folder wherever it takes a checkpoint. Of the paths in the JSON only
the base's is opened, which the user may override, and the vocabularies', once these are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any
from collections.abc import Mapping

from etils import epath
import numpy as np

from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import safetensors_files

if TYPE_CHECKING:
  from cpoly_jax.checkpoints import loading

FORMAT = 1
TENSORS_FILE, SETTINGS_FILE = 'adapter.safetensors', 'adapter.json'
_DIGEST = 'digest'
_TARGET = 'target/'
_BLOCK_BYTES = 2**22
# What `adapter.json` has, and of which type.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    'format': int, 'step': (int, type(None)), 'model': dict, 'base': dict, 'frozen': list, 'renamed': dict,
    'frozen_dtype': (str, type(None)), 'bytes': int, 'sha256': str, _DIGEST: str}


class Adapter(dict):
  """The tensors of a shared adapter, not read yet, by T5X name.

  Attributes:
    path: its folder.
    settings: the content of `adapter.json`.
  """

  def __init__(self, path: str, settings: Mapping[str, Any], tensors: Mapping[str, safetensors_files.Tensor]):
    super().__init__(tensors)
    self.path, self.settings = path, settings

  @property
  def metadata(self) -> dict[str, Any]:
    """What t5x_lite records beside a checkpoint's arrays, and the step."""
    return {key: self.settings[key] for key in ('step', 'model', 'base', 'frozen', 'renamed', 'frozen_dtype')} | {'format': 1}


def is_folder(path: str | os.PathLike) -> bool:
  """Whether a path, local or in a bucket, holds a shared adapter."""
  return (epath.Path(path) / SETTINGS_FILE).is_file()


def open_checkpoint_folder(path: str) -> Adapter | None:
  """Entry point of `t5x.checkpoint_formats`: `read`, and None where `is_folder` says no."""
  return read(path) if is_folder(path) else None


def read(folder: str | os.PathLike) -> Adapter:
  """Opens a shared adapter after both of its files were found whole and unaltered.

  Raises:
    FileNotFoundError: one of the files is absent.
    ValueError: a file was truncated or altered, or is of another version: one line.
  """
  folder = os.fspath(folder).rstrip('/')
  settings, tensors = (os.path.join(folder, name) for name in (SETTINGS_FILE, TENSORS_FILE))
  for file in (settings, tensors):
    if not epath.Path(file).is_file():
      raise FileNotFoundError(f'{folder} is no shared adapter, it has no {os.path.basename(file)}: copy the whole folder')
  told = _read_settings(settings)
  size = epath.Path(tensors).stat().length
  if size != told['bytes']:
    raise ValueError(f'{tensors} is truncated or altered: it has {size} bytes, and had {told["bytes"]}; copy it again')
  if _sha256_of_file(tensors) != told['sha256']:
    raise ValueError(f'{tensors} was altered: its SHA-256 is not the one in {SETTINGS_FILE}; copy it again')
  found = safetensors_files.open_file(tensors)
  both = sorted(found.keys() & {name.removeprefix(_TARGET) for name in told['frozen']})
  if both:
    raise ValueError(f'{tensors} holds {both[0]}, which {SETTINGS_FILE} leaves to the base')
  return Adapter(folder, told, found)


def _read_settings(file: str) -> dict[str, Any]:
  """Returns the content of an `adapter.json`; ValueError unless it is the one that was written."""
  try:
    told = json.loads(epath.Path(file).read_text())
  except (ValueError, RecursionError):
    raise ValueError(f'{file} is truncated or altered: it is not JSON; copy it again') from None
  if not isinstance(told, dict) or 'format' not in told:
    raise ValueError(f'{file} was not written by this project, or altered: it tells no format')
  if told['format'] != FORMAT:
    raise ValueError(f'{file} has format {told["format"]!r}, and this version reads {FORMAT}: upgrade cpoly_jax')
  if told.get(_DIGEST) != _digest(told):
    raise ValueError(f'{file} was altered: its content has not the digest in it; copy it again')
  for name, kind in _FIELDS.items():
    if not isinstance(told.get(name), kind):
      raise ValueError(f'{file} has {name} = {told.get(name)!r}: it was not written by this version of the project')
  return told


def _digest(settings: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of JSON in its canonical form, without its own entry."""
  content = {key: value for key, value in settings.items() if key != _DIGEST}
  return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(',', ':')).encode()).hexdigest()


def _sha256_of_file(path: str) -> str:
  result = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK_BYTES):
      result.update(block)
  return result.hexdigest()


def save(source: str | os.PathLike | loading.Loaded, folder: str | os.PathLike, *,
         base: str | os.PathLike | None = None) -> dict[str, Any]:
  """Writes what a checkpoint holds besides its base.

  Args:
    source: a checkpoint_<step> folder of any t5x, a MODEL_DIR, or a model that `loading.load` gave, whose values are taken.
    folder: a new folder, local or in a bucket.
    base: the base that is to be named, e.g. where others find it; its values have to be those of the recorded one. For a
      checkpoint of google-research/t5x, which holds everything: the base that training started from; what differs from it is
      shared.

  Returns:
    The content of `adapter.json`.

  Raises:
    FileNotFoundError: there is no checkpoint, or not that base.
    FileExistsError: there is something at `folder`.
    ValueError: the checkpoint is damaged, or that base is another one.
  """
  folders.check_new(folder)
  return write(folder, *_content(source, base))


def write(folder: str | os.PathLike, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Writes tensors as a shared adapter.

  Args:
    folder: a new folder, local or in a bucket.
    settings: what `adapter.json` says: format, step, model, base, frozen, renamed, frozen_dtype; sums are added.
    tensors: by T5X name, arrays or tensors with `read()`.

  Returns:
    The content of `adapter.json`.

  Raises:
    FileExistsError: there is something at `folder`.
  """
  settings = dict(settings)
  tensors = {name: np.ascontiguousarray(folders.whole(tensor)) for name, tensor in tensors.items()}
  with folders.new_folder(folder) as target:
    file = target / TENSORS_FILE
    folders.save_tensors(tensors, file)
    settings |= {'bytes': file.stat().length, 'sha256': _sha256_of_file(os.fspath(file))}
    settings = json.loads(json.dumps(settings))
    settings[_DIGEST] = _digest(settings)
    # Last: without it, in a bucket, the folder is no adapter.
    (target / SETTINGS_FILE).write_text(json.dumps(settings, indent=1, sort_keys=True) + '\n')
  return settings


def _content(source: str | os.PathLike | loading.Loaded,
             base: str | os.PathLike | None) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what `adapter.json` says of a checkpoint, without sums, and the tensors to be written, not read yet."""
  from flax import traverse_util
  from cpoly_jax.checkpoints import loading
  values: Mapping[str, Any] = {}
  if isinstance(source, loading.Loaded):
    values = traverse_util.flatten_dict(source.params, sep='/')
    source = source.path
  opened = loading.open_own(source)
  kept = {key: opened.metadata.get(key) for key in ('base', 'frozen', 'renamed', 'frozen_dtype')}
  own = {name: values.get(name, array) for name, array in opened.arrays.items()}
  if opened.base is None:
    if base is None:
      raise ValueError(f'{opened.path} holds all of its parameters and names no base: give the one that training started from '
                       '(base=..., --base=PATH)')
    kept, own = _without_base(own, os.fspath(base), opened.path)
  elif base is not None:
    kept['base'] = _same_base(opened, os.fspath(base))
  if not own:
    raise ValueError(f'{opened.path} holds nothing besides its base: there is nothing to share')
  return {'format': FORMAT, 'step': opened.step, 'model': dict(opened.description), **kept}, own


def _same_base(opened: loading.Opened, base: str) -> dict[str, Any]:
  """Returns the identity of the base at another path; ValueError if it is another base."""
  from cpoly_jax.checkpoints import loading
  checkpoints = loading.reader()
  complete = loading.open_files(opened.path, base=base)
  frozen = {_TARGET + name: complete.arrays[name] for name in complete.frozen}
  checkpoints.check_base(opened.path, opened.base, base, checkpoints.digest(frozen))
  return {**opened.base, **_size(frozen), 'path': checkpoints.absolute_path(base)}


def _without_base(arrays: Mapping[str, Any], base: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Compares all parameters with those of a base; returns what is told of it, and the tensors that differ."""
  from cpoly_jax.checkpoints import loading
  checkpoints = loading.reader()
  there = checkpoints.collect_arrays(checkpoints.find_checkpoint(base), base_path='')[1]
  own, frozen, samples = {}, {}, {}
  for name, array in arrays.items():
    other = there.get(_TARGET + name)
    if other is not None and tuple(other.shape) == tuple(array.shape):
      value, expected = folders.whole(array), other.read()
      if np.array_equal(expected.astype(value.dtype), value):
        frozen[_TARGET + name] = other
        samples[_TARGET + name] = checkpoints.sample(_TARGET + name, expected)
        continue
    own[name] = array
  if not frozen:
    raise ValueError(f'{base} is not the base of {path}: no parameter is the same in both')
  identity = {'path': checkpoints.absolute_path(base), 'digest': checkpoints.digest_of(samples), **_size(frozen)}
  return {'base': identity, 'frozen': sorted(frozen), 'renamed': {}, 'frozen_dtype': None}, own


def identify(base: str) -> tuple[dict[str, Any], list[str]]:
  """Returns the identity of a base, of any format, and what `frozen` says where all of it is frozen; reads its values.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is damaged.
  """
  from cpoly_jax.checkpoints import loading
  checkpoints = loading.reader()
  there = checkpoints.collect_arrays(checkpoints.find_checkpoint(base), base_path='')[1]
  frozen = {name: array for name, array in there.items() if name.startswith(_TARGET)}
  identity = {'path': checkpoints.absolute_path(base), 'digest': checkpoints.digest(frozen), **_size(frozen)}
  return identity, sorted(frozen)


def _size(arrays: Mapping[str, Any]) -> dict[str, int]:
  """Returns how many parameters these are, and how many bytes they have."""
  sizes = {name: int(np.prod(array.shape, dtype=np.int64)) for name, array in arrays.items()}
  return {'parameters': sum(sizes.values()), 'bytes': sum(size * arrays[name].dtype.itemsize for name, size in sizes.items())}


def share(checkpoint: str, folder: str, *, base: str | None = None, dry_run: bool = False) -> str:
  """Does the work of the command `share`; returns what it prints. Arguments and errors: as of `save`.

  Args:
    checkpoint: a checkpoint_<step> folder or a MODEL_DIR.
    folder: a new folder.
    base: see `save`.
    dry_run: say what would be written, and write nothing.
  """
  folder = os.path.expanduser(folder).rstrip('/')
  folders.check_new(folder)
  if dry_run:
    settings, tensors = _content(checkpoint, base)
    size = _size(tensors)['bytes']
  else:
    settings = save(checkpoint, folder, base=base)
    tensors, size = safetensors_files.open_file(os.path.join(folder, TENSORS_FILE)), settings['bytes']
  identity, parameters = settings['base'], _size(tensors)['parameters']
  lines = (f'{"would write" if dry_run else "wrote"} {folder}: {len(tensors)} arrays, {parameters:,} parameters, '
           f'{size / 1e6:.2f} MB, step {settings["step"]}', f'base {identity["path"]} (digest {identity["digest"]})')
  return '\n'.join(lines)
