"""Hugging Face T5 folders: T5 1.0, T5 1.1, FLAN-T5 and mT5, read as T5X's parameters, and written.

A folder has `config.json` and `model.safetensors`, or several files of safetensors and their index. Its tensors are opened
without reading values: each is then read whole or in part, already in T5X's layout. Weights in pickles are refused.
`open_checkpoint_folder` is the entry point, of the group `t5x.checkpoint_formats`, by which t5x_lite takes such a folder
wherever it takes a checkpoint.
"""

from __future__ import annotations

import json
import os
from typing import Any
from collections.abc import Callable, Mapping, Sequence

from etils import epath
import numpy as np

from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import safetensors_files
from cpoly_jax.checkpoints import sizes

CONFIG_FILE = 'config.json'
WEIGHTS_FILE = 'model.safetensors'
INDEX_FILE = 'model' + safetensors_files.INDEX_SUFFIX
_PICKLES = ('pytorch_model.bin', 'pytorch_model.bin.index.json')
MAX_SHARD_BYTES = 2**30

# transformers' feed_forward_proj, the activations of T5X's blocks, transformers' name of the first one.
_ACTIVATIONS = (
    ('relu', ('relu',), 'relu'), ('gated-gelu', ('gelu', 'linear'), 'gelu_new'), ('gated-relu', ('relu', 'linear'), 'relu'),
    ('gated-silu', ('silu', 'linear'), 'silu'), ('silu', ('silu',), 'silu'), ('gelu_new', ('gelu',), 'gelu_new'))
_SIZES = {'vocab_size': 'vocab_size', 'd_model': 'emb_dim', 'd_kv': 'head_dim', 'd_ff': 'mlp_dim', 'num_heads': 'num_heads',
          'num_layers': 'num_encoder_layers', 'num_decoder_layers': 'num_decoder_layers'}
