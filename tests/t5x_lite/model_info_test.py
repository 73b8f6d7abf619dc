"""Tests of model-info.txt, against files that T5X wrote, and of the one-line summary."""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from t5x import adafactor
from t5x import model_info
from t5x import models
from t5x import optimizers
from t5x import utils
from t5x.examples.t5 import network
import seqio

_SHAPES = {k: (8, 12) for k in ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')}


def _golden_model():
  config = network.T5Config(vocab_size=384, dtype='float32', emb_dim=32, num_heads=4, num_encoder_layers=2,
                            num_decoder_layers=2, head_dim=8, mlp_dim=64, mlp_activations=('gelu', 'linear'))
  vocabulary = seqio.ByteVocabulary()
  return models.EncoderDecoderModel(network.Transformer(config), vocabulary, vocabulary, adafactor.Adafactor())


def _initializer(model, optimizer_def):
  return utils.TrainStateInitializer(optimizer_def, model.get_initial_variables, _SHAPES, reversal.partitioner())


class ModelInfoTest(absltest.TestCase):

  def _written(self, model, optimizer_def) -> str:
    path = os.path.join(tempfile.mkdtemp(), 'sub', 'model-info.txt')
    initializer = _initializer(model, optimizer_def)
    model_info.log_model_info(path, initializer.global_train_state_shape, reversal.partitioner())
    return pathlib.Path(path).read_text()

  def test_train_state_as_t5x_writes_it(self):
    golden = testing.shared_data('golden/cli/samples/train/model-info.txt').read_text()
    model = _golden_model()
    self.assertEqual(self._written(model, model.optimizer_def), golden)

  def test_inference_state_as_t5x_writes_it(self):
    golden = testing.shared_data('golden/cli/samples/eval/model-info.txt').read_text()
    self.assertEqual(self._written(_golden_model(), None), golden)

  def test_no_file_is_asked_for(self):
    self.assertIsNone(model_info.log_model_info(None, None, None))


class SummaryTest(absltest.TestCase):

  def test_counts_and_bytes_are_those_of_the_arrays(self):
    model = reversal.model(optimizers.adamw(learning_rate=1e-3))
    state = _initializer(model, model.optimizer_def).from_scratch(jax.random.PRNGKey(0))
    total = sum(x.size for x in jax.tree.leaves(state.params))
    self.assertEqual(model_info.parameter_counts(state), (total, total))
    self.assertEqual(model_info.state_bytes(state.params), 4 * total)
    # Two moments of each parameter, and a few counters.
    self.assertBetween(model_info.state_bytes(state.param_states) - 8 * total, 0, 64)
    line = model_info.summary_line(state)
    self.assertIn(f'{total:,} parameters', line)
    self.assertNotIn('FLOP', line)
    self.assertNotIn('\n', line)

  def test_flops_are_those_of_xla(self):
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((64, 64))).compile()
    self.assertBetween(model_info.flops(compiled), 2 * 64**3 * 0.9, 2 * 64**3 * 1.1)
    self.assertIsNone(model_info.flops(None))


if __name__ == '__main__':
  absltest.main()
