"""Autoregressive decoding on `jax.lax`: temperature sampling and beam search.

Both walk a buffer of length L + 1 whose column 0 is the start token. Every row has its own
position, so rows may begin after prompts of different lengths; a prompt is either already in the
cache (`initial_index`) or fed token by token, forced, without counting towards the score.
"""

from __future__ import annotations

import functools
from typing import Any
from collections.abc import Callable, Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Cache = Mapping[str, Any]

# Stands for minus infinity without making NaNs in differences.
NEG_INF = np.array(-1.0e7)

# Cache leaves that hold a position and not one entry per example.
_INDEX_LEAF = 'cache_index'
_UNBATCHED_LEAVES = frozenset({'cached_bias', 'position_embedder_index'})


@flax.struct.dataclass
class DecodingState:
  """What a model needs for one step; N = B * num_decodes.

  Attributes:
    cur_index: [N] position of `cur_token` in `sequences`; [] in a beam search without prefilled
      prompts, where all rows are at one position.
    sequences: [N, L + 1] tokens so far; column 0 is the start token. While sampling, what follows
      is the rest of the prompt.
    cur_token: [N, 1] token to be fed to the decoder.
    cache: the decoder's cache.
  """

  cur_index: Array
  sequences: Array
  cur_token: Array
  cache: Cache


TokensToLogits = Callable[[DecodingState], tuple[Array, Cache]]


# ---- The beam axis -------------------------------------------------------------------------------


def add_beam_dim(x: Array, beam_size: int, offset: int = 0) -> Array:
  """[..., B, ...] -> [..., B, beam_size, ...], where B is axis `offset`."""
  return jnp.repeat(jnp.expand_dims(x, offset + 1), beam_size, axis=offset + 1)


def flatten_beam_dim(x: Array, offset: int = 0) -> Array:
  """[..., B, n, ...] -> [..., B * n, ...], where B is axis `offset`."""
  shape = x.shape
  return x.reshape(shape[:offset] + (shape[offset] * shape[offset + 1],) + shape[offset + 2 :])


def unflatten_beam_dim(x: Array, batch_size: int, beam_size: int, offset: int = 0) -> Array:
  """[..., B * n, ...] -> [..., B, n, ...], where B * n is axis `offset`.

  Raises:
    ValueError: if that axis has another size.
  """
  shape = x.shape
  if shape[offset] != batch_size * beam_size:
    raise ValueError(
      f'Axis {offset} of {shape} is not {batch_size} examples times {beam_size} beams: '
      'pass the batch and beam size the array was flattened with.'
    )
  return x.reshape(shape[:offset] + (batch_size, beam_size) + shape[offset + 1 :])


def flat_batch_beam_expand(x: Array, beam_size: int, offset: int = 0) -> Array:
  """[..., B, ...] -> [..., B * beam_size, ...]: each example repeated beam_size times."""
  return flatten_beam_dim(add_beam_dim(x, beam_size, offset), offset)


def cache_map(fn: Callable[[Array], Array], cache: Cache, apply_to_index: bool = False) -> Cache:
  """Applies `fn` to the cache leaves that have a batch axis.

  Args:
    fn: function of one leaf.
    cache: nested dict of arrays.
    apply_to_index: whether `cache_index` has a batch axis too, as after prefilled prompts.

  Returns:
    The new cache; `cached_bias` and `position_embedder_index` are always left alone.
  """
  skipped = _UNBATCHED_LEAVES if apply_to_index else _UNBATCHED_LEAVES | {_INDEX_LEAF}

  def visit(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True) if path else ''
    return leaf if name in skipped else fn(leaf)

  return jax.tree_util.tree_map_with_path(visit, cache)


def _gather_beams(x: Array, beams: Array, offset: int = 0) -> Array:
  """Picks beams of each example.

  The batch stays a batch axis of the gather, so that a partitioned batch needs no communication.

  Args:
    x: [..., B, n, ...] with B at axis `offset`.
    beams: [B, m] indices in [0, n).
    offset: axis of B.

  Returns:
    [..., B, m, ...].
  """
  pick = functools.partial(jnp.take, axis=offset, mode='clip')
  return jax.vmap(pick, in_axes=(offset, 0), out_axes=offset)(x, beams)


# ---- Prompts -------------------------------------------------------------------------------------


def _prompt_buffer(inputs: Array, width: int) -> Array:
  """Cuts or pads `inputs` [B, L] with zeros to int32 [B, width]."""
  inputs = jnp.asarray(inputs, jnp.int32)
  return jnp.pad(inputs[:, :width], ((0, 0), (0, max(0, width - inputs.shape[1]))))


