"""The blocks a T5 network is made of, each a small linen module.

Every parameter is declared with logical axis names, so that the partitioner decides from rules
alone how it is laid out on a mesh. Parameters are float32; `dtype` is the type of the arithmetic.

Shapes: B batch, Lq/Lk query/key length, D embedding, H heads, K head size, F hidden size of the
MLP, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any
from collections.abc import Callable, Iterable, Sequence

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
DType = Any
Initializer = Callable[..., Array]

param_with_axes = nn_partitioning.param_with_axes
with_sharding_constraint = nn_partitioning.with_sharding_constraint

# Large enough to erase any attention logit it is added to, in float32 as in bfloat16.
MASK_VALUE = -1e10

_fan_in_normal = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
_fan_in_truncated = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


def _as_tuple(x: int | Iterable[int]) -> tuple[int, ...]:
  return (x,) if isinstance(x, int) else tuple(x)


# Attention


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  dropout_rng: Array | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: DType = jnp.float32,
  float32_logits: bool = False,
) -> Array:
  """Multi-head attention without 1/sqrt(K): T5 folds that factor into the query's initializer.

  Args:
    query: [B, Lq, H, K].
    key: [B, Lk, H, K].
    value: [B, Lk, H, K].
    bias: broadcastable to [B, H, Lq, Lk], added to the logits (relative positions, mask).
    dropout_rng: key of the dropout on attention weights.
    dropout_rate: rate of that dropout.
    deterministic: True switches dropout off.
    dtype: type of the weights and of the result.
    float32_logits: compute logits and softmax in float32 whatever `dtype` is.

  Returns:
    [B, Lq, H, K].

  Raises:
    ValueError: where batch, heads, lengths or head sizes do not match.
  """
  *batch, _, heads, head_dim = query.shape
  if key.shape != (*batch, key.shape[-3], heads, head_dim) or value.shape != (*batch, key.shape[-3], heads, value.shape[-1]):
    raise ValueError(
      'query, key and value must have one batch size and number of heads, query and key one head size, key and value one '
      f'length: got query {query.shape}, key {key.shape}, value {value.shape}'
    )
  if float32_logits:
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  weights = jax.nn.softmax(logits).astype(dtype)
  if not deterministic and dropout_rate > 0.0:
    # One draw for all query positions, as everywhere in T5.
    shape = weights.shape[:-2] + (1, weights.shape[-1])
    keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, shape)
    weights = weights * (keep.astype(dtype) / jnp.asarray(1.0 - dropout_rate, dtype))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class MultiHeadDotProductAttention(nn.Module):
  """Attention with its four projections, and the key/value cache of step-by-step decoding.

  Attributes:
    num_heads: H.
    head_dim: K.
    dtype: type of the arithmetic.
    dropout_rate: rate of the dropout on attention weights.
    kernel_init: initializer of the kernels; the query's is divided by sqrt(K).
    float32_logits: compute logits in float32 even where `dtype` is narrower.
  """

  num_heads: int
  head_dim: int
  dtype: DType = jnp.float32
  dropout_rate: float = 0.0
  kernel_init: Initializer = _fan_in_normal
  float32_logits: bool = False

  @nn.compact
  def __call__(
    self,
    inputs_q: Array,
    inputs_kv: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    decode: bool = False,
    deterministic: bool = False,
  ) -> Array:
    """Attends from `inputs_q` to `inputs_kv`.

    With `decode`, the first call (no cache yet) creates an empty cache of the length of
    `inputs_kv`; each further call takes one position, appends it to the cache and attends to
    everything cached so far.

    Args:
      inputs_q: [B, Lq, D].
      inputs_kv: [B, Lk, D].
      mask: broadcastable to [B, H, Lq, Lk]; positions > 0 are visible.
      bias: broadcastable to [B, H, Lq, Lk]; with `decode` of full length, of which the current row
        is taken.
      decode: use the cache.
      deterministic: True switches dropout off.

    Returns:
      [B, Lq, D].

    Raises:
      ValueError: where a decoding step is not one position per example of the cached batch.
    """

    def query_init(*args):
      return self.kernel_init(*args) / math.sqrt(self.head_dim)

    def project(name, inputs, init):
      x = DenseGeneral(
        (self.num_heads, self.head_dim), dtype=self.dtype, kernel_init=init, kernel_axes=('embed', 'joined_kv'), name=name
      )(inputs)
      return with_sharding_constraint(x, ('batch', 'length', 'heads', 'kv'))

    query = project('query', inputs_q, query_init)
    key = project('key', inputs_kv, self.kernel_init)
    value = project('value', inputs_kv, self.kernel_init)

    if decode:
      key, value, mask, bias = self._read_and_extend_cache(query, key, value, mask, bias)

    if mask is not None:
      mask_bias = jnp.where(mask > 0, 0.0, MASK_VALUE).astype(self.dtype)
      bias = combine_biases(mask_bias, bias)
    use_dropout = not deterministic and self.dropout_rate > 0.0
    dropout_rng = self.make_rng('dropout') if use_dropout else None
    x = dot_product_attention(
      query,
      key,
      value,
      bias=bias,
      dropout_rng=dropout_rng,
      dropout_rate=self.dropout_rate,
      deterministic=deterministic,
      dtype=self.dtype,
      float32_logits=self.float32_logits,
    )
    return DenseGeneral(
      inputs_q.shape[-1],
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      kernel_axes=('joined_kv', 'embed'),
      name='out',
    )(x)

  def _read_and_extend_cache(self, query, key, value, mask, bias):
    """One decoding step on the cache; on the first call only creates it.

    Args:
      query: [B, 1, H, K].
      key: [B, 1, H, K] of the current position ([B, L, H, K] on the first call).
      value: as `key`.
      mask: None, or broadcastable to [B, 1, 1, L].
      bias: None, or [1 or B, H, L, L].

    Returns:
      key and value [B, L, H, K] up to now, the mask that hides the rest, the bias of this row.
    """
    is_filled = self.has_variable('cache', 'cached_key')

    # [B, H, K, L]: a step writes along the minor dimension, the layout TPUs like.
    def empty(x):
      return jnp.zeros(jnp.moveaxis(x, -3, -1).shape, x.dtype)

    cached_key = self.variable('cache', 'cached_key', empty, key)
    cached_value = self.variable('cache', 'cached_value', empty, value)
    cache_index = self.variable('cache', 'cache_index', lambda: jnp.array(0, jnp.int32))
    if not is_filled:
      return key, value, mask, bias

    batch, heads, head_dim, length = cached_key.value.shape
    if query.shape != (batch, 1, heads, head_dim):
      raise ValueError(f'a decoding step needs a query of shape {(batch, 1, heads, head_dim)}, got {query.shape}')
    index = cache_index.value
    for cached, new in ((cached_key, key), (cached_value, value)):
      column = jnp.moveaxis(new, -3, -1).astype(cached.value.dtype)
      cached.value = lax.dynamic_update_slice_in_dim(cached.value, column, index, axis=-1)
    cache_index.value = index + 1

    seen = (jnp.arange(length) <= index)[None, None, None, :]
    mask = combine_masks(mask, jnp.broadcast_to(seen, (batch, 1, 1, length)))
    if bias is not None and bias.shape[-2] > 1:
      bias = lax.dynamic_slice_in_dim(bias, index, 1, axis=-2)
    return (jnp.moveaxis(cached_key.value, -1, -3), jnp.moveaxis(cached_value.value, -1, -3), mask, bias)


# Projections, MLP


class DenseGeneral(nn.Module):
  """A linear map without bias over one or several axes, its kernel stored as a matrix.

  Attributes:
    features: size, or sizes, of the output axes.
    axis: the input axis, or axes, that are contracted.
    dtype: type of the arithmetic.
    kernel_init: initializer of the kernel.
    kernel_axes: logical names of the kernel's two axes.
  """

  features: Iterable[int] | int
  axis: Iterable[int] | int = -1
  dtype: DType = jnp.float32
  kernel_init: Initializer = _fan_in_truncated
  kernel_axes: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Maps `inputs` [..., <axis>] to [..., <features>] of `dtype`."""
    features = _as_tuple(self.features)
    axis = tuple(a % inputs.ndim for a in _as_tuple(self.axis))
    contracted = tuple(inputs.shape[a] for a in axis)
    # A matrix keeps factored optimizers and checkpoints independent of how the axes are split.
    shape = (math.prod(contracted), math.prod(features))
    kernel = param_with_axes('kernel', self.kernel_init, shape, jnp.float32, axes=self.kernel_axes)
    kernel = jnp.asarray(kernel, self.dtype).reshape(contracted + features)
    inputs = jnp.asarray(inputs, self.dtype)
    return lax.dot_general(inputs, kernel, ((axis, tuple(range(len(axis)))), ((), ())))


