"""Tests of adapters: which projections they choose."""

from absl.testing import absltest

from cpoly_jax import testing
from cpoly_jax.t5 import network

CONFIG = testing.small_config()


class TargetsTest(absltest.TestCase):

  def test_a_target_is_a_whole_path(self):
    adapter = testing.cpoly_adapter(2, targets='.*attention/(query|value)')
    self.assertTrue(adapter.is_target('decoder/layers_0/encoder_decoder_attention/value'))
    self.assertFalse(adapter.is_target('encoder/layers_0/attention/key'))
    self.assertFalse(adapter.is_target('encoder/layers_0/attention/query/kernel'))

  def test_no_match_is_an_error_that_shows_paths(self):
    with self.assertRaisesRegex(ValueError, "'encoder/atention.*' matches no projection: .*encoder/layers_0/attention/.*query"):
      testing.cpoly_adapter(2, targets='encoder/atention.*').check_matches(network.projection_paths(CONFIG))

  def test_a_broken_expression_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'is no regular expression'):
      testing.cpoly_adapter(2, targets='(query')

  def test_paths_of_both_families(self):
    gated = network.projection_paths(CONFIG)
    self.assertIn('encoder/layers_0/mlp/wi_1', gated)
    self.assertLen(gated, 7 + 11)
    plain = network.projection_paths(testing.small_config(mlp_activations=('relu',)))
    self.assertIn('decoder/layers_0/mlp/wi', plain)
    self.assertLen(plain, 6 + 10)


if __name__ == '__main__':
  absltest.main()
