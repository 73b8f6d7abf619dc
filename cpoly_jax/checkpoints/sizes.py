"""From a T5's settings to the names and shapes of its parameters, and back.

Settings are keyword arguments of `cpoly_jax.t5.network.T5Config`. The way back is not complete: no shape tells which
activation the feed-forward blocks have, so the two of the published families are assumed, ReLU (T5 1.0) and gated GELU (T5
1.1, FLAN, mT5).
"""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]
BUCKETS = 32
_LISTED = 3


def listed(items: Sequence[str]) -> str:
  """Joins the first few and counts the others, for one line."""
  more = len(items) - _LISTED
  return ', '.join(items[:_LISTED]) + (f' and {more} more' if more > 0 else '')


def parameters(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter of a T5 by T5X's name.

  Args:
    settings: of `T5Config`; those that are not sizes are ignored.
  """
  d, f, v = settings['emb_dim'], settings['mlp_dim'], settings['vocab_size']
  heads = settings['num_heads']
  joined = heads * settings['head_dim']
  gates = len(settings['mlp_activations'])
  attention = {'query': (d, joined), 'key': (d, joined), 'value': (d, joined), 'out': (joined, d)}
  mlp = {'wi' if gates == 1 else f'wi_{i}': (d, f) for i in range(gates)} | {'wo': (f, d)}
  result = {'token_embedder/embedding': (v, d)}
  for stack, blocks in (('encoder', {'attention': attention, 'mlp': mlp}),
                        ('decoder', {'self_attention': attention, 'encoder_decoder_attention': attention, 'mlp': mlp})):
    result[f'{stack}/relpos_bias/rel_embedding'] = (heads, BUCKETS)
    for i in range(settings[f'num_{stack}_layers']):
      for block, kernels in blocks.items():
        norm = 'pre_cross_attention' if block == 'encoder_decoder_attention' else f'pre_{block}'
        result[f'{stack}/layers_{i}/{norm}_layer_norm/scale'] = (d,)
        result.update({f'{stack}/layers_{i}/{block}/{name}/kernel': shape for name, shape in kernels.items()})
    result[f'{stack}/{stack}_norm/scale'] = (d,)
  if not settings['logits_via_embedding']:
    result['decoder/logits_dense/kernel'] = (d, v)
  return result


def from_shapes(shapes: Shapes, where: str) -> dict[str, Any]:
  """Returns the settings of a T5 with these parameters: the inverse of `parameters`.

  Args:
    shapes: T5X name to shape.
    where: named by errors.

  Raises:
    ValueError: these are not the parameters of a T5: one line with the first names that are missing, too many, or of another
      shape.
  """
  def count(stack: str) -> int:
    return len({name.split('/')[1] for name in shapes if name.startswith(f'{stack}/layers_')})

  needed = {'embedding': 'token_embedder/embedding', 'bias': 'encoder/relpos_bias/rel_embedding',
            'query': 'encoder/layers_0/attention/query/kernel', 'wo': 'encoder/layers_0/mlp/wo/kernel'}
  missing = [name for name in needed.values() if len(shapes.get(name, ())) != 2]
  if missing:
    raise ValueError(f'{where} does not hold a T5: it lacks {listed(missing)}')
  (v, d), (heads, _) = shapes[needed['embedding']], shapes[needed['bias']]
  settings = {
      'vocab_size': v, 'emb_dim': d, 'num_heads': heads, 'head_dim': shapes[needed['query']][1] // max(heads, 1),
      'mlp_dim': shapes[needed['wo']][0], 'num_encoder_layers': count('encoder'), 'num_decoder_layers': count('decoder'),
      'mlp_activations': ('relu',) if 'encoder/layers_0/mlp/wi/kernel' in shapes else ('gelu', 'linear'),
      'logits_via_embedding': 'decoder/logits_dense/kernel' not in shapes}
  check(shapes, settings, where)
  return settings


def check(shapes: Shapes, settings: Mapping[str, Any], where: str, hint: str = '', called=lambda name: name) -> None:
  """Raises a one-line ValueError if these are not the parameters of a T5 with these settings.

  Args:
    shapes: T5X name to shape.
    settings: of `T5Config`.
    where: named by the error.
    hint: appended to it.
    called: T5X name to the name that the error has.
  """
  wanted = parameters(settings)
  missing, extra = ([called(n) for n in a if n not in b] for a, b in ((wanted, shapes), (shapes, wanted)))
  if missing or extra:
    parts = ([f'lacks {listed(missing)}'] if missing else []) + ([f'has {listed(extra)} besides'] if extra else [])
    raise ValueError(f'{where} does not hold the parameters of a T5 of its sizes: it {" and ".join(parts)}{hint}')
  wrong = [f'{called(n)} is {list(shapes[n])} in T5X\'s order, and not {list(shape)}'
           for n, shape in wanted.items() if tuple(shapes[n]) != shape]
  if wrong:
    raise ValueError(f'{where} does not hold a T5 of one size: {listed(wrong)}{hint}')