def _activation(fn: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
  """Returns the function of this name: `linear`, or any of flax.linen's, e.g. `gelu`."""
  if callable(fn):
    return fn
  if fn == 'linear':
    return lambda x: x
  if not isinstance(fn, str) or not callable(getattr(nn, fn, None)):
    raise ValueError(f"unknown activation {fn!r}: use 'linear' or a name of flax.linen, e.g. 'gelu', 'silu'")
  return getattr(nn, fn)


class MlpBlock(nn.Module):
  """The feed-forward block; with several activations their results are multiplied (gated units).

  Attributes:
    intermediate_dim: F.
    activations: one activation per input projection.
    kernel_init: initializer of all kernels.
    intermediate_dropout_rate: rate of the dropout on the hidden layer.
    dtype: type of the arithmetic.
  """

  intermediate_dim: int = 2048
  activations: Sequence[str | Callable[[Array], Array]] = ('relu',)
  kernel_init: Initializer = _fan_in_truncated
  intermediate_dropout_rate: float = 0.1
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array, decode: bool = False, deterministic: bool = False) -> Array:
    """Maps `inputs` [B, L, D] to [B, L, D]; `decode` is part of the signature, but unused."""
    del decode
    hidden = None
    for i, activation in enumerate(self.activations):
      x = DenseGeneral(
        self.intermediate_dim,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        kernel_axes=('embed', 'mlp'),
        name='wi' if len(self.activations) == 1 else f'wi_{i}',
      )(inputs)
      x = _activation(activation)(x)
      hidden = x if hidden is None else hidden * x
    dropout = nn.Dropout(self.intermediate_dropout_rate, broadcast_dims=(-2,))
    hidden = dropout(hidden, deterministic=deterministic)
    hidden = with_sharding_constraint(hidden, ('batch', 'length', 'mlp'))
    return DenseGeneral(
      inputs.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, kernel_axes=('mlp', 'embed'), name='wo'
    )(hidden)


