"""Tests of the table of systems: counts by hand, XLA's FLOPs against hand counts, equal budgets, the command line."""

import contextlib
import csv
import io
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp

from cpoly_jax.systems import __main__ as command
from cpoly_jax.systems import configured, costs, counts, matching, tables
from cpoly_jax.systems.configured import Request
from cpoly_jax.t5 import flops

# Tiny: D = inner = 128, F = 256, 2 + 2 layers; attention projections: 2 * 4 in the encoder and 2 * 8 in the decoder.
D, F, PROJECTIONS = 128, 256, 24
A, B, R, T = 3, 2, 4, 5
TINY = Request('t5_1_1/tiny', T)
EVERY = [name for name in configured.systems() if name != 'expert']


def _count(system, request=TINY, **macros):
  with configured.configured(system, request, **macros) as made:
    return counts.count(made)


def _bound(*bindings, files=(), model='t5_1_1/tiny', num_tasks=T):
  return Request(model, num_tasks, files, bindings)


def _run(*arguments):
  """Returns exit code, stdout and the last line of stderr."""
  out, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    try:
      code = command.main(arguments)
    except SystemExit as e:
      code = e.code
  return code, out.getvalue(), errors.getvalue().strip()


class CountsTest(parameterized.TestCase):

  def _check(self, found, skills, routing, active, base=0):
    self.assertEqual(found.trained, {'skills': skills, 'routing': routing, 'base': base})
    self.assertEqual(found.active, active)

  def test_cpoly(self):
    found = _count('cpoly', NUM_COMMON=A, NUM_SPECIFIC=B)
    per_projection = (A + B * T) * R * (D + D), T * A + T * (B * T)
    # Any task may borrow: all skills are active, and a row of each table.
    active = per_projection[0] + A + B * T
    self._check(found, PROJECTIONS * per_projection[0], PROJECTIONS * per_projection[1], PROJECTIONS * active)
    self.assertEqual((found.num_skills, found.active_skills), (A + B * T, A + B * T))

  def test_cpoly_fixed_uses_own_skills_only(self):
    found = _count('cpoly', _bound("SPECIFIC = 'fixed'"), NUM_COMMON=A, NUM_SPECIFIC=B)
    self._check(found, PROJECTIONS * (A + B * T) * R * 2 * D, PROJECTIONS * T * A, PROJECTIONS * ((A + B) * R * 2 * D + A))

  @parameterized.parameters(('poly', 1), ('mhr', 4))
  def test_poly_and_mhr(self, system, heads):
    bank = 8 * R * 2 * D
    self._check(_count(system), PROJECTIONS * bank, PROJECTIONS * T * heads * 8, PROJECTIONS * (bank + heads * 8))

  def test_mhr_z_trains_routing_only(self):
    self._check(_count('mhr_z'), 0, PROJECTIONS * T * 4 * 8, PROJECTIONS * 4 * 8)

  def test_mhr_mu_trains_skills_only(self):
    self._check(_count('mhr_mu'), PROJECTIONS * 8 * R * 2 * D, 0, PROJECTIONS * 8 * R * 2 * D)

  def test_shared_and_private(self):
    one = PROJECTIONS * R * 2 * D
    self._check(_count('shared'), one, 0, one)
    self._check(_count('private'), T * one, 0, one)

  def test_lora_has_one_task(self):
    with configured.configured('lora', TINY) as made:
      self.assertEqual(made.num_tasks, 1)
      self._check(counts.count(made), PROJECTIONS * R * 2 * D, 0, PROJECTIONS * R * 2 * D)

  def test_full(self):
    found = _count('full')
    self._check(found, 0, 0, active=found.base, base=found.base)
    self.assertEqual(found.num_skills, 0)

  def test_hyper(self):
    bank, shared = 8 * R * 2 * D, 64 * 64 + 64 + 64 * 8 + 8
    self._check(_count('hyper'), PROJECTIONS * bank, PROJECTIONS * (T * 64 + shared), PROJECTIONS * (bank + 64 + shared))

  def test_task_moe_uses_two_skills(self):
    bank, gate = 8 * R * 2 * D, 64 * 8
    self._check(_count('task_moe'), PROJECTIONS * bank, PROJECTIONS * (T * 64 + gate), PROJECTIONS * (bank // 4 + 64 + gate))

  def test_token_gates(self):
    bank = R * 2 * D
    self._check(_count('moe_lora'), PROJECTIONS * 8 * bank, PROJECTIONS * D * 8, PROJECTIONS * (8 * bank + D * 8))
    self._check(_count('mmoe'), PROJECTIONS * 8 * bank, PROJECTIONS * T * D * 8, PROJECTIONS * (8 * bank + D * 8))
    self._check(_count('cgc', NUM_COMMON=A, NUM_SPECIFIC=B), PROJECTIONS * (A + B * T) * bank,
                PROJECTIONS * T * D * (A + B), PROJECTIONS * ((A + B) * bank + D * (A + B)))

  def test_expert(self):
    tasks = [f'superglue_{name}' for name in ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc')]
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder, 'skills.csv')
      file.write_text('task,a,b,c\n' + ''.join(f'{name},1,{i % 2},{i // 7}\n' for i, name in enumerate(tasks)))
      request = _bound(f"EXPERT_MATRIX = '{file}'", "MIXTURE_OR_TASK_NAME = 'superglue'", num_tasks=None)
      with configured.configured('expert', request) as made:
        found = counts.count(made)
    self.assertEqual((made.num_tasks, found.num_skills, found.active_skills), (8, 3, 3))
    self._check(found, PROJECTIONS * 3 * R * 2 * D, 0, PROJECTIONS * 3 * R * 2 * D)

  @parameterized.parameters(
      ('dense', PROJECTIONS * 8 * D * D), ('sft', PROJECTIONS * 8 * D * 13), ('ia3', 8 * (6 * 2 * D + 4 * F)))
  def test_other_skills(self, skills, expected):
    # SFT: ceil(128 / 10) values a row, whose indices never train. (IA)^3: 6 attentions' keys and values, 4 hidden layers.
    self.assertEqual(_count('poly', _bound(files=(f'gin_configs/skills/{skills}.gin',))).trained['skills'], expected)

  def test_the_published_count_of_peft(self):
    # PEFT's notebook: FLAN-T5-XL, r = 8, 2 skills, 4 tasks, 4 splits, query and value.
    found = _count('mhr', _bound("ADAPTER_TARGETS = '.*attention/(query|value)'", 'RANK = 8', model='flan/xl', num_tasks=4),
                   NUM_SKILLS=2)
    self.assertEqual(found.trainable, 9_441_792)

  @parameterized.product(system=EVERY, granularity=('projection', 'layer'))
  def test_one_layer_stands_for_all(self, system, granularity):
    """The shapes are those of the whole network, whatever is adapted and shares a router."""
    if granularity == 'layer' and system in ('cgc', 'mmoe', 'moe_lora', 'full'):
      self.skipTest('it has no router that projections can share')
    request = _bound(f"ROUTER_GRANULARITY = '{granularity}'",
                     "ADAPTER_TARGETS = 'encoder/layers_1/.*|decoder/layers_0/mlp/w.*'")
    with configured.configured(system, request) as made:
      net, tokens = made.transformer, jax.ShapeDtypeStruct((1, 1), jnp.int32)
      whole = jax.eval_shape(
          lambda tokens, ids: net.init(jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False, task_ids=ids),
          tokens, jax.ShapeDtypeStruct((1,), jnp.int32))
      shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(whole['params'], sep='/').items()}
      self.assertEqual({path: leaf.shape for path, leaf in counts.parameters(net).items()}, shapes)

  def test_the_clock_does_not_count(self):
    request = _bound(files=('gin_configs/routing/annealed_temperature.gin',))
    self.assertEqual(_count('poly', request), _count('poly'))

  def test_rates_of_the_gin_file_tell_what_trains(self):
    found = _count('poly', _bound('cpoly_optimizers.GroupedAdamW.routing_learning_rate = None'))
    self.assertEqual(found.trained['routing'], 0)
    self.assertGreater(found.trained['skills'], 0)


class CostsTest(parameterized.TestCase):

  @parameterized.parameters(('cpoly', (3, T)), ('poly', (8,)))
  def test_flops_are_those_counted_by_hand(self, system, group_sizes):
    batch, inputs, targets, rank = 8, 64, 16, 16
    # By hand, the scaling and adding of outputs is left out: 1 / (2 r) of the rest.
    with configured.configured(system, TINY, RANK=rank) as made:
      found = costs.adapter_forward(made.transformer, batch, inputs, targets)
      adapter = made.transformer.adapter
      # By hand: forward and backward, which costs twice as much.
      by_hand = flops.adapters(made.transformer.config, batch, inputs, targets, rank=rank, group_sizes=group_sizes,
                               targets_pattern=adapter.targets) / 3
    self.assertBetween(found / by_hand, 0.9, 1.1)

  def test_the_base_costs_what_xla_counts(self):
    batch, inputs, targets = 4, 64, 32
    with configured.configured('full', _bound("ACTIVATION_DTYPE = 'float32'", 'VOCABULARY_SIZE = 264')) as made:
      net = made.transformer
      tokens = [jax.ShapeDtypeStruct((batch, length), jnp.int32) for length in (inputs, targets, targets)]
      params = jax.eval_shape(lambda *t: net.init(jax.random.PRNGKey(0), *t, enable_dropout=False)['params'], *tokens)
      cost = jax.jit(lambda p, *t: net.apply({'params': p}, *t, enable_dropout=False)).lower(params, *tokens).cost_analysis()
      by_hand = flops.forward(net.config, batch, inputs, targets)
    self.assertBetween(cost['flops'] / by_hand, 0.9, 1.1)

  def test_no_adapter_costs_nothing(self):
    with configured.configured('full', TINY) as made:
      self.assertEqual(costs.adapter_forward(made.transformer, 8, 16, 16), 0)

  def test_skills_of_other_tasks_cost_nothing_if_fixed(self):
    def cost(tasks):
      with configured.configured('private', _bound(num_tasks=tasks)) as made:
        return costs.adapter_forward(made.transformer, 8, 16, 16)
    self.assertLess(cost(64), 1.02 * cost(4))

  def test_a_shared_router_is_left_out(self):
    def cost(granularity):
      with configured.configured('poly', _bound(f"ROUTER_GRANULARITY = '{granularity}'")) as made:
        return costs.adapter_forward(made.transformer, 8, 16, 16)
    self.assertBetween(cost('model') / cost('projection'), 0.95, 1)

  def test_axes_are_those_of_the_network(self):
    with configured.configured('full', TINY) as made:
      found = counts.parameters(made.transformer)
      for path, shape in flops.projection_shapes(made.transformer.config).items():
        self.assertEqual(found[f'{path}/kernel'], counts.Parameter(shape, flops.projection_axes(path)))


class NearestTest(parameterized.TestCase):

  @parameterized.parameters((100, 10), (104, 10), (106, 11), (105, 10), (0, 0), (7, 1), (1_000, 100))
  def test_a_straight_line(self, target, expected):
    for start in (0, 1, 8, 300):
      self.assertEqual(matching.nearest(lambda n: 10 * n, target, start), expected)

  @parameterized.product(target=(0, 5, 17, 1000, 12345), start=(1, 7, 200))
  def test_any_rising_count(self, target, start):
    count = lambda n: n * n + 3 * n
    self.assertEqual(matching.nearest(count, target, start), min(range(500), key=lambda n: abs(count(n) - target)))

  def test_refused_values_bound_the_search(self):
    self.assertEqual(matching.nearest(lambda n: n if 2 <= n <= 8 else None, 100, 4), 8)
    self.assertEqual(matching.nearest(lambda n: n if 2 <= n <= 8 else None, 0, 4), 2)
    with self.assertRaisesRegex(ValueError, 'start'):
      matching.nearest(lambda n: None, 3, 1)

  def test_few_counts_are_needed(self):
    asked = []
    matching.nearest(lambda n: asked.append(n) or 7 * n + 5, 700_000, 4, largest=1 << 20)
    self.assertLess(len(asked), 25)


class MatchTest(absltest.TestCase):

  def test_equal_budgets(self):
    reference = matching.budget('cpoly', TINY, matching.TRAINABLE)
    found = matching.match('poly', TINY, matching.TRAINABLE, 'NUM_SKILLS', reference)
    self.assertEqual((found.before, found.value), (8, 8))  # C-Poly has 3 + 5 skills.
    self.assertEqual(found.count, _count('poly').trainable)
    self.assertAlmostEqual(found.difference, (found.count - reference) / reference)

  def test_active(self):
    reference = matching.budget('cpoly', TINY, matching.ACTIVE)
    found = matching.match('private', TINY, matching.ACTIVE, 'RANK', reference)
    self.assertEqual(found.value, 32)  # One skill a task against 8 of rank 4.

  def test_systems_without_the_macro_say_so(self):
    with self.assertRaisesRegex(ValueError, 'does not use NUM_SKILLS'):
      matching.match('shared', TINY, matching.TRAINABLE, 'NUM_SKILLS', 1000)
    with self.assertRaisesRegex(ValueError, 'whatever RANK is'):
      matching.match('mhr_z', TINY, matching.TRAINABLE, 'RANK', 1000)
    with self.assertRaisesRegex(ValueError, 'no whole number'):
      matching.match('cpoly', TINY, matching.TRAINABLE, 'MIXING', 1000)


class TablesTest(absltest.TestCase):

  def test_formats(self):
    header, rows = ('name', 'n'), [('a', 12345), ('b', None)]
    self.assertEqual(tables.render(header, rows, 'table'), 'name       n\n----  ------\na     12,345\nb          -')
    self.assertEqual(tables.render(header, rows, 'csv'), 'name,n\na,12345\nb,')
    self.assertEqual(tables.render(header, rows, 'markdown'),
                     '| name |      n |\n| ---- | -----: |\n| a    | 12,345 |\n| b    |      - |')


class CommandTest(parameterized.TestCase):

  def test_all_systems(self):
    code, out, errors = _run('--model=t5_1_1/tiny', f'--num_tasks={T}', '--format=csv')
    self.assertEqual(code, 0)
    rows = {row['system']: row for row in csv.DictReader(io.StringIO(out))}
    self.assertEqual(list(rows), EVERY)
    self.assertEqual({row['T'] for name, row in rows.items() if name != 'lora'}, {str(T)})
    self.assertEqual(int(rows['cpoly']['skills']), _count('cpoly').trained['skills'])
    self.assertIn('expert: give --gin.EXPERT_MATRIX=... and --gin.MIXTURE_OR_TASK_NAME=...', errors)

  def test_xxl(self):
    code, out, _ = _run('--model=t5_1_1/xxl', '--systems=cpoly', '--format=csv')
    self.assertEqual(code, 0)
    row = next(csv.DictReader(io.StringIO(out)))
    self.assertEqual(int(row['skills']), (24 * 4 + 24 * 8) * 11 * 4 * (4096 + 4096))

  def test_tasks_of_a_mixture(self):
    code, out, _ = _run('--model=t5_1_1/tiny', '--systems=poly', '--format=csv', "--gin.MIXTURE_OR_TASK_NAME='superglue'")
    self.assertEqual((code, next(csv.DictReader(io.StringIO(out)))['T']), (0, '8'))

  def test_matching(self):
    code, out, errors = _run('--model=t5_1_1/tiny', '--systems=poly,shared', '--match=trainable', '--vary=NUM_SKILLS',
                             '--format=csv', f'--num_tasks={T}')
    self.assertEqual(code, 0)
    row = next(csv.DictReader(io.StringIO(out)))
    self.assertEqual((row['system'], row['value']), ('poly', '8'))
    self.assertIn('shared: does not use NUM_SKILLS', errors)

  def test_a_system_that_refuses_is_told(self):
    code, out, errors = _run('--model=t5_1_1/tiny', '--systems=poly,mmoe', "--gin.ROUTER_GRANULARITY='layer'")
    self.assertEqual(code, 0)
    self.assertIn('poly', out)
    self.assertIn("left out: mmoe: TokenRouter weighs skills by the inputs of each projection", errors)

  @parameterized.parameters(
      (['--systems=pol'], 'no file of gin_configs/systems is named pol; did you mean poly?'),
      (['--model=t5_1_1/smal'], 'no file of gin_configs/models is named t5_1_1/smal; did you mean t5_1_1/small?'),
      (['--systems=poly', '--gin.NUM_SKILS=3'], 'uses the macro NUM_SKILS; did you mean NUM_SKILLS?'),
      (['--systems=poly', '--match=active', '--vary=RNK'], 'uses the macro RNK; did you mean RANK?'),
      (['--match=active'], '--match and --vary go together'),
      (['--gin_file=gin_configs/skills/sfft.gin'], 'no gin file gin_configs/skills/sfft.gin; did you mean '
       'gin_configs/skills/sft.gin?'),
      (['--systems=poly', '--num_tasks=0'], 'NUM_TASKS = 0'),
      (['--gin.RANK'], 'write --gin.RANK=VALUE'),
      (['--speed=3'], '--speed'),
      (['--systems=poly', '--gin.RANK=0'], 'LoRA.rank = 0: write 1 or more'),
      (['--systems=expert'], 'give --gin.EXPERT_MATRIX=...'))
  def test_mistakes(self, arguments, expected):
    code, out, errors = _run(*arguments)
    self.assertEqual((code, out), (1, ''))
    self.assertStartsWith(errors, 'error: ')
    self.assertNotIn('\n', errors)
    self.assertIn(expected, errors)

  def test_help_has_examples(self):
    code, out, _ = _run('--help')
    self.assertEqual(code, 0)
    self.assertIn('--match=trainable --to=cpoly --vary=NUM_SKILLS', out)


if __name__ == '__main__':
  absltest.main()
