"""The T5 encoder-decoder (1.0, 1.1, FLAN) whose projections may carry routed skills.

Notation: B batch, Li / Lt input and target length, D model width, V vocabulary.

Parameters have T5X's names and shapes, so that its checkpoints load; without an adapter the network computes what
`t5x.examples.t5.network.Transformer` computes. It offers the same calls to `t5x.models.EncoderDecoderModel`, with one
argument more: `task_ids` [B], the routing rows, or [B, G] for packed rows of up to G examples, in the order of their segments.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Sequence

from flax import linen as nn
from flax import struct
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
from t5x.examples.t5 import layers as t5x_layers

from cpoly_jax import adapters
from cpoly_jax.adapters import Adapter, Routed
from cpoly_jax.t5 import layers
from cpoly_jax.t5 import scan

with_sharding_constraint = nn_partitioning.with_sharding_constraint

# A scalar parameter that the optimizer sets to the run's step, if a setting of the routing changes with it.
CLOCK = 'clock'


@struct.dataclass
class T5Config:
  """Sizes and settings of T5, with the names and defaults of T5X's `T5Config`.

  Attributes:
    vocab_size: V.
    dtype: of activations; parameters have their own.
    emb_dim: D.
    num_heads: attention heads.
    num_encoder_layers: encoder layers.
    num_decoder_layers: decoder layers.
    head_dim: width of a head.
    mlp_dim: hidden width of the feed-forward blocks.
    mlp_activations: ('relu',) for T5 1.0, ('gelu', 'linear') for T5 1.1 and FLAN.
    dropout_rate: of embeddings, attention weights, hidden units and residual branches.
    logits_via_embedding: logits from the input embedding (T5 1.0), not from a matrix of their own.
    float32_attention_logits: attention logits and softmax in float32.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False


def _attention(config: T5Config) -> layers.Attention:
  return layers.Attention(
      features=config.emb_dim, num_heads=config.num_heads, head_dim=config.head_dim, dtype=config.dtype,
      dropout_rate=config.dropout_rate, float32_logits=config.float32_attention_logits)


def _mlp(config: T5Config) -> layers.MlpBlock:
  return layers.MlpBlock(features=config.emb_dim, mlp_dim=config.mlp_dim, activations=tuple(config.mlp_activations),
                         dtype=config.dtype, dropout_rate=config.dropout_rate)


def _norm(config: T5Config) -> nn.Module:
  return t5x_layers.LayerNorm(dtype=config.dtype)


def _dropout(config: T5Config) -> nn.Dropout:
  """Dropout of embeddings and residual branches: one mask for all positions."""
  return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


def _shared_router(adapter: Adapter | None, granularity: str) -> nn.Module | None:
  """The router that a layer, a stack or the model shares among its projections, if that is where the adapter has it."""
  return None if adapter is None else adapter.router_of(granularity)


def _relative_positions(config: T5Config) -> nn.Module:
  """The bias of relative positions that all layers of a stack share: 32 buckets up to distance 128."""
  return t5x_layers.RelativePositionBiases(
      num_buckets=32, max_distance=128, num_heads=config.num_heads, dtype=config.dtype,
      embedding_init=nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'))


class EncoderLayer(nn.Module):
  """Self-attention and a feed-forward block, each on normalised inputs and added to them."""

  config: T5Config
  adapter: Adapter | None = None

  def setup(self):
    self.routing = _shared_router(self.adapter, adapters.LAYER)
    self.pre_attention_layer_norm = _norm(self.config)
    self.attention = _attention(self.config)
    self.pre_mlp_layer_norm = _norm(self.config)
    self.mlp = _mlp(self.config)
    self.dropout = _dropout(self.config)

  def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array, routed: Routed) -> jax.Array:
    """Returns [B, Li, D] for x [B, Li, D], mask [B, 1, Li, Li] and bias [1, H, Li, Li]."""
    routed = routed.by(self.routing)
    drop = lambda y: self.dropout(y, deterministic=routed.deterministic)
    x = with_sharding_constraint(x, ('batch', 'length', 'embed'))
    x += drop(self.attention(self.pre_attention_layer_norm(x), None, mask, bias, routed))
    return x + drop(self.mlp(self.pre_mlp_layer_norm(x), routed))