def _prompt_lengths(prompts: Array) -> Array:
  """[B]: position of the last prompt token of each row, 0 without a prompt."""
  return jnp.max(jnp.arange(prompts.shape[1]) * (prompts != 0), axis=1)


def _column(x: Array, index: Array) -> Array:
  """x [N, W] at column index [N] -> [N]; 0 beyond the last column."""
  return jnp.take_along_axis(x, index[:, None], axis=1, mode='fill', fill_value=0)[:, 0]


def _start(prompts: Array, initial_index: Array | None) -> Array:
  """[B]: position of the first token to be fed."""
  if initial_index is None:
    return jnp.zeros(prompts.shape[:1], jnp.int32)
  return initial_index.astype(jnp.int32)


def _keep_until(seqs: Array, position: Array) -> Array:
  """seqs [N, W] with zeros after position [N]."""
  return jnp.where(jnp.arange(seqs.shape[1]) <= position[:, None], seqs, 0)


# ---- Sampling ------------------------------------------------------------------------------------


@flax.struct.dataclass
class SamplingLoopState:
  """State of `temperature_sample`; N = B * num_decodes.

  Attributes:
    step: [] number of steps done.
    cur_index: [N] position of `cur_token`.
    sequences: [N, L + 1] tokens so far; what is not 0 beyond them will be forced.
    cache: the decoder's cache.
    cur_token: [N, 1] last token of each row.
    ended: [N, 1] whether a row is complete.
    rng: key for the steps to come.
    log_prob: [N] log-probability of the tokens after the prompt.
  """

  step: Array
  cur_index: Array
  sequences: Array
  cache: Cache
  cur_token: Array
  ended: Array
  rng: Array
  log_prob: Array


def _is_set(x: float | Array) -> bool:
  """Whether x is not 0; an array may be traced or have many values and counts as set."""
  return isinstance(x, (jax.Array, np.ndarray)) or bool(x)


def _restrict_to_nucleus(logits: Array, topp: float | Array) -> Array:
  """Removes from logits [N, V] all but the smallest set of tokens of probability >= topp."""
  descending = -jnp.sort(-logits, axis=-1)
  probs = jax.nn.softmax(descending, axis=-1)
  # A token is kept as long as the better ones together fall short of topp; the best one always is.
  kept = (jnp.cumsum(probs, axis=-1) - probs < topp).at[:, 0].set(True)
  threshold = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= threshold, logits, NEG_INF)


def _sample(logits: Array, rng: Array, temperature: float | Array, topk: int, topp: float | Array) -> tuple[Array, Array]:
  """Draws one token per row of logits [N, V].

  Returns:
    (tokens [N], their log-probabilities in the distribution they were drawn from [N]).
  """
  if topk == 1 or not _is_set(temperature):
    return jnp.argmax(logits, axis=-1), jnp.zeros(logits.shape[:1], jnp.float32)
  # A temperature of 0 in an array becomes one so low that only the best token is left.
  logits = logits / jnp.maximum(temperature, 1e-6)
  tokens = None
  if topk:
    logits, tokens = jax.lax.top_k(logits, min(topk, logits.shape[-1]))
  elif _is_set(topp):
    logits = _restrict_to_nucleus(logits, topp)
  drawn = jax.random.categorical(rng, logits)
  log_probs = _column(jax.nn.log_softmax(logits), drawn)
  return drawn if tokens is None else _column(tokens, drawn), log_probs


