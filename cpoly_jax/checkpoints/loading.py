"""Loads a trained model from files alone: network, parameters, tasks and vocabularies, without gin and without the run.

    loaded = loading.load('outputs/cpoly_base')                    # MODEL_DIR: its newest checkpoint
    logits = loaded.transformer.apply({'params': loaded.params}, inputs, decoder_inputs, decoder_targets,
                                      task_ids=[loaded.task_index.row('rte')], enable_dropout=False)

A checkpoint tells the settings of its network: in its metadata, or in `model.json` of its MODEL_DIR where google-research/t5x
wrote it. `open_files` stops before values are read, for what works tensor by tensor.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
from typing import Any
from collections.abc import Collection, Mapping

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import model_settings
from cpoly_jax.checkpoints import adapter_file
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.checkpoints import merging
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex

_TARGET = 'target/'
_LISTED = 3  # How many parameters an error names before it counts the rest.
_CONCURRENT_TENSORS = 8


@dataclasses.dataclass(frozen=True)
class Opened:
  """A checkpoint whose values are not read yet.

  Attributes:
    path: the checkpoint_<step> folder, or the shared adapter's.
    description: JSON of network, adapter, tasks and vocabularies (`cpoly_jax.model_settings`).
    transformer: the network of it.
    arrays: all parameters by T5X name, those of the base too; each has `shape`, `dtype` and `read()`.
    frozen: names of those that come from the base.
    base: identity of the base: path, digest, parameters, bytes; None where the checkpoint holds everything itself.
    base_path: where the base was found, which may be another place than its identity says.
    step: the training step, None if it is not told.
    metadata: what t5x_lite recorded beside the parameters; {} for a checkpoint of google-research/t5x.
    force_base: whether another base is accepted.
  """

  path: str
  description: Mapping[str, Any]
  transformer: network.Transformer
  arrays: Mapping[str, Any]
  frozen: frozenset[str]
  base: Mapping[str, Any] | None
  base_path: str | None
  step: int | None
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  force_base: bool = False


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model.

  Attributes:
    transformer: the network.
    params: nested dict of numpy arrays, as `transformer.init` makes them.
    task_index: the tasks of the routing's rows, None for a network without routing.
    step: the training step, None if it is not told.
    path: the checkpoint.
    base: identity of the base: path, digest, parameters, bytes; None where the checkpoint holds everything itself.
    description: JSON of network, adapter, tasks and vocabularies (`cpoly_jax.model_settings`).
    own: flat names of the parameters that the checkpoint itself holds.
  """

  transformer: network.Transformer
  params: dict[str, Any]
  task_index: TaskIndex | None
  step: int | None
  path: str
  base: Mapping[str, Any] | None
  description: Mapping[str, Any]
  own: frozenset[str] = frozenset()

  @functools.cached_property
  def vocabularies(self) -> dict[str, Any]:
    """{'input', 'output'}: seqio vocabularies, each None if it was of a kind that JSON cannot tell.

    Made when first asked for: they bring TensorFlow, and may read a SentencePiece model from a bucket.
    """
    from cpoly_jax import vocabularies
    told = self.description.get('vocabularies') or {}
    return {kind: vocabularies.build(told[kind]) if told.get(kind) else None for kind in ('input', 'output')}


def reader():
  """Returns t5x's `checkpoints`; ValueError where that t5x cannot open files without a run."""
  from t5x import checkpoints  # Here: descriptions and shapes need no t5x.
  if not hasattr(checkpoints, 'open_checked'):
    raise ValueError('the installed t5x reads no checkpoints without a run: install t5x_lite (pip install ./t5x_lite) in an '
                     'environment of its own; it reads the same files')
  # As the entry points do, which a checkout that is not installed lacks.
  checkpoints.register_format('shared_adapter', adapter_file.open_checkpoint_folder)
  checkpoints.register_format('huggingface', huggingface.open_checkpoint_folder)
  return checkpoints