class DecoderLayer(nn.Module):
  """Causal self-attention, attention to the encoded inputs and a feed-forward block."""

  config: T5Config
  adapter: Adapter | None = None

  def setup(self):
    self.routing = _shared_router(self.adapter, adapters.LAYER)
    self.pre_self_attention_layer_norm = _norm(self.config)
    self.self_attention = _attention(self.config)
    self.pre_cross_attention_layer_norm = _norm(self.config)
    self.encoder_decoder_attention = _attention(self.config)
    self.pre_mlp_layer_norm = _norm(self.config)
    self.mlp = _mlp(self.config)
    self.dropout = _dropout(self.config)

  def __call__(self, x: jax.Array, encoded: jax.Array, decoder_mask: jax.Array | None, cross_mask: jax.Array | None,
               bias: jax.Array, routed: Routed, *, decode: bool = False) -> jax.Array:
    """Returns [B, Lt, D].

    Args:
      x: [B, Lt, D].
      encoded: [B, Li, D].
      decoder_mask: [B, 1, Lt, Lt].
      cross_mask: [B, 1, Lt, Li].
      bias: [1, H, Lt, Lt].
      routed: what adapters need.
      decode: one position with the cache (see `layers.Attention`).
    """
    routed = routed.by(self.routing)
    drop = lambda y: self.dropout(y, deterministic=routed.deterministic)
    x = with_sharding_constraint(x, ('batch', 'length', 'embed'))
    y = self.pre_self_attention_layer_norm(x)
    x += drop(self.self_attention(y, None, decoder_mask, bias, routed, decode=decode))
    y = self.pre_cross_attention_layer_norm(x)
    x += drop(self.encoder_decoder_attention(y, encoded, cross_mask, None, routed, decode=decode))
    return x + drop(self.mlp(self.pre_mlp_layer_norm(x), routed))

  def keep_encoded(self, encoded: jax.Array, routed: Routed) -> None:
    """Puts the keys and values of `encoded` into the cache."""
    self.encoder_decoder_attention.keep_encoded(encoded, routed.by(self.routing))


class Encoder(nn.Module):
  """The stack of encoder layers."""

  config: T5Config
  adapter: Adapter | None = None
  execution: scan.Execution = scan.Execution()

  def setup(self):
    self.routing = _shared_router(self.adapter, adapters.STACK)
    self.relpos_bias = _relative_positions(self.config)
    self.layers = [EncoderLayer(self.config, self.adapter) for _ in range(self.config.num_encoder_layers)]
    self.encoder_norm = _norm(self.config)
    self.dropout = _dropout(self.config)

  def __call__(self, x: jax.Array, mask: jax.Array, routed: Routed) -> jax.Array:
    """Returns [B, Li, D] for embedded inputs x [B, Li, D] and mask [B, 1, Li, Li]."""
    routed = routed.by(self.routing)
    drop = lambda y: self.dropout(y, deterministic=routed.deterministic)
    bias = self.relpos_bias(x.shape[-2], x.shape[-2], bidirectional=True)
    x = drop(x).astype(self.config.dtype)
    call = lambda layer, x: layer(x, mask, bias, routed)
    x = scan.run(self.layers, x, call, self.execution, self.adapter, projection_paths(self.config))
    return drop(self.encoder_norm(x))


class Decoder(nn.Module):
  """The stack of decoder layers and the logits."""

  config: T5Config
  embedder: nn.Module
  adapter: Adapter | None = None
  execution: scan.Execution = scan.Execution()

  def setup(self):
    self.routing = _shared_router(self.adapter, adapters.STACK)
    self.relpos_bias = _relative_positions(self.config)
    self.layers = [DecoderLayer(self.config, self.adapter) for _ in range(self.config.num_decoder_layers)]
    self.decoder_norm = _norm(self.config)
    self.dropout = _dropout(self.config)
    if not self.config.logits_via_embedding:
      self.logits_dense = layers.Projection(self.config.vocab_size, ('embed', 'vocab'), jnp.float32)

  def __call__(self, encoded: jax.Array, tokens: jax.Array, decoder_mask: jax.Array | None,
               cross_mask: jax.Array | None, routed: Routed, *, decode: bool = False,
               max_decode_length: int | None = None) -> jax.Array:
    """Returns logits [B, Lt, V] float32 for `encoded` [B, Li, D] and input tokens [B, Lt]."""
    routed = routed.by(self.routing)
    drop = lambda y: self.dropout(y, deterministic=routed.deterministic)
    length = max_decode_length if decode and max_decode_length else tokens.shape[-1]
    bias = self.relpos_bias(length, length, bidirectional=False)
    if decode:
      decoder_mask = layers.beam_mask(self._ancestors(tokens))
    x = drop(self.embedder(tokens)).astype(self.config.dtype)
    call = lambda layer, x: layer(x, encoded, decoder_mask, cross_mask, bias, routed, decode=decode)
    x = scan.run(self.layers, x, call, self.execution, self.adapter, projection_paths(self.config))
    x = drop(self.decoder_norm(x))
    if self.config.logits_via_embedding:
      # T5 1.0 shares the embedding and scales the output down, as the embedding has variance 1.
      return self.embedder.attend(x / jnp.sqrt(x.shape[-1]).astype(x.dtype))
    return self.logits_dense(x, Routed(None, routed.deterministic))  # Adapters are inside the layers.

  def _ancestors(self, tokens: jax.Array) -> jax.Array:
    """The cache's leaf `layers.ANCESTORS`; the call that makes the cache, with tokens [B, L], makes it [B, L]."""
    if not self.has_variable('cache', layers.ANCESTORS):
      self.put_variable('cache', layers.ANCESTORS, jnp.full(tokens.shape, layers.NOT_YET, jnp.int32))
    return self.get_variable('cache', layers.ANCESTORS)

  def keep_encoded(self, encoded: jax.Array, routed: Routed) -> None:
    """Puts the keys and values of `encoded` into every layer's cache."""
    routed = routed.by(self.routing)
    for layer in self.layers:
      layer.keep_encoded(encoded, routed)


