"""Tests for t5x.decoding on Markov chains, against searches written out in numpy."""

from __future__ import annotations

import functools
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from t5x import decoding

_EOS = 1
_NO_EOS = -1


def _chain(vocab_size, seed=0, scale=1.5):
  """Logits of the next token given the current one, [V, V]; 0 (padding) is never likely."""
  logits = np.random.RandomState(seed).normal(size=(vocab_size, vocab_size)) * scale
  logits[:, 0] -= 8
  return logits.astype(np.float32)


def _log_probs(table):
  table = table.astype(np.float64)
  return table - np.log(np.exp(table).sum(-1, keepdims=True))


def _markov(table):
  """A `tokens_to_logits` that looks only at the current token."""
  table = jnp.asarray(table)
  return lambda state: (table[state.cur_token[:, 0]], state.cache)


def _inputs(*prompts, length=8):
  """Start token 0, then the prompt, then zeros."""
  return jnp.array([[0, *p] + [0] * (length - 1 - len(p)) for p in prompts], jnp.int32)


def _chain_score(log_probs, tokens, prompt_length=0):
  previous = [0, *tokens[:-1]]
  return sum(log_probs[a, b] for a, b in list(zip(previous, tokens))[prompt_length:])


def _brevity(alpha, length):
  return ((5 + length) / 6) ** alpha


def _padded(tokens, length):
  return list(tokens) + [0] * (length - len(tokens))


def _python_beam_search(log_probs, n, alpha, length, prompt=()):
  """One example, hypothesis by hypothesis; returns at most n (tokens, score), ascending."""
  live, finished = [(tuple(prompt), 0.0)], []
  for _ in range(length - len(prompt)):
    grown = []
    for tokens, score in live:
      last = tokens[-1] if tokens else 0
      grown += [(tokens + (t,), score + p) for t, p in enumerate(log_probs[last])]
    grown = sorted(grown, key=lambda x: -x[1])[:2 * n]
    finished += [
        (t, s / _brevity(alpha, len(t))) for t, s in grown if t[-1] == _EOS]
    finished = sorted(finished, key=lambda x: -x[1])[:n]
    live = [(t, s) for t, s in grown if t[-1] != _EOS][:n]
  return (finished or live)[::-1]


def _jitted(decode):
  """The decoding function as one program; all but the inputs is constant in it."""
  def run(inputs, *args, **kwargs):
    return jax.jit(lambda x: decode(x, *args, **kwargs))(inputs)
  return run


_beam_search = _jitted(decoding.beam_search)
_temperature_sample = _jitted(decoding.temperature_sample)


class HelpersTest(parameterized.TestCase):

  @parameterized.parameters(0, 1)
  def test_beam_axis_round_trip(self, offset):
    x = jnp.arange(24).reshape(2, 3, 4)
    batch = x.shape[offset]
    beams = decoding.add_beam_dim(x, 5, offset)
    self.assertEqual(beams.shape, x.shape[:offset + 1] + (5,) + x.shape[offset + 1:])
    flat = decoding.flatten_beam_dim(beams, offset)
    np.testing.assert_array_equal(flat, np.repeat(x, 5, axis=offset))
    np.testing.assert_array_equal(flat, decoding.flat_batch_beam_expand(x, 5, offset))
    np.testing.assert_array_equal(decoding.unflatten_beam_dim(flat, batch, 5, offset), beams)

  def test_unflatten_checks_the_size(self):
    with self.assertRaisesRegex(ValueError, '2 examples times 4 beams'):
      decoding.unflatten_beam_dim(jnp.zeros((6, 3)), 2, 4)

  @parameterized.parameters(False, True)
  def test_cache_map_skips_what_has_no_batch(self, apply_to_index):
    cache = {'layer': {'cached_key': 1, 'cache_index': 2, 'cached_bias': 3},
             'position_embedder_index': 4}
    expected = {'layer': {'cached_key': 11, 'cache_index': 12 if apply_to_index else 2,
                          'cached_bias': 3}, 'position_embedder_index': 4}
    self.assertEqual(decoding.cache_map(lambda x: x + 10, cache, apply_to_index), expected)