# Embeddings, positions, norm


class Embed(nn.Module):
  """Token embeddings, read by gather: far cheaper than the product with one-hot vectors.

  Attributes:
    num_embeddings: V.
    features: D.
    dtype: type of the result.
    attend_dtype: type of `attend`'s arithmetic; None means `dtype`.
    embedding_init: initializer of the table.
  """

  num_embeddings: int
  features: int
  dtype: DType = jnp.float32
  attend_dtype: DType | None = None
  embedding_init: Initializer = nn.initializers.normal(1.0)

  def setup(self):
    self.embedding = param_with_axes(
      'embedding', self.embedding_init, (self.num_embeddings, self.features), jnp.float32, axes=('vocab', 'embed'), module=self
    )

  def __call__(self, inputs: Array) -> Array:
    """Maps ids [B, L] to vectors [B, L, D] of `dtype`; an id of V or more gives NaN.

    Raises:
      ValueError: where the ids are not integers.
    """
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError(f'token ids must be integers, got {inputs.dtype}')
    return with_sharding_constraint(jnp.take(self.embedding, inputs, axis=0).astype(self.dtype), ('batch', 'length', 'embed'))

  def attend(self, query: Array) -> Array:
    """Scores `query` [..., D] against every token: [..., V], the logits of tied embeddings."""
    dtype = self.attend_dtype if self.attend_dtype is not None else self.dtype
    return jnp.asarray(query, dtype) @ jnp.asarray(self.embedding, dtype).T


class RelativePositionBiases(nn.Module):
  """A learned attention bias per head and bucket of the distance between key and query.

  Attributes:
    num_buckets: number of buckets.
    max_distance: distances from here on share the last bucket.
    num_heads: H.
    dtype: type of the result.
    embedding_init: initializer of the table.
  """

  num_buckets: int
  max_distance: int
  num_heads: int
  dtype: DType
  embedding_init: Initializer = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')

  @staticmethod
  def _relative_position_bucket(
    relative_position: Array, bidirectional: bool = True, num_buckets: int = 32, max_distance: int = 128
  ) -> Array:
    """Puts distances (key minus query, any shape) into buckets, int32 of the same shape.

    Half of the buckets hold one distance each, the others grow logarithmically up to
    `max_distance`. Bidirectional attention spends half of all buckets on keys after the query;
    causal attention sees none of those.
    """
    distance = -relative_position
    offset = 0
    if bidirectional:
      num_buckets //= 2
      offset = (distance < 0).astype(jnp.int32) * num_buckets
      distance = jnp.abs(distance)
    else:
      distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    growing = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    growing = jnp.minimum(growing, num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, growing).astype(jnp.int32)

  @nn.compact
  def __call__(self, qlen: int, klen: int, bidirectional: bool = True) -> Array:
    """Returns the bias [1, H, qlen, klen]; `bidirectional` is False for causal attention."""
    relative_position = jnp.arange(klen)[None, :] - jnp.arange(qlen)[:, None]
    buckets = self._relative_position_bucket(relative_position, bidirectional, self.num_buckets, self.max_distance)
    table = param_with_axes(
      'rel_embedding', self.embedding_init, (self.num_heads, self.num_buckets), jnp.float32, axes=('heads', 'relpos_buckets')
    )
    # A one-hot product: its gradient is a matrix product too, a gather's would be a serial scatter.
    one_hot = jax.nn.one_hot(buckets, self.num_buckets, axis=0, dtype=self.dtype)
    return jnp.einsum('hn,nqk->hqk', jnp.asarray(table, self.dtype), one_hot)[None]


