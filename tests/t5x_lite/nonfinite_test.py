"""Tests for nonfinite: what a bad step leaves behind, who is named, and what a good step costs."""

from __future__ import annotations

import tempfile
import types

from absl.testing import absltest
from absl.testing import parameterized
from cpoly_jax import task_index
from cpoly_jax.training import models as cpoly_models
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x import metrics as metrics_lib
from t5x import nonfinite
from t5x import optimizers
from t5x import partitioning
from t5x import state_utils
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib
from tests.t5x_lite import small_t5

NAMES = ('ant', 'bee', 'cat')
NAN, INF = float('nan'), float('inf')


class _Model:
  """Half the squared error of w * x, whose gradient is the sum of (w x - y) x; the task of row i is i % 3."""

  def __init__(self, policy=None):
    if policy is not None:
      self.nonfinite = policy

  def loss_fn(self, params, batch, rng):
    del rng
    losses = 0.5 * jnp.square(params['w'] * batch['x'] - batch['y'])
    nonfinite.note_rows(losses)
    loss = jnp.sum(losses)
    if 'edge' in params:  # Finite at 0, but not its gradient.
      loss += jnp.sqrt(params['edge'])
    return loss, {'loss': metrics_lib.AveragePerStep.from_model_output(loss),
                  'seqs': metrics_lib.Sum.from_model_output(jnp.float32(batch['y'].shape[0]))}

  def tasks_of(self, batch):
    return batch['task']

  def task_name(self, number):
    return NAMES[number]


def _batches(*xs):
  """Yields {x, y, task [6, 1]}; the x of row 1 (bee) and of row 2 (cat) are those given, all else is 1."""
  for x in xs:
    column = np.ones((6, 1), np.float32)
    column[1:3, 0] = x
    yield {'x': column, 'y': np.zeros((6, 1), np.float32),
           'task': (np.arange(6, dtype=np.int32) % 3)[:, None]}


def _trainer(policy=None, optimizer=None, num_microbatches=None, summary_dir=None, **params):
  state = train_state_lib.FlaxOptimTrainState.create(optimizer or optimizers.OptaxWrapper(optax.sgd(0.1, momentum=0.5)), {
      'params': {'w': jnp.ones(()), **params},
      'params_axes': {f'{name}_axes': flax_partitioning.AxisMetadata(()) for name in ('w', *params)}})
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  return trainer_lib.Trainer(_Model(policy), state, partitioner, [], summary_dir, partitioner.get_mesh_axes(state),
                             jax.random.PRNGKey(0), lambda step: 0.1, num_microbatches)


def _run(trainer, *xs):
  """Trains on batches; returns (message or None, lines told)."""
  told = []
  trainer.nonfinite.tell = told.append
  try:
    trainer.train(_batches(*xs), len(xs), start_step=0)
    trainer.wait_for_steps()
  except nonfinite.NonfiniteError as error:
    return error.message, told
  return None, told


