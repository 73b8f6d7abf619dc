"""Layers of T5 whose linear projections can carry an adapter.

Notation: B batch, L length, D model width, H heads, K head width, F width of the MLP, V vocabulary.

Normalisation, relative position bias and masks are those of `t5x.examples.t5.layers`, which every provider of t5x
has. Here is what differs: projections with adapters, embeddings that are gathered, and attention whose keys and
values of the encoder are kept during decoding.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Callable

from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
from jax import lax
import jax.numpy as jnp

from cpoly_jax.adapters import Routed

param_with_axes = nn_partitioning.param_with_axes
with_sharding_constraint = nn_partitioning.with_sharding_constraint

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': nn.relu, 'gelu': nn.gelu, 'silu': nn.silu, 'linear': lambda x: x}

# The cache's leaf which tells, where beams share their caches, the column of each position that a hypothesis descends from.
ANCESTORS = 'ancestors'
NOT_YET = -1  # Of a position that has no columns so far.

kernel_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class Projection(nn.Module):
  """A linear map [B, L, d] -> [B, L, o] without bias, adapted if it is a target.

  Attributes:
    features: o.
    axes: logical names of the kernel's axes.
    dtype: of the computation.
    scale: divides the kernel's start (T5 folds 1/sqrt(K) of attention into the query's initializer).
  """

  features: int
  axes: tuple[str, str]
  dtype: Any = jnp.float32
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, routed: Routed) -> jax.Array:
    init = lambda *args: kernel_init(*args) / self.scale
    kernel = param_with_axes('kernel', init, (x.shape[-1], self.features), jnp.float32, axes=self.axes)
    x = x.astype(self.dtype)
    project = lambda inputs: inputs @ kernel.astype(self.dtype)
    if routed.adapter is None or not routed.adapter.is_target('/'.join(self.path)):
      return project(x)
    y = routed.adapter.project(by_example(x, routed.task_ids.shape[0]), routed, project, features=self.features, axes=self.axes)
    return y.reshape(*x.shape[:-1], self.features)


def by_example(x: jax.Array, examples: int) -> jax.Array:
  """Puts the beams of an example, which share its skills and its inputs, side by side along the length.

  Args:
    x: [B * n, L, ...], the n beams of each example after each other.
    examples: B; more than the rows of x if these are packed, which have no beams.

  Returns:
    [B, n * L, ...], or x itself without beams.
  """
  return x if x.shape[0] <= examples else x.reshape(examples, -1, *x.shape[2:])


class Embed(nn.Module):
  """Token embeddings [V, D], gathered by id rather than multiplied by one-hots."""

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    self.embedding = param_with_axes('embedding', nn.initializers.normal(1.0), (self.num_embeddings, self.features),
                                     jnp.float32, axes=('vocab', 'embed'))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Returns [B, L, D] for tokens [B, L]."""
    # T5X initializes with float tokens where it is not told their dtype.
    return jnp.take(self.embedding, tokens.astype(jnp.int32), axis=0).astype(self.dtype)

  def attend(self, x: jax.Array) -> jax.Array:
    """Returns tied logits [B, L, V] float32 for x [B, L, D]."""
    return x.astype(jnp.float32) @ self.embedding.astype(jnp.float32).T


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, *,
                          float32_logits: bool = False, dropout: Callable[[jax.Array], jax.Array],
                          cached: bool = False) -> jax.Array:
  """T5's attention: no 1/sqrt(K), which the query's initializer has.

  Args:
    query: [B, Lq, H, K].
    key: [B, Lk, H, K], or [B, H, K, Lk] if `cached`.
    value: as the key.
    bias: [B or 1, H or 1, Lq, Lk] added to the logits (positions and mask), or None.
    float32_logits: compute logits and softmax in float32.
    dropout: applied to the attention weights [B, H, Lq, Lk].
    cached: key and value have the cache's layout, which a decoding step multiplies without moving them.

  Returns:
    [B, Lq, H, K].
  """
  layout = 'bhdk' if cached else 'bkhd'
  dtype = query.dtype
  if float32_logits:
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  logits = jnp.einsum(f'bqhd,{layout}->bhqk', query, key)
  if bias is not None:
    logits += bias.astype(logits.dtype)
  weights = dropout(nn.softmax(logits).astype(dtype))
  return jnp.einsum(f'bhqk,{layout}->bqhd', weights, value)


