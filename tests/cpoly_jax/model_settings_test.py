"""A network's JSON makes the same network again, for every system, and refuses what it does not know."""

from __future__ import annotations

import json

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import seqio

from cpoly_jax import adapters
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import vocabularies
from cpoly_jax.routing import schedules
from cpoly_jax.systems import configured
from cpoly_jax.t5 import network

CONFIG = network.T5Config(vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=8, num_encoder_layers=1,
                          num_decoder_layers=1, mlp_activations=('gelu', 'linear'), dtype=jnp.bfloat16)


def _shapes(transformer):
  tokens = jnp.ones((2, 3), jnp.int32)
  return jax.eval_shape(lambda: transformer.init(
      jax.random.PRNGKey(0), tokens, tokens, tokens, task_ids=jnp.zeros(2, jnp.int32), enable_dropout=False))


def _again(transformer):
  return model_settings.build(json.loads(json.dumps(model_settings.describe(transformer))))


class SettingsTest(parameterized.TestCase):

  @parameterized.parameters(*(name for name in configured.systems() if name != 'expert'))
  def test_every_system(self, name):
    with configured.configured(name, configured.Request('t5_1_1/tiny', 1 if name == 'lora' else 5)) as made:
      again = _again(made.transformer)
      self.assertEqual(model_settings.describe(again), model_settings.describe(made.transformer))
      self.assertEqual(_shapes(again), _shapes(made.transformer))

  @parameterized.parameters(skills.SFT, skills.Dense, skills.IA3)
  def test_other_skills_and_schedules(self, inventory):
    sampling = routing.Sampling(temperature=schedules.Cosine(2., 0.5, 10), noise='task')
    router = lambda **kw: routing.CPolyRouter(num_tasks=2, num_specific=(1, 2), sampling=sampling, **kw)
    transformer = network.Transformer(CONFIG, adapters.Adapter(router, inventory, targets='.*/wo', granularity='layer'))
    again = _again(transformer)
    self.assertEqual(again.config, CONFIG)
    self.assertEqual(again.adapter.describe(), transformer.adapter.describe())
    self.assertEqual((again.adapter.targets, again.adapter.granularity), ('.*/wo', 'layer'))
    self.assertEqual(_shapes(again), _shapes(transformer))

  def test_experts_matrix(self):
    router = lambda **kw: routing.ExpertRouter(num_tasks=2, matrix=((1., 0.), (1., 1.)), **kw)
    again = _again(network.Transformer(CONFIG, adapters.Adapter(router, skills.LoRA)))
    self.assertEqual(again.adapter.describe().matrix, ((1., 0.), (1., 1.)))

  def test_dtype_is_kept_unless_given(self):
    description = model_settings.describe(network.Transformer(CONFIG))
    self.assertEqual(model_settings.build(description).config.dtype, jnp.bfloat16)
    self.assertEqual(model_settings.build(description, dtype=jnp.float32).config.dtype, jnp.float32)

  def test_what_is_not_known_is_refused(self):
    description = model_settings.describe(network.Transformer(CONFIG, adapters.Adapter(
        lambda **kw: routing.PolyRouter(num_tasks=2, **kw), skills.LoRA)))
    with self.assertRaisesRegex(ValueError, "'Popen' is no class of this project"):
      model_settings.build({**description, 'adapter': {**description['adapter'], 'router': {'kind': 'Popen'}}})
    with self.assertRaisesRegex(ValueError, 'PolyRouter has no setting parent_of'):
      model_settings.build({**description, 'adapter': {**description['adapter'], 'router': {
          'kind': 'PolyRouter', 'num_tasks': 2, 'parent_of': 1}}})
    with self.assertRaisesRegex(ValueError, 'not the settings of a network'):
      model_settings.build({'network': {}})

  def test_own_classes(self):

    class MyRouter(routing.UniformRouter):
      share: float = 0.5

    transformer = network.Transformer(CONFIG, adapters.Adapter(
        lambda **kw: MyRouter(num_tasks=2, share=0.25, **kw), skills.LoRA))
    with self.assertRaisesRegex(ValueError, "'MyRouter' is no class of this project"):
      _again(transformer)
    model_settings.register(MyRouter)
    self.assertEqual(_again(transformer).adapter.describe().share, 0.25)

    with self.assertRaisesRegex(ValueError, 'a class named LoRA is registered already'):
      model_settings.register(type('LoRA', (nn.Module,), {}))


class VocabulariesTest(absltest.TestCase):

  def test_bytes(self):
    described = vocabularies.describe(seqio.ByteVocabulary(extra_ids=3))
    self.assertEqual(vocabularies.build(described), seqio.ByteVocabulary(extra_ids=3))

  def test_sentence_pieces(self):
    described = vocabularies.describe(seqio.SentencePieceVocabulary('/absent/sentencepiece.model', 100))
    self.assertEqual(described, {'kind': 'sentencepiece', 'path': '/absent/sentencepiece.model', 'extra_ids': 100})
    with self.assertRaisesRegex(FileNotFoundError, 'no SentencePiece model at /absent'):
      vocabularies.build(described)

  def test_others(self):
    self.assertIsNone(vocabularies.describe(seqio.PassThroughVocabulary(size=4)))
    with self.assertRaisesRegex(ValueError, 'describes no vocabulary'):
      vocabularies.build({'kind': 'words'})


if __name__ == '__main__':
  absltest.main()
