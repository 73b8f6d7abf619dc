"""Tests of the decoding functions: against a search written out in Python, with every kind of cache, batches of mixed
tasks, what a step computes, and the settings that gin gives. Equality with `generate` is in tests/parity/generate_test.py."""

import functools
import itertools
import re

from absl.testing import absltest
from absl.testing import parameterized
import gin
import jax
import jax.numpy as jnp
import numpy as np
import seqio

from cpoly_jax import decoding
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.adapters import Adapter
from cpoly_jax.t5 import layers
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

EOS, POSITIONS = 1, 7
SEED = 1
# So that a rank is no other size.
SHAPES = dict(num_tasks=3, rank=5)
SYSTEMS = {
    'poly': (functools.partial(routing.PolyRouter, num_skills=4), skills.FACTORS),
    'cpoly': (functools.partial(routing.CPolyRouter, num_common=3, num_specific=1), skills.GROUP_FACTORS),
    'mhr': (functools.partial(routing.PolyRouter, num_skills=4, num_heads=2), skills.FACTORS),
    'moe_lora': (functools.partial(routing.TokenRouter, num_common=4), skills.PRODUCTS),
}


def _chain(seed, size=6):
  """Logits of the next token given the position and the current one; 0 (padding) is never likely."""
  logits = np.random.default_rng(seed).normal(size=(POSITIONS, size, size)) * 1.5
  logits[..., 0] -= 9
  return logits.astype(np.float32)


def _step_of(table):
  return lambda state: (jnp.asarray(table)[state.cur_index, state.cur_token[:, 0]], state.cache)


def _search(table, n, penalty, early, most, prompt=()):
  """Beam search of one example, hypothesis by hypothesis; returns (score, tokens), the best first."""
  table = table.astype(np.float64)
  log_probs = table - np.log(np.exp(table).sum(-1, keepdims=True))
  live, finished = [(0., tuple(prompt))], []
  for length in range(1, most + 1):
    rows = [log_probs[len(tokens), tokens[-1] if tokens else 0] for _, tokens in live]
    grown = [(score + p, (*tokens, t)) for (score, tokens), row in zip(live, rows) for t, p in enumerate(row)]
    grown = [(score, tokens, tokens[-1] == EOS or length == most) for score, tokens in sorted(grown, reverse=True)[:2 * n]]
    ends = [(score / length ** penalty, tokens) for score, tokens, over in grown[:n] if over]
    finished = sorted([*finished, *ends], reverse=True)[:n]
    live = [(score, tokens) for score, tokens, over in grown if not over][:n]
    if len(finished) == n and live:
      at = most if early == 'never' and penalty > 0 else length
      if early is True or live[0][0] / at ** penalty <= finished[-1][0]:
        break
  return finished


def _inputs(*prompts):
  """Start token 0, then the prompt, then zeros."""
  return jnp.array([[0, *p] + [0] * (POSITIONS - 1 - len(p)) for p in prompts], jnp.int32)


def _beam_search(*args, **kwargs):
  return jax.jit(lambda: decoding.beam_search(*args, eos_id=EOS, **kwargs))()


