"""Decoding against Hugging Face's `generate`: greedy and beam search token for token, their scores, and teacher-forced scores.

The models are small and made on the spot, with weights so large that choices are well apart and hypotheses end at
different lengths, some at the limit. They reach us as a user's would: saved by transformers, read by `checkpoints`.
"""

import functools
import os
import sys

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import numpy as np
import pytest
import seqio
from t5x import decoding as t5x_decoding

from cpoly_jax import decoding
from cpoly_jax import testing
from cpoly_jax.checkpoints import huggingface
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers

VOCABULARY, EOS, POSITIONS, ROWS = 24, 1, 9, 16
SIZES = dict(vocab_size=VOCABULARY, d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=2, num_decoder_layers=2,
             dropout_rate=0., decoder_start_token_id=0, pad_token_id=0, eos_token_id=EOS)
FAMILIES = {
    't5_1_0': dict(feed_forward_proj='relu', tie_word_embeddings=True),
    't5_1_1': dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    # As FLAN: gated, logits of their own, more heads than fit the width, and deeper.
    'flan': dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False, num_heads=6, d_kv=4, num_layers=3,
                 num_decoder_layers=3),
}
SEEDS = {'t5_1_0': 0, 't5_1_1': 3, 'flan': 8}  # Of weights with which ends come at all lengths and settings matter.
_quick, tearDownModule = testing.quick_compilation()


def setUpModule():
  peers.require()
  peers.torch.set_num_threads(1)  # The models are tiny.
  _quick()


@functools.cache
def _models(family):
  """Returns transformers' model, our network and its parameters."""
  torch = peers.torch
  theirs = peers.transformers.T5ForConditionalGeneration(peers.transformers.T5Config(**{**SIZES, **FAMILIES[family]})).eval()
  with torch.random.fork_rng(), torch.no_grad():
    torch.manual_seed(SEEDS[family])
    for name, parameter in theirs.named_parameters():
      if 'layer_norm' not in name:
        parameter.copy_(torch.randn_like(parameter) * (1. if name.startswith('shared') else .4))
    theirs.lm_head.weight[0] = 0.  # Padding is not generated, and the end is.
    theirs.lm_head.weight[EOS] *= 1.5
  folder = absltest.get_default_test_tmpdir() + f'/{family}'
  theirs.save_pretrained(folder)
  tensors = {tuple(name.split('/')): tensor.read() for name, tensor in huggingface.open_folder(folder).items()}
  net = network.Transformer(network.T5Config(**huggingface.network_settings(folder)))
  return theirs, net, flax.traverse_util.unflatten_dict(tensors)


def _inputs():
  """Tokens [B, 7] with padding."""
  rng = np.random.default_rng(11)
  inputs = rng.integers(2, VOCABULARY, size=(ROWS, 7), dtype=np.int32)
  inputs[np.arange(7) >= rng.integers(2, 8, size=(ROWS, 1))] = 0
  return inputs


def _generate(family, **settings):
  """Returns tokens [B, n, POSITIONS] without the start token, and scores [B, n] if beams have them."""
  theirs = _models(family)[0]
  inputs = peers.torch.tensor(_inputs(), dtype=peers.torch.long)
  with peers.torch.inference_mode():
    found = theirs.generate(input_ids=inputs, attention_mask=(inputs > 0).long(), do_sample=False, return_dict_in_generate=True,
                            output_scores=True, **{'max_new_tokens': POSITIONS, **settings})
  tokens = found.sequences.numpy()[:, 1:]
  # After the end, `generate` fills beams with EOS, as its padding is token 0.
  tokens = np.where(np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0, 0, tokens)
  tokens = np.pad(tokens, ((0, 0), (0, POSITIONS - tokens.shape[1]))).reshape(ROWS, -1, POSITIONS)
  scores = found.get('sequences_scores')
  return tokens, None if scores is None else scores.numpy().reshape(ROWS, -1)


def _model(family, decode_fn=decoding.beam_search):
  vocabulary = seqio.PassThroughVocabulary(VOCABULARY, eos_id=EOS)
  return CPolyModel(_models(family)[1], vocabulary, vocabulary, None, decode_fn=decode_fn, task_index=TaskIndex(('a',)))


def _batch(targets=None):
  targets = np.zeros((ROWS, POSITIONS), np.int32) if targets is None else targets
  return {'encoder_input_tokens': _inputs(), 'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_target_tokens': targets, 'decoder_loss_weights': (targets > 0).astype(np.float32),
          'task_id': np.zeros((ROWS, 1), np.int32)}


def _predict(family, decode_fn, num_decodes=1, prompts=None):
  """Returns tokens [B, n, POSITIONS] and scores [B, n], the best first as `generate` has them."""
  model = _model(family, decode_fn)
  batch = _batch()
  if prompts is not None:
    batch['decoder_input_tokens'] = prompts
  run = jax.jit(functools.partial(model.predict_batch_with_aux, num_decodes=num_decodes, return_all_decodes=True,
                                  prompt_with_targets=prompts is not None))
  tokens, aux = run(_models(family)[2], batch)
  return np.asarray(tokens)[:, ::-1], np.asarray(aux['scores'])[:, ::-1]


