"""What trains and what does not: the frozen base, FLOPs and memory of the train step under a provider of t5x."""

import functools

from absl.testing import absltest
import flax
import jax
import numpy as np
import seqio
from t5x import decoding
from t5x import partitioning
from t5x import train_state
from t5x import trainer as trainer_lib

from cpoly_jax import testing
from cpoly_jax.t5 import flops
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import partitioning as cpoly_partitioning
from cpoly_jax.training.models import CPolyModel
from cpoly_jax.training.optimizers import GroupedAdamW

T, B, LI, LT = 4, 8, 24, 16
CONFIG = testing.small_config(vocab_size=264, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128, num_encoder_layers=2,
                              num_decoder_layers=2)


def _batch(seed):
  rng = np.random.default_rng(seed)
  inputs = rng.integers(3, 259, size=(B, LI), dtype=np.int32)
  targets = rng.integers(3, 259, size=(B, LT), dtype=np.int32)
  return {'encoder_input_tokens': inputs, 'decoder_target_tokens': targets,
          'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_loss_weights': np.ones((B, LT), np.int32), 'task_id': np.arange(B, dtype=np.int32)[:, None] % T}


@functools.cache
def _trained(steps=3):
  """Returns (parameters before, the trainer after `steps`)."""
  vocabulary = seqio.ByteVocabulary()
  adapter = testing.cpoly_adapter(T, targets='.*attention/(query|key|value|out)')
  model = CPolyModel(network.Transformer(CONFIG, adapter), vocabulary, vocabulary, GroupedAdamW(1e-2, 1e-1),
                     decode_fn=decoding.temperature_sample, task_index=TaskIndex(tuple('abcd')))
  shapes = {k: v.shape for k, v in _batch(0).items()}
  variables = jax.jit(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes))()
  # Up factors that are not zero, so that every leaf has a gradient from the first step on.
  params = testing.randomized(variables['params'])
  before = jax.tree.map(np.array, params)
  state = train_state.FlaxOptimTrainState.create(model.optimizer_def, {**variables, 'params': params})
  partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=cpoly_partitioning.logical_axis_rules())
  trainer = trainer_lib.Trainer(
      model=model, train_state=state, partitioner=partitioner, eval_names=[], summary_dir=None,
      train_state_axes=partitioner.get_mesh_axes(state), rng=jax.random.PRNGKey(1), learning_rate_fn=lambda step: 0.,
      num_microbatches=None)
  trainer.compile_train(_batch(0))
  trainer.train(iter([_batch(i) for i in range(steps)]), steps, start_step=0)
  return before, trainer


class FrozenBaseTest(absltest.TestCase):

  def test_skills_and_routing_move_and_the_base_keeps_every_bit(self):
    before, trainer = _trained()
    after = flax.traverse_util.flatten_dict(trainer.train_state.params, sep='/')
    for name, old in flax.traverse_util.flatten_dict(before, sep='/').items():
      same = np.array_equal(np.asarray(after[name]).view(np.uint32), old.view(np.uint32))
      self.assertEqual(same, 'skills' not in name and 'routing' not in name, name)

  def test_state_is_the_base_once_and_three_times_what_trains(self):
    _, trainer = _trained()
    flat = flax.traverse_util.flatten_dict(trainer.train_state.params, sep='/')
    trainable = sum(x.nbytes for name, x in flat.items() if 'skills' in name or 'routing' in name)
    base = sum(x.nbytes for x in flat.values()) - trainable
    total = sum(x.nbytes for x in jax.tree.leaves(trainer.train_state.state_dict()))
    counters = 64  # Steps of the schedules.
    self.assertLessEqual(abs(total - (base + 3 * trainable)), counters)

  def test_xla_computes_what_was_counted_by_hand(self):
    _, trainer = _trained()
    cost = trainer.train_step_compiled.cost_analysis()
    counted = flops.frozen_step(CONFIG, B, LI, LT) + flops.adapters(
        CONFIG, B, LI, LT, rank=4, group_sizes=(3, T), targets_pattern='.*attention/(query|key|value|out)')
    self.assertLessEqual(cost['flops'] / counted, 1.10)
    self.assertGreaterEqual(cost['flops'] / counted, 0.90)


if __name__ == '__main__':
  absltest.main()