class BeamSearchTest(parameterized.TestCase):

  @parameterized.parameters(
      (0, 1, 2., 'never'), (0, 3, 1., False), (0, 3, .5, True), (1, 3, 2., 'never'), (1, 3, -1., 'never'))
  def test_agrees_with_python(self, seed, n, penalty, early):
    table = _chain(seed)
    prompts = [(), (4,), (2, 3)]
    settings = dict(num_decodes=n, length_penalty=penalty, early_stopping=early)
    tokens, scores = _beam_search(_inputs(*prompts), {}, _step_of(table), **settings)
    for row, prompt in enumerate(prompts):
      expected = _search(table, n, penalty, n == 1 or early, POSITIONS - len(prompt), prompt)
      for rank, (score, hypothesis) in enumerate(expected):
        self.assertEqual(tuple(map(int, tokens[row, n - 1 - rank])), (*hypothesis, *[0] * (POSITIONS - len(hypothesis))))
        self.assertAlmostEqual(float(scores[row, n - 1 - rank]), score, places=4)

  @parameterized.parameters(0, 1)
  def test_a_cache_that_beams_do_not_share_follows_its_hypothesis(self, offset):
    """The cache holds a sum over the tokens so far, on which the next ones depend."""
    table = jnp.asarray(_chain(3)[0])

    def step(state):
      total = jnp.moveaxis(state.cache['total'], offset, 0)[:, 0] + state.cur_token[:, 0]
      total = jnp.repeat(total[:, None], 2, axis=1)
      cache = {'total': jnp.moveaxis(total, 0, offset), 'cache_index': state.cache['cache_index'] + 1}
      return table[total[:, 0] % 6], cache

    cache = {'total': jnp.zeros((2, 2), jnp.int32), 'cache_index': jnp.int32(0)}
    tokens, scores = _beam_search(_inputs((), ()), cache, step, num_decodes=3, length_penalty=0., cache_offset=offset)
    log_probs = np.asarray(jax.nn.log_softmax(table))
    for hypothesis, score in zip(np.asarray(tokens[0]), scores[0]):
      hypothesis = hypothesis[hypothesis > 0]
      sums = np.cumsum([0, *hypothesis[:-1]]) % 6
      self.assertAlmostEqual(float(score), log_probs[sums, hypothesis].sum(), places=4)

  def test_a_prompt_without_room_is_its_own_result(self):
    full = (2, 3, 4, 5, 2, 3)
    inputs = jnp.asarray([[0, *full], [0] * 7], jnp.int32)
    tokens, _ = _beam_search(inputs, {}, _step_of(_chain(0)), num_decodes=2, max_new_tokens=1)
    np.testing.assert_array_equal(tokens[0, -1, :6], full)
    self.assertEqual(int((tokens[1, -1] > 0).sum()), 1)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, "early_stopping = 'always': write True, False or 'never'"):
      decoding.beam_search(_inputs(()), {}, None, EOS, early_stopping='always')
    with self.assertRaisesRegex(ValueError, 'max_new_tokens = 0: write 1 or more'):
      decoding.beam_search(_inputs(()), {}, None, EOS, max_new_tokens=0)


class TopTest(parameterized.TestCase):

  @parameterized.parameters((5, 4), (128, 1), (1000, 1), (1000, 7), (1024, 8))
  def test_is_that_of_lax_with_equal_entries(self, size, k):
    x = np.random.default_rng(0).integers(-3, 4, size=(9, size)).astype(np.float32)
    x[0] = 2.
    x[1, :-1] = -np.inf
    for found, expected in zip(decoding.top_k(jnp.asarray(x), k), jax.lax.top_k(jnp.asarray(x), k)):
      np.testing.assert_array_equal(found, expected)


def _model(system, decode_fn):
  router, mixing = SYSTEMS[system]
  adapter = Adapter(functools.partial(router, num_tasks=SHAPES['num_tasks']),
                    functools.partial(skills.LoRA, rank=SHAPES['rank'], mixing=mixing), targets='.*(self_attention/query|wo)')
  vocabulary = seqio.PassThroughVocabulary(32, eos_id=EOS)
  return CPolyModel(network.Transformer(testing.small_config(), adapter), vocabulary, vocabulary, None, decode_fn=decode_fn,
                    task_index=TaskIndex(('a', 'b', 'c')))


def _batch():
  inputs = np.random.default_rng(3).integers(3, 32, size=(4, 6), dtype=np.int32)
  inputs[1, 4:] = 0
  inputs[3] = inputs[0]  # With another task.
  blank = np.zeros((4, POSITIONS), np.int32)
  return {'encoder_input_tokens': inputs, 'decoder_input_tokens': blank, 'decoder_target_tokens': blank,
          'task_id': np.array([[2], [0], [1], [0]], np.int32)}


