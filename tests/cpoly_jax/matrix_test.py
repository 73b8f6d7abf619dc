"""Every system with every kind of skill, in both dtypes, on one projection."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import adapters
from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax import testing
from cpoly_jax.routing import schedules
from cpoly_jax.t5 import layers
from cpoly_jax.training import optimizers

T, B, L, D, O = 3, 4, 3, 12, 8
TASKS = np.array([0, 2, 2, 0], np.int32)
OTHER_TASKS = np.array([1, 0, 1, 2], np.int32)

# All but SHARED and PRIVATE have 8 skills, so that most of what runs outside of jit is compiled once.
_poly = functools.partial(routing.PolyRouter, num_skills=8)
_cpoly = functools.partial(routing.CPolyRouter, num_common=2, num_specific=2)
_counts = functools.partial(routing.CPolyRouter, num_common=4, num_specific=(0, 3, 1))
_token = functools.partial(routing.TokenRouter, num_common=8)
_annealed = routing.Sampling(temperature=schedules.Linear(2., .5, 10), uniform=schedules.Cosine(0., 1., 10), noise='task')
SYSTEMS = {
    'poly': _poly,
    'mhr': functools.partial(_poly, num_heads=2),
    'cpoly_learned': _cpoly,
    'cpoly_fixed': functools.partial(_cpoly, specific='fixed'),
    'cpoly_gumbel': functools.partial(_cpoly, specific='gumbel'),
    'cpoly_counts': _counts,
    'cpoly_counts_fixed': functools.partial(_counts, specific='fixed'),
    'shared': routing.SharedRouter,
    'private': functools.partial(routing.CPolyRouter, num_common=0, specific='fixed'),
    'uniform': functools.partial(routing.UniformRouter, num_skills=8),
    'expert': functools.partial(routing.ExpertRouter, matrix=((1., 0.) * 4, (0., 1.) * 4, (1.,) * 8)),
    'hyper': functools.partial(routing.HyperRouter, num_skills=8, embedding_size=5, hidden_size=6),
    'task_moe': functools.partial(routing.TaskMoERouter, num_skills=8, embedding_size=5),
    'moe_lora': _token,
    'mmoe': functools.partial(_token, per_task=True),
    'cgc': functools.partial(_token, num_common=2, num_specific=2, per_task=True),
}
# Settings of routers that do not concern the skills: with LoRA only.
VARIANTS = {
    'poly_annealed': functools.partial(_poly, sampling=_annealed),
    'poly_hard': functools.partial(_poly, sampling=routing.Sampling(straight_through=True)),
    'moe_lora_top_k': functools.partial(_token, top_k=2),
}
ROUTERS = SYSTEMS | VARIANTS
BY_TOKEN = ('moe_lora', 'mmoe', 'cgc', 'moe_lora_top_k')
LORA = {mixing: functools.partial(skills.LoRA, rank=2, mixing=mixing) for mixing in skills.MIXINGS}
OTHERS = {'sft': functools.partial(skills.SFT, density=.25), 'ia3': skills.IA3, 'dense': skills.Dense}
INVENTORIES = LORA | OTHERS
setUpModule, tearDownModule = testing.quick_compilation()
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def default_mixing(system):
  """The mixing of the system's gin file."""
  return skills.PRODUCTS if system in BY_TOKEN else skills.GROUP_FACTORS if 'cpoly' in system else skills.FACTORS


def refusal(system, inventory):
  """What the error says of a combination that makes no sense, or None."""
  if system in BY_TOKEN and inventory in (skills.FACTORS, skills.GROUP_FACTORS):
    return "for each token: set MIXING = 'products'"
  if system == 'mhr' and inventory == skills.PRODUCTS:
    return "multi-head routing mixes blocks of their factors: set MIXING = 'factors'"
  return None


def _named(system, inventory, **more):
  return dict(testcase_name='_'.join([system, inventory, *more.values()]), system=system, inventory=inventory, **more)


def _accepted():
  """Each system with LoRA as it is mixed there, and with the other kinds of skills."""
  return [(system, default_mixing(system)) for system in ROUTERS] + list(itertools.product(SYSTEMS, OTHERS))


def _packed():
  """The same, and every way to mix LoRA."""
  every = itertools.product(('poly', 'cpoly_learned', 'cpoly_fixed'), LORA)
  return dict.fromkeys([*_accepted(), *every])


def _adapter(system, inventory):
  return adapters.Adapter(functools.partial(ROUTERS[system], num_tasks=T), INVENTORIES[inventory], targets='.*')


def _apply(layer, adapter, params, x, tasks, key=None):
  """The adapted projection: in evaluation, or in training if there is a key."""
  step = jnp.float32(4) if adapter.describe().needs_step else None
  routed = adapters.Routed(tasks, key is None, adapter, step)
  return layer.apply({'params': params}, x, routed, rngs=None if key is None else {'routing': key})


def _inputs(seed=0):
  return np.random.default_rng(seed).normal(size=(B, L, D)).astype(np.float32)


@functools.cache
def _initial(system, inventory):
  """Parameters at the start, and for each of them the name of its first axis."""
  adapter = _adapter(system, inventory)
  step = jnp.float32(0) if adapter.describe().needs_step else None
  variables = layers.Projection(O, ('embed', 'joined_kv')).init(
      jax.random.key(0, impl='rbg'), _inputs(), adapters.Routed(jnp.asarray(TASKS), True, adapter, step))
  axes = flax.traverse_util.flatten_dict(variables['params_axes'])
  return variables['params'], {(*path[:-1], path[-1].removesuffix('_axes')): leaf.names[0] for path, leaf in axes.items()}


