"""Models: how a network becomes a loss, scores and predictions.

`BaseModel` is what the trainer and the inference loop know. `EncoderDecoderModel` implements it for
any linen module that follows the encoder-decoder call contract; extensions subclass it and override
single methods, so every access to the network goes through `self.module.apply`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from t5x import decoding
from t5x import losses
from t5x import metrics as metrics_lib

if TYPE_CHECKING:
  from flax import linen as nn
  import seqio
  from t5x import optimizers

Array = jax.Array
Batch = Mapping[str, Array]
MetricsMap = metrics_lib.MetricsMap
TokensIdsToLogitsCallable = decoding.TokensToLogits
compute_base_metrics = metrics_lib.compute_base_metrics
count_packed_examples = metrics_lib.count_packed_examples
PyTree = Any
PyTreeDef = jax.tree_util.PyTreeDef
# A decoding algorithm, such as `decoding.beam_search`; see there for the arguments, which are given by name.
DecodeFnCallable = Callable[..., tuple[Array, Array]]


class _LazyFeatureConverter:
  """A class attribute whose value is a seqio class, imported when it is first read."""

  def __init__(self, name: str):
    self._name = name

  def __get__(self, instance: Any, owner: type | None = None) -> type:
    import seqio  # pylint: disable=g-import-not-at-top
    return getattr(seqio, self._name)


class BaseModel(abc.ABC):
  """What training, evaluation and inference need of a model.

  Attributes:
    FEATURE_CONVERTER_CLS: the seqio converter that makes this model's batches.
    optimizer_def: the optimizer, or None for inference only.
  """

  FEATURE_CONVERTER_CLS: type[seqio.FeatureConverter]

  def __init__(self, optimizer_def: optimizers.OptimizerDef | None):
    self.optimizer_def = optimizer_def

  @abc.abstractmethod
  def loss_fn(
      self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, MetricsMap]:
    """Returns (the loss to minimise [], metrics); without `dropout_rng` there is no dropout."""

  def eval_fn(self, params: PyTree, batch: Batch) -> tuple[Array, MetricsMap]:
    """Returns the loss and metrics without dropout."""
    return self.loss_fn(params=params, batch=batch, dropout_rng=None)

  def predict_batch(self, params: PyTree, batch: Batch, rng: Array | None = None) -> Array:
    """Returns predicted tokens [B, L]."""
    return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

  @abc.abstractmethod
  def predict_batch_with_aux(
      self, params: PyTree, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, Mapping[str, Array]]:
    """Returns (predicted tokens [B, L], further outputs by name, each [B, ...])."""

  @abc.abstractmethod
  def score_batch(
      self, params: PyTree, batch: Batch, return_intermediates: bool = False) -> Array:
    """Returns the log-likelihood of the targets [B]."""

  @abc.abstractmethod
  def get_initial_variables(
      self,
      rng: Array,
      input_shapes: Mapping[str, tuple[int, ...]],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, PyTree]:
    """Returns freshly initialised variables: 'params', 'params_axes' and other collections."""


class BaseTransformerModel(BaseModel):
  """A transformer trained with the cross entropy of its target tokens."""

  def __init__(
      self,
      module: nn.Module,
      input_vocabulary: seqio.Vocabulary,
      output_vocabulary: seqio.Vocabulary,
      optimizer_def: optimizers.OptimizerDef | None,
      decode_fn: DecodeFnCallable | None = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: losses.LossNormalizingFactor = None,
  ):
    """Builds the model.

    Args:
      module: the network.
      input_vocabulary: of the inputs.
      output_vocabulary: of the targets.
      optimizer_def: the optimizer, or None for inference only.
      decode_fn: the decoding algorithm.
      label_smoothing: see `losses.compute_weighted_cross_entropy`.
      z_loss: see `losses.compute_weighted_cross_entropy`.
      loss_normalizing_factor: see `losses.get_loss_normalizing_factor_and_weights`.
    """
    super().__init__(optimizer_def=optimizer_def)
    self.module = module
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary
    self._decode_fn = decode_fn
    self._label_smoothing = label_smoothing
    self._z_loss = z_loss
    self._loss_normalizing_factor = loss_normalizing_factor

  @property
  def input_vocabulary(self) -> seqio.Vocabulary:
    """The vocabulary of the inputs."""
    return self._input_vocabulary

  @property
  def output_vocabulary(self) -> seqio.Vocabulary:
    """The vocabulary of the targets."""
    return self._output_vocabulary

  @property
  def decode_fn(self) -> DecodeFnCallable | None:
    """The decoding algorithm."""
    return self._decode_fn

  @abc.abstractmethod
  def _compute_logits(
      self, params: PyTree, batch: Batch, dropout_rng: Array | None = None) -> Array:
    """Returns the logits of the target positions [B, L, V]."""

  def loss_fn(
      self, params: PyTree, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Array, MetricsMap]:
    logits = self._compute_logits(params, batch, dropout_rng)
    factor, weights = losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, batch)
    targets = batch['decoder_target_tokens']
    loss, z_loss, _ = losses.compute_weighted_cross_entropy(
        logits, targets=targets, weights=weights, label_smoothing=self._label_smoothing,
        z_loss=self._z_loss, loss_normalizing_factor=factor)

    # Without packing every row is one segment, and the padding is what is not 0.
    suffix = '_segment_ids'
    segment_ids = {k.removesuffix(suffix): v for k, v in batch.items() if k.endswith(suffix)}
    if not segment_ids:
      segment_ids = {k: batch[k] != 0 for k in ('encoder_input_tokens', 'decoder_target_tokens')
                     if k in batch}
    metrics = self._compute_metrics(
        logits=logits, targets=targets, mask=weights, loss=loss, z_loss=z_loss,
        segment_ids=segment_ids)
    return loss, metrics

  def _compute_metrics(
      self,
      logits: Array,
      targets: Array,
      mask: Array | None,
      loss: Array,
      z_loss: Array | None = None,
      segment_ids: Mapping[str, Array] | None = None,
  ) -> MetricsMap:
    return metrics_lib.compute_base_metrics(
        logits=logits, targets=targets, mask=mask, loss=loss, z_loss=z_loss,
        segment_ids=segment_ids)


@dataclasses.dataclass(frozen=True)
class DecoderParams:
  """Defaults of `EncoderDecoderModel.predict_batch_with_aux`.

  Attributes:
    return_all_decodes: whether to return all decodes or the best one.
    num_decodes: number of decodes per example.
  """

  return_all_decodes: bool = False
  num_decodes: int = 1


class EncoderDecoderModel(BaseTransformerModel):
  """An encoder-decoder.

  Batches hold int32 arrays: encoder_input_tokens [B, Li]; decoder_target_tokens,
  decoder_input_tokens (the targets shifted to the right, 0 first) and decoder_loss_weights [B, Lt];
  with packing also {encoder,decoder}_{segment_ids,positions}.
  """

  FEATURE_CONVERTER_CLS = _LazyFeatureConverter('EncDecFeatureConverter')
  _default_decoder_params = DecoderParams()

  def __init__(
      self,
      module: nn.Module,
      input_vocabulary: seqio.Vocabulary,
      output_vocabulary: seqio.Vocabulary,
      optimizer_def: optimizers.OptimizerDef | None,
      decode_fn: DecodeFnCallable = decoding.beam_search,
      feature_converter_cls: type[seqio.FeatureConverter] | None = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: losses.LossNormalizingFactor = None,
      default_decoder_params: DecoderParams | None = None,
  ):
    """Builds the model.

    Args:
      module: see `BaseTransformerModel`, as for the arguments not listed.
      input_vocabulary: of the inputs.
      output_vocabulary: of the targets.
      optimizer_def: the optimizer, or None for inference only.
      decode_fn: the decoding algorithm.
      feature_converter_cls: replaces `FEATURE_CONVERTER_CLS` for this instance.
      label_smoothing: probability given to the wrong tokens.
      z_loss: coefficient of log(Z)^2.
      loss_normalizing_factor: what the summed loss is divided by.
      default_decoder_params: what `predict_batch_with_aux` does unless told.
    """
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls  # pylint: disable=invalid-name
    if default_decoder_params is not None:
      self._default_decoder_params = default_decoder_params
    super().__init__(
        module=module, input_vocabulary=input_vocabulary, output_vocabulary=output_vocabulary,
        optimizer_def=optimizer_def, decode_fn=decode_fn, label_smoothing=label_smoothing,
        z_loss=z_loss, loss_normalizing_factor=loss_normalizing_factor)

  def get_initial_variables(
      self,
      rng: Array,
      input_shapes: Mapping[str, tuple[int, ...]],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, PyTree]:
    """Initialises the network.

    Args:
      rng: key of the parameters.
      input_shapes: global shapes of encoder_input_tokens, decoder_input_tokens,
        decoder_target_tokens and, with packing, of the segment ids and positions.
      input_types: their dtypes, int32 by default.

    Returns:
      The network's variables.
    """
    input_types = input_types or {}

    def ones(name: str) -> Array | None:
      if name not in input_shapes:
        return None
      return jnp.ones(input_shapes[name], input_types.get(name, jnp.int32))

    return self.module.init(
        rng,
        ones('encoder_input_tokens'),
        ones('decoder_input_tokens'),
        ones('decoder_target_tokens'),
        encoder_positions=ones('encoder_positions'),
        decoder_positions=ones('decoder_positions'),
        encoder_segment_ids=ones('encoder_segment_ids'),
        decoder_segment_ids=ones('decoder_segment_ids'),
        decode=False,
        enable_dropout=False)

  def _compute_logits(
      self,
      params: PyTree,
      batch: Batch,
      dropout_rng: Array | None = None,
      mutable: Any = False,
      other_variables: PyTree | None = None,
  ) -> Array | tuple[Array, Mapping[str, PyTree]]:
    """Applies the network.

    Args:
      params: parameters.
      batch: see the class.
      dropout_rng: key of the dropout, or None for no dropout.
      mutable: collections the network may change, as in `nn.Module.apply`.
      other_variables: further collections.

    Returns:
      Logits [B, Lt, V], or (logits, changed collections) if `mutable`.
    """
    return self.module.apply(
        {'params': params, **(other_variables or {})},
        batch['encoder_input_tokens'],
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
        encoder_segment_ids=batch.get('encoder_segment_ids'),
        decoder_segment_ids=batch.get('decoder_segment_ids'),
        encoder_positions=batch.get('encoder_positions'),
        decoder_positions=batch.get('decoder_positions'),
        decode=False,
        enable_dropout=dropout_rng is not None,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        mutable=mutable)

  def _compute_logits_from_slice(
      self,
      decoding_state: decoding.DecodingState,
      params: PyTree,
      encoded_inputs: Array,
      raw_inputs: Array,
      max_decode_length: int,
  ) -> tuple[Array, Mapping[str, Array]]:
    """Applies the decoder to one token of each of N = B * num_decodes rows.

    Args:
      decoding_state: tokens [N, 1] and cache.
      params: parameters.
      encoded_inputs: [N, Li, D].
      raw_inputs: [N, Li] encoder tokens, which tell the padding.
      max_decode_length: length of the cache.

    Returns:
      (logits [N, V], new cache).
    """
    logits, variables = self.module.apply(
        {'params': params, 'cache': decoding_state.cache},
        encoded_inputs,
        raw_inputs,
        decoding_state.cur_token,
        decoding_state.cur_token,
        enable_dropout=False,
        decode=True,
        max_decode_length=max_decode_length,
        mutable=['cache'],
        method=self.module.decode)
    return jnp.squeeze(logits, axis=1), variables['cache']

  def _compute_kv_cache(
      self,
      params: PyTree,
      encoded_inputs: Array,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      prefill_decoder_prompt: bool = False,
  ) -> tuple[PyTree, Array | None]:
    """Makes the decoder's cache.

    Args:
      params: parameters.
      encoded_inputs: [B, Li, D].
      encoder_input_tokens: [B, Li].
      decoder_input_tokens: [B, Lt] start token, prompt, zeros.
      prefill_decoder_prompt: whether to write the prompts into the cache, in one pass. It needs a
        network whose `decode` takes `prefill` and `prefill_lengths`; others are left to feed the
        prompt token by token.

    Returns:
      (cache, position of the last prompt token [B], or None where the cache is empty).
    """
    decode = functools.partial(
        self.module.apply, method=self.module.decode, mutable=['cache'], enable_dropout=False,
        decode=True)
    # The first call only creates the cache; its other results are unused and cost nothing under
    # jit.
    _, variables = decode(
        {'params': params}, encoded_inputs, encoder_input_tokens, decoder_input_tokens,
        decoder_input_tokens)
    can_prefill = 'prefill' in inspect.signature(self.module.decode).parameters
    if not (prefill_decoder_prompt and can_prefill):
      return variables['cache'], None

    lengths = jnp.sum(decoder_input_tokens != 0, axis=1, dtype=jnp.int32)
    _, variables = decode(
        {'params': params, 'cache': variables['cache']}, encoded_inputs, encoder_input_tokens,
        decoder_input_tokens, decoder_input_tokens, prefill=True, prefill_lengths=lengths)
    return variables['cache'], lengths

  def predict_batch_with_aux(
      self,
      params: PyTree,
      batch: Batch,
      rng: Array | None = None,
      decoder_params: Mapping[str, Any] | None = None,
      return_all_decodes: bool | None = None,
      num_decodes: int | None = None,
      prompt_with_targets: bool = False,
  ) -> tuple[Array, Mapping[str, Array]]:
    """Predicts the targets.

    Args:
      params: parameters.
      batch: encoder_input_tokens [B, Li]; decoder_input_tokens [B, Lt], of which only the shape
        counts unless it holds prompts.
      rng: key for decoding functions that sample.
      decoder_params: further arguments of the decoding function.
      return_all_decodes: whether to return all decodes or the best one.
      num_decodes: n, the number of decodes per example.
      prompt_with_targets: whether decoder_input_tokens holds prompts to be continued (start token,
        prompt, zeros; EOS is removed).

    Returns:
      (tokens [B, Lt], {'scores': [B]}), or [B, n, Lt] and [B, n], ascending by score, with
      `return_all_decodes`.

    Raises:
      ValueError: if the key is given twice.
    """
    defaults = self._default_decoder_params
    if num_decodes is None:
      num_decodes = defaults.num_decodes
    if return_all_decodes is None:
      return_all_decodes = defaults.return_all_decodes
    decoder_params = dict(decoder_params or {})
    if rng is not None:
      if decoder_params.get('decode_rng') is not None:
        raise ValueError(
            "Got a key both as `rng` and as decoder_params['decode_rng']: give only one of them.")
      decoder_params['decode_rng'] = rng

    eos_id = self.output_vocabulary.eos_id or 1
    encoder_inputs = batch['encoder_input_tokens']
    prompts = batch['decoder_input_tokens']
    if prompt_with_targets:
      prompts = jnp.where(prompts == eos_id, 0, prompts)
    else:
      prompts = jnp.zeros_like(prompts)

    encoded = self.module.apply(
        {'params': params}, encoder_inputs, enable_dropout=False, method=self.module.encode)
    # Prompts are written into the cache at once if the decoding function can start behind them.
    takes_index = 'initial_index' in inspect.signature(self._decode_fn).parameters
    cache, initial_index = self._compute_kv_cache(
        params, encoded_inputs=encoded, encoder_input_tokens=encoder_inputs,
        decoder_input_tokens=prompts, prefill_decoder_prompt=prompt_with_targets and takes_index)
    if takes_index:
      decoder_params['initial_index'] = initial_index

    # The decoding function expands the cache, and what it does not see is expanded here.
    tokens_to_logits = functools.partial(
        self._compute_logits_from_slice,
        params=params,
        encoded_inputs=decoding.flat_batch_beam_expand(encoded, num_decodes),
        raw_inputs=decoding.flat_batch_beam_expand(encoder_inputs, num_decodes),
        max_decode_length=prompts.shape[1])
    decodes, scores = self._decode_fn(
        inputs=prompts,
        cache=cache,
        tokens_to_logits=tokens_to_logits,
        eos_id=eos_id,
        num_decodes=num_decodes,
        cache_offset=1 if getattr(self.module, 'scan_layers', False) else 0,
        **decoder_params)
    if return_all_decodes:
      return decodes, {'scores': scores}
    return decodes[:, -1], {'scores': scores[:, -1]}

  def score_batch(
      self, params: PyTree, batch: Batch, return_intermediates: bool = False
  ) -> Array | tuple[Array, Mapping[str, PyTree]]:
    """Returns the weighted log-likelihood of the targets.

    Args:
      params: parameters.
      batch: see the class.
      return_intermediates: whether to return what the network sowed, too.

    Returns:
      Scores [B], without label smoothing and z-loss; or (scores, intermediates), where
      intermediates['decoder'] also has target_tokens, loss_weights and token_scores, each a tuple
      of one [B, Lt] array.
    """
    intermediates = None
    if return_intermediates:
      logits, variables = self._compute_logits(params, batch, mutable=['intermediates'])
      intermediates = dict(variables.get('intermediates', {}))
    else:
      logits = self._compute_logits(params, batch)

    targets = batch['decoder_target_tokens']
    weights = batch.get('decoder_loss_weights')
    if weights is None:
      weights = jnp.ones_like(targets)
    token_losses, _ = losses.integer_cross_entropy(logits, targets, 0.0, 0.0)
    token_scores = -token_losses * weights
    scores = jnp.sum(token_scores, axis=-1)
    if intermediates is None:
      return scores
    intermediates['decoder'] = {
        **intermediates.get('decoder', {}), 'target_tokens': (targets,),
        'loss_weights': (weights,), 'token_scores': (token_scores,)}
    return scores, intermediates


def remove_prefix(sequence: Array, prefix_length: Array) -> Array:
  """Shifts each row of sequence [B, L] left by prefix_length [B] and fills up with 0."""
  index = jnp.arange(sequence.shape[-1]) + prefix_length[:, None]
  return jnp.take_along_axis(sequence, index, axis=-1, mode='fill', fill_value=0)


def get_input_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the model's inputs."""
  return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the model's targets."""
  return model.output_vocabulary