@functools.cache
def _params(system):
  batch = _batch()
  variables = _model(system, None).get_initial_variables(
      jax.random.PRNGKey(0), {k: v.shape for k, v in batch.items()}, {k: v.dtype for k, v in batch.items()})
  params = testing.randomized(variables['params'], scale=1.)
  # Spread logits, ends that are neither rare nor certain, and no padding.
  kernel = np.random.default_rng(SEED).normal(size=params['decoder']['logits_dense']['kernel'].shape).astype(np.float32)
  kernel[:, EOS] *= 1.5
  kernel[:, 0] = 0.
  params['decoder']['logits_dense']['kernel'] = jnp.asarray(kernel)
  return params


class NetworkTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    start, cls._end = testing.quick_compilation()
    start()

  @classmethod
  def tearDownClass(cls):
    cls._end()
    super().tearDownClass()

  @parameterized.parameters(*itertools.product(('poly', 'cpoly', 'mhr'), (1, 3)), ('moe_lora', 3))
  def test_mixed_tasks_decode_as_one_task_at_a_time(self, system, n):
    model, params = _model(system, decoding.beam_search), _params(system)
    predict = jax.jit(functools.partial(model.predict_batch_with_aux, num_decodes=n, return_all_decodes=True))
    together, aux = predict(params, _batch())
    for row in range(4):
      alone, aux_alone = predict(params, {k: np.repeat(v[row:row + 1], 4, axis=0) for k, v in _batch().items()})
      np.testing.assert_array_equal(together[row], alone[0])
      np.testing.assert_allclose(aux['scores'][row], aux_alone['scores'][0], atol=1e-4)
    # The same inputs with two tasks; only MoE-LoRA weighs the tokens and not the tasks.
    self.assertEqual(np.array_equal(together[0], together[3]), system == 'moe_lora')

  def test_scores_are_those_of_the_whole_pass(self):
    """Each hypothesis has had its own keys, values and skills, though beams share a cache."""
    model, params, n = _model('cpoly', decoding.beam_search), _params('cpoly'), 3
    predict = functools.partial(model.predict_batch_with_aux, num_decodes=n, return_all_decodes=True)
    tokens, aux = jax.jit(predict)(params, _batch())
    tokens = np.asarray(tokens).reshape(-1, POSITIONS)
    batch = {k: np.repeat(v, n, axis=0) for k, v in _batch().items()}
    batch |= {'decoder_target_tokens': tokens, 'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
              'decoder_loss_weights': (tokens > 0).astype(np.float32)}
    lengths = (tokens > 0).sum(-1)
    self.assertGreater(len(set(lengths.tolist())), 2)
    found = jax.jit(model.score_batch)(params, batch)
    np.testing.assert_allclose(found, np.ravel(aux['scores']) * lengths, rtol=1e-4, atol=1e-4)


class StepTest(absltest.TestCase):

  def test_skills_are_mixed_once_and_caches_stay_where_they_are(self):
    """What XLA leaves in the loop: no bank of skills, no mixing, no cache of the inputs with rows of beams."""
    model, n = _model('cpoly', decoding.beam_search), 4
    run = jax.jit(functools.partial(model.predict_batch_with_aux, num_decodes=n))
    text = run.lower(_params('cpoly'), _batch()).compile().as_text()
    bodies = set(re.findall(r'body=%?([\w.\-]+)', text))
    computations = {part.split(' ', 1)[0].lstrip('%'): part for part in re.split(r'\n(?=%|ENTRY)', text)}
    (body,) = [computations[name] for name in bodies if 'self_attention' in computations[name]]
    operations = [line.split(' = ', 1)[1] for line in body.split('\n')[1:] if ' = ' in line]
    made = [line for line in operations if not re.match(r'.*? (get-tuple-element|tuple|parameter|constant)\(', line)]
    self.assertGreater(len(made), 20)
    config, b, r = testing.small_config(), 4, SHAPES['rank']
    bank = f'f32[6,{config.emb_dim},{r}]'
    mixed = f'f32[{b},{2 * r},{config.emb_dim}]'
    moved = f'f32[{b * n},{config.num_heads},{config.head_dim},'
    self.assertIn(bank, text)
    self.assertIn(mixed, body)  # It is read.
    for shape in (bank, mixed, moved):
      self.assertEmpty([line for line in made if line.startswith(shape)], shape)
    shared = f'f32[{b},{config.num_heads},{config.head_dim},{n * POSITIONS}]'
    self.assertNotEmpty([line for line in made if line.startswith(shared)])

  def test_beams_see_what_their_hypothesis_descends_from(self):
    ancestors = jnp.asarray([[[0, 1, layers.NOT_YET], [0, 0, layers.NOT_YET]]])
    np.testing.assert_array_equal(layers.beam_mask(ancestors)[0, 0], [[1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0]])
    self.assertIsNone(layers.beam_mask(ancestors[0]))