class StepTest(parameterized.TestCase):

  def assert_state(self, trainer, step, w, momentum):
    state = state_utils.flatten_state_dict(trainer.train_state.state_dict())
    moments, = [v for k, v in state.items() if k.endswith('trace/w')]
    self.assertEqual(int(trainer.train_state.step), step)
    np.testing.assert_allclose((trainer.train_state.params['w'], moments), (w, momentum), rtol=1e-6)

  # By hand: the gradient is 6 w for x = 1. w = 1: momentum 6, w = 1 - 0.6 = 0.4. Then 6 * 0.4 + 3 = 5.4, w = -0.14.

  @parameterized.parameters(NAN, INF, 1e30)
  def test_skip_keeps_everything_but_the_step(self, bad):
    trainer = _trainer('skip')
    error, told = _run(trainer, 1, (1, bad), 1)
    self.assertIsNone(error)
    self.assert_state(trainer, 3, -0.14, 5.4)
    self.assertEqual(told, ['The loss of step 2 is not finite in 1 of 6 rows of its batch, of task cat: skipped (1 so far)'])

  @parameterized.parameters(None, 'stop')
  def test_stop_keeps_the_state_before_the_bad_step(self, policy):
    trainer = _trainer(policy)
    # More good steps follow than may be in flight.
    error, _ = _run(trainer, 1, (NAN, INF), *[1] * 12)
    self.assertStartsWith(error, 'The loss of step 2 is not finite in 2 of 6 rows of its batch, of tasks bee, cat. Lower the')
    self.assertIn("NONFINITE = 'skip'", error)
    self.assert_state(trainer, 1, 0.4, 6)

  def test_a_stopped_run_goes_on_from_its_state(self):
    trainer = _trainer('stop')
    _run(trainer, 1, NAN, 1, 1)
    trainer.train(_batches(1), 1, start_step=1)
    trainer.wait_for_steps()
    self.assert_state(trainer, 2, -0.14, 5.4)

  def test_ignore_looks_at_nothing(self):
    trainer = _trainer('ignore')
    self.assertEqual(_run(trainer, 1, NAN, 1), (None, []))
    self.assertTrue(np.isnan(trainer.train_state.params['w']))

  @parameterized.parameters('skip', 'stop', 'ignore')
  def test_program_of_a_policy(self, policy):
    trainer = _trainer(policy)
    trainer.compile_train(next(_batches(1)))
    text = trainer._partitioned_train_step.lower(trainer.train_state, next(_batches(1))).as_text()
    self.assertEqual('is_finite' in text, policy != 'ignore')

  def test_gradient_alone(self):
    # The root of 0 is 0, and its derivative infinite.
    trainer = _trainer('stop', edge=jnp.zeros(()))
    error, _ = _run(trainer, 1)
    self.assertStartsWith(error, 'The gradient of step 1 is not finite, though its loss is, in a batch of tasks ant, bee, cat.')
    self.assertEqual(float(trainer.train_state.params['edge']), 0)

  @parameterized.parameters(2, 3)
  def test_microbatches(self, number):
    trainer = _trainer('skip', num_microbatches=number)
    error, told = _run(trainer, 1, (NAN, 1), 1)
    self.assertIsNone(error)
    self.assert_state(trainer, 3, -0.14, 5.4)
    self.assertEqual(told, ['The loss of step 2 is not finite in 1 of 6 rows of its batch, of task bee: skipped (1 so far)'])

  def test_a_run_that_only_skips_ends(self):
    trainer = _trainer('skip')
    many = nonfinite.MAX_SKIPPED_IN_A_ROW
    error, told = _run(trainer, 1, *[NAN] * (many - 1), 1, *[NAN] * many)
    self.assertLen(told, 2 * (many - 1))
    self.assertStartsWith(error, f'The loss of step {2 * many + 1} is not finite')
    self.assertIn(f'as those of the {many - 1} steps before it', error)
    np.testing.assert_allclose(trainer.train_state.params['w'], -0.14, rtol=1e-6)

  def test_averages_leave_skipped_steps_out(self):
    with tempfile.TemporaryDirectory() as folder, _trainer('skip', summary_dir=folder) as trainer:
      trainer.nonfinite.tell = lambda line: None
      summary = trainer.train(_batches(1, NAN, 1), 3).result()
      # 6 rows of w^2 / 2, of w = 1 and w = 0.4.
      np.testing.assert_allclose(summary['loss'].value, (3 + 0.48) / 2, rtol=1e-6)
      self.assertEqual((summary['seqs'].value, summary['nonfinite_steps'].value), (12, 1))
      summary = trainer.train(_batches(NAN), 1).result()
      self.assertTrue(np.isnan(summary['loss'].value))
      summary = trainer.train(_batches(1), 1).result()
      self.assertEqual(set(summary), {'loss', 'seqs', 'learning_rate', 'learning_rate/current'})


