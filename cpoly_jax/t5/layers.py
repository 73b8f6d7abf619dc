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
    return routed.adapter.project(x, routed, project, features=self.features, axes=self.axes)


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
                          float32_logits: bool = False, dropout: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """T5's attention: no 1/sqrt(K), which the query's initializer has.

  Args:
    query: [B, Lq, H, K].
    key: [B, Lk, H, K].
    value: [B, Lk, H, K].
    bias: [B or 1, H or 1, Lq, Lk] added to the logits (positions and mask), or None.
    float32_logits: compute logits and softmax in float32.
    dropout: applied to the attention weights [B, H, Lq, Lk].

  Returns:
    [B, Lq, H, K].
  """
  dtype = query.dtype
  if float32_logits:
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  if bias is not None:
    logits += bias.astype(logits.dtype)
  weights = dropout(nn.softmax(logits).astype(dtype))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def mask_to_bias(mask: jax.Array | None, dtype: Any) -> jax.Array | None:
  """0 where the mask is positive, -1e10 elsewhere (float32 addition of -1e10 wipes out the logit, as in T5X)."""
  return None if mask is None else jnp.where(mask > 0, 0., -1e10).astype(dtype)


def sum_biases(*biases: jax.Array | None) -> jax.Array | None:
  """The sum of those that are not None."""
  present = [b for b in biases if b is not None]
  return sum(present[1:], present[0]) if present else None


class Attention(nn.Module):
  """Multi-head attention of T5, with a decode cache.

  Cache, batch first so that beams can be expanded: self-attention keeps `cached_key` and `cached_value`
  [B, H, K, L] and `cache_index` as T5X does; cross-attention keeps `cross_key` and `cross_value` [B, Li, H, K] once
  `keep_encoded` has computed them.

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
      mask: [B, 1, Lq, Lk], positive where attention is allowed; not used in a decoding step of self-attention.
      bias: [1, H, Lq, Lk] of relative positions, or None; in a decoding step that of all L positions.
      routed: what adapters need.
      decode: x is one position (Lq = 1) and the cache is used; the first call, with all L, makes the cache.

    Returns:
      [B, Lq, D].
    """
    query = self._heads(self.query(x, routed))
    if memory is not None:
      key, value = self._encoded_keys_and_values(memory, routed.of_memory(), decode)
    else:
      key, value = self._keys_and_values(x, routed)
      if decode:
        key, value, mask, bias = self._step(key, value, mask, bias)
    total = sum_biases(mask_to_bias(mask, jnp.float32), bias)
    y = dot_product_attention(query, key, value, total, float32_logits=self.float32_logits,
                              dropout=lambda w: self.dropout(w, deterministic=routed.deterministic))
    return self.out(y.reshape(*y.shape[:-2], self.num_heads * self.head_dim), routed)

  def keep_encoded(self, memory: jax.Array, routed: Routed) -> None:
    """Computes the encoded inputs' keys and values once, for all decoding steps (collection `cache`)."""
    key, value = self._keys_and_values(memory, routed)
    self.put_variable('cache', 'cross_key', key)
    self.put_variable('cache', 'cross_value', value)

  def _heads(self, y: jax.Array) -> jax.Array:
    y = y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)
    return with_sharding_constraint(y, ('batch', 'length', 'heads', 'kv'))

  def _keys_and_values(self, x: jax.Array, routed: Routed) -> tuple[jax.Array, jax.Array]:
    return self._heads(self.key(x, routed)), self._heads(self.value(x, routed))

  def _encoded_keys_and_values(self, memory, routed, decode):
    if decode and self.has_variable('cache', 'cross_key'):
      return self.get_variable('cache', 'cross_key'), self.get_variable('cache', 'cross_value')
    return self._keys_and_values(memory, routed)

  def _step(self, key, value, mask, bias):
    """Puts this position's key and value into the cache; returns all of them, their mask and the bias's row."""
    to_cache = lambda y: jnp.moveaxis(y, 1, -1)  # [B, L, H, K] -> [B, H, K, L]
    if not self.has_variable('cache', 'cached_key'):
      for name, y in (('cached_key', key), ('cached_value', value)):
        self.put_variable('cache', name, jnp.zeros_like(to_cache(y)))
      self.put_variable('cache', 'cache_index', jnp.zeros((), jnp.int32))
      return key, value, mask, bias
    position = self.get_variable('cache', 'cache_index')
    self.put_variable('cache', 'cache_index', position + 1)
    key = self._write('cached_key', to_cache(key), position)
    value = self._write('cached_value', to_cache(value), position)
    mask = (jnp.arange(key.shape[1]) <= position)[None, None, None, :]
    if bias is not None:
      bias = lax.dynamic_slice_in_dim(bias, position, 1, axis=-2)
    return key, value, mask, bias

  def _write(self, name: str, column: jax.Array, position: jax.Array) -> jax.Array:
    """Puts [B, H, K, 1] at `position` of a cache [B, H, K, L]; returns all of it as [B, L, H, K]."""
    cache = self.get_variable('cache', name)
    cache = lax.dynamic_update_slice_in_dim(cache, column.astype(cache.dtype), position, axis=-1)
    self.put_variable('cache', name, cache)
    return jnp.moveaxis(cache, -1, 1)


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