class LayerNorm(nn.Module):
  """T5's layer norm: division by the root mean square, in float32, no mean subtracted and no bias.

  Attributes:
    epsilon: added to the mean square.
    dtype: type of the result.
    scale_init: initializer of the scale.
  """

  epsilon: float = 1e-6
  dtype: DType = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises `x` [..., D]."""
    x = jnp.asarray(x, jnp.float32)
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    y = jnp.asarray(x * lax.rsqrt(mean_square + self.epsilon), self.dtype)
    scale = param_with_axes('scale', self.scale_init, (x.shape[-1],), jnp.float32, axes=('embed',))
    return y * jnp.asarray(scale, self.dtype)


# Masks


def make_attention_mask(
  query_input: Array,
  key_input: Array,
  pairwise_fn: Callable[[Array, Array], Array] = jnp.multiply,
  extra_batch_dims: int = 0,
  dtype: DType = jnp.float32,
) -> Array:
  """Builds [B, 1, Lq, Lk] from `query_input` [B, Lq] and `key_input` [B, Lk].

  Args:
    query_input: e.g. 1 for tokens and 0 for padding, or segment ids.
    key_input: the same of the keys.
    pairwise_fn: combines a query entry with a key entry; `jnp.equal` for segments.
    extra_batch_dims: axes of size 1 to put in front.
    dtype: type of the mask.

  Returns:
    The mask; positions > 0 are visible.
  """
  mask = pairwise_fn(query_input[..., :, None], key_input[..., None, :])
  mask = jnp.expand_dims(mask, -3)
  return jnp.expand_dims(mask, tuple(range(extra_batch_dims))).astype(dtype)


def make_causal_mask(x: Array, extra_batch_dims: int = 0, dtype: DType = jnp.float32) -> Array:
  """Builds [B, 1, L, L] for `x` [B, L]: each position sees itself and what is before it."""
  positions = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
  return make_attention_mask(positions, positions, jnp.greater_equal, extra_batch_dims, dtype)


def combine_masks(*masks: Array | None, dtype: DType = jnp.float32) -> Array | None:
  """Positions visible in every given mask; None entries are ignored, None if nothing is left."""
  present = [m for m in masks if m is not None]
  if not present:
    return None
  _check_same_rank(present)
  combined = present[0]
  for mask in present[1:]:
    combined = jnp.logical_and(combined, mask)
  return combined.astype(dtype)


def combine_biases(*masks: Array | None) -> Array | None:
  """The sum of the given biases; None entries are ignored, None if nothing is left."""
  present = [m for m in masks if m is not None]
  if not present:
    return None
  _check_same_rank(present)
  return sum(present[1:], start=present[0])


def _check_same_rank(arrays: Sequence[Array]) -> None:
  if len({a.ndim for a in arrays}) > 1:
    raise ValueError(f'masks and biases must have one rank, got shapes {[a.shape for a in arrays]}')


def make_decoder_mask(decoder_target_tokens: Array, dtype: DType, decoder_segment_ids: Array | None = None) -> Array:
  """The self-attention mask of a decoder: causal, without padding, inside one packed segment.

  Args:
    decoder_target_tokens: [B, L]; 0 is padding.
    dtype: type of the mask.
    decoder_segment_ids: [B, L], the packed example of each position.

  Returns:
    [B, 1, L, L].
  """
  visible = make_causal_mask(decoder_target_tokens, dtype=dtype)
  is_token = decoder_target_tokens > 0
  segments = None
  if decoder_segment_ids is not None:
    segments = make_attention_mask(decoder_segment_ids, decoder_segment_ids, jnp.equal, dtype=dtype)
  return combine_masks(visible, make_attention_mask(is_token, is_token, dtype=dtype), segments, dtype=dtype)
