"""Tests of groups of skills: what they select from a bank, and how they mix it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.skills import SkillGroup
from tests.cpoly_jax.skills import references
from tests.cpoly_jax.skills import sample_groups as samples

setUpModule, tearDownModule = testing.quick_compilation()


class SelectTest(absltest.TestCase):

  def test_neighbours_from_the_start(self):
    bank = samples.bank(2)
    np.testing.assert_array_equal(SkillGroup(jnp.ones((3, 1, 4)), start=3).select(bank), bank[3:])

  def test_by_id(self):
    bank, ids = samples.bank(2), np.array([[6, 0], [1, 1]])
    np.testing.assert_array_equal(SkillGroup(jnp.ones((2, 1, 2)), ids=jnp.asarray(ids)).select(bank), bank[ids])

  def test_heads(self):
    self.assertEqual(SkillGroup(jnp.ones((2, 3, 4))).heads, 3)
    self.assertEqual(SkillGroup(jnp.ones((2, 3, 4)), per_token=True).heads, 1)


class MixTest(parameterized.TestCase):

  @parameterized.parameters('by_task', 'heads', 'by_id')
  def test_each_axis_of_each_bank_equals_loops(self, kind):
    for shape, axis in (((6,), 1), ((6, 5), 1), ((5, 6), 2), ((5, 6, 3), 2)):
      bank = samples.bank(*shape)
      flat = np.moveaxis(bank, axis, -1).reshape(samples.S, -1, shape[axis - 1])
      for group in samples.GROUPS[kind]():
        mixed = np.moveaxis(np.asarray(group.mix(jnp.asarray(bank), axis)), axis, -1).reshape(samples.B, -1, shape[axis - 1])
        rows = [references.vectors([group], flat[:, i].astype(np.float64), 1)[:, 0] for i in range(flat.shape[1])]
        np.testing.assert_allclose(mixed, np.stack(rows, 1), rtol=1e-5, atol=1e-6)

  @parameterized.parameters(*samples.GROUPS)
  def test_vectors_equal_loops(self, kind):
    bank = samples.bank(6)
    for group in samples.GROUPS[kind]():
      mixed = group.mix_vectors(jnp.asarray(bank))
      self.assertEqual(mixed.shape, (samples.B, samples.L if group.per_token else 1, 6))
      expected = references.vectors([group], bank.astype(np.float64), mixed.shape[1])
      np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)

  def test_the_mix_has_the_dtype_of_the_bank(self):
    (group,) = samples.by_task()[:1]
    self.assertEqual(group.mix(jnp.asarray(samples.bank(4), jnp.bfloat16), 1).dtype, jnp.bfloat16)

  def test_weights_by_token_are_refused(self):
    (group,) = samples.by_token()
    with self.assertRaisesRegex(ValueError, 'weights by token mix outputs, not parameters'):
      group.mix(samples.bank(4), 1)

  def test_heads_must_divide(self):
    (group, _) = samples.by_task(heads=4)
    with self.assertRaisesRegex(ValueError, '4 heads do not divide an axis of 6: choose a number of heads that divides'):
      group.mix(samples.bank(8, 6), 2)


class TreeTest(absltest.TestCase):

  def test_settings_are_static_and_arrays_are_leaves(self):
    group = samples.by_id()[1]
    self.assertLen(jax.tree.leaves(group), 2)
    self.assertEqual(jax.tree.map(lambda a: a, group).start, group.start)
    moved = jax.jit(lambda g: g.select(jnp.arange(7.)))(SkillGroup(jnp.ones((1, 1, 2)), start=4))
    np.testing.assert_array_equal(moved, [4., 5.])


if __name__ == '__main__':
  absltest.main()