def temperature_sample(
  inputs: Array,
  cache: Cache,
  tokens_to_logits: TokensToLogits,
  eos_id: int,
  decode_rng: Array | None = None,
  num_decodes: int = 1,
  temperature: float | Array = 1.0,
  topk: int = 1,
  topp: float | Array = 0.0,
  cache_offset: int = 0,
  initial_index: Array | None = None,
  max_decode_steps: int | Array | None = None,
  max_decode_steps_hard_limit: int | None = None,
  rescale_log_probs: bool = True,
  state_callback_fn: Callable[[SamplingLoopState], SamplingLoopState] | None = None,
  logit_callback_fn: Callable[[Array, SamplingLoopState], Array] | None = None,
) -> tuple[Array, Array]:
  """Samples token by token until every row has ended.

  Args:
    inputs: [B, L] start token, then the prompt, then zeros.
    cache: the decoder's cache for B examples.
    tokens_to_logits: function of a `DecodingState` of N = B * num_decodes rows that returns logits
      [N, V] and the new cache.
    eos_id: token that ends a row; negative for none.
    decode_rng: key; None for the key of seed 0.
    num_decodes: n, the number of independent samples per example.
    temperature: divides the logits; 0 takes the most probable token. A number or [B].
    topk: number of tokens sampled from; 1 takes the most probable one, 0 is no limit.
    topp: sample from the smallest set of tokens that has this probability; 0 is no limit.
    cache_offset: position of the batch axis in cache leaves.
    initial_index: [B] position of the last prompt token, where the cache already holds the tokens
      before it; None feeds prompts through the model token by token.
    max_decode_steps: most tokens to generate after the prompt; None fills the L positions.
    max_decode_steps_hard_limit: upper bound of `max_decode_steps`.
    rescale_log_probs: score with the distribution sampled from (a greedy choice then scores 0);
      False scores with the model's own probabilities.
    state_callback_fn: maps the state before each step.
    logit_callback_fn: maps logits [N, V], given the state, before the choice.

  Returns:
    (tokens [B, n, L] with the prompt, without the start token; scores [B, n]), ascending by score.

  Raises:
    ValueError: if both `topk` and `topp` are set, or more steps than positions are asked for.
  """
  if _is_set(topk) and _is_set(topp):
    raise ValueError(f'topk={topk} and topp={topp} are both set: keep one and set the other to 0 (topk is 1 by default).')
  batch_size, length = inputs.shape
  if max_decode_steps is not None and max_decode_steps_hard_limit:
    bound = min if isinstance(max_decode_steps, int) else jnp.minimum
    max_decode_steps = bound(max_decode_steps, max_decode_steps_hard_limit)
  if isinstance(max_decode_steps, int) and max_decode_steps > length:
    raise ValueError(
      f'max_decode_steps={max_decode_steps} is more than the {length} decoder positions: lower it or lengthen the targets.'
    )

  expand = functools.partial(flat_batch_beam_expand, beam_size=num_decodes)
  prompts = expand(_prompt_buffer(inputs, length + 1))
  has_index = initial_index is not None
  start = _start(prompts, expand(initial_index) if has_index else None)
  if np.ndim(temperature):
    temperature = expand(jnp.asarray(temperature))[:, None]
  limit = jnp.full_like(start, length)
  if max_decode_steps is not None:
    limit = jnp.minimum(limit, _prompt_lengths(prompts) + max_decode_steps)
  rows = jnp.arange(prompts.shape[0])

  def step(state: SamplingLoopState) -> SamplingLoopState:
    if state_callback_fn is not None:
      state = state_callback_fn(state)
    logits, cache = tokens_to_logits(
      DecodingState(cur_index=state.cur_index, sequences=state.sequences, cur_token=state.cur_token, cache=state.cache)
    )
    logits = logits.astype(jnp.float32)
    if logit_callback_fn is not None:
      logits = logit_callback_fn(logits, state)
    rng, step_rng = jax.random.split(state.rng)
    chosen, log_probs = _sample(logits, step_rng, temperature, topk, topp)
    if not rescale_log_probs:
      log_probs = _column(jax.nn.log_softmax(logits), chosen)

    ended = state.ended[:, 0]
    position = state.cur_index + 1
    forced = _column(state.sequences, position)
    generated = (forced == 0) & ~ended
    token = jnp.where(ended, 0, jnp.where(generated, chosen, forced)).astype(jnp.int32)
    # An EOS ends a row also where a callback has forced it, but not inside the prompt.
    ends = (token == eos_id) & (_column(prompts, position) == 0)
    new_ended = ended | ends | (position >= limit)
    return SamplingLoopState(
      step=state.step + 1,
      cur_index=position,
      sequences=state.sequences.at[rows, position].set(token, mode='drop'),
      cache=cache,
      cur_token=token[:, None],
      ended=new_ended[:, None],
      rng=rng,
      log_prob=state.log_prob + jnp.where(generated, log_probs, 0.0),
    )

  state = SamplingLoopState(
    step=jnp.int32(0),
    cur_index=start,
    sequences=prompts,
    cache=cache_map(functools.partial(expand, offset=cache_offset), cache, apply_to_index=has_index),
    cur_token=_column(prompts, start)[:, None],
    ended=(start >= limit)[:, None],
    rng=jax.random.PRNGKey(0) if decode_rng is None else decode_rng,
    log_prob=jnp.zeros(rows.shape, jnp.float32),
  )
  state = jax.lax.while_loop(lambda s: ~jnp.all(s.ended), step, state)

  sequences = _keep_until(state.sequences, state.cur_index)
  decodes = unflatten_beam_dim(sequences[:, 1:], batch_size, num_decodes)
  scores = unflatten_beam_dim(state.log_prob, batch_size, num_decodes)
  order = jnp.argsort(scores, axis=-1)
  return _gather_beams(decodes, order), _gather_beams(scores, order)