class MatrixTest(parameterized.TestCase):

  @parameterized.named_parameters(_named(*pair, dtype=dtype) for pair in _accepted() for dtype in DTYPES)
  def test_trains(self, system, inventory, dtype):
    dtype = DTYPES[dtype]
    adapter = _adapter(system, inventory)
    layer = layers.Projection(O, ('embed', 'joined_kv'), dtype)
    start, first_axes = _initial(system, inventory)
    x = _inputs()

    with self.subTest('starts as the base'):
      base = jnp.asarray(x, dtype) @ start['kernel'].astype(dtype)
      np.testing.assert_array_equal(np.asarray(_apply(layer, adapter, start, x, TASKS), np.float32),
                                    np.asarray(base, np.float32))

    params = testing.randomized(start)
    direction = np.random.default_rng(9).normal(size=(B, L, O)).astype(np.float32)

    def loss(params):
      y = _apply(layer, adapter, params, x, TASKS, key)
      return jnp.sum(y.astype(jnp.float32) * direction), y

    key = jax.random.key(1, impl='rbg')
    grads, y = jax.grad(loss, has_aux=True)(params)

    with self.subTest('shape and dtype'):
      self.assertEqual((y.shape, y.dtype), ((B, L, O), dtype))
      self.assertFalse(np.allclose(np.asarray(y, np.float32), np.asarray(base, np.float32), atol=.05))

    jitted = jax.jit(functools.partial(_apply, layer, adapter))
    with self.subTest('jit equals eager'):
      tolerance = 2e-5 if dtype == jnp.float32 else 8e-2
      np.testing.assert_allclose(np.asarray(jitted(params, x, TASKS, key), np.float32), np.asarray(y, np.float32),
                                 rtol=tolerance, atol=tolerance)

    with self.subTest('one compilation'):
      other = jitted(params, _inputs(1), OTHER_TASKS, jax.random.key(2, impl='rbg'))
      self.assertTrue(np.isfinite(np.asarray(other, np.float32)).all())
      self.assertEqual(jitted._cache_size(), 1)

    with self.subTest('gradients'):
      trainable = optimizers.GroupedAdamW().trainable_mask(params)
      for (path, trains), grad in zip(jax.tree_util.tree_flatten_with_path(trainable)[0], jax.tree.leaves(grads)):
        path = tuple(k.key for k in path)
        grad = np.asarray(grad, np.float32)
        self.assertTrue(np.isfinite(grad).all(), path)
        if path == ('skills', 'indices'):
          self.assertFalse(trains)
          self.assertFalse(grad.any(), path)
        if not trains:
          continue
        self.assertTrue(grad.any(), path)
        if first_axes[path] == 'task':
          # The rows of the batch's tasks learn, and no others.
          self.assertEqual([bool(row.any()) for row in grad], [t in TASKS for t in range(T)], path)

  @parameterized.named_parameters(_named(*pair) for pair in _packed())
  def test_packed_equals_padded(self, system, inventory):
    adapter = _adapter(system, inventory)
    layer = layers.Projection(O, ('embed', 'joined_kv'))
    params = testing.randomized(_initial(system, inventory)[0])
    x, direction = _inputs(), np.random.default_rng(9).normal(size=(B, L, O)).astype(np.float32)
    # Four examples in two rows with room for three each: one and three, of which some tokens are padding.
    segments = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 2, 0, 3, 3, 3]], np.int32)
    tasks = np.array([TASKS[0], 0, 0, *TASKS[1:]], np.int32)
    pack = lambda rows: np.stack([np.concatenate([rows[0], np.full((7, rows.shape[-1]), 1., np.float32)]),
                                  np.concatenate([rows[1], rows[2], np.full((1, rows.shape[-1]), 1., np.float32), rows[3]])])
    unpack = lambda y: jnp.stack([y[0, :3], y[1, :3], y[1, 3:6], y[1, 7:]])
    # The one system whose noise belongs to the task and step, not to the example, is compared in training.
    key = jax.random.key(1, impl='rbg') if system == 'poly_annealed' else None
    step = jnp.float32(4) if adapter.describe().needs_step else None

    def padded(params):
      y = _apply(layer, adapter, params, x, TASKS, key)
      return jnp.sum(y * direction), y

    def packed(params):
      routed = adapters.Routed(tasks, key is None, adapter, step).packed(segments)
      y = unpack(layer.apply({'params': params}, pack(x), routed, rngs=None if key is None else {'routing': key}))
      return jnp.sum(y * direction), y

    (expected, y), (actual, y_packed) = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (padded, packed))
    np.testing.assert_allclose(y_packed, y, rtol=1e-5, atol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(expected)[0], jax.tree.leaves(actual)):
      np.testing.assert_allclose(np.asarray(b, np.float32), np.asarray(a, np.float32), rtol=1e-5, atol=2e-5, err_msg=str(path))

  @parameterized.named_parameters(_named(*pair) for pair in itertools.product(ROUTERS, INVENTORIES) if refusal(*pair))
  def test_is_refused(self, system, inventory):
    with self.assertRaisesRegex(ValueError, refusal(system, inventory)):
      _initial(system, inventory)

  def test_heads_must_divide(self):
    adapter = adapters.Adapter(functools.partial(_poly, num_tasks=T, num_heads=5), skills.LoRA, targets='.*')
    with self.assertRaisesRegex(ValueError, '5 heads do not divide an axis of 12: choose a number of heads'):
      layers.Projection(O, ('embed', 'joined_kv')).init(
          jax.random.key(0, impl='rbg'), _inputs(), adapters.Routed(TASKS, True, adapter))


if __name__ == '__main__':
  absltest.main()
