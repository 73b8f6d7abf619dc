"""C-Poly with `factors` mixing against the equations of its authors' code, written again in NumPy.

For an example of task t, in float64:

    z = sigmoid(W_A[t] + log u - log(1 - u)) in training, sigmoid(W_A[t]) in evaluation;     a = z / (sum z + 1e-12)
    c = W_B[t] as it stands (learned) or row t of the identity (fixed), in training and evaluation
    w = [a ; c]: the weights of A + T skills
    y = x W + alpha/r * (x sum_s w_s down_s) (sum_s w_s up_s): one mix of all skills, so common and specific ones cross

Gradients are compared with central differences of that.
"""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import routing, skills
from cpoly_jax.adapters import Adapter, Routed
from cpoly_jax.t5 import layers

T, A, D, O, R, ALPHA, L = 4, 3, 5, 6, 2, 3., 3
TASKS = np.asarray([2, 0, 3, 0, 0])

DOWN, UP, COMMON, SPECIFIC = 'skills/down', 'skills/up', 'routing/common', 'routing/specific'


def _parameters(specific):
  rng = np.random.default_rng(0)
  parameters = {DOWN: rng.normal(size=(A + T, D, R)), UP: rng.normal(size=(A + T, R, O)), COMMON: rng.normal(size=(T, A))}
  if specific == routing.LEARNED:
    # Off its start: tasks borrow, and a weight may be negative.
    parameters[SPECIFIC] = np.eye(T) + 0.4 * rng.normal(size=(T, T))
  return {name: value.astype(np.float32).astype(np.float64) for name, value in parameters.items()}


def _inputs():
  """Returns kernel, x, cotangent and uniform noise, exact in float32."""
  rng = np.random.default_rng(1)
  shapes = (D, O), (len(TASKS), L, D), (len(TASKS), L, O)
  normals = (rng.normal(size=shape).astype(np.float32).astype(np.float64) for shape in shapes)
  return *normals, rng.uniform(0.02, 0.98, size=(len(TASKS), A))


def _equations(parameters, kernel, x, noise):
  """The output [B, L, o]; `noise` is logistic, [B, A], or None in evaluation."""
  outputs = []
  for i, task in enumerate(TASKS):
    z = 1 / (1 + np.exp(-(parameters[COMMON][task] + (0. if noise is None else noise[i]))))
    own = parameters[SPECIFIC][task] if SPECIFIC in parameters else np.eye(T)[task]
    w = np.concatenate([z / (z.sum() + 1e-12), own])
    down = sum(w[s] * parameters[DOWN][s] for s in range(A + T))
    up = sum(w[s] * parameters[UP][s] for s in range(A + T))
    outputs.append(x[i] @ kernel + ALPHA / R * (x[i] @ down) @ up)
  return np.stack(outputs)


def _central_differences(function, values, step=1e-5):
  """The gradient of a function of one array, float64."""
  gradient = np.zeros_like(values)
  for index in np.ndindex(values.shape):
    moved = {sign: values.copy() for sign in (1, -1)}
    for sign, point in moved.items():
      point[index] += sign * step
    gradient[index] = (function(moved[1]) - function(moved[-1])) / (2 * step)
  return gradient