class SampleTest(parameterized.TestCase):

  def test_greedy_follows_the_chain_to_eos(self):
    table = np.full((5, 5), -5.0, np.float32)
    table[0, 3] = table[3, 2] = table[2, _EOS] = table[4, 4] = 5.0
    decodes, scores = _temperature_sample(
        _inputs((), (4,)), {}, _markov(table), _EOS, rescale_log_probs=False)
    np.testing.assert_array_equal(
        decodes, [[[3, 2, 1, 0, 0, 0, 0, 0]], [[4, 4, 4, 4, 4, 4, 4, 4]]])
    log_probs = _log_probs(table)
    np.testing.assert_allclose(
        scores, [[_chain_score(log_probs, [3, 2, 1])], [_chain_score(log_probs, [4] * 8, 1)]],
        atol=1e-5)

  def test_greedy_scores_zero_when_rescaled(self):
    for kwargs in ({'topk': 1}, {'topk': 0, 'temperature': 0.0}, {'topk': 4, 'temperature': 0.0}):
      decodes, scores = _temperature_sample(
          _inputs(()), {}, _markov(_chain(6)), _NO_EOS, **kwargs)
      self.assertEqual(float(scores[0, 0]), 0.0)
      self.assertEqual(int(decodes[0, 0, 0]), int(_chain(6)[0].argmax()))

  @parameterized.parameters(
      dict(topk=3, topp=0.0, temperature=1.0),
      dict(topk=3, topp=0.0, temperature=0.5),
      dict(topk=0, topp=0.7, temperature=1.0),
      dict(topk=0, topp=0.7, temperature=0.3),
      dict(topk=0, topp=0.7, temperature=3.0),
      dict(topk=0, topp=1e-6, temperature=1.0),
      dict(topk=0, topp=1.0, temperature=1.0),
      dict(topk=0, topp=0.0, temperature=2.0),
      dict(topk=99, topp=0.0, temperature=1.0))
  def test_support_frequencies_and_scores(self, topk, topp, temperature):
    logits = np.log([0.02, 0.3, 0.08, 0.35, 0.25]).astype(np.float32)
    table = np.tile(logits, (5, 1))
    n = 3000
    decodes, scores = _temperature_sample(
        _inputs((), length=1), {}, _markov(table), _NO_EOS, num_decodes=n,
        decode_rng=jax.random.PRNGKey(1), topk=topk, topp=topp, temperature=temperature)
    decodes, scores = np.asarray(decodes)[0, :, 0], np.asarray(scores)[0]

    probs = np.exp(_log_probs(logits[None] / temperature))[0]
    order = np.argsort(-probs)
    if topk:
      kept = order[:topk]
    elif topp:
      kept = order[:int(np.searchsorted(np.cumsum(probs[order]), topp - 1e-6)) + 1]
    else:
      kept = order
    expected = np.where(np.isin(np.arange(5), kept), probs, 0)
    expected /= expected.sum()
    frequencies = np.bincount(decodes, minlength=5) / n
    np.testing.assert_array_equal(frequencies > 0, expected > 0)
    np.testing.assert_allclose(frequencies, expected, atol=0.04)
    np.testing.assert_allclose(scores, np.log(expected[decodes]), atol=1e-4)
    self.assertTrue(np.all(np.diff(scores) >= 0))

  def test_plain_scores_ignore_the_restriction(self):
    table = _chain(6)
    decodes, scores = _temperature_sample(
        _inputs(()), {}, _markov(table), _NO_EOS, num_decodes=5, topk=3, temperature=0.7,
        rescale_log_probs=False, decode_rng=jax.random.PRNGKey(2))
    for tokens, score in zip(np.asarray(decodes)[0], np.asarray(scores)[0]):
      np.testing.assert_allclose(score, _chain_score(_log_probs(table), tokens), rtol=1e-5)

  def test_the_key_decides(self):
    sample = jax.jit(lambda rng: decoding.temperature_sample(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, topk=0, decode_rng=rng)[0])
    first, again, other = (np.asarray(sample(jax.random.PRNGKey(s))) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    self.assertTrue(np.any(first != other))

  def test_traced_temperature(self):
    sample = jax.jit(lambda t: decoding.temperature_sample(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, topk=0, temperature=t,
        rescale_log_probs=False)[0])
    greedy, _ = _temperature_sample(_inputs(()), {}, _markov(_chain(6)), _NO_EOS)
    np.testing.assert_array_equal(sample(0.0), greedy)

  def test_temperature_per_example(self):
    decodes, scores = _temperature_sample(
        _inputs((), ()), {}, _markov(_chain(6)), _NO_EOS, topk=0, num_decodes=20,
        temperature=jnp.array([0.0, 5.0]), rescale_log_probs=False)
    greedy, _ = _temperature_sample(_inputs(()), {}, _markov(_chain(6)), _NO_EOS)
    np.testing.assert_array_equal(decodes[0], np.repeat(np.asarray(greedy)[0], 20, axis=0))
    self.assertGreater(len(np.unique(np.asarray(decodes)[1], axis=0)), 10)
    self.assertEqual(len(np.unique(np.asarray(scores)[0])), 1)

  def test_prompts_are_kept_and_not_scored(self):
    table = _chain(6, seed=3)
    log_probs = _log_probs(table)
    prompts = ((5, 1, 3), (4,), ())  # an EOS inside a prompt does not end it
    decodes, scores = _temperature_sample(
        _inputs(*prompts), {}, _markov(table), _NO_EOS, rescale_log_probs=False)
    for prompt, tokens, score in zip(prompts, np.asarray(decodes)[:, 0], np.asarray(scores)[:, 0]):
      expected = list(prompt)
      while len(expected) < 8:
        expected.append(int(log_probs[expected[-1] if expected else 0].argmax()))
      self.assertEqual(list(tokens), expected)
      np.testing.assert_allclose(
          score, _chain_score(log_probs, expected, len(prompt)), rtol=1e-5)

  @parameterized.parameters(2, 5)
  def test_max_decode_steps_counts_after_the_prompt(self, steps):
    inputs = _inputs((5, 4, 3), (4,))
    run = functools.partial(
        _temperature_sample, inputs, {}, _markov(_chain(6)), _NO_EOS)
    full, _ = run()
    expected = np.array(full)
    expected[0, 0, 3 + steps:] = 0
    expected[1, 0, 1 + steps:] = 0
    np.testing.assert_array_equal(run(max_decode_steps=steps)[0], expected)
    np.testing.assert_array_equal(
        run(max_decode_steps=8, max_decode_steps_hard_limit=steps)[0], expected)
    np.testing.assert_array_equal(
        jax.jit(lambda s: run(max_decode_steps=s, max_decode_steps_hard_limit=7)[0])(steps),
        expected)

  def test_stops_when_all_rows_have_ended(self):
    table = np.full((4, 4), -20.0, np.float32)
    table[:, _EOS] = 20.0
    steps = mock.Mock()

    def tokens_to_logits(state):
      jax.debug.callback(lambda _: steps(), state.cur_index)
      return _markov(table)(state)

    _temperature_sample(_inputs((), (3,), length=50), {}, tokens_to_logits, _EOS)
    jax.effects_barrier()
    self.assertEqual(steps.call_count, 2)

  def test_callbacks(self):
    def favour_two(logits, state):
      return logits.at[:, 2].add(jnp.where(state.step == 1, 100.0, 0.0))

    def end_after_three(state):
      return state.replace(ended=state.ended | (state.step >= 3))

    decodes, _ = _temperature_sample(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, logit_callback_fn=favour_two,
        state_callback_fn=end_after_three)
    first = int(_chain(6)[0].argmax())
    self.assertEqual(list(decodes[0, 0]), [first, 2, int(_chain(6)[2].argmax()), 0, 0, 0, 0, 0])

  def test_callback_forces_tokens(self):
    def force_three(state):
      return state.replace(sequences=state.sequences.at[:, 4].set(3))

    decodes, _ = _temperature_sample(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, state_callback_fn=force_three)
    self.assertEqual(int(decodes[0, 0, 3]), 3)

  def test_errors(self):
    run = functools.partial(
        decoding.temperature_sample, _inputs(()), {}, _markov(_chain(6)), _EOS)
    with self.assertRaisesRegex(ValueError, 'topk=2 and topp=0.5'):
      run(topk=2, topp=0.5)
    with self.assertRaisesRegex(ValueError, 'topk is 1 by default'):
      run(topp=0.5)
    with self.assertRaisesRegex(ValueError, 'max_decode_steps=9'):
      run(max_decode_steps=9)


class BeamSearchTest(parameterized.TestCase):

  def _check(self, found, expected, length, n):
    decodes, scores = (np.asarray(x) for x in found)
    missing = n - len(expected)
    np.testing.assert_array_equal(decodes[:missing], np.zeros((missing, length)))
    np.testing.assert_array_equal(scores[:missing], np.full(missing, decoding.NEG_INF))
    self.assertEqual([list(d) for d in decodes[missing:]],
                     [_padded(t, length) for t, _ in expected])
    np.testing.assert_allclose(scores[missing:], [s for _, s in expected], rtol=1e-4)

  @parameterized.parameters(0.0, 0.6, 2.0, -0.5)
  def test_wide_beam_is_exhaustive(self, alpha):
    # The padding token 0 ends up last; with tokens 2 and 3 there are 2^0 + ... + 2^3 ways to end.
    length, n = 4, 15
    table = _chain(4, seed=4)
    table[:, 0] = -60
    log_probs = _log_probs(table)
    expected = []
    for size in range(length):
      for body in itertools.product((2, 3), repeat=size):
        tokens = (*body, _EOS)
        expected.append((tokens, _chain_score(log_probs, tokens) / _brevity(alpha, size + 1)))
    self.assertLen(expected, n)
    expected.sort(key=lambda x: x[1])
    decodes, scores = _beam_search(
        _inputs((), length=length), {}, _markov(table), _EOS, num_decodes=n, alpha=alpha)
    self._check((decodes[0], scores[0]), expected, length, n)

  @parameterized.parameters(
      (0, 1, 0.6), (1, 1, 0.0), (0, 2, 1.5), (1, 2, 0.6), (2, 2, 0.0), (0, 4, 0.0), (1, 4, 1.5),
      (2, 4, 0.6))
  def test_agrees_with_python(self, seed, n, alpha):
    table = _chain(6, seed=seed)
    table[:, _EOS] -= seed  # with a rare EOS live hypotheses are returned, too
    prompts = ((), (3,), (5, 2, 4))
    decodes, scores = jax.jit(lambda x: decoding.beam_search(
        x, {}, _markov(table), _EOS, num_decodes=n, alpha=alpha))(_inputs(*prompts))
    for row, prompt in enumerate(prompts):
      expected = _python_beam_search(_log_probs(table), n, alpha, 8, prompt)
      self._check((decodes[row], scores[row]), expected, 8, n)

  def test_prefilled_prompts_give_the_same(self):
    inputs = _inputs((5, 3), (4,), ())
    for decode in (functools.partial(_beam_search, num_decodes=3),
                   functools.partial(_temperature_sample, rescale_log_probs=False)):
      fed = decode(inputs, {}, _markov(_chain(6)), _EOS)
      prefilled = decode(
          inputs, {}, _markov(_chain(6)), _EOS, initial_index=jnp.array([2, 1, 0]))
      np.testing.assert_array_equal(fed[0], prefilled[0])
      np.testing.assert_allclose(fed[1], prefilled[1], rtol=1e-6)

  def test_no_finished_hypothesis_returns_the_live_ones(self):
    log_probs = _log_probs(_chain(6))
    decodes, scores = _beam_search(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, num_decodes=3)
    for tokens, score in zip(np.asarray(decodes)[0], np.asarray(scores)[0]):
      np.testing.assert_allclose(score, _chain_score(log_probs, tokens), rtol=1e-5)

  @parameterized.parameters(dict(max_decode_len=3), dict(max_decode_len=11))
  def test_max_decode_len(self, max_decode_len):
    decodes, _ = _beam_search(
        _inputs(()), {}, _markov(_chain(6)), _NO_EOS, max_decode_len=max_decode_len)
    self.assertEqual(decodes.shape, (1, 4, max_decode_len))
    self.assertTrue(np.all(np.asarray(decodes) > 0))

  def test_max_decode_step_counts_after_the_prompt(self):
    decodes, _ = _beam_search(
        _inputs((5, 3), ()), {}, _markov(_chain(6)), _NO_EOS, num_decodes=2, max_decode_step=3)
    np.testing.assert_array_equal((np.asarray(decodes) > 0).sum(-1), [[5, 5], [3, 3]])

  def test_min_log_prob_stops_an_example(self):
    table = np.zeros((4, 4), np.float32)  # every token costs log 4
    table[:, 0] = -60
    decodes, _ = _beam_search(
        _inputs(()), {}, _markov(table), _NO_EOS, num_decodes=2, min_log_prob=-2.5)
    np.testing.assert_array_equal((np.asarray(decodes) > 0).sum(-1), [[3, 3]])

  def test_unused_beams_never_finish(self):
    # Two tokens besides EOS and padding cannot fill 8 beams at once.
    table = np.full((3, 3), -50.0, np.float32)
    table[:, 2], table[:, _EOS] = 1.0, 0.0
    decodes, scores = _beam_search(
        _inputs((), length=3), {}, _markov(table), _EOS, num_decodes=8)
    plausible = np.asarray(scores)[0] > -1e6
    for tokens in np.asarray(decodes)[0][plausible]:
      self.assertIn(_EOS, tokens)
    np.testing.assert_array_equal(np.asarray(decodes)[0][~plausible], 0)

  def test_stops_when_nothing_can_improve(self):
    table = np.full((4, 4), -30.0, np.float32)
    table[:, _EOS] = 30.0
    steps = mock.Mock()

    def tokens_to_logits(state):
      jax.debug.callback(lambda _: steps(), state.cur_index)
      return _markov(table)(state)

    _beam_search(_inputs((), length=50), {}, tokens_to_logits, _EOS, num_decodes=1)
    jax.effects_barrier()
    self.assertEqual(steps.call_count, 1)

  @parameterized.parameters(0, 1)
  def test_the_cache_follows_its_hypothesis(self, offset):
    """A model that reads the history from its cache gives what reading the sequences gives."""
    table = jnp.asarray(np.random.RandomState(5).normal(size=(60, 6)) * 2, jnp.float32)
    table = table.at[:, 0].add(-8.0)
    inputs = _inputs((), (3,), (5, 2))

    def from_sequences(state):
      # One position for all rows, or one for each.
      seen = jnp.arange(state.sequences.shape[1]) <= jnp.reshape(state.cur_index, (-1, 1))
      history = jnp.sum(jnp.where(seen, state.sequences, 0) * (seen.cumsum(-1) % 7), axis=-1)
      return table[history % 60], state.cache

    def from_cache(state):
      history = state.cache['history'][0] if offset else state.cache['history']
      step = state.cache['cache_index'] + 1
      history = history + state.cur_token[:, 0] * (step % 7)
      new = {'history': history[None] if offset else history, 'cache_index': step}
      return table[history % 60], new

    cache = {'history': jnp.zeros((1, 3) if offset else (3,), jnp.int32),
             'cache_index': jnp.int32(0)}
    for decode in (functools.partial(_beam_search, num_decodes=3),
                   functools.partial(_temperature_sample, num_decodes=3, topk=0)):
      expected = decode(inputs, {}, from_sequences, _EOS)
      found = decode(inputs, cache, from_cache, _EOS, cache_offset=offset)
      np.testing.assert_array_equal(found[0], expected[0])
      np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
