"""Tests of what the benchmark of decoding counts."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import decode
from cpoly_jax import testing

setUpModule, tearDownModule = testing.quick_compilation()


class DecodeTest(parameterized.TestCase):

  def test_weights_of_a_step_are_counted(self):
    made = decode.decoder('t5_1_1/tiny', '', (2, 5, 3), 2)
    c = made.model.module.config
    width = c.num_heads * c.head_dim
    by_hand = c.num_decoder_layers * (6 * width * c.emb_dim + 3 * c.emb_dim * c.mlp_dim + 3 * c.emb_dim)
    self.assertEqual(made.bytes_per_step, 4 * (by_hand + c.emb_dim + c.emb_dim * c.vocab_size))

  def test_programs_make_all_tokens(self):
    made = decode.decoder('t5_1_0/tiny', 'shared', (2, 5, 3), 2)
    c = made.model.module.config
    # Tied logits read the embedding, and skills are no weights of the base.
    layer = 6 * c.num_heads * c.head_dim * c.emb_dim + 2 * c.emb_dim * c.mlp_dim + 3 * c.emb_dim
    self.assertEqual(made.bytes_per_step, 4 * (c.num_decoder_layers * layer + c.emb_dim + c.emb_dim * c.vocab_size))
    program = made.program('shared', 2)
    program.run(2)
    self.assertLen(program.seconds, 2)
    self.assertEqual(program.tokens, 2 * 3)
    self.assertEqual(np.shape(program.call()[0]), (2, 3))


if __name__ == '__main__':
  absltest.main()