# ---- Beam search ---------------------------------------------------------------------------------


@flax.struct.dataclass
class BeamState:
  """State of `beam_search`; n beams, W = max_decode_len + 1.

  Attributes:
    cur_index: [B] position of the last token of each live hypothesis.
    live_logprobs: [B, n] log-probabilities of the hypotheses still growing, ascending.
    finished_scores: [B, n] scores of the best finished hypotheses, ascending.
    live_seqs: [B, n, W] tokens.
    finished_seqs: [B, n, W] tokens.
    finished_flags: [B, n] whether a finished slot is taken.
    cache: the decoder's cache for B * n rows.
  """

  cur_index: Array
  live_logprobs: Array
  finished_scores: Array
  live_seqs: Array
  finished_seqs: Array
  finished_flags: Array
  cache: Cache


def brevity_penalty(alpha: float, length: int | Array) -> Array:
  """((5 + length) / 6)^alpha, by which the log-probability of a finished hypothesis is divided."""
  return jnp.power((5.0 + length) / 6.0, alpha)


def _top(scores: Array, k: int, *trees: Array) -> tuple[Array, ...]:
  """Keeps the k best of scores [B, m], ascending, and the same entries of [B, m, ...] arrays."""
  order = jnp.flip(jax.lax.top_k(scores, k)[1], axis=1)
  return tuple(_gather_beams(tree, order) for tree in (scores, *trees))


