"""Tests of the trainer that touches only the rows of its batch's tasks, against the ordinary trainer."""

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import numpy as np
import seqio
from t5x import decoding
from t5x import partitioning
from t5x import train_state
from t5x import trainer as trainer_lib

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import partitioning as cpoly_partitioning
from cpoly_jax.training import task_rows
from cpoly_jax.training.models import CPolyModel
from cpoly_jax.training.optimizers import GroupedAdamW

T, B, L = 7, 4, 5
CONFIG = testing.small_config(vocab_size=264)


def _batch(tasks, seed):
  rng = np.random.default_rng(seed)
  tokens = lambda: rng.integers(3, 259, size=(B, L), dtype=np.int32)
  targets = tokens()
  return {'encoder_input_tokens': tokens(), 'decoder_target_tokens': targets,
          'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_loss_weights': np.ones((B, L), np.int32), 'task_id': np.array(tasks, np.int32)[:, None]}


def _trainer(trainer_cls, num_partitions=1, **router):
  vocabulary = seqio.ByteVocabulary()
  adapter = testing.cpoly_adapter(T, router={'specific': 'fixed', 'num_specific': 2, **router}, targets='.*/(query|wo)')
  model = CPolyModel(network.Transformer(CONFIG, adapter), vocabulary, vocabulary, GroupedAdamW(1e-2, 1e-1),
                     decode_fn=decoding.temperature_sample, task_index=TaskIndex(tuple('abcdefg')))
  shapes = {k: v.shape for k, v in _batch([0] * B, 0).items()}
  variables = jax.jit(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes))()
  params = testing.randomized(variables['params'])
  state = train_state.FlaxOptimTrainState.create(model.optimizer_def, {**variables, 'params': params})
  partitioner = partitioning.PjitPartitioner(
      num_partitions=num_partitions, logical_axis_rules=cpoly_partitioning.logical_axis_rules())
  return trainer_cls(
      model=model, train_state=state, partitioner=partitioner, eval_names=[], summary_dir=None,
      train_state_axes=partitioner.get_mesh_axes(state), rng=jax.random.PRNGKey(1), learning_rate_fn=lambda step: 0.,
      num_microbatches=None)


def _flat(trainer):
  return {k: np.array(v) for k, v in flax.traverse_util.flatten_dict(trainer.train_state.params, sep='/').items()}


def _train(trainer, batches):
  """Trains and returns the parameters before the first and after each step."""
  states = [_flat(trainer)]
  for i, batch in enumerate(batches):
    trainer.train(iter([batch]), 1, start_step=i)
    states.append(_flat(trainer))
  return states


class TaskRowsTrainerTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('fixed', {}), ('learned', {'specific': routing.LEARNED, 'num_specific': (1, 2, 1, 0, 1, 1, 1)}),
      ('gumbel', {'specific': routing.GUMBEL}))
  def test_equals_the_ordinary_trainer_while_the_tasks_stay(self, router):
    """Rows that no batch has used have no momentum, so that both trainers leave them."""
    batches = [_batch([5, 1, 5, 2], seed) for seed in range(3)]
    ours = _train(_trainer(task_rows.TaskRowsTrainer, **router), batches)
    ordinary = _train(_trainer(trainer_lib.Trainer, **router), batches)
    for name, value in ordinary[-1].items():
      np.testing.assert_allclose(ours[-1][name], value, rtol=2e-5, atol=2e-6, err_msg=name)

  def test_touches_only_the_rows_of_the_batch(self):
    _, first, second = _train(_trainer(task_rows.TaskRowsTrainer), [_batch([5, 1, 5, 2], 0), _batch([0, 1, 1, 1], 1)])
    own = lambda tasks: [3 + 2 * task + i for task in tasks for i in range(2)]
    moved = {k: (first[k] != second[k]).reshape(first[k].shape[0], -1).any(axis=1)
             for k in first if 'skills' in k or 'routing' in k}
    for name, rows in moved.items():
      expected = [0, 1] if 'routing' in name else [0, 1, 2, *own([0, 1])]
      self.assertEqual(np.flatnonzero(rows).tolist(), expected, name)
    still = [k for k in first if 'skills' not in k and 'routing' not in k]
    self.assertTrue(all((first[k] == second[k]).all() for k in still))

  def test_tasks_that_borrow_train_all_skills_and_their_own_rows(self):
    _, first, second = _train(_trainer(task_rows.TaskRowsTrainer, specific=routing.LEARNED),
                              [_batch([5, 1, 5, 2], 0), _batch([0, 1, 1, 1], 1)])
    for name in first:
      moved = np.flatnonzero((first[name] != second[name]).reshape(first[name].shape[0], -1).any(axis=1)).tolist()
      expected = list(range(3 + 2 * T)) if 'skills' in name else [0, 1] if 'routing' in name else []
      self.assertEqual(moved, expected, name)

  def test_moments_of_rows_are_kept(self):
    trainer = _trainer(task_rows.TaskRowsTrainer)
    batches = [_batch([5, 1, 5, 2], 0), _batch([0, 3, 0, 3], 1), _batch([5, 1, 5, 2], 2)]
    states = _train(trainer, batches)
    moments = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(trainer.train_state.param_states)[0]
               if len(path) > 1 and getattr(path[-2], 'key', None) == 'skills']
    self.assertNotEmpty(moments)
    for leaf in moments:
      used = np.abs(np.asarray(leaf)).reshape(leaf.shape[0], -1).any(axis=1)
      self.assertEqual(np.flatnonzero(~used).tolist(), [3 + 8, 3 + 9, 3 + 12, 3 + 13])  # Tasks 4 and 6 were in no batch.
    self.assertLen(states, 4)

  @parameterized.parameters({'num_specific': (1, 2, 1, 1, 1, 1, 1)}, {'unknown_task': 'average'},
                            {'unknown_task': 'average', 'specific': routing.LEARNED})
  def test_refuses_systems_whose_tasks_read_others(self, **router):
    trainer = _trainer(task_rows.TaskRowsTrainer, **router)
    with self.assertRaisesRegex(ValueError, "set UNKNOWN_TASK = 'error'"):
      trainer.train(iter([_batch([0] * B, 0)]), 1, start_step=0)


if __name__ == '__main__':
  absltest.main()
