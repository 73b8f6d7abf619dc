"""The T5 encoder-decoder: how the blocks of layers.py are put together.

Parameter names and shapes are those of the public T5 checkpoints. Shapes: B batch, Li/Lt
input/target length, D embedding, V vocabulary.
"""

from __future__ import annotations

from typing import Any
from collections.abc import Sequence

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from t5x.examples.t5 import layers

Array = jax.Array


@struct.dataclass
class T5Config:
  """The sizes and settings of a T5 network.

  Attributes:
    vocab_size: V.
    dtype: type of the activations; parameters are float32.
    emb_dim: D.
    num_heads: attention heads.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: size of a head.
    mlp_dim: hidden size of the feed-forward block.
    mlp_activations: `('relu',)` for T5 1.0, `('gelu', 'linear')` for T5 1.1.
    dropout_rate: rate of every dropout.
    logits_via_embedding: use the token embeddings for the output (T5 1.0) instead of a matrix of
      its own (T5 1.1).
    float32_attention_logits: compute attention logits in float32 whatever `dtype` is.
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


def _norm(cfg: T5Config, name: str) -> nn.Module:
  return layers.LayerNorm(dtype=cfg.dtype, name=name)


def _dropout(cfg: T5Config, x: Array, deterministic: bool) -> Array:
  """Dropout with one draw for all positions of a sequence. `x`: [B, L, D]."""
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)


def _attention(cfg: T5Config, name: str) -> nn.Module:
  return layers.MultiHeadDotProductAttention(
    num_heads=cfg.num_heads,
    head_dim=cfg.head_dim,
    dtype=cfg.dtype,
    dropout_rate=cfg.dropout_rate,
    float32_logits=cfg.float32_attention_logits,
    name=name,
  )


def _mlp(cfg: T5Config) -> nn.Module:
  return layers.MlpBlock(
    intermediate_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
    intermediate_dropout_rate=cfg.dropout_rate,
    dtype=cfg.dtype,
    name='mlp',
  )


def _relpos_bias(cfg: T5Config) -> nn.Module:
  return layers.RelativePositionBiases(
    num_buckets=32, max_distance=128, num_heads=cfg.num_heads, dtype=cfg.dtype, name='relpos_bias'
  )


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward block, each normalised before and added to the residual stream.

  Attributes:
    config: the network's settings.
    relative_embedding: the relative position biases all layers of the stack share.
  """

  config: T5Config
  relative_embedding: nn.Module

  @nn.compact
  def __call__(self, inputs: Array, encoder_mask: Array | None = None, deterministic: bool = False) -> Array:
    """Maps [B, Li, D] to [B, Li, D]; `encoder_mask` is [B, 1, Li, Li]."""
    cfg = self.config
    length = inputs.shape[-2]
    bias = self.relative_embedding(length, length, True)

    x = _norm(cfg, 'pre_attention_layer_norm')(inputs)
    x = _attention(cfg, 'attention')(x, x, encoder_mask, bias, deterministic=deterministic)
    x = inputs + _dropout(cfg, x, deterministic)

    y = _norm(cfg, 'pre_mlp_layer_norm')(x)
    y = _mlp(cfg)(y, deterministic=deterministic)
    return x + _dropout(cfg, y, deterministic)