def open_own(path: str | os.PathLike) -> Opened:
  """As `open_files`, without the base: `arrays` are those that the checkpoint itself holds, and `base_path` is None.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is damaged, does not describe its network, or has other parameters.
  """
  checkpoints = reader()
  checkpoint = checkpoints.open_checked(checkpoints.find_checkpoint(path))
  return _opened(checkpoint, checkpoint.arrays)


def description(path: str | os.PathLike) -> Mapping[str, Any]:
  """Returns the JSON of network, adapter, tasks and vocabularies of a checkpoint (`cpoly_jax.model_settings`).

  Args:
    path: a checkpoint_<step> folder, or a shared adapter's. Where the installed t5x cannot open it without a run, what is told
      is the `model.json` beside it.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: it is damaged, or nothing describes it.
  """
  from t5x import checkpoints
  if hasattr(checkpoints, 'open_checked'):
    return open_own(path).description
  path = os.fspath(path).rstrip('/')
  if not epath.Path(path).exists():
    raise FileNotFoundError(f'there is no checkpoint at {path}: give a MODEL_DIR or a checkpoint_<step> folder')
  return _beside(path)


def _opened(checkpoint: Any, stored: Mapping[str, Any], force_base: bool = False) -> Opened:
  """Describes a t5x `StoredCheckpoint`, whose arrays, maybe with those of its base, are `stored`."""
  metadata = checkpoint.metadata or {}
  description = metadata.get('model') or _beside(checkpoint.path)
  transformer = model_settings.build(description)
  arrays = {name.removeprefix(_TARGET): array for name, array in stored.items() if name.startswith(_TARGET)}
  frozen = frozenset(name.removeprefix(_TARGET) for name in metadata.get('frozen', ())) if metadata.get('base') else frozenset()
  check_shapes(transformer, arrays, checkpoint.path, elsewhere=frozen)
  step = stored.get('state/step')
  return Opened(
      path=checkpoint.path, description=description, transformer=transformer, arrays=arrays, frozen=frozen,
      base=metadata.get('base'), base_path=next((arrays[name].path for name in sorted(frozen & arrays.keys())), None),
      step=None if step is None else int(step.read()), metadata=metadata, force_base=force_base)


def open_files(path: str | os.PathLike, *, base: str | os.PathLike | None = None, force_base: bool = False) -> Opened:
  """Opens a checkpoint and its base; compares names and shapes with the network, and reads no values.

  Args:
    path: a checkpoint_<step> folder of any t5x, a MODEL_DIR (its newest step), or a shared adapter's folder.
    base: the base checkpoint, where it is not at its recorded place.
    force_base: whether `load` accepts another base than the recorded one.

  Raises:
    FileNotFoundError: there is no checkpoint, or not its base.
    ValueError: it is damaged, does not describe its network, or has other parameters.
  """
  checkpoints = reader()
  found = checkpoints.find_checkpoint(path)
  checkpoint, stored = checkpoints.collect_arrays(found, base_path=None if base is None else os.fspath(base))
  if base is not None and not (checkpoint.metadata or {}).get('base'):
    raise ValueError(f'{found} holds all of its parameters and needs no base: leave out base={os.fspath(base)!r}')
  return _opened(checkpoint, stored, force_base)


def load(path: str | os.PathLike, *, base: str | os.PathLike | None = None, force_base: bool = False,
         dtype: Any = None) -> Loaded:
  """Loads a trained model.

  Args:
    path: a checkpoint_<step> folder of any t5x, a MODEL_DIR (its newest step), or a shared adapter's folder.
    base: the base checkpoint, where it is not at its recorded place.
    force_base: accept another base of the same shapes than the one that the skills were trained on.
    dtype: of the base's floating-point parameters; None as stored. Skills, routing and what else was trained stay as stored.

  Raises:
    FileNotFoundError: there is no checkpoint, or not its base.
    ValueError: it is damaged, does not describe its network, has other parameters, or the base is another one.
  """
  return read(open_files(path, base=base, force_base=force_base), dtype=dtype)