class Transformer(nn.Module):
  """T5 with an optional adapter on its projections.

  Attributes:
    config: sizes.
    adapter: routed skills, or None for the plain base, which ignores `task_ids`.
    execution: how the layers are run; no part of the network's saved settings, as nothing depends on it but time and memory.
  """

  config: T5Config
  adapter: Adapter | None = None
  execution: scan.Execution = scan.Execution()

  def setup(self):
    cfg = self.config
    self.routing = _shared_router(self.adapter, adapters.MODEL)
    self.clock = None
    if self.adapter is not None:
      self.adapter.check_matches(projection_paths(cfg))
      if self.adapter.describe().needs_step:
        self.clock = layers.param_with_axes(CLOCK, nn.initializers.zeros_init(), (), jnp.float32, axes=())
    if self.execution.scan_layers:
      scan.check(projection_paths(cfg), self.adapter)
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg, self.adapter, self.execution)
    self.decoder = Decoder(cfg, self.token_embedder, self.adapter, self.execution)

  def _routed(self, task_ids: jax.Array | None, enable_dropout: bool) -> Routed:
    if self.adapter is None:
      return Routed(None, not enable_dropout)
    if task_ids is None:
      raise ValueError('this network routes by task: give task_ids [B], the routing row of each example')
    task_ids = task_ids.reshape(-1)
    step = None if self.clock is None else jax.lax.stop_gradient(self.clock)
    return Routed(task_ids, not enable_dropout, self.adapter, step).by(self.routing)

  def encode(self, encoder_input_tokens: jax.Array, encoder_segment_ids: jax.Array | None = None,
             enable_dropout: bool = True, *, task_ids: jax.Array | None = None) -> jax.Array:
    """Encodes the inputs.

    Args:
      encoder_input_tokens: [B, Li] int32; 0 is padding.
      encoder_segment_ids: [B, Li] int32 of packed examples, or None.
      enable_dropout: training: dropout and routing noise.
      task_ids: [B] or [B, G] int32 routing rows; needed with an adapter.

    Returns:
      [B, Li, D].
    """
    return self._encode(encoder_input_tokens, encoder_segment_ids, self._routed(task_ids, enable_dropout))

  def _encode(self, encoder_input_tokens: jax.Array, encoder_segment_ids: jax.Array | None, routed: Routed) -> jax.Array:
    valid = encoder_input_tokens > 0
    mask = t5x_layers.make_attention_mask(valid, valid, dtype=self.config.dtype)
    if encoder_segment_ids is not None:
      mask = t5x_layers.combine_masks(mask, _same_segment(encoder_segment_ids, encoder_segment_ids, self.config.dtype))
    x = self.token_embedder(encoder_input_tokens)
    return self.encoder(x, mask, self._packed(routed, encoder_input_tokens, encoder_segment_ids))

  def _packed(self, routed: Routed, tokens: jax.Array, segment_ids: jax.Array | None,
              memory: jax.Array | None = None, *, beams: bool = False) -> Routed:
    """What a stack's adapters need; ValueError if rows have several tasks but no segments, or if tasks have several rows
    that are not beams."""
    tasks, rows = routed.task_ids, tokens.shape[0]
    if segment_ids is None and tasks is not None and (rows % tasks.shape[0] if beams else rows != tasks.shape[0]):
      raise ValueError(f'{tasks.shape[0]} task ids for {rows} rows: rows of several examples need segment ids')
    return routed.packed(segment_ids, memory)

  def decode(self, encoded: jax.Array, encoder_input_tokens: jax.Array, decoder_input_tokens: jax.Array,
             decoder_target_tokens: jax.Array, encoder_segment_ids: jax.Array | None = None,
             decoder_segment_ids: jax.Array | None = None, decoder_positions: jax.Array | None = None,
             enable_dropout: bool = True, decode: bool = False, max_decode_length: int | None = None, *,
             task_ids: jax.Array | None = None) -> jax.Array:
    """Returns logits of the targets.

    Args:
      encoded: [B, Li, D] from `encode`.
      encoder_input_tokens: [B, Li], to mask padding.
      decoder_input_tokens: [B, Lt], the targets shifted right.
      decoder_target_tokens: [B, Lt], to mask padding.
      encoder_segment_ids: [B, Li] of packed examples, or None.
      decoder_segment_ids: [B, Lt] of packed examples, or None.
      decoder_positions: accepted for T5X's sake; relative positions do not need them.
      enable_dropout: training: dropout and routing noise.
      decode: Lt = 1 and the cache is used; the first call, with all positions, makes the cache.
      max_decode_length: positions of the cache.
      task_ids: [B] or [B, G] int32 routing rows; needed with an adapter. With `decode` there may be n rows of each example
        after each other, its beams, for one row here.

    Returns:
      [B, Lt, V] float32.
    """
    del decoder_positions
    return self._decode(encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, encoder_segment_ids,
                        decoder_segment_ids, decode, max_decode_length, self._routed(task_ids, enable_dropout))

  def _decode(self, encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, encoder_segment_ids,
              decoder_segment_ids, decode, max_decode_length, routed):
    dtype = self.config.dtype
    if decode:
      decoder_mask = None
      cross_mask = t5x_layers.make_attention_mask(
          jnp.ones_like(decoder_target_tokens), encoder_input_tokens > 0, dtype=dtype)
    else:
      decoder_mask = t5x_layers.make_decoder_mask(
          decoder_target_tokens=decoder_target_tokens, dtype=dtype, decoder_segment_ids=decoder_segment_ids)
      cross_mask = t5x_layers.make_attention_mask(decoder_target_tokens > 0, encoder_input_tokens > 0, dtype=dtype)
    if encoder_segment_ids is not None:
      if decode:
        raise ValueError('packed inputs cannot be decoded: give one example a row, without segment ids')
      cross_mask = t5x_layers.combine_masks(cross_mask, _same_segment(decoder_segment_ids, encoder_segment_ids, dtype))
    routed = self._packed(routed, decoder_input_tokens, decoder_segment_ids, encoder_segment_ids, beams=decode)
    return self.decoder(encoded, decoder_input_tokens, decoder_mask, cross_mask, routed, decode=decode,
                        max_decode_length=max_decode_length)

  def keep_encoded(self, encoded: jax.Array, *, task_ids: jax.Array | None = None) -> None:
    """Fills the cache with the keys and values of `encoded` [B, Li, D], so that decoding steps reuse them."""
    self.decoder.keep_encoded(encoded, self._routed(task_ids, False))

  def __call__(self, encoder_input_tokens: jax.Array, decoder_input_tokens: jax.Array,
               decoder_target_tokens: jax.Array, encoder_segment_ids: jax.Array | None = None,
               decoder_segment_ids: jax.Array | None = None, encoder_positions: jax.Array | None = None,
               decoder_positions: jax.Array | None = None, *, enable_dropout: bool = True, decode: bool = False,
               task_ids: jax.Array | None = None) -> jax.Array:
    """Encodes and decodes: logits [B, Lt, V]; arguments as in `encode` and `decode`."""
    del encoder_positions, decoder_positions
    routed = self._routed(task_ids, enable_dropout)  # Once: a router that both stacks share draws one noise for both.
    encoded = self._encode(encoder_input_tokens, encoder_segment_ids, routed)
    return self._decode(encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, encoder_segment_ids,
                        decoder_segment_ids, decode, None, routed)


def _same_segment(query_segments: jax.Array, key_segments: jax.Array, dtype: Any) -> jax.Array:
  """Mask [B, 1, Lq, Lk] that keeps packed examples apart."""
  return t5x_layers.make_attention_mask(query_segments, key_segments, jnp.equal, dtype=dtype)


def projection_paths(config: T5Config) -> list[str]:
  """Paths of all projections inside the layers, e.g. `decoder/layers_0/mlp/wo`: what an adapter can target."""
  wi = ['wi'] if len(config.mlp_activations) == 1 else [f'wi_{i}' for i in range(len(config.mlp_activations))]
  mlp = [f'mlp/{name}' for name in [*wi, 'wo']]
  attention = ['query', 'key', 'value', 'out']
  blocks = {'encoder': ['attention'], 'decoder': ['self_attention', 'encoder_decoder_attention']}
  sizes = {'encoder': config.num_encoder_layers, 'decoder': config.num_decoder_layers}
  return [f'{stack}/layers_{i}/{name}' for stack, n in sizes.items() for i in range(n)
          for name in [*(f'{b}/{p}' for b in blocks[stack] for p in attention), *mlp]]