class GinTest(parameterized.TestCase):

  def _model(self, files, *bindings):
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    gin.parse_config_files_and_bindings(
        ['gin_configs/models/t5_1_1/tiny.gin', 'gin_configs/models/bytes.gin', *files],
        ["MIXTURE_OR_TASK_NAME = 'latent_skills'", "MIXTURE_OR_TASK_MODULE = 'tasks'", 'OPTIMIZER = None',
         'network.Transformer.adapter = None', "ACTIVATION_DTYPE = 'float32'", *bindings], finalize_config=False)
    return gin.query_parameter('%MODEL').scoped_configurable_fn()

  def test_beams(self):
    model = self._model([], 'NUM_BEAMS = 3', 'LENGTH_PENALTY = 2.0', "EARLY_STOPPING = 'never'")
    step, table = _step_of(_chain(0)), _chain(0)
    n = model._default_decoder_params.num_decodes
    tokens, scores = jax.jit(lambda: model.decode_fn(
        inputs=_inputs(()), cache={}, tokens_to_logits=step, eos_id=EOS, num_decodes=n))()
    expected = _search(table, 3, 2., 'never', POSITIONS)
    self.assertEqual(scores.shape, (1, 3))
    np.testing.assert_allclose(scores[0, ::-1], [score for score, _ in expected], atol=1e-4)
    self.assertNotEqual([tokens for _, tokens in expected], [tokens for _, tokens in _search(table, 3, 1., False, POSITIONS)])

  @parameterized.parameters(
      (['SAMPLING_TEMPERATURE = 0.5'], lambda p: p ** 2),
      (['TOP_K = 3'], lambda p: np.where(p >= np.sort(p)[-3], p, 0)),
      (['TOP_P = 0.7'], lambda p: np.where(p >= min(q for q in p if p[p > q].sum() < .7), p, 0)))
  def test_draws_follow_the_distribution(self, bindings, change):
    model = self._model(['gin_configs/runs/sampling.gin'], *bindings)
    table, draws = _chain(0), 4000
    expected = np.exp(table[0, 0] - table[0, 0].max())
    expected = change(expected / expected.sum())
    expected /= expected.sum()
    step = lambda state: (jnp.asarray(table)[0, state.cur_token[:, 0]], state.cache)
    draw = jax.jit(lambda key: model.decode_fn(inputs=_inputs(()), cache={}, tokens_to_logits=step, eos_id=EOS,
                                               num_decodes=draws, decode_rng=key, max_decode_steps=1))
    tokens, _ = draw(jax.random.PRNGKey(0))
    counts = np.bincount(np.asarray(tokens)[0, :, 0], minlength=6)
    np.testing.assert_array_equal(counts[expected == 0], 0)
    possible = expected > 0
    chi_square = (((counts - draws * expected) ** 2)[possible] / (draws * expected)[possible]).sum()
    self.assertLess(chi_square, 20.5)  # 99.9 % of draws with 5 degrees of freedom.
    self.assertGreater(possible.sum(), 1)


if __name__ == '__main__':
  absltest.main()