def beam_search(
  inputs: Array,
  cache: Cache,
  tokens_to_logits: TokensToLogits,
  eos_id: int,
  num_decodes: int = 4,
  alpha: float = 0.6,
  max_decode_len: int | None = None,
  max_decode_step: int = -1,
  min_log_prob: float = -1.0e7,
  decode_rng: Array | None = None,
  cache_offset: int = 0,
  initial_index: Array | None = None,
) -> tuple[Array, Array]:
  """Searches for the hypotheses of the highest length-normalised log-probability.

  An example is done when no live hypothesis can still beat its worst finished one. Slots for which
  no finished hypothesis was found hold zeros and score `NEG_INF`; where none finished at all, the
  live hypotheses are returned with their plain log-probabilities.

  Args:
    inputs: [B, L] start token, then the prompt, then zeros.
    cache: the decoder's cache for B examples.
    tokens_to_logits: function of a `DecodingState` of N = B * num_decodes rows that returns logits
      [N, V] and the new cache.
    eos_id: token that ends a hypothesis; negative for none.
    num_decodes: n, the number of beams.
    alpha: exponent of the length normalisation; 0 is none.
    max_decode_len: most tokens of a hypothesis, prompt included; None for L.
    max_decode_step: most tokens after the prompt; not positive is no limit.
    min_log_prob: an example stops when its best live hypothesis falls below it.
    decode_rng: unused; every decoding function accepts it.
    cache_offset: position of the batch axis in cache leaves.
    initial_index: [B] position of the last prompt token, where the cache already holds the tokens
      before it; None feeds prompts through the model token by token.

  Returns:
    (tokens [B, n, max_decode_len] with the prompt, without the start token; scores [B, n]),
    ascending by score: the best hypothesis is the last.
  """
  del decode_rng
  batch_size = inputs.shape[0]
  n = num_decodes
  max_len = inputs.shape[1] if max_decode_len is None else max_decode_len
  prompts = _prompt_buffer(inputs, max_len + 1)
  start = _start(prompts, initial_index)
  limit = jnp.full_like(start, max_len)
  if max_decode_step > 0:
    limit = jnp.minimum(limit, _prompt_lengths(prompts) + max_decode_step)
  has_index = initial_index is not None
  columns = jnp.arange(max_len + 1)

  def write(seqs: Array, tokens: Array, position: Array) -> Array:
    """Puts tokens [B, m] into seqs [B, m, W] at position [B]."""
    return jnp.where(columns == position[:, None, None], tokens[..., None], seqs)

  def is_growing(state: BeamState) -> Array:
    """[B]: whether another step can change the result of an example."""
    best_live = jnp.max(state.live_logprobs, axis=1)
    # A live hypothesis only loses probability, and its best normaliser is that of its greatest (for
    # a negative alpha, its smallest) possible length.
    normalizer = jnp.maximum(brevity_penalty(alpha, limit), brevity_penalty(alpha, state.cur_index + 1))
    can_improve = best_live / normalizer > jnp.min(state.finished_scores, axis=1)
    return (state.cur_index < limit) & can_improve & (best_live > min_log_prob)

  def step(state: BeamState) -> BeamState:
    logits, cache = tokens_to_logits(
      DecodingState(
        cur_index=jnp.repeat(state.cur_index, n) if has_index else jnp.max(state.cur_index),
        sequences=flatten_beam_dim(state.live_seqs),
        cur_token=flatten_beam_dim(_tokens_at(state.live_seqs, state.cur_index))[:, None],
        cache=state.cache,
      )
    )
    log_probs = unflatten_beam_dim(jax.nn.log_softmax(logits.astype(jnp.float32)), batch_size, n)
    vocab_size = log_probs.shape[-1]
    candidates = (state.live_logprobs[..., None] + log_probs).reshape(batch_size, n * vocab_size)

    # Each hypothesis has one way to end, so 2n candidates hold at least n that go on.
    scores, index = jax.lax.top_k(candidates, min(2 * n, n * vocab_size))
    beams, tokens = index // vocab_size, index % vocab_size
    position = state.cur_index + 1
    seqs = write(_gather_beams(state.live_seqs, beams), tokens, position)
    ends = tokens == eos_id
    live_scores, live_seqs, live_beams = _top(jnp.where(ends, NEG_INF, scores), n, seqs, beams)

    # Inside a prompt every hypothesis goes on with the prompt's token, at no cost.
    forced = _column(prompts, position)
    in_prompt = (forced != 0)[:, None]
    live_scores = jnp.where(in_prompt, state.live_logprobs, live_scores)
    live_beams = jnp.where(in_prompt, jnp.arange(n), live_beams)
    forced_seqs = write(state.live_seqs, jnp.repeat(forced[:, None], n, axis=1), position)
    live_seqs = jnp.where(in_prompt[..., None], forced_seqs, live_seqs)

    # Beams that were never filled have scores around NEG_INF and must not finish.
    finishes = ends & ~in_prompt & (scores > NEG_INF / 2)
    new_scores = jnp.where(finishes, scores / brevity_penalty(alpha, position)[:, None], NEG_INF)
    # The finished ones come first, so that ties leave them as they are.
    finished_scores, finished_seqs, finished_flags = _top(
      jnp.concatenate([state.finished_scores, new_scores], axis=1),
      n,
      jnp.concatenate([state.finished_seqs, seqs], axis=1),
      jnp.concatenate([state.finished_flags, finishes], axis=1),
    )

    def reorder(x: Array) -> Array:
      x = unflatten_beam_dim(x, batch_size, n, cache_offset)
      return flatten_beam_dim(_gather_beams(x, live_beams, cache_offset), cache_offset)

    new_state = BeamState(
      cur_index=position,
      live_logprobs=live_scores,
      finished_scores=finished_scores,
      live_seqs=live_seqs,
      finished_seqs=finished_seqs,
      finished_flags=finished_flags,
      cache=None,
    )
    # An example that is done keeps its result while others go on; its cache no longer matters.
    growing = is_growing(state)
    new_state = jax.tree.map(
      lambda new, old: jnp.where(growing.reshape((-1,) + (1,) * (new.ndim - 1)), new, old), new_state, state.replace(cache=None)
    )
    return new_state.replace(cache=cache_map(reorder, cache, apply_to_index=has_index))

  state = BeamState(
    cur_index=start,
    # One hypothesis to begin with: n equal ones would stay equal.
    live_logprobs=jnp.tile(jnp.array([0.0] + [NEG_INF] * (n - 1), jnp.float32), (batch_size, 1)),
    finished_scores=jnp.full((batch_size, n), NEG_INF, jnp.float32),
    live_seqs=add_beam_dim(_keep_until(prompts, start), n),
    finished_seqs=jnp.zeros((batch_size, n, max_len + 1), jnp.int32),
    finished_flags=jnp.zeros((batch_size, n), bool),
    cache=cache_map(
      functools.partial(flat_batch_beam_expand, beam_size=n, offset=cache_offset), cache, apply_to_index=has_index
    ),
  )
  state = jax.lax.while_loop(lambda s: jnp.any(is_growing(s)), step, state)

  any_finished = jnp.any(state.finished_flags, axis=1)
  seqs = jnp.where(any_finished[:, None, None], state.finished_seqs, state.live_seqs)
  scores = jnp.where(any_finished[:, None], state.finished_scores, state.live_logprobs)
  return seqs[:, :, 1:], scores


def _tokens_at(seqs: Array, position: Array) -> Array:
  """seqs [B, n, W] at position [B] -> [B, n]."""
  return jnp.take_along_axis(seqs, position[:, None, None], axis=2, mode='clip')[..., 0]