# transformers' defaults of feed_forward_proj and tie_word_embeddings.
_DEFAULTS = {'t5': ('relu', True), 'mt5': ('gated-gelu', False)}
# What the network has fixed, and transformers' default of it.
_FIXED = {'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6}
# The embedding's other names, and a parameter of old files that nothing uses.
_EMBEDDINGS = ('shared.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_LOGITS = 'lm_head.weight'
_UNUSED = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',)


class Tensor:
  """A parameter by T5X's name and in T5X's layout, not read yet.

  Attributes:
    name: T5X's, e.g. `encoder/layers_0/attention/query/kernel`.
    shape: T5X's.
    dtype: of the file.
    source: the file's tensor.
    transposed: whether the file has it transposed.
  """

  def __init__(self, name: str, source: safetensors_files.Tensor, transposed: bool):
    self.name, self.source, self.transposed = name, source, transposed
    self.shape, self.dtype = source.shape[::-1] if transposed else source.shape, source.dtype

  def read(self, index: Sequence[slice] = (), dtype: Any = None) -> np.ndarray:
    """Returns a part, or all, of the parameter; memory holds it and a few MB more.

    Args:
      index: a slice without a step for each of the first dimensions.
      dtype: what the values are cast to; None: the file's dtype.

    Raises:
      ValueError: the file ends before, or the index has steps.
    """
    parts = safetensors_files.bounds(index, self.shape)
    out = safetensors_files.empty([stop - start for start, stop in parts], self.dtype if dtype is None else dtype)
    slices = tuple(slice(*part) for part in parts)
    self.source.read_into(out.T if self.transposed else out, slices[::-1] if self.transposed else slices)
    return out

  def __repr__(self) -> str:
    return f'Tensor({self.name!r}, {list(self.shape)}, {self.dtype} in {self.source.path!r})'


def _file(folder: str | os.PathLike, name: str) -> epath.Path:
  return epath.Path(folder) / name


def is_folder(path: str | os.PathLike) -> bool:
  """Whether a folder looks like one of transformers: it has `config.json` or weights under transformers' names."""
  return any(_file(path, name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, *_PICKLES))


def open_checkpoint_folder(path: str) -> dict[str, Tensor] | None:
  """Entry point of `t5x.checkpoint_formats`: `open_folder`, and None where `is_folder` says no."""
  return open_folder(path) if is_folder(path) else None


def _read_config(path: str | os.PathLike) -> dict[str, Any]:
  file = _file(path, CONFIG_FILE)
  if not file.is_file():
    raise FileNotFoundError(f'{os.fspath(path)} has weights and no {CONFIG_FILE}: copy the whole folder of the model')
  try:
    config = json.loads(file.read_text())
  except (ValueError, RecursionError):
    config = None
  if not isinstance(config, dict):
    raise ValueError(f'{file} is not a JSON object')
  return config


def network_settings(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the keyword arguments of `cpoly_jax.t5.network.T5Config` for the model of a folder, from its `config.json`.

  The feed-forward block and the tie of logits and embedding have transformers' defaults where the file does not say them.

  Raises:
    FileNotFoundError: there is no `config.json`.
    ValueError: the model is no T5, or one that `network.Transformer` does not compute.
  """
  config, file = _read_config(path), _file(path, CONFIG_FILE)
  kind = config.get('model_type')
  if not isinstance(kind, str) or kind not in _DEFAULTS:
    raise ValueError(f'{file} is of a model_type {kind!r}: T5, T5 1.1, FLAN-T5 (all t5) and mT5 (mt5) are read')
  if config.get('num_decoder_layers') is None:
    config['num_decoder_layers'] = config.get('num_layers')
  settings: dict[str, Any] = {}
  for theirs, ours in _SIZES.items():
    value = config.get(theirs)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise ValueError(f'{file} has {theirs}={value!r}, which is no positive whole number')
    settings[ours] = value
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{file} has {name}={config[name]!r}; only {value} is computed here')
  projection = config.get('feed_forward_proj', _DEFAULTS[kind][0])
  activations = {theirs: ours for theirs, ours, _ in _ACTIVATIONS}
  if not isinstance(projection, str) or projection not in activations:
    raise ValueError(f'{file} has feed_forward_proj={projection!r}, which is none of {", ".join(activations)}')
  tied, dropout = config.get('tie_word_embeddings', _DEFAULTS[kind][1]), config.get('dropout_rate', 0.1)
  if not isinstance(tied, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
    raise ValueError(f'{file} has tie_word_embeddings={tied!r} and dropout_rate={dropout!r}')
  return {**settings, 'mlp_activations': activations[projection], 'logits_via_embedding': tied, 'dropout_rate': float(dropout)}


def _open_weights(path: str) -> tuple[str, dict[str, safetensors_files.Tensor]]:
  """Returns the file that lists the tensors, and the tensors by transformers' names."""
  for name, function in ((WEIGHTS_FILE, safetensors_files.open_file), (INDEX_FILE, safetensors_files.open_sharded)):
    file = _file(path, name)
    if file.is_file():
      return os.fspath(file), function(file)
  found = next((name for name in _PICKLES if _file(path, name).is_file()), None)
  if found is None:
    raise FileNotFoundError(f'{path} has neither {WEIGHTS_FILE} nor {INDEX_FILE}: copy the whole folder of the model')
  raise ValueError(
      f'{path} has its weights in pickles only ({found}), which are not read; convert them, and give the new folder: python -c '
      '"import transformers as t; t.T5ForConditionalGeneration.from_pretrained('
      f"'{path}').save_pretrained('{path}-safetensors', safe_serialization=True)\"")


def open_folder(path: str | os.PathLike) -> dict[str, Tensor]:
  """Opens the parameters of a T5 by T5X's names; reads `config.json` and headers, no values.

  Args:
    path: the folder, local or in a bucket.

  Raises:
    FileNotFoundError: `config.json` or the weights are absent.
    ValueError: one line: the model is no T5, its weights are in pickles or damaged, or they are not what `config.json` says.
  """
  path = os.fspath(path).rstrip('/')
  settings = network_settings(path)
  file, stored = _open_weights(path)
  # The embedding may have been written under any of its names.
  ties = _EMBEDDINGS + ((_LOGITS,) if settings['logits_via_embedding'] else ())
  embedding = next((stored[name] for name in ties if name in stored), None)
  left = {name: tensor for name, tensor in stored.items() if name not in (*ties, *_UNUSED)}
  if embedding is not None:
    left[_EMBEDDINGS[0]] = embedding
  tensors, unknown = {}, []
  for theirs, tensor in left.items():
    try:
      name, transposed = names.from_huggingface(theirs)
    except ValueError:
      unknown.append(theirs)
      continue
    if tensor.dtype.name not in ('float32', 'bfloat16', 'float16'):
      raise ValueError(f'{file} has {theirs} in {tensor.dtype}: weights in float32, bfloat16 or float16 are read')
    tensors[name] = Tensor(name, tensor, transposed)
  if unknown:
    raise ValueError(f'{file} has {sizes.listed(sorted(unknown))}, which T5 does not have')
  sizes.check({name: tensor.shape for name, tensor in tensors.items()}, settings, file,
              hint=f'; compare its {CONFIG_FILE}', called=lambda name: names.to_huggingface(name)[0])
  return tensors


def config_json(config: Any, dtype: str) -> dict[str, Any]:
  """Returns what `config.json` says of a T5.

  Args:
    config: a `network.T5Config`, or another object with these attributes.
    dtype: of the stored parameters, e.g. 'bfloat16'.

  Raises:
    ValueError: transformers' T5 has no such feed-forward block.
  """
  activations = tuple(config.mlp_activations)
  found = next(((name, act) for name, ours, act in _ACTIVATIONS if ours == activations), None)
  if found is None:
    raise ValueError(f"transformers' T5 has no feed-forward block of {activations}; it has "
                     f'{", ".join(map(str, (ours for _, ours, _ in _ACTIVATIONS)))}')
  fields = {theirs: int(getattr(config, ours)) for theirs, ours in _SIZES.items()}
  return {'architectures': ['T5ForConditionalGeneration'], 'model_type': 't5', 'is_encoder_decoder': True, **fields,
          'feed_forward_proj': found[0], 'is_gated_act': len(activations) > 1, 'dense_act_fn': found[1],
          'tie_word_embeddings': bool(config.logits_via_embedding), 'dropout_rate': float(config.dropout_rate), **_FIXED,
          'initializer_factor': 1.0, 'use_cache': True, 'decoder_start_token_id': 0, 'pad_token_id': 0, 'eos_token_id': 1,
          'torch_dtype': dtype}


def plan_shards(params: Mapping[str, Any], dtype: Any = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> dict[str, list[str]]:
  """Returns T5X's names by the file that they go to: in order, each file as full as `max_shard_bytes` allows."""
  groups, room = [], 0
  for name in params:
    leaf = params[name]
    size = int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype if dtype is None else dtype).itemsize
    if not groups or size > room:
      groups.append([])
      room = max_shard_bytes
    groups[-1].append(name)
    room -= size
  if len(groups) == 1:
    return {WEIGHTS_FILE: groups[0]}
  return {f'model-{i:05}-of-{len(groups):05}.safetensors': group for i, group in enumerate(groups, 1)}


def write_folder(path: str | os.PathLike, params: Mapping[str, Any], config: Any, *, dtype: Any = None,
                 max_shard_bytes: int = MAX_SHARD_BYTES, tell: Callable[[str, int], None] = lambda name, size: None) -> None:
  """Writes a T5 that transformers loads, one file of tensors at a time in memory.

  Args:
    path: the folder, which may not exist or is empty; in the end it is there as a whole or, where writing fails, not at all (in
      a bucket its `config.json` comes last).
    params: T5X's flat names to arrays, or to tensors with `shape`, `dtype` and `read()`.
    config: the network's `T5Config`, or another object with its attributes.
    dtype: of the floating-point values in the files; None: theirs.
    max_shard_bytes: of one file, unless a single tensor is larger.
    tell: called with the name and the size in bytes of each tensor, when it has been read.

  Raises:
    FileExistsError: there is something at `path`.
    ValueError: `params` are not the parameters of a T5 of that `config`.
    OSError: the folder cannot be written.
  """
  path = os.fspath(path).rstrip('/')
  sizes.check({name: leaf.shape for name, leaf in params.items()}, {n: getattr(config, n) for n in (
      'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers', 'num_decoder_layers',
      'mlp_activations', 'logits_via_embedding')}, 'what is to be written')
  dtypes = sorted({np.dtype(leaf.dtype if dtype is None else dtype).name for leaf in params.values()})
  written = config_json(config, dtypes[0] if len(dtypes) == 1 else 'float32')
  shards = plan_shards(params, dtype, max_shard_bytes)
  with folders.new_folder(path) as folder:
    total, files = 0, {}
    for file, group in shards.items():
      tensors = {}
      for name in group:
        theirs, transposed = names.to_huggingface(name)
        value = folders.whole(params[name], dtype)
        tensors[theirs] = np.ascontiguousarray(value.T if transposed else value)
        files[theirs] = file
        total += value.nbytes
        tell(name, value.nbytes)
        del value
      folders.save_tensors(tensors, _file(folder, file))
      tensors.clear()
    if len(shards) > 1:
      index = {'metadata': {'total_size': total}, 'weight_map': dict(sorted(files.items()))}
      _file(folder, INDEX_FILE).write_text(json.dumps(index, indent=2) + '\n')
    _file(folder, CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + '\n')
