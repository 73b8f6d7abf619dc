"""Beam search with the results of Hugging Face's `generate`, in the signature of T5X's decoding functions.

T5X's own beam search normalises by ((5 + length) / 6)^alpha and stops by a bound on what a live hypothesis can still
reach. `generate` (transformers 4.57, arXiv 1609.08144 without its coverage) divides by length^penalty, takes only those
ends that are among the n best continuations, and stops as `early_stopping` says. One beam is its greedy search.

Notation: B examples, n beams, N = B * n, V vocabulary, W = positions + 1: column 0 is the start token.
"""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
from t5x import decoding

from cpoly_jax.decoding import caches
from cpoly_jax.decoding.top import top_k

NEVER = 'never'
NONE = -1.0e9  # The score of what is not there.


@struct.dataclass
class BeamState:
  """What a step changes.

  Attributes:
    position: [] int32, column of the last tokens.
    live: [B, n, W] int32 hypotheses that still grow.
    live_scores: [B, n] their log-probabilities, descending.
    finished: [B, n, W] int32 the best hypotheses that have ended.
    finished_scores: [B, n] their scores, descending; `NONE` where there is none.
    open: [B] whether another step can change the finished ones.
    cache: the decoder's, for N rows (`cpoly_jax.decoding.caches`).
  """

  position: jax.Array
  live: jax.Array
  live_scores: jax.Array
  finished: jax.Array
  finished_scores: jax.Array
  open: jax.Array
  cache: Any


