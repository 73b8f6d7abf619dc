"""Tests of few-shot copies of tasks: which examples, what else stays, and how they are routed."""

from __future__ import annotations

import functools

from absl.testing import absltest
from absl.testing import parameterized
import seqio

from cpoly_jax.task_index import TaskIndex, from_mixture
from tasks import few_shot
from tasks import latent_skills
from tasks import shots


@functools.cache
def _examples(task, split='train', **kwargs):
  dataset = seqio.get_mixture_or_task(task).get_dataset({'inputs': 24, 'targets': 28}, split, **{'shuffle': False, **kwargs})
  return [(bytes(e['inputs']), bytes(e['targets']), bytes(e['task_id'])) for e in dataset.as_numpy_iterator()]


class ShotsTest(parameterized.TestCase):

  def test_the_examples_are_those_of_few_shot(self):
    everything = _examples('latent_vaku')
    name = shots.mixture('latent_vaku', 5, seed=3)
    self.assertEqual(name, 'latent_vaku_5_shots_3')
    self.assertEqual(_examples(name), few_shot.sample(everything, 5, 3))
    self.assertCountEqual(_examples(name, shuffle=True, seed=1), few_shot.sample(everything, 5, 3))
    self.assertNotEqual(_examples(shots.mixture('latent_vaku', 5, seed=4)), _examples(name))
    self.assertLen(set(_examples(name, num_epochs=2)), 5)
    self.assertLen(_examples(name, num_epochs=2), 10)

  def test_other_splits_are_whole(self):
    self.assertEqual(_examples(shots.mixture('latent_vaku', 5), 'validation'), _examples('latent_vaku', 'validation'))

  def test_more_than_there_are(self):
    number = len(_examples('latent_vaku'))
    source = seqio.get_mixture_or_task(shots.mixture('latent_vaku', 10**6)).source
    self.assertEqual(source.num_input_examples('train'), number)
    self.assertLen(list(source.get_dataset('train', shuffle=False).as_numpy_iterator()), number)

  def test_shards(self):
    source = seqio.get_mixture_or_task(shots.mixture('latent_vaku', 5)).source
    parts = [list(source.get_dataset('train', shuffle=False, shard_info=seqio.ShardInfo(i, 2)).as_numpy_iterator())
             for i in range(2)]
    self.assertEqual([len(part) for part in parts], [3, 2])
    self.assertEqual((source.num_input_examples('train'), source.num_input_examples('validation')), (5, 50))

  def test_a_mixture_routes_as_before(self):
    name = shots.mixture(latent_skills.HELD_OUT, 4, module='tasks')
    self.assertEqual(shots.mixture(latent_skills.HELD_OUT, 4), name)
    tasks = seqio.get_mixture_or_task(name).tasks
    self.assertLen(tasks, 8)
    self.assertEqual(from_mixture(name).names, from_mixture(latent_skills.HELD_OUT).names)
    TaskIndex(from_mixture(latent_skills.HELD_OUT).names).check_covers([task.name for task in tasks])
    mixture = seqio.get_mixture_or_task(latent_skills.HELD_OUT)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    self.assertEqual({t.name.removesuffix('_4_shots_0'): seqio.get_mixture_or_task(name).get_rate(t) for t in tasks}, rates)

  def test_none_is_the_mixture_itself(self):
    self.assertEqual(shots.mixture(latent_skills.HELD_OUT, None), latent_skills.HELD_OUT)

  @parameterized.parameters(0, -1, 2.5)
  def test_wrong_number(self, number):
    with self.assertRaisesRegex(ValueError, 'NUM_SHOTS = .*: write a whole number of 1 or more, or None'):
      shots.mixture(latent_skills.HELD_OUT, number)


if __name__ == '__main__':
  absltest.main()
