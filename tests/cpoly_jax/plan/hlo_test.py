"""Tests of what is read from compiled programs: bytes between devices, loops, products, against numbers worked out by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from cpoly_jax.plan import hlo

# A loop of 3 rounds with a product and a sum over two devices; outside of it a collective of each kind.
_TEXT = """HloModule test, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = f32[8,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0}) parameter(0)
  %a = f32[4,8]{1,0} get-tuple-element(%arg), index=1
  %b = f32[8,2]{1,0} constant({...})
  %product = f32[4,2]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
  %all-reduce.1 = f32[4,2]{1,0:T(8,128)} all-reduce(%product), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%a, %a)
}

%condition (arg: (s32[], f32[4,8])) -> pred[] {
  %arg = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (start: (s32[], f32[4,8])) -> f32[16] {
  %start = (s32[], f32[4,8]{1,0}) parameter(0)
  %while.1 = (s32[], /*index=1*/f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={TRIPS}
  %part = bf16[4]{0} constant({...})
  %all-gather-start.1 = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%part), replica_groups=[2,4]<=[8], dimensions={0}
  %all-gather-done.1 = bf16[16]{0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.1 = f32[4]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'b'}, to_apply=%add
  %all-to-all.1 = f32[8]{0} all-to-all(%x), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}
  %collective-permute.1 = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %all-reduce.2 = f32[8]{0} all-reduce(%x), replica_groups={{0}}, to_apply=%add
  ROOT %result = f32[16]{0} convert(%all-gather-done.1)
}
""".replace('TRIPS', '"known_trip_count":{"n":"3"}')


class ProgramTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.program = hlo.Program(_TEXT)

  def test_rounds_of_a_loop_that_tells_its_limit_only(self):
    # As the compiler of TPUs writes it.
    counter = '%i = s32[]{:T(128)} get-tuple-element(%arg), index=0'
    less = '%less = pred[]{:T(512)} compare(%i, %limit), direction=LT'
    text = _TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', '').replace(
        'ROOT %less = pred[] constant(true)', f'%limit = s32[]{{:T(128)}} constant(3)\n  {counter}\n  ROOT {less}')
    self.assertNotIn('known_trip_count', text)
    self.assertEqual(hlo.Program(text).rounds['body'], 3)
    self.assertEqual(hlo.Program(text).products(), self.program.products())
    self.assertEqual(hlo.Program(text.replace('direction=LT', 'direction=NE')).rounds['body'], 1)

  def test_rounds(self):
    # `add` is of the collectives: that in the loop, and two outside.
    self.assertEqual(self.program.rounds, {'main': 1, 'body': 3, 'condition': 3, 'fused': 3, 'add': 5})

  @parameterized.parameters(
      ('all-reduce', 3, 3 * 2 * 32 / 2),  # 8 floats among 2, three times; that among one device costs nothing.
      ('all-gather', 1, 32 * 3 / 4),
      ('reduce-scatter', 1, 16 * 3),
      ('all-to-all', 1, 32 / 2),
      ('collective-permute', 1, 32))
  def test_collectives(self, kind, number, sent):
    found = {collective.kind: collective for collective in self.program.collectives}
    self.assertEqual((found[kind].number, found[kind].sent), (number, sent))

  def test_collectives_come_with_the_most_bytes_first(self):
    sent = [found.sent for found in self.program.collectives]
    self.assertEqual(sent, sorted(sent, reverse=True))

  def test_products(self):
    flops, size = 2 * 4 * 2 * 8, 4 * (4 * 8 + 8 * 2 + 4 * 2)
    self.assertEqual(self.program.products(), (3 * flops, flops, 3 * size, size))

  @parameterized.parameters(('(f32[2,3]{1,0}, s32[])', 28), ('bf16[5]{0:T(8,128)(2,1)}', 10), ('pred[]', 1), ('token[]', 0))
  def test_array_bytes(self, shape, expected):
    self.assertEqual(hlo.array_bytes(shape), expected)

  @parameterized.parameters(
      # Products of a batch of 3, as TPUs have them: padded, dilated; and a window that is summed over.
      ('window={size=3 pad=2_2 rhs_reversal=1}, dim_labels=0bf_0io->0bf', 8),
      ('window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf', 8),
      ('window={size=3}, dim_labels=b0f_0io->b0f', 24),
      ('dim_labels=bf_oi->bf', 2))
  def test_convolutions(self, told, summed):
    kernel = 'f32[3,8,2]{2,1,0}' if 'window' in told else 'f32[8,2]{1,0}'
    program = hlo.Program(
        'ENTRY %main (a: f32[3,4,8]) -> f32[3,4,2] {\n'
        '  %a = f32[3,4,8]{2,1,0} parameter(0)\n'
        f'  %b = {kernel} parameter(1)\n'
        f'  ROOT %c = f32[3,4,2]{{2,1,0}} convolution(%a, %b), {told}\n'
        '}\n')
    self.assertEqual(program.products()[0], 2 * 3 * 4 * 2 * summed)


class CompiledTest(absltest.TestCase):

  def test_agrees_with_xla_and_counts_every_round_of_a_scan(self):
    x, weights = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    scanned = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]).lower(x, weights).compile()
    flops, once, moved, moved_once = hlo.Program(scanned.as_text()).products()
    self.assertEqual((flops, once), (5 * 2 * 8 * 16 * 16, 2 * 8 * 16 * 16))
    self.assertEqual((moved, moved_once), (5 * 4 * (8 * 16 * 2 + 16 * 16), 4 * (8 * 16 * 2 + 16 * 16)))
    # XLA counts the body once: within the scalars that count the rounds.
    self.assertAlmostEqual(scanned.cost_analysis()['flops'], once, delta=20)


if __name__ == '__main__':
  absltest.main()
