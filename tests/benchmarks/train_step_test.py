"""Tests of what the benchmarks share: that a step is compiled from gin files, trains, and is counted."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks import train_step
from cpoly_jax.t5 import flops


class TrainStepTest(parameterized.TestCase):

  def _step(self, system, tasks=3):
    parts = train_step.configured(['gin_configs/models/t5_1_1/tiny.gin', f'gin_configs/systems/{system}.gin'],
                                  [f'NUM_TASKS = {tasks}', 'RANK = 2'])
    return parts, train_step.compiled(system, parts, train_step.batch_of(2, 8, 4, tasks), tasks)

  @parameterized.parameters('shared', 'full')
  def test_steps_train_and_are_timed(self, system):
    _, step = self._step(system)
    before = jax.tree.map(np.array, step.state.params)
    step.run(2)
    self.assertLen(step.seconds, 2)
    self.assertEqual(int(step.state.step), 2)
    moved = [bool((np.asarray(a) != b).any()) for a, b in zip(jax.tree.leaves(step.state.params), jax.tree.leaves(before))]
    # The embedding of tokens that no example has keeps its value, but all matrices have moved where everything trains.
    self.assertEqual(sum(moved) == len(moved), system == 'full')
    self.assertGreater(sum(moved), 0)

  def test_counts_are_those_of_the_model(self):
    parts, step = self._step('shared')
    by_hand = sum(2 * (d + o) for path, (d, o) in flops.projection_shapes(parts.module.config).items() if 'attention' in path)
    self.assertEqual(step.trainable, by_hand)
    self.assertGreater(step.cost['flops'], 0)

  def test_tasks_are_spread_over_all_rows(self):
    rows = train_step.batch_of(4, 3, 2, num_tasks=100)['task_id'][:, 0]
    np.testing.assert_array_equal(rows, [0, 33, 66, 99])


if __name__ == '__main__':
  absltest.main()
