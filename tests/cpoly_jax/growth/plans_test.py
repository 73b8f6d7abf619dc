"""Tests of plans and of parameters by them, for every system: what stays, bit by bit, and how what is new starts."""

from __future__ import annotations

import functools
import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax import testing
from cpoly_jax.growth import plans
from cpoly_jax.growth import values
from tests.cpoly_jax.growth import sample_systems
from tests.cpoly_jax.growth.sample_systems import describe

setUpModule, tearDownModule = testing.quick_compilation()
QUERY = 'encoder/layers_0/attention/query'
NEW = plans.NEW


@functools.cache
def _added(name):
  return _add(name)


def _add(name, names=('wic', 'wsc'), **settings):
  """Returns a plan and the parameters before and afterwards."""
  description = describe(name)
  matrix = sample_systems.GROWN_MATRIX if name == 'expert' else None
  if name == 'several':
    settings = {'num_specific': {'wic': 2, 'wsc': 0}, **settings}
  plan = plans.add(description, names, matrix=matrix, **settings)
  before = sample_systems.leaves(description)
  return plan, before, _made(plan, before)


def _made(plan, before, **kwargs):
  return {**before, **{path: make() for path, make in values.transform(plan, before, **kwargs).items()}}


class EverySystemTest(parameterized.TestCase):

  @parameterized.parameters(*sample_systems.ROUTERS)
  def test_trained_tasks_weigh_trained_skills_as_before_and_new_ones_with_zero(self, name):
    plan, before, after = _added(name)
    old = sample_systems.weights(plan.before, before, range(3))
    new = sample_systems.weights(plan.after, after, range(3))
    np.testing.assert_array_equal(new[..., :old.shape[-1]].view(np.int32), old.view(np.int32))
    np.testing.assert_array_equal(new[..., old.shape[-1]:], 0.)
    bank = f'{QUERY}/skills/down'
    np.testing.assert_array_equal(after[bank][:old.shape[-1]].view(np.int32), before[bank].view(np.int32))

  @parameterized.parameters(*sample_systems.ROUTERS)
  def test_the_network_afterwards_has_these_shapes(self, name):
    plan, _, after = _added(name)
    shapes = sample_systems.shapes(json.dumps(plan.after))
    self.assertEqual({path: leaf.shape for path, leaf in after.items()}, {path: shapes[path].shape for path in after})
    self.assertEqual(plan.index.names, ('cb', 'copa', 'rte', 'wic', 'wsc'))

  @parameterized.parameters(*sample_systems.ROUTERS)
  def test_added_and_dropped_is_as_before(self, name):
    plan, before, after = _added(name)
    back = plans.drop(plan.after, ['wic', 'wsc'])
    self.assertEqual(back.index.names, sample_systems.TASKS)
    self.assertEqual(sample_systems.weights(back.after, _made(back, after), range(3)).tolist(),
                     sample_systems.weights(plan.before, before, range(3)).tolist())
    for path, value in _made(back, after).items():
      self.assertEqual(value.tobytes(), before[path].tobytes(), path)
    self.assertIsNone(values.borrowed(back, {'table': after[f'{QUERY}/routing/specific']}) if 'specific' in plans.tables(
        back.router) else None)

  @parameterized.parameters(*sample_systems.ROUTERS)
  def test_a_task_is_dropped(self, name):
    description = describe(name)
    before = sample_systems.leaves(description)
    plan = plans.drop(description, ['copa'], keep_skills=True)
    old = sample_systems.weights(description, before, [0, 2])
    new = sample_systems.weights(plan.after, _made(plan, before), [0, 1])
    kept = list(plan.skills)
    np.testing.assert_array_equal(new, old[..., kept])
    gone = sorted(set(range(old.shape[-1])) - set(kept))
    np.testing.assert_array_equal(old[..., gone], 0.)