def beam_search(inputs: jax.Array, cache: Any, tokens_to_logits: decoding.TokensToLogits, eos_id: int, num_decodes: int = 1,
                length_penalty: float = 1.0, early_stopping: bool | str = False, max_new_tokens: int | None = None,
                decode_rng: jax.Array | None = None, cache_offset: int = 0) -> tuple[jax.Array, jax.Array]:
  """Finds n hypotheses of the highest log-probability / length^length_penalty.

  An example's result depends on nothing else in the batch. The length counts the tokens after the prompt, the end included.

  Args:
    inputs: [B, W - 1] int32 start token, then the prompt, then zeros.
    cache: the decoder's cache for B examples.
    tokens_to_logits: function of a `DecodingState` of N rows that returns logits [N, V] and the new cache.
    eos_id: token that ends a hypothesis; negative for none.
    num_decodes: n; 1 is greedy search.
    length_penalty: above 0 favours longer hypotheses, 0 takes plain log-probabilities.
    early_stopping: True: an example is done with its n-th finished hypothesis; False: when its best live one, at its present
      length, scores no better than the worst finished one; 'never': when it cannot at any length.
    max_new_tokens: most tokens after the prompt; None fills the W - 1 positions.
    decode_rng: unused; every decoding function accepts it.
    cache_offset: axis of the batch in leaves of the cache.

  Returns:
    tokens [B, n, W - 1] int32 with the prompt, without the start token, zeros after the end; and scores [B, n] float32. Both
    ascending: the best hypothesis is the last.

  Raises:
    ValueError: a setting that is none of those above.
  """
  del decode_rng
  n, (batch, positions) = num_decodes, inputs.shape
  if early_stopping not in (True, False, NEVER):
    raise ValueError(f'beam_search.early_stopping = {early_stopping!r}: write True, False or {NEVER!r}')
  if max_new_tokens is not None and max_new_tokens < 1:
    raise ValueError(f'beam_search.max_new_tokens = {max_new_tokens}: write 1 or more, or None for all positions')
  most = min(max_new_tokens or positions, positions)
  # Of lengths 0 to `most`, in double precision as Python computes it.
  penalties = jnp.asarray(np.maximum(np.arange(most + 1), 1.) ** length_penalty, jnp.float32)
  prompts = jnp.pad(inputs.astype(jnp.int32), ((0, 0), (0, 1)))
  prompt_lengths = jnp.max(jnp.arange(positions + 1) * (prompts != 0), axis=1)
  limits = jnp.minimum(prompt_lengths + most, positions)
  columns = jnp.arange(positions + 1)

  def step(state: BeamState) -> BeamState:
    token = jax.lax.dynamic_index_in_dim(state.live, state.position, axis=2, keepdims=False)
    logits, cache = tokens_to_logits(decoding.DecodingState(
        cur_index=state.position, sequences=state.live.reshape(batch * n, -1), cur_token=token.reshape(-1, 1),
        cache=caches.at(state.cache, state.position)))
    position = state.position + 1
    length = jnp.clip(position - prompt_lengths, 0, most)
    at_limit = position >= limits
    scores, beams, tokens = _continuations(logits, state.live_scores)
    grown = jnp.where(columns == position, tokens[..., None], _of_beams(state.live, beams))
    ends = (tokens == eos_id) | at_limit[:, None]

    finished_scores = jnp.where(ends & (jnp.arange(ends.shape[1]) < n) & state.open[:, None],
                                scores / penalties[length][:, None], NONE)
    finished_scores, best = jax.lax.top_k(jnp.concatenate([state.finished_scores, finished_scores], axis=1), n)
    finished = _of_beams(jnp.concatenate([state.finished, grown], axis=1), best)

    live_scores, best = jax.lax.top_k(scores + jnp.where(ends, NONE, 0.), n)
    live, beams = _of_beams(grown, best), _of_beams(beams, best)
    # Inside of a prompt every hypothesis goes on with the prompt's token, and none ends.
    forced = jax.lax.dynamic_index_in_dim(prompts, position, axis=1)
    inside = (position <= prompt_lengths)[:, None]
    live = jnp.where(inside[..., None], jnp.where(columns == position, forced[..., None], state.live), live)
    live_scores = jnp.where(inside, state.live_scores, live_scores)
    beams = jnp.where(inside, jnp.arange(n), beams)
    finished = jnp.where(inside[..., None], state.finished, finished)
    finished_scores = jnp.where(inside, state.finished_scores, finished_scores)

    full = jnp.all(finished_scores > NONE / 2, axis=1)
    if early_stopping is True or n == 1:
      can_improve = ~full
    else:
      at = most if early_stopping == NEVER and length_penalty > 0 else length
      can_improve = ~full | (live_scores[:, 0] / penalties[at] > finished_scores[:, -1])
    return BeamState(position=position, live=live, live_scores=live_scores, finished=finished,
                     finished_scores=finished_scores, open=state.open & can_improve & (inside[:, 0] | ~at_limit),
                     cache=caches.reordered(cache, beams, cache_offset))

  first = jnp.where(columns == 0, prompts, 0)[:, None]
  state = BeamState(
      position=jnp.int32(0),
      live=jnp.repeat(first, n, axis=1),
      # One hypothesis to begin with: n equal ones would stay equal.
      live_scores=jnp.tile(jnp.where(jnp.arange(n) == 0, 0., NONE).astype(jnp.float32), (batch, 1)),
      # A prompt that leaves no room is its own result.
      finished=jnp.repeat(prompts[:, None], n, axis=1),
      finished_scores=jnp.full((batch, n), NONE, jnp.float32),
      open=prompt_lengths < limits,
      cache=caches.expanded(cache, n, cache_offset))
  state = jax.lax.while_loop(lambda s: jnp.any(s.open), step, state)
  return jnp.flip(state.finished[:, :, 1:], axis=1), jnp.flip(state.finished_scores, axis=1)


def _continuations(logits: jax.Array, live_scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the best continuations of each example's hypotheses.

  Args:
    logits: [N, V].
    live_scores: [B, n].

  Returns:
    Their scores, descending, their beams and their tokens, each [B, 2n], or [B, 1] for n = 1. Each hypothesis has one way
    to end, so that n of 2n go on.
  """
  batch, n = live_scores.shape
  logits = logits.astype(jnp.float32)
  count = min(2 * n, logits.shape[1]) if n > 1 else 1
  best, tokens = top_k(logits, count)
  # log_softmax of the best only.
  most = jnp.max(logits, axis=1, keepdims=True)
  log_probs = best - most - jnp.log(jnp.sum(jnp.exp(logits - most), axis=1, keepdims=True))
  scores = (live_scores[..., None] + log_probs.reshape(batch, n, count)).reshape(batch, n * count)
  scores, at = jax.lax.top_k(scores, min(2 * n, n * count) if n > 1 else 1)
  return scores, at // count, jnp.take_along_axis(tokens.reshape(batch, n * count), at, axis=1)


def _of_beams(x: jax.Array, beams: jax.Array) -> jax.Array:
  """Returns entries `beams` [B, m] of each example's [B, n, ...]: [B, m, ...]."""
  return jnp.take_along_axis(x, beams.reshape(*beams.shape, *[1] * (x.ndim - 2)), axis=1)