class NamesTest(parameterized.TestCase):

  def _told(self, model, kind, rows, tasks):
    told = []
    report = nonfinite.Report(jnp.int32(kind), jnp.int32(1), jnp.array(rows, bool), jnp.array(tasks, jnp.int32), 'skip')
    model.nonfinite = 'skip'
    nonfinite.Reader(model, told.append).read(7, {nonfinite.KEY: report})
    return told[0].removesuffix(': skipped (1 so far)')

  def test_a_model_without_tasks(self):
    self.assertEqual(self._told(types.SimpleNamespace(), nonfinite.LOSS, [], np.zeros((0, 0))),
                     'The loss of step 7 is not finite, in this batch')

  def test_a_loss_of_no_row(self):
    # As of a penalty on the parameters.
    self.assertEqual(self._told(_Model(), nonfinite.LOSS, [False] * 2, [[2], [2]]),
                     'The loss of step 7 is not finite, in a batch of task cat')

  def test_most_examples_first_and_few_names(self):
    model = types.SimpleNamespace(task_name=lambda number: f't{number}')
    rows = [[0, 1], [1, 2], [3, 4], [5, 6], [9, -1], [8, 8]]
    self.assertEqual(self._told(model, nonfinite.LOSS, [True] * 5 + [False], rows),
                     'The loss of step 7 is not finite in 5 of 6 rows of its batch, of tasks t1, t0, t2, t3, t4 and 3 more')

  def test_routed_batches(self):
    batch = {'task_id': jnp.array([[2, 0, 0], [1, -1, 4]])}
    tasks_of = lambda batch: np.asarray(cpoly_models.CPolyModel.tasks_of(None, batch)).tolist()
    self.assertEqual(tasks_of(batch), [[2, 0, 0], [1, -1, 4]])
    packed = {**batch, 'decoder_segment_ids': jnp.array([[1, 1, 0, 0], [1, 2, 3, 3]])}
    self.assertEqual(tasks_of(packed), [[2, -1, -1], [1, -1, 4]])
    self.assertEqual(tasks_of({**batch, 'routed_task_id': jnp.array([[9], [8]])}), [[9], [8]])
    model = types.SimpleNamespace(task_index=task_index.TaskIndex(NAMES))
    self.assertEqual([cpoly_models.CPolyModel.task_name(model, row) for row in (2, 3)], ['cat', 'row 3'])

  def test_unknown_policy(self):
    with self.assertRaisesRegex(ValueError, "NONFINITE='halt' is not known: write 'stop', 'skip' or 'ignore'"):
      _trainer('halt')


class CostTest(parameterized.TestCase):
  """A T5 whose weights are frozen but for the scales."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()

    class ScalesOnly(optimizers.OptaxWrapper):

      def trainable_mask(self, params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'scale', params)

    def train(policy):
      t5 = small_t5.model()
      t5.nonfinite = policy
      trainer = small_t5.make_trainer(t5, ScalesOnly(optax.adamw(1e-2)))
      trainer.compile_train(small_t5.batches(1)[0])
      losses = []
      trainer.on_step = lambda step, metrics: losses.append(metrics['loss'])
      trainer.train(iter(small_t5.batches(1) * 10), 10)
      trainer.wait_for_steps()
      return [float(loss.total) for loss in losses], trainer

    cls.runs = {policy: train(policy) for policy in ('ignore', 'stop')}

  def test_good_steps_have_the_very_same_losses(self):
    losses = self.runs['ignore'][0]
    self.assertLess(losses[-1], losses[0])
    self.assertEqual(self.runs['stop'][0], losses)

  def test_operations(self):
    flops = {policy: trainer.train_step_compiled.cost_analysis()['flops'] for policy, (_, trainer) in self.runs.items()}
    self.assertLess(flops['stop'], 1.001 * flops['ignore'])

  def test_the_state_may_be_checked(self):
    _, trainer = self.runs['stop']
    self.assertIsNone(nonfinite.spoilt_parameter(trainer.train_state))
    params = jax.tree.map(lambda x: x, trainer.train_state.params)
    params['token_embedder'] = {'embedding': jnp.full_like(params['token_embedder']['embedding'], NAN)}
    self.assertIsNone(nonfinite.spoilt_parameter(trainer.train_state.replace_params(params)))  # It is frozen.
    scale = params['decoder']['decoder_norm']['scale']
    params['decoder'] = {**params['decoder'], 'decoder_norm': {'scale': scale.at[3].set(INF)}}
    self.assertEqual(nonfinite.spoilt_parameter(trainer.train_state.replace_params(params)), 'decoder/decoder_norm/scale')


if __name__ == '__main__':
  absltest.main()