class DecoderLayer(nn.Module):
  """Causal self-attention, attention to the encoder, feed-forward block.

  Attributes:
    config: the network's settings.
    relative_embedding: the relative position biases all layers of the stack share.
  """

  config: T5Config
  relative_embedding: nn.Module

  @nn.compact
  def __call__(
    self,
    inputs: Array,
    encoded: Array,
    decoder_mask: Array | None = None,
    encoder_decoder_mask: Array | None = None,
    deterministic: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Array:
    """Maps [B, Lt, D] to [B, Lt, D].

    Args:
      inputs: [B, Lt, D]; Lt is 1 in a decoding step.
      encoded: [B, Li, D].
      decoder_mask: [B, 1, Lt, Lt], None when decoding.
      encoder_decoder_mask: [B, 1, Lt, Li].
      deterministic: True switches dropout off.
      decode: use the cache.
      max_decode_length: length of the cache in a decoding step.

    Returns:
      [B, Lt, D].
    """
    cfg = self.config
    length = max_decode_length if decode and max_decode_length else inputs.shape[-2]
    bias = self.relative_embedding(length, length, False)

    x = _norm(cfg, 'pre_self_attention_layer_norm')(inputs)
    x = _attention(cfg, 'self_attention')(x, x, decoder_mask, bias, deterministic=deterministic, decode=decode)
    x = inputs + _dropout(cfg, x, deterministic)

    y = _norm(cfg, 'pre_cross_attention_layer_norm')(x)
    y = _attention(cfg, 'encoder_decoder_attention')(y, encoded, encoder_decoder_mask, deterministic=deterministic)
    y = x + _dropout(cfg, y, deterministic)

    z = _norm(cfg, 'pre_mlp_layer_norm')(y)
    z = _mlp(cfg)(z, deterministic=deterministic)
    return y + _dropout(cfg, z, deterministic)


class Encoder(nn.Module):
  """The stack of encoder layers.

  Attributes:
    config: the network's settings.
    shared_embedding: the token embedder both stacks share.
  """

  config: T5Config
  shared_embedding: nn.Module

  @nn.compact
  def __call__(self, encoder_input_tokens: Array, encoder_mask: Array | None = None, deterministic: bool = False) -> Array:
    """Maps tokens [B, Li] to [B, Li, D]; `encoder_mask` is [B, 1, Li, Li]."""
    cfg = self.config
    relpos_bias = _relpos_bias(cfg)
    x = self.shared_embedding(encoder_input_tokens.astype(jnp.int32))
    x = _dropout(cfg, x, deterministic).astype(cfg.dtype)
    for i in range(cfg.num_encoder_layers):
      x = EncoderLayer(config=cfg, relative_embedding=relpos_bias, name=f'layers_{i}')(x, encoder_mask, deterministic)
    x = _norm(cfg, 'encoder_norm')(x)
    return _dropout(cfg, x, deterministic)


class Decoder(nn.Module):
  """The stack of decoder layers and the output logits.

  Attributes:
    config: the network's settings.
    shared_embedding: the token embedder both stacks share.
  """

  config: T5Config
  shared_embedding: nn.Module

  @nn.compact
  def __call__(
    self,
    encoded: Array,
    decoder_input_tokens: Array,
    decoder_positions: Array | None = None,
    decoder_mask: Array | None = None,
    encoder_decoder_mask: Array | None = None,
    deterministic: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Array:
    """Maps [B, Li, D] and tokens [B, Lt] to float32 logits [B, Lt, V]; see DecoderLayer."""
    del decoder_positions  # relative biases know no absolute positions
    cfg = self.config
    relpos_bias = _relpos_bias(cfg)
    y = self.shared_embedding(decoder_input_tokens.astype(jnp.int32))
    y = _dropout(cfg, y, deterministic).astype(cfg.dtype)
    for i in range(cfg.num_decoder_layers):
      y = DecoderLayer(config=cfg, relative_embedding=relpos_bias, name=f'layers_{i}')(
        y,
        encoded,
        decoder_mask=decoder_mask,
        encoder_decoder_mask=encoder_decoder_mask,
        deterministic=deterministic,
        decode=decode,
        max_decode_length=max_decode_length,
      )
    y = _norm(cfg, 'decoder_norm')(y)
    y = _dropout(cfg, y, deterministic)
    if cfg.logits_via_embedding:
      return self.shared_embedding.attend(y) / jnp.sqrt(y.shape[-1])
    # float32: the softmax over V is where narrow types hurt.
    return layers.DenseGeneral(cfg.vocab_size, dtype=jnp.float32, kernel_axes=('embed', 'vocab'), name='logits_dense')(y)


class Transformer(nn.Module):
  """The T5 encoder-decoder.

  Attributes:
    config: the network's settings.
  """

  config: T5Config

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.Embed(
      num_embeddings=cfg.vocab_size, features=cfg.emb_dim, dtype=cfg.dtype, attend_dtype=jnp.float32
    )
    self.encoder = Encoder(config=cfg, shared_embedding=self.token_embedder)
    self.decoder = Decoder(config=cfg, shared_embedding=self.token_embedder)

  def encode(self, encoder_input_tokens: Array, encoder_segment_ids: Array | None = None, enable_dropout: bool = True) -> Array:
    """Encodes tokens [B, Li] to [B, Li, D]; `encoder_segment_ids` [B, Li] keep examples apart."""
    dtype = self.config.dtype
    mask = _input_mask(encoder_input_tokens > 0, encoder_input_tokens, dtype)
    if encoder_segment_ids is not None:
      segments = _segment_mask(encoder_segment_ids, encoder_segment_ids, dtype)
      mask = layers.combine_masks(mask, segments)
    return self.encoder(encoder_input_tokens, mask, deterministic=not enable_dropout)

  def decode(
    self,
    encoded: Array,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    decoder_positions: Array | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Array:
    """Computes logits from encodings, teacher-forced or, with `decode`, one position on the cache.

    Args:
      encoded: [B, Li, D].
      encoder_input_tokens: [B, Li], for the padding.
      decoder_input_tokens: [B, Lt], the targets shifted right; Lt is 1 in a decoding step.
      decoder_target_tokens: [B, Lt], for the padding.
      encoder_segment_ids: [B, Li] of packed inputs.
      decoder_segment_ids: [B, Lt] of packed targets.
      decoder_positions: [B, Lt]; unused by this network.
      enable_dropout: True while training.
      decode: use the cache.
      max_decode_length: length of the cache in a decoding step.

    Returns:
      float32 logits [B, Lt, V].

    Raises:
      ValueError: where decoding is asked for packed inputs.
    """
    cfg = self.config
    if decode:
      if encoder_segment_ids is not None or decoder_segment_ids is not None:
        raise ValueError('decoding needs unpacked examples: leave the segment ids out (pack=False)')
      decoder_mask = None  # the cache hides what is not yet written
      cross_mask = _input_mask(jnp.ones_like(decoder_target_tokens), encoder_input_tokens, cfg.dtype)
    else:
      decoder_mask = layers.make_decoder_mask(decoder_target_tokens, cfg.dtype, decoder_segment_ids=decoder_segment_ids)
      cross_mask = _input_mask(decoder_target_tokens > 0, encoder_input_tokens, cfg.dtype)
    if encoder_segment_ids is not None:
      segments = _segment_mask(decoder_segment_ids, encoder_segment_ids, cfg.dtype)
      cross_mask = layers.combine_masks(cross_mask, segments)
    return self.decoder(
      encoded,
      decoder_input_tokens,
      decoder_positions=decoder_positions,
      decoder_mask=decoder_mask,
      encoder_decoder_mask=cross_mask,
      deterministic=not enable_dropout,
      decode=decode,
      max_decode_length=max_decode_length,
    )

  def __call__(
    self,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    encoder_positions: Array | None = None,
    decoder_positions: Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
  ) -> Array:
    """Encodes and decodes a batch: float32 logits [B, Lt, V]; `decode` also creates the cache."""
    del encoder_positions  # relative biases know no absolute positions
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout=enable_dropout)
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=encoder_segment_ids,
      decoder_segment_ids=decoder_segment_ids,
      decoder_positions=decoder_positions,
      enable_dropout=enable_dropout,
      decode=decode,
    )


def _input_mask(queries: Array, encoder_input_tokens: Array, dtype: Any) -> Array:
  """[B, 1, Lq, Li]: `queries` [B, Lq] that are not 0 see the inputs that are not padding."""
  return layers.make_attention_mask(queries, encoder_input_tokens > 0, dtype=dtype)


def _segment_mask(query_segments: Array, key_segments: Array, dtype: Any) -> Array:
  """[B, 1, Lq, Lk]: a packed example sees only itself."""
  return layers.make_attention_mask(query_segments, key_segments, jnp.equal, dtype=dtype)
