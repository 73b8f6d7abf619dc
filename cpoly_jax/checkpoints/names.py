"""The names of T5's parameters in T5X and in Hugging Face's transformers, a bijection.

    encoder/layers_0/attention/query/kernel  [D, H * d]   encoder.block.0.layer.0.SelfAttention.q.weight  [H * d, D]

T5X's `Dense` kernels are [inputs, outputs], torch's `Linear` weights [outputs, inputs]: such parameters are transposed. Both
have every layer's matrices apart, and relative positions once a stack (transformers keeps them in block 0).
"""

from __future__ import annotations

import re

_KERNEL, _WEIGHT = '/kernel', '.weight'

# T5X's name, transformers' module, whether one is the other transposed.
_TOP = (
    ('token_embedder/embedding', 'shared', False),
    ('encoder/relpos_bias/rel_embedding', 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias', True),
    ('encoder/encoder_norm/scale', 'encoder.final_layer_norm', False),
    ('decoder/relpos_bias/rel_embedding', 'decoder.block.0.layer.0.SelfAttention.relative_attention_bias', True),
    ('decoder/decoder_norm/scale', 'decoder.final_layer_norm', False),
    ('decoder/logits_dense/kernel', 'lm_head', True),
)
_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_MLP = ('wi', 'wi_0', 'wi_1', 'wo')


def _block(position: int, norm: str, block: str, module: str, projections: dict[str, str]):
  """Yields T5X's names within a layer, transformers' within a block, and whether they are transposed."""
  yield f'{norm}/scale', f'layer.{position}.layer_norm', False
  for ours, theirs in projections.items():
    yield f'{block}/{ours}/kernel', f'layer.{position}.{module}.{theirs}', True


def _layer(stack: str) -> list[tuple[str, str, bool]]:
  mlp = {name: name for name in _MLP}
  if stack == 'encoder':
    return [*_block(0, 'pre_attention_layer_norm', 'attention', 'SelfAttention', _ATTENTION),
            *_block(1, 'pre_mlp_layer_norm', 'mlp', 'DenseReluDense', mlp)]
  return [*_block(0, 'pre_self_attention_layer_norm', 'self_attention', 'SelfAttention', _ATTENTION),
          *_block(1, 'pre_cross_attention_layer_norm', 'encoder_decoder_attention', 'EncDecAttention', _ATTENTION),
          *_block(2, 'pre_mlp_layer_norm', 'mlp', 'DenseReluDense', mlp)]


_LAYERS = {stack: _layer(stack) for stack in ('encoder', 'decoder')}
_TO_THEIRS = {ours: (theirs, turned) for ours, theirs, turned in _TOP}
_TO_OURS = {theirs: (ours, turned) for ours, theirs, turned in _TOP}
_LAYER_TO_THEIRS = {(s, ours): (theirs, turned) for s, rows in _LAYERS.items() for ours, theirs, turned in rows}
_LAYER_TO_OURS = {(s, theirs): (ours, turned) for s, rows in _LAYERS.items() for ours, theirs, turned in rows}
_OUR_LAYER = re.compile(r'(encoder|decoder)/layers_(0|[1-9]\d*)/(.+)')
_THEIR_BLOCK = re.compile(r'(encoder|decoder)\.block\.(0|[1-9]\d*)\.(.+)')


def to_huggingface(name: str) -> tuple[str, bool]:
  """Returns transformers' name of a parameter, e.g. `lm_head.weight`, and whether it is transposed there.

  Args:
    name: T5X's, without `target/`, e.g. `decoder/logits_dense/kernel`.

  Raises:
    ValueError: T5 has no such parameter.
  """
  found = _TO_THEIRS.get(name)
  if found is None and (match := _OUR_LAYER.fullmatch(name)):
    inner = _LAYER_TO_THEIRS.get((match[1], match[3]))
    found = inner and (f'{match[1]}.block.{match[2]}.{inner[0]}', inner[1])
  if not found:
    raise ValueError(f"{name!r} is no parameter of T5; T5X's names are like 'encoder/layers_0/attention/query/kernel'")
  return found[0] + _WEIGHT, found[1]


def from_huggingface(name: str) -> tuple[str, bool]:
  """Returns T5X's name of a parameter, and whether it is transposed there: the inverse of `to_huggingface`.

  Args:
    name: transformers', e.g. `shared.weight`.

  Raises:
    ValueError: T5 has no such parameter.
  """
  module, found = name.removesuffix(_WEIGHT), None
  if module != name:
    found = _TO_OURS.get(module)
    if found is None and (match := _THEIR_BLOCK.fullmatch(module)):
      inner = _LAYER_TO_OURS.get((match[1], match[3]))
      found = inner and (f'{match[1]}/layers_{match[2]}/{inner[0]}', inner[1])
  if not found:
    raise ValueError(f"{name!r} is no parameter of transformers' T5; its names are like "
                     "'encoder.block.0.layer.0.SelfAttention.q.weight'")
  return found


def module_to_huggingface(path: str) -> str:
  """Returns transformers' name of a linear projection, e.g. `encoder.block.0.layer.0.SelfAttention.q`.

  Args:
    path: ours, e.g. `encoder/layers_0/attention/query`.

  Raises:
    ValueError: T5 has no such projection.
  """
  return to_huggingface(path + _KERNEL)[0].removesuffix(_WEIGHT)


def module_from_huggingface(module: str) -> str:
  """Returns our path of a linear projection: the inverse of `module_to_huggingface`.

  Raises:
    ValueError: T5 has no such projection, or the module is not linear.
  """
  name, _ = from_huggingface(module + _WEIGHT)
  if not name.endswith(_KERNEL):
    raise ValueError(f"{module!r} is no linear projection of transformers' T5: it is {name} in T5X")
  return name.removesuffix(_KERNEL)