def read(opened: Opened, *, dtype: Any = None) -> Loaded:
  """Reads the values of an opened checkpoint and compares them with the identity of its base; see `load`."""
  checkpoints = reader()
  of_base = opened.frozen or frozenset(name for name in opened.arrays if not merging.is_added(name))

  def values(name: str) -> tuple[np.ndarray, bytes | None]:
    value = opened.arrays[name].read()
    sample = checkpoints.sample(_TARGET + name, value) if name in opened.frozen else None
    cast = dtype is not None and name in of_base and jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(dtype, copy=False) if cast else value, sample

  for array in opened.arrays.values():
    if hasattr(array, 'start_opening'):
      array.start_opening()
  with concurrent.futures.ThreadPoolExecutor(_CONCURRENT_TENSORS) as pool:
    found = dict(zip(opened.arrays, pool.map(values, opened.arrays)))
  if opened.frozen:
    samples = {_TARGET + name: sample for name, (_, sample) in found.items() if sample is not None}
    checkpoints.check_base(opened.path, opened.base, opened.base_path, checkpoints.digest_of(samples), opened.force_base)
  tasks = opened.description.get('task_index')
  return Loaded(
      transformer=opened.transformer, params=traverse_util.unflatten_dict({n: v for n, (v, _) in found.items()}, sep='/'),
      task_index=None if tasks is None else TaskIndex.from_json(tasks), step=opened.step, path=opened.path, base=opened.base,
      description=opened.description, own=frozenset(opened.arrays) - opened.frozen)


def _beside(path: str) -> dict[str, Any]:
  """Returns the `model.json` of the MODEL_DIR that a checkpoint lies in; ValueError if there is none."""
  file = epath.Path(os.path.dirname(path)) / model_settings.FILE_NAME
  if not file.exists():
    raise ValueError(f'{path} does not describe its network, and there is no {file}: copy {model_settings.FILE_NAME} of the '
                     'MODEL_DIR that it was trained in beside it')
  try:
    description = json.loads(file.read_text())
  except ValueError as e:
    raise ValueError(f'{file} is damaged: {e}') from None
  if not isinstance(description, dict):
    raise ValueError(f'{file} is damaged: it is no JSON object')
  return description


def shapes(transformer: network.Transformer) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and dtype of each parameter of a network by T5X name; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  rows = jax.ShapeDtypeStruct((1,), jnp.int32)
  init = lambda key, tokens, rows: transformer.init(key, tokens, tokens, tokens, task_ids=rows, enable_dropout=False)['params']
  made = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.PRNGKey(0)), tokens, rows)
  return traverse_util.flatten_dict(made, sep='/')


def check_shapes(transformer: network.Transformer, arrays: Mapping[str, Any], path: str,
                 elsewhere: Collection[str] = ()) -> None:
  """Raises a one-line ValueError that names the first parameters that a network and its checkpoint do not share.

  Args:
    transformer: the network.
    arrays: by T5X name, with `shape`.
    path: the checkpoint, for the message.
    elsewhere: names that may be missing, as the base has them.
  """
  wanted = shapes(transformer)
  for array in arrays.values():
    if hasattr(array, 'start_opening'):
      array.start_opening()  # All at once; asking for the shape would wait for one after the other.
  wrong = [f'has no {name}' for name in sorted(wanted.keys() - arrays.keys() - set(elsewhere))]
  wrong += [f'has {name}, which the network lacks' for name in sorted(arrays.keys() - wanted.keys())]
  wrong += [f'has {name} {tuple(arrays[name].shape)} where the network has {wanted[name].shape}'
            for name in sorted(wanted.keys() & arrays.keys()) if tuple(arrays[name].shape) != tuple(wanted[name].shape)]
  if wrong:
    more = f' and {len(wrong) - _LISTED} more' if len(wrong) > _LISTED else ''
    raise ValueError(f'{path} does not fit the network that it describes: it {"; it ".join(wrong[:_LISTED])}{more}')
