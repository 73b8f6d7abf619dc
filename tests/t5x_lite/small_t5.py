"""A small T5 with a model, batches and trainers around it, for the tests of training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t5x import models
from t5x import partitioning
from t5x import train_state
from t5x import trainer
from t5x.examples.t5 import network


def config(**overrides) -> network.T5Config:
  """Returns sizes of a T5 1.1: V 384, D 32, H 4, K 8, F 64, one layer each; golden: two."""
  return network.T5Config(**{
      'vocab_size': 384, 'dtype': 'float32', 'emb_dim': 32, 'num_heads': 4, 'num_encoder_layers': 1,
      'num_decoder_layers': 1, 'head_dim': 8, 'mlp_dim': 64, 'mlp_activations': ('gelu', 'linear'),
      'dropout_rate': 0.0, **overrides})


def model(optimizer_def=None, **overrides) -> models.EncoderDecoderModel:
  """Returns a model without vocabularies, which training does not need."""
  return models.EncoderDecoderModel(
      network.Transformer(config(**overrides)), None, None, optimizer_def, z_loss=1e-4)


def batches(number: int, batch_size: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
  """Returns random batches: inputs [B, 12], targets [B, 9], the last ones of each row padded."""
  rng = np.random.default_rng(seed)
  result = []
  for _ in range(number):
    inputs = rng.integers(2, 384, (batch_size, 12)).astype(np.int32)
    targets = rng.integers(2, 384, (batch_size, 9)).astype(np.int32)
    for row, length in enumerate(rng.integers(4, 10, batch_size)):
      inputs[row, length:] = 0
      targets[row, length:] = 0
    result.append({
        'encoder_input_tokens': inputs,
        'decoder_target_tokens': targets,
        'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        'decoder_loss_weights': (targets > 0).astype(np.int32),
    })
  return result


@functools.lru_cache
def _initial_variables(t5_config: network.T5Config):
  """Returns host copies of initial parameters, and their axes."""
  t5 = models.EncoderDecoderModel(network.Transformer(t5_config), None, None, None)
  shapes = {k: v.shape for k, v in batches(1)[0].items()}
  result = jax.jit(lambda: t5.get_initial_variables(jax.random.PRNGKey(0), shapes))()
  return jax.tree.map(np.asarray, result['params']), result['params_axes']


def variables(t5: models.EncoderDecoderModel, params=None):
  """Returns fresh initial variables, or the given parameters with the model's axes."""
  initial, axes = _initial_variables(t5.module.config)
  params = jax.tree.map(jnp.array, initial if params is None else params)
  return {'params': params, 'params_axes': axes}


def make_trainer(t5, optimizer_def, params=None, partitioner=None, summary_dir=None, eval_names=(),
                 learning_rate=1e-3, num_microbatches=None, weight_metrics_computer=None):
  """Returns a trainer at step 0."""
  state = train_state.FlaxOptimTrainState.create(optimizer_def, variables(t5, params))
  partitioner = partitioner or partitioning.PjitPartitioner(num_partitions=1)
  return trainer.Trainer(
      t5, state, partitioner, eval_names, summary_dir, partitioner.get_mesh_axes(state),
      jax.random.PRNGKey(1), learning_rate_fn=lambda step: jnp.float32(learning_rate),
      num_microbatches=num_microbatches, weight_metrics_computer=weight_metrics_computer)
