"""Tests of T5's parameter names in T5X and transformers."""

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import numpy as np

from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import sizes
from cpoly_jax.t5 import network

FAMILIES = {
    't5_1_0': dict(mlp_activations=('relu',), logits_via_embedding=True),
    't5_1_1': dict(mlp_activations=('gelu', 'linear'), logits_via_embedding=False)}


def _settings(family):
  return dict(vocab_size=32, emb_dim=16, num_heads=3, head_dim=5, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=3,
              **FAMILIES[family])


class NamesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('token_embedder/embedding', 'shared.weight', False),
      ('decoder/logits_dense/kernel', 'lm_head.weight', True),
      ('encoder/encoder_norm/scale', 'encoder.final_layer_norm.weight', False),
      ('decoder/relpos_bias/rel_embedding', 'decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight', True),
      ('encoder/layers_11/attention/out/kernel', 'encoder.block.11.layer.0.SelfAttention.o.weight', True),
      ('encoder/layers_0/pre_mlp_layer_norm/scale', 'encoder.block.0.layer.1.layer_norm.weight', False),
      ('encoder/layers_0/mlp/wi/kernel', 'encoder.block.0.layer.1.DenseReluDense.wi.weight', True),
      ('decoder/layers_2/encoder_decoder_attention/key/kernel', 'decoder.block.2.layer.1.EncDecAttention.k.weight', True),
      ('decoder/layers_2/pre_cross_attention_layer_norm/scale', 'decoder.block.2.layer.1.layer_norm.weight', False),
      ('decoder/layers_2/mlp/wi_1/kernel', 'decoder.block.2.layer.2.DenseReluDense.wi_1.weight', True))
  def test_names_by_hand(self, ours, theirs, transposed):
    self.assertEqual(names.to_huggingface(ours), (theirs, transposed))
    self.assertEqual(names.from_huggingface(theirs), (ours, transposed))

  @parameterized.parameters(*FAMILIES)
  def test_one_to_one_over_the_network(self, family):
    net = network.Transformer(network.T5Config(**_settings(family)))
    tokens = np.zeros((1, 4), np.int32)
    shapes = jax.eval_shape(lambda: net.init(jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False))['params']
    ours = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items()}
    theirs = {names.to_huggingface(name)[0] for name in ours}
    self.assertLen(theirs, len(ours))
    self.assertEqual({names.from_huggingface(name)[0] for name in theirs}, set(ours))
    self.assertEqual(sizes.parameters(_settings(family)), ours)
    self.assertEqual(sizes.from_shapes(ours, 'x'), _settings(family))

  @parameterized.parameters('encoder/layers_0/attention/query', 'encoder/layers_00/attention/query/kernel',
                            'encoder/layers_0/self_attention/query/kernel', 'encoder/layers_0/attention/query/skills/down', '')
  def test_no_parameter_of_t5x(self, name):
    with self.assertRaisesRegex(ValueError, f"'{name}' is no parameter of T5"):
      names.to_huggingface(name)

  @parameterized.parameters('shared', 'shared.bias', 'encoder.block.0.layer.1.EncDecAttention.q.weight',
                            'encoder.block.-1.layer.0.SelfAttention.q.weight')
  def test_no_parameter_of_transformers(self, name):
    with self.assertRaisesRegex(ValueError, "is no parameter of transformers' T5"):
      names.from_huggingface(name)

  def test_modules(self):
    pair = 'decoder/layers_1/mlp/wo', 'decoder.block.1.layer.2.DenseReluDense.wo'
    self.assertEqual(names.module_to_huggingface(pair[0]), pair[1])
    self.assertEqual(names.module_from_huggingface(pair[1]), pair[0])
    with self.assertRaisesRegex(ValueError, 'no linear projection'):
      names.module_from_huggingface('shared')


class SizesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.shapes = sizes.parameters(_settings('t5_1_1'))

  def test_missing_and_extra_are_told_by_name(self):
    del self.shapes['decoder/layers_2/mlp/wo/kernel']
    self.shapes['encoder/layers_0/mlp/wo/skills/down'] = (1, 2, 3)
    with self.assertRaisesRegex(
        ValueError, '^x does .* it lacks decoder/layers_2/mlp/wo/kernel and has encoder/layers_0/mlp/wo/skills/down besides$'):
      sizes.from_shapes(self.shapes, 'x')

  def test_other_shapes_are_told_with_both(self):
    self.shapes['decoder/layers_2/mlp/wo/kernel'] = (24, 15)
    with self.assertRaisesRegex(ValueError, r"mlp/wo/kernel is \[24, 15\] in T5X's order, and not \[24, 16\]"):
      sizes.from_shapes(self.shapes, 'x')

  def test_no_t5(self):
    with self.assertRaisesRegex(ValueError, 'x does not hold a T5: it lacks token_embedder/embedding, .* and 1 more'):
      sizes.from_shapes({'kernel': (1,)}, 'x')

  def test_the_shipped_base(self):
    self.assertEqual(sum(np.prod(shape) for shape in sizes.parameters(
        {**_settings('t5_1_1'), 'vocab_size': 264, 'emb_dim': 128, 'num_heads': 4, 'head_dim': 32, 'mlp_dim': 256,
         'num_decoder_layers': 2}).values()), 855808)


if __name__ == '__main__':
  absltest.main()