def mask_to_bias(mask: jax.Array | None, dtype: Any) -> jax.Array | None:
  """0 where the mask is positive, -1e10 elsewhere (float32 addition of -1e10 wipes out the logit, as in T5X)."""
  return None if mask is None else jnp.where(mask > 0, 0., -1e10).astype(dtype)


def beam_mask(ancestors: jax.Array | None) -> jax.Array | None:
  """Returns which columns of a shared cache each beam sees, [B, 1, n, n * L], or None if beams share nothing.

  Args:
    ancestors: [B, n, L], by position the beam that wrote a hypothesis' column, or `NOT_YET`; otherwise of another rank.
  """
  if ancestors is None or ancestors.ndim != 3:
    return None
  batch, beams, _ = ancestors.shape
  return (ancestors[..., None] == jnp.arange(beams)).reshape(batch, 1, beams, -1)


def sum_biases(*biases: jax.Array | None) -> jax.Array | None:
  """The sum of those that are not None."""
  present = [b for b in biases if b is not None]
  return sum(present[1:], present[0]) if present else None


class Attention(nn.Module):
  """Multi-head attention of T5, with a decode cache.

  Cache, batch first so that beams can be expanded: self-attention keeps `cached_key` and `cached_value`
  [B, H, K, L] and `cache_index` as T5X does; cross-attention keeps `cross_key` and `cross_value` [B, H, K, Li] once
  `keep_encoded` has computed them.

  With fewer examples in the cache than rows in x, the n rows of each example are beams that share it: the inputs' keys and
  values, which are the same for all, and a cache of n * L columns, n for each position.

  Attributes:
    features: D, outputs.
    num_heads: H.
    head_dim: K.
    dtype: of the computation.
    dropout_rate: of the attention weights, shared along the queries.
    float32_logits: see `dot_product_attention`.
  """

  features: int
  num_heads: int
  head_dim: int
  dtype: Any = jnp.float32
  dropout_rate: float = 0.
  float32_logits: bool = False

  def setup(self):
    width = self.num_heads * self.head_dim
    # T5 has no 1/sqrt(K) on the logits: the query's initializer carries it.
    self.query = Projection(width, ('embed', 'joined_kv'), self.dtype, self.head_dim ** 0.5)
    self.key = Projection(width, ('embed', 'joined_kv'), self.dtype)
    self.value = Projection(width, ('embed', 'joined_kv'), self.dtype)
    self.out = Projection(self.features, ('joined_kv', 'embed'), self.dtype)
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

  def __call__(self, x: jax.Array, memory: jax.Array | None, mask: jax.Array | None, bias: jax.Array | None,
               routed: Routed, *, decode: bool = False) -> jax.Array:
    """Attends from x to memory.

    Args:
      x: [B, Lq, D].
      memory: [B, Lk, D] the encoded inputs, or None to attend to x itself.
      mask: [B, 1, Lq, Lk], positive where attention is allowed; in a decoding step of self-attention that of `beam_mask`.
      bias: [1, H, Lq, Lk] of relative positions, or None; in a decoding step that of all L positions.
      routed: what adapters need.
      decode: x is one position (Lq = 1) and the cache is used; the first call, with all L, makes the cache.

    Returns:
      [B, Lq, D].
    """
    query = self._heads(self.query(x, routed))
    cached = decode and self.has_variable('cache', 'cached_key' if memory is None else 'cross_key')
    if cached and memory is not None:
      key, value = self.get_variable('cache', 'cross_key'), self.get_variable('cache', 'cross_value')
    else:
      key, value = self._keys_and_values(*((x, routed) if memory is None else (memory, routed.of_memory())))
    if cached and memory is None:
      key, value, mask, bias = self._step(key, value, mask, bias)
    elif decode and memory is None:
      self._make_cache(key, value)
    query = by_example(query, key.shape[0])
    if mask is not None and mask.shape[0] > key.shape[0]:
      mask = mask[::mask.shape[0] // key.shape[0]]  # The beams of an example have the same inputs.
    total = sum_biases(mask_to_bias(mask, jnp.float32), bias)
    y = dot_product_attention(query, key, value, total, float32_logits=self.float32_logits, cached=cached,
                              dropout=lambda w: self.dropout(w, deterministic=routed.deterministic))
    return self.out(y.reshape(*x.shape[:-1], self.num_heads * self.head_dim), routed)

  def keep_encoded(self, memory: jax.Array, routed: Routed) -> None:
    """Computes the encoded inputs' keys and values once, for all decoding steps (collection `cache`)."""
    key, value = self._keys_and_values(memory, routed)
    self.put_variable('cache', 'cross_key', _to_cache(key))
    self.put_variable('cache', 'cross_value', _to_cache(value))

  def _heads(self, y: jax.Array) -> jax.Array:
    y = y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)
    return with_sharding_constraint(y, ('batch', 'length', 'heads', 'kv'))

  def _keys_and_values(self, x: jax.Array, routed: Routed) -> tuple[jax.Array, jax.Array]:
    return self._heads(self.key(x, routed)), self._heads(self.value(x, routed))

  def _make_cache(self, key: jax.Array, value: jax.Array) -> None:
    """Makes an empty cache for as many positions as there are keys and values [B, L, H, K]."""
    for name, y in (('cached_key', key), ('cached_value', value)):
      self.put_variable('cache', name, jnp.zeros_like(_to_cache(y)))
    self.put_variable('cache', 'cache_index', jnp.zeros((), jnp.int32))

  def _step(self, key: jax.Array, value: jax.Array, mask: jax.Array | None, bias: jax.Array | None):
    """Puts this position's key and value [B * n, 1, H, K] into the cache.

    Returns:
      All of them [B, H, K, n * L], their mask, and the bias's row.
    """
    position = self.get_variable('cache', 'cache_index')
    self.put_variable('cache', 'cache_index', position + 1)
    beams = key.shape[0] // self.get_variable('cache', 'cached_key').shape[0]
    key, value = self._write('cached_key', key, position * beams), self._write('cached_value', value, position * beams)
    if beams == 1:
      mask = (jnp.arange(key.shape[-1]) <= position)[None, None, None, :]
    if bias is not None:
      bias = jnp.repeat(lax.dynamic_slice_in_dim(bias, position, 1, axis=-2), beams, axis=-1)
    return key, value, mask, bias

  def _write(self, name: str, y: jax.Array, column: jax.Array) -> jax.Array:
    """Puts [B * n, 1, H, K] into n columns of a cache [B, H, K, n * L]; returns all of it."""
    cache = self.get_variable('cache', name)
    columns = _to_cache(by_example(y, cache.shape[0])).astype(cache.dtype)
    cache = lax.dynamic_update_slice_in_dim(cache, columns, column, axis=-1)
    self.put_variable('cache', name, cache)
    return cache