@functools.cache
def _scoring(family):
  return jax.jit(_model(family).score_batch)


def _score(family, targets):
  """Our log-likelihood of targets [B, Lt]."""
  return np.asarray(_scoring(family)(_models(family)[2], _batch(targets)))


class GreedyTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_tokens(self, family):
    expected, _ = _generate(family, num_beams=1)
    lengths = (expected[:, 0] > 0).sum(-1)
    self.assertGreater(len(set(lengths.tolist())), 2)
    self.assertTrue((expected[:, 0, -1] > EOS).any())  # A row that has reached the limit.
    tokens, scores = _predict(family, decoding.beam_search)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores[:, 0] * lengths, _score(family, tokens[:, 0]), atol=1e-4, rtol=1e-4)


  def test_tokens_of_the_function_of_t5x(self):
    tokens, _ = _predict('t5_1_1', t5x_decoding.temperature_sample)
    np.testing.assert_array_equal(tokens, _generate('t5_1_1', num_beams=1)[0])


class BeamTest(parameterized.TestCase):

  def _check(self, family, n, **settings):
    expected, expected_scores = _generate(family, num_beams=n, num_return_sequences=n, **settings)
    tokens, scores = _predict(family, functools.partial(decoding.beam_search, **settings), n)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4, rtol=1e-4)
    return tokens, scores

  @parameterized.parameters(*FAMILIES)
  def test_families(self, family):
    tokens, scores = self._check(family, 4, length_penalty=1., early_stopping=False)
    lengths = (tokens > 0).sum(-1)
    self.assertGreater(len(set(lengths.ravel().tolist())), 3)
    self.assertTrue((tokens[..., -1] > EOS).any())
    self.assertGreater(np.any(tokens[:, 0] != _generate(family, num_beams=1)[0][:, 0], axis=-1).sum(), 1)
    for i in range(2):  # Teacher-forced, without a cache: each hypothesis has had its own keys and values.
      np.testing.assert_allclose(scores[:, i] * lengths[:, i], _score(family, tokens[:, i]), atol=1e-4, rtol=1e-4)

  @parameterized.parameters(True, False, 'never')
  def test_early_stopping(self, early_stopping):
    self._check('t5_1_1', 4, length_penalty=2., early_stopping=early_stopping)

  @parameterized.product(n=(2, 3, 5), length_penalty=(-1., 0., .6, 1.5), early_stopping=(True, False, 'never'))
  @pytest.mark.slow
  def test_all_settings(self, n, length_penalty, early_stopping):
    self._check('t5_1_1', n, length_penalty=length_penalty, early_stopping=early_stopping)

  def test_a_limit_below_the_positions(self):
    tokens, _ = self._check('t5_1_1', 4, max_new_tokens=4)
    self.assertEqual((tokens > 0).sum(-1).max(), 4)

  def test_the_settings_matter(self):
    """Otherwise the tests above could not tell them apart."""
    found = {(penalty, early): _generate('t5_1_1', num_beams=4, length_penalty=penalty, early_stopping=early)[0].tobytes()
             for penalty in (-1., 0., 2.) for early in (True, False, 'never')}
    self.assertGreater(len(set(found.values())), 6)
    self.assertLen({found[2., early] for early in (True, False, 'never')}, 3)

  def test_prompts(self):
    prompt = [5, 9]
    theirs = peers.torch.tensor([[0, *prompt]] * ROWS)
    expected, expected_scores = _generate('t5_1_1', num_beams=3, num_return_sequences=3, decoder_input_ids=theirs,
                                          max_new_tokens=POSITIONS - len(prompt))
    prompts = np.zeros((ROWS, POSITIONS), np.int32)
    prompts[:, 1:1 + len(prompt)] = prompt
    tokens, scores = _predict('t5_1_1', decoding.beam_search, 3, prompts)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4, rtol=1e-4)


class ScoreTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_teacher_forced(self, family):
    targets = np.random.default_rng(5).integers(2, VOCABULARY, size=(ROWS, POSITIONS), dtype=np.int32)
    targets[::2, 6:] = 0
    labels = peers.torch.tensor(targets, dtype=peers.torch.long)
    inputs = peers.torch.tensor(_inputs(), dtype=peers.torch.long)
    with peers.torch.inference_mode():
      logits = _models(family)[0](input_ids=inputs, attention_mask=(inputs > 0).long(), labels=labels).logits
    log_probs = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0] * (labels > 0)
    np.testing.assert_allclose(_score(family, targets), log_probs.sum(-1).numpy(), rtol=1e-5, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