class CPolyEquationsTest(parameterized.TestCase):

  def _run(self, specific, parameters, kernel, x, cotangent, noise, mixing=skills.FACTORS):
    """Our output, gradients by the parameters and gradient by x."""
    adapter = Adapter(
        router=functools.partial(routing.CPolyRouter, num_tasks=T, num_common=A, num_specific=1, specific=specific),
        inventory=functools.partial(skills.LoRA, rank=R, alpha=ALPHA, mixing=mixing), targets='.*')
    routed = Routed(jnp.asarray(TASKS), noise is None, adapter)
    projection = layers.Projection(O, ('embed', 'joined_kv'))

    def loss(parameters, x):
      params = flax.traverse_util.unflatten_dict({'kernel': jnp.asarray(kernel, jnp.float32), **parameters}, sep='/')
      y = projection.apply({'params': params}, x, routed, rngs={'routing': jax.random.PRNGKey(0)})
      return jnp.sum(y * cotangent), y

    def logistic(key, shape, dtype):
      del key
      return jnp.asarray(noise.reshape(shape), dtype)

    # Only the common skills are sampled, once; in evaluation nothing is.
    with mock.patch.object(jax.random, 'logistic', side_effect=logistic) as drawn:
      float32 = {name: jnp.asarray(value, jnp.float32) for name, value in parameters.items()}
      (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(float32, jnp.asarray(x, jnp.float32))
    self.assertEqual(drawn.call_count, 0 if noise is None else 1)
    return y, *gradients

  @parameterized.product(specific=(routing.LEARNED, routing.FIXED), training=(False, True))
  def test_outputs_and_gradients(self, specific, training):
    parameters = _parameters(specific)
    kernel, x, cotangent, u = _inputs()
    noise = np.log(u) - np.log1p(-u) if training else None
    y, by_parameters, by_x = self._run(specific, parameters, kernel, x, cotangent, noise)
    np.testing.assert_allclose(y, _equations(parameters, kernel, x, noise), rtol=1e-5, atol=1e-5)
    loss = lambda parameters, x: np.sum(_equations(parameters, kernel, x, noise) * cotangent)
    self.assertEqual(set(by_parameters), set(parameters))
    for name, value in parameters.items():
      expected = _central_differences(lambda v, name=name: loss({**parameters, name: v}, x), value)
      self.assertGreater(np.abs(expected).max(), 0.1, name)
      np.testing.assert_allclose(by_parameters[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(by_x, _central_differences(lambda v: loss(parameters, v), x), rtol=1e-5, atol=1e-5)

  def test_a_task_that_is_not_in_the_batch_learns_its_skill_only_where_others_borrow_it(self):
    absent, skill = 1, A + 1
    kernel, x, cotangent, _ = _inputs()
    for specific in (routing.LEARNED, routing.FIXED):
      _, gradients, _ = self._run(specific, _parameters(specific), kernel, x, cotangent, None)
      self.assertEqual(float(jnp.abs(gradients[DOWN][skill]).max()) > 0, specific == routing.LEARNED)
      np.testing.assert_array_equal(gradients[COMMON][absent], np.zeros(A))

  def test_learned_starts_as_fixed_with_a_total_weight_of_two(self):
    router = routing.CPolyRouter(num_tasks=T, num_common=A, num_specific=1, specific=routing.LEARNED)
    tables = router.init(jax.random.PRNGKey(0), jnp.asarray(TASKS), deterministic=True)['params']
    np.testing.assert_array_equal(tables['specific'], np.eye(T))
    self.assertLessEqual(float(jnp.abs(tables['common']).max()), 1e-3)
    groups = router.apply({'params': tables}, jnp.asarray(TASKS), deterministic=True)
    np.testing.assert_allclose(sum(np.asarray(g.weights).sum(-1) for g in groups), np.full((len(TASKS), 1), 2.), rtol=1e-6)

    kernel, x, cotangent, _ = _inputs()
    parameters = _parameters(routing.FIXED)
    start = self._run(routing.LEARNED, {**parameters, SPECIFIC: np.eye(T)}, kernel, x, cotangent, None)
    fixed = self._run(routing.FIXED, parameters, kernel, x, cotangent, None)
    np.testing.assert_allclose(start[0], fixed[0], rtol=1e-5, atol=1e-5)

  @parameterized.parameters(skills.GROUP_FACTORS, skills.PRODUCTS)
  def test_other_mixings_are_other_equations(self, mixing):
    """The common and the specific skills cross in these equations only."""
    parameters = _parameters(routing.LEARNED)
    kernel, x, cotangent, _ = _inputs()
    y, _, _ = self._run(routing.LEARNED, parameters, kernel, x, cotangent, None, mixing)
    self.assertGreater(np.abs(y - _equations(parameters, kernel, x, None)).max(), 0.1)


if __name__ == '__main__':
  absltest.main()