class StartTest(parameterized.TestCase):

  def test_logits_are_zero(self):
    for name in ('learned', 'poly', 'mhr'):
      _, _, after = _added(name)
      np.testing.assert_array_equal(after[f'{QUERY}/routing/common'][3:], 0.)

  def test_w_b(self):
    _, before, after = _add('learned', num_specific={'wic': 2})
    table, old = after[f'{QUERY}/routing/specific'], before[f'{QUERY}/routing/specific']
    np.testing.assert_array_equal(table[:3], np.concatenate([old, np.zeros((3, 3))], axis=1))
    np.testing.assert_array_equal(table[3:], [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]])
    _, _, after = _add('learned', num_specific=0)
    np.testing.assert_allclose(after[f'{QUERY}/routing/specific'][3:], 1 / 3)
    _, before, after = _add('gumbel')
    table, old = after[f'{QUERY}/routing/specific'], before[f'{QUERY}/routing/specific']
    np.testing.assert_array_equal(table, np.concatenate([
        np.concatenate([old, np.full((3, 2), -1e4)], axis=1), [[-4, -4, -4, 4, -4], [-4, -4, -4, -4, 4]]]))

  def test_embeddings_are_the_mean(self):
    for name in ('hyper', 'task_moe'):
      _, before, after = _added(name)
      np.testing.assert_allclose(after[f'{QUERY}/routing/embedding'][3:],
                                 [before[f'{QUERY}/routing/embedding'].mean(axis=0)] * 2, rtol=1e-6)

  def test_new_skills_change_nothing(self):
    _, _, after = _add('learned')
    up, down = after[f'{QUERY}/skills/up'], after[f'{QUERY}/skills/down']
    np.testing.assert_array_equal(up[5:], 0.)
    self.assertTrue((np.abs(down[5:]) <= 0.25).all())  # 1 / sqrt(16), see skills.lora.
    self.assertGreater(np.abs(down[5:]).max(), 0.125)
    self.assertNotEqual(down[5].tolist(), down[6].tolist())

  def test_the_seed(self):
    plan, before, after = _add('fixed')
    down = f'{QUERY}/skills/down'
    self.assertEqual(_made(plan, before)[down].tobytes(), after[down].tobytes())
    self.assertNotEqual(_made(plan, before, seed=1)[down].tobytes(), after[down].tobytes())