def _to_cache(y: jax.Array) -> jax.Array:
  """[B, L, H, K] -> [B, H, K, L]."""
  return jnp.moveaxis(y, 1, -1)


class MlpBlock(nn.Module):
  """T5's feed-forward block: one `wi` (T5 1.0) or several gated ones `wi_0`, `wi_1` (T5 1.1), then `wo`.

  Attributes:
    features: D, outputs.
    mlp_dim: F.
    activations: one name of `ACTIVATIONS` for each input projection; their results are multiplied.
    dtype: of the computation.
    dropout_rate: of the hidden units, shared along the length.
  """

  features: int
  mlp_dim: int
  activations: tuple[str, ...] = ('relu',)
  dtype: Any = jnp.float32
  dropout_rate: float = 0.

  @nn.compact
  def __call__(self, x: jax.Array, routed: Routed) -> jax.Array:
    """Returns [B, L, D] for x [B, L, D]."""
    hidden = 1.
    for i, name in enumerate(self.activations):
      if name not in ACTIVATIONS:
        raise ValueError(f'mlp activation {name!r}: write one of {", ".join(ACTIVATIONS)}')
      wi = Projection(self.mlp_dim, ('embed', 'mlp'), self.dtype, name='wi' if len(self.activations) == 1 else f'wi_{i}')
      hidden = ACTIVATIONS[name](wi(x, routed)) * hidden
    hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=routed.deterministic)
    hidden = with_sharding_constraint(hidden, ('batch', 'length', 'mlp'))
    return Projection(self.features, ('mlp', 'embed'), self.dtype, name='wo')(hidden, routed)
