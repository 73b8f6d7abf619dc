"""Tests for adafactor: against the paper's formulas in numpy, and against a golden training run."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from t5x import adafactor
from t5x.adafactor import FactorDim

NONE, BATCH, ROW, COLUMN = FactorDim.NONE, FactorDim.BATCH, FactorDim.ROW, FactorDim.COLUMN


def _state_shapes(definition, shape):
  leaf = definition.create({'w': jnp.ones(shape)}).state.param_states['w']
  return leaf.v_row.shape, leaf.v_col.shape, leaf.v.shape, leaf.m.shape


def _rms(x):
  return np.sqrt(np.mean(np.square(x)))


class FactorRulesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('wide', (200, 300), ((200,), (300,), (1,))),
      ('tall', (300, 200), ((200,), (300,), (1,))),
      ('small', (200, 100), ((1,), (1,), (200, 100))),
      ('vector', (300,), ((1,), (1,), (300,))),
      ('scalar', (), ((1,), (1,), ())),
  )
  def test_heuristic(self, shape, expected):
    self.assertEqual(_state_shapes(adafactor.Adafactor(), shape), (*expected, (1,)))

  @parameterized.named_parameters(
      ('stacked', (BATCH, ROW, COLUMN), ((3, 4), (3, 5), (1,))),
      ('two_rows', (ROW, ROW, COLUMN), ((3, 4), (5,), (1,))),
      ('heads_last', (ROW, COLUMN, COLUMN), ((3,), (4, 5), (1,))),
      ('whole', (NONE, NONE, NONE), ((1,), (1,), (3, 4, 5))),
      ('without', None, ((1,), (1,), (3, 4, 5))),
  )
  def test_factor_map(self, rule, expected):
    definition = adafactor.Adafactor(factor_map=adafactor.HParamMap([('w', rule)]), beta1=0.9)
    self.assertEqual(_state_shapes(definition, (3, 4, 5))[:3], expected)
    self.assertEqual(_state_shapes(definition, (3, 4, 5))[3], (3, 4, 5))

  @parameterized.named_parameters(
      ('layers', ('layers', 'embed', 'mlp'), (BATCH, ROW, COLUMN)),
      ('rows_missing', ('mlp', 'mlp', 'heads'), (NONE, NONE, NONE)),
      ('stacked_scale', ('layers', 'embed'), (BATCH, NONE)),
      ('buckets', ('heads', 'relpos_buckets'), (NONE, NONE)),
  )
  def test_rules_by_axis_name(self, axes, expected):
    definition = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    definition.set_param_axes({'a': {'w': P(*axes)}})
    self.assertEqual(definition.hyper_params.factor_map['a/w'], expected)

  def test_errors_say_what_to_write(self):
    definition = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    with self.assertRaisesRegex(ValueError, "'rank'.*of a/w; add e.g. 'rank': FactorDim.NONE"):
      definition.set_param_axes({'a': {'w': P('embed', 'rank')}})
    with self.assertRaisesRegex(ValueError, r'w \(3, 4, 5\).*logical_factor_rules'):
      adafactor.Adafactor().create({'w': jnp.ones((3, 4, 5))})
    with self.assertRaisesRegex(ValueError, 'each dimension'):
      _state_shapes(
          adafactor.Adafactor(factor_map=adafactor.HParamMap([('w', (ROW, COLUMN))])), (3, 4, 5))
    with self.assertRaisesRegex(ValueError, 'factored=False'):
      adafactor.Adafactor(factored=False, factor_map=adafactor.HParamMap([]))
    with self.assertRaisesRegex(ValueError, 'learning rate'):
      adafactor.Adafactor().create({'w': jnp.ones(3)}).apply_gradient({'w': jnp.ones(3)})

  def test_hparam_map_takes_the_first_hit_anywhere_in_the_name(self):
    values = adafactor.HParamMap([('mlp/wi', 1), ('mlp', 2)])
    self.assertEqual((values['encoder/mlp/wi/kernel'], values['encoder/mlp/wo']), (1, 2))
    with self.assertRaisesRegex(KeyError, 'encoder/attention'):
      values['encoder/attention']


class UpdateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.param = rng.normal(size=(6, 7)).astype(np.float32)
    self.grads = rng.normal(size=(3, 6, 7)).astype(np.float32)

  def _run(self, definition, param=None, grads=None):
    optimizer = definition.create({'w': jnp.asarray(self.param if param is None else param)})
    for grad in self.grads if grads is None else grads:
      optimizer = optimizer.apply_gradient({'w': jnp.asarray(grad)}, learning_rate=0.1)
    return optimizer

  @parameterized.product(factored=[True, False], scaled=[True, False])
  def test_formulas(self, factored, scaled):
    param, row, col, v = self.param.astype(np.float64), 0.0, 0.0, 0.0
    for step, grad in enumerate(self.grads.astype(np.float64)):
      decay = 1 - (step + 1.0) ** -0.8
      squared = grad ** 2 + 1e-30
      if factored:
        row = decay * row + (1 - decay) * squared.mean(1)
        col = decay * col + (1 - decay) * squared.mean(0)
        second = np.outer(row, col) / row.mean()
      else:
        v = second = decay * v + (1 - decay) * squared
      update = grad / np.sqrt(second)
      update /= max(1.0, _rms(update))
      param = param - 0.1 * update * (max(_rms(param), 1e-3) if scaled else 1.0)
    optimizer = self._run(adafactor.Adafactor(
        min_dim_size_to_factor=4, factored=factored, multiply_by_parameter_scale=scaled))
    np.testing.assert_allclose(optimizer.target['w'], param, rtol=1e-5, atol=1e-6)
    self.assertEqual(int(optimizer.state.step), 3)

  def test_batches_are_separate_parameters(self):
    stacked = self._run(
        adafactor.Adafactor(factor_map=adafactor.HParamMap([('w', (BATCH, ROW, COLUMN))])),
        np.stack([self.param, 10 * self.param]), np.stack([self.grads, self.grads[::-1]], 1))
    single = adafactor.Adafactor(min_dim_size_to_factor=4)
    np.testing.assert_allclose(stacked.target['w'][0], self._run(single).target['w'], rtol=1e-5)
    np.testing.assert_allclose(
        stacked.target['w'][1],
        self._run(single, 10 * self.param, self.grads[::-1]).target['w'], rtol=1e-5)

  def test_momentum_and_weight_decay(self):
    plain = adafactor.Adafactor(multiply_by_parameter_scale=False)
    update = self.param - self._run(plain, grads=self.grads[:1]).target['w']
    full = self._run(adafactor.Adafactor(
        multiply_by_parameter_scale=False, beta1=0.9, weight_decay_rate=0.5,
        weight_decay_rate_lr_exponent=2.0), grads=self.grads[:1])
    np.testing.assert_allclose(
        full.target['w'], self.param - 0.1 * update - 0.5 * 0.1 ** 2 * self.param,
        rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(full.state.param_states['w'].m, 0.1 * update, rtol=1e-5, atol=1e-7)

  def test_global_norm_clipping_scales_all_gradients(self):
    # Without scaling of updates, a clipped gradient changes only the moments.
    optimizer = self._run(adafactor.Adafactor(global_norm_clip_threshold=0.5), grads=self.grads[:1])
    clipped = self.grads[0] * 0.5 / np.linalg.norm(self.grads[0])
    np.testing.assert_allclose(optimizer.state.param_states['w'].v, clipped ** 2, rtol=1e-5)

  def test_parameter_scale_has_bounds(self):
    huge = self._run(adafactor.Adafactor(max_parameter_scale=0.5), 100 * self.param, self.grads[:1])
    tiny = self._run(adafactor.Adafactor(epsilon2=0.5), 0 * self.param, self.grads[:1])
    for optimizer, start in ((huge, 100 * self.param), (tiny, 0)):
      self.assertAlmostEqual(_rms(optimizer.target['w'] - start), 0.05, places=4)

  def test_nan_updates_may_be_skipped(self):
    bad = self.grads.copy()
    bad[1, 0, 0] = np.nan
    kept = self._run(adafactor.Adafactor(skip_nan_updates=True), grads=bad[:2])
    before = self._run(adafactor.Adafactor(), grads=bad[:1])
    self.assertTrue(np.isfinite(kept.target['w']).all())
    np.testing.assert_array_equal(kept.target['w'], before.target['w'])
    self.assertTrue(np.isnan(self._run(adafactor.Adafactor(), grads=bad[:2]).target['w']).any())

  def test_dtypes_are_kept(self):
    definition = adafactor.Adafactor(beta1=0.9, dtype_momentum=jnp.bfloat16)
    optimizer = self._run(definition, self.param.astype(jnp.bfloat16))
    self.assertEqual(optimizer.target['w'].dtype, jnp.bfloat16)
    self.assertEqual(optimizer.state.param_states['w'].m.dtype, jnp.bfloat16)
    self.assertEqual(optimizer.state.param_states['w'].v.dtype, jnp.float32)

  def test_axes_follow_parameters_where_shapes_do(self):
    definition = adafactor.Adafactor(beta1=0.9, min_dim_size_to_factor=4)
    axes = {'w': P('embed', 'mlp')}
    state = jax.eval_shape(definition.create, {'w': self.param})
    leaf = definition.derive_logical_axes(state, axes).state.param_states['w']
    self.assertEqual((leaf.v_row, leaf.v_col, leaf.v, leaf.m), (None, None, None, axes['w']))


if __name__ == '__main__':
  absltest.main()