class PlansTest(parameterized.TestCase):

  def test_again_and_again(self):
    plan = plans.add(describe('learned'), ['wic'])
    self.assertEqual((plan.rows, plan.skills), ((0, 1, 2, NEW), (0, 1, 2, 3, 4, NEW)))
    self.assertEqual(plan.router['num_specific'], 1)
    self.assertEqual(plan.own_skills(3), (5,))
    plan = plans.add(plan.after, ['wsc'], num_specific=2)
    self.assertEqual((plan.rows, plan.skills), ((0, 1, 2, 3, NEW), (0, 1, 2, 3, 4, 5, NEW, NEW)))
    self.assertEqual(plan.router['num_specific'], [1, 1, 1, 1, 2])
    self.assertEqual(plan.own_skills(4), (6, 7))
    self.assertTrue(plan.changes)
    self.assertFalse(plans.add(plan.after, []).changes)

  def test_dropped_with_and_without_its_skills(self):
    description = describe('several')  # 0, 3 and 1 skills after 2 common ones.
    plan = plans.drop(description, ['copa'])
    self.assertEqual((plan.rows, plan.skills, plan.lost), ((0, 2), (0, 1, 5), (2, 3, 4)))
    plan = plans.drop(description, ['copa'], keep_skills=True)
    self.assertEqual((plan.skills, plan.router['num_specific']), ((0, 1, 2, 3, 4, 5), [3, 1]))
    plan = plans.drop(description, ['cb', 'copa'], keep_skills=True)
    self.assertEqual((plan.rows, plan.skills, plan.router['num_specific']), ((2,), (0, 1, 2, 3, 4, 5), 4))

  def test_rows_that_no_task_has(self):
    """With NUM_TASKS = 5 for 3 tasks: skills of spare rows, which tasks may borrow, stay with the last task."""
    self.assertEqual(plans.add(describe('learned', 5), ['wic']).skills, (0, 1, 2, 3, 4, 5, 6, NEW))
    self.assertEqual(plans.add(describe('learned', 5), ['wic']).router['num_specific'], [1, 1, 3, 1])
    self.assertEqual(plans.add(describe('fixed', 5), ['wic']).skills, (*range(8), NEW, NEW))
    self.assertEqual(plans.add(describe('poly', 5), ['wic']).rows, (0, 1, 2, NEW))

  def test_who_borrows(self):
    description = describe('learned')
    table = np.array([[1, .1, 0], [0, 1, 0], [.3, -.4, 1]], np.float32)
    found = lambda name: values.borrowed(plans.drop(description, [name]), {'a': 0 * table, 'b': table})
    self.assertEqual(found('copa')[1:], (2, 3))
    self.assertAlmostEqual(found('copa')[0], .4, places=6)
    self.assertIsNone(found('rte'))
    self.assertAlmostEqual(values.borrowed(plans.drop(describe('gumbel'), ['cb']), {'a': table})[0], 1 / (1 + np.exp(-.3)), 6)

  @parameterized.parameters(
      ('learned', ['rte', 'wic'], {}, r'rte has a routing row already \(row 2\): name new tasks only'),
      ('learned', ['wic', 'wic'], {}, 'a new task is named twice'),
      ('learned', ['wic'], {'num_specific': -1}, '-1 skills of new tasks. own: write whole numbers of 0 or more'),
      ('learned', ['wic'], {'num_specific': {'wik': 1}}, 'given for wik, which are no new tasks: .* wic'),
      ('several', ['wic'], {}, 'the trained tasks have 0 to 3 skills of their own each: say how many the new ones get'),
      ('cgc', ['wic'], {'num_specific': 1}, 'TokenRouter gives each task 2 skills of its own, and 1 were asked for'),
      ('private', ['wic'], {'num_specific': 0}, 'without common skills needs at least 1'),
      ('poly', ['wic'], {'num_specific': 1}, 'PolyRouter has no skills of tasks. own: leave out their number, 1'),
      ('poly', ['wic'], {'matrix': ((1.,),)}, 'PolyRouter has no task x skill matrix'),
      ('expert', ['wic'], {}, 'give the task x skill matrix .*--expert_matrix'),
      ('expert', ['wic'], {'matrix': ((1., 1., 1.),) * 4}, 'other skills than they were trained with'))
  def test_refused(self, name, names, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      plans.add(describe(name), names, **settings)

  def test_other_networks_are_refused(self):
    description = describe('learned')
    for changed, message in (({'adapter': None}, 'the checkpoint has no skills'),
                             ({'task_index': None}, 'the checkpoint does not tell its tasks')):
      with self.assertRaisesRegex(ValueError, message):
        plans.add({**description, **changed}, ['wic'])
    description['adapter']['router']['kind'] = 'MyRouter'
    with self.assertRaisesRegex(ValueError, 'MyRouter is no router that tasks can be added to or dropped from: they are CPoly'):
      plans.add(description, ['wic'])
    with self.assertRaisesRegex(ValueError, 'of a system for one task alone'):
      plans.add(describe('shared', single_task=True), ['wic'])
    uniform = describe('gumbel')
    uniform['adapter']['router']['sampling']['uniform'] = 0.1
    with self.assertRaisesRegex(ValueError, 'a uniform share .* name 0 skills'):
      plans.add(uniform, ['wic'])

  def test_nothing_left_and_unknown_names(self):
    with self.assertRaisesRegex(ValueError, 'nothing is left without cb, copa, rte'):
      plans.drop(describe('poly'), sample_systems.TASKS)
    with self.assertRaisesRegex(ValueError, "task 'copy' has no routing row; did you mean 'copa'"):
      plans.drop(describe('poly'), ['copy'])


if __name__ == '__main__':
  absltest.main()
