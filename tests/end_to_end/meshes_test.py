"""Every system on every mesh of gin_configs/meshes trains as on one device; a sharded inventory is gathered nowhere."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import re
import sys
import unittest

from absl.testing import absltest
from absl.testing import parameterized
from flax.linen import partitioning as flax_partitioning
import gin
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from cpoly_jax.plan import meshes
from cpoly_jax.skills import mixing
from cpoly_jax.skills import SkillGroup
from cpoly_jax.training import partitioning as cpoly_partitioning
from t5x import gin_utils
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib
from tests.t5x_lite import eight_devices

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEMS = sorted({path.stem for path in (ROOT / 'gin_configs/systems').glob('*.gin')} - {'adapter'})
MESHES = sorted({path.stem for path in (ROOT / 'gin_configs/meshes').glob('*.gin')} - {'mesh'})
SHAPES = {'data': (8, 1), 'fully_sharded': (8, 1), 'model_parallel': (2, 4), 'skill_sharded': (8, 1)}
# One skill cannot be split, and there is none to split.
WITHOUT_INVENTORY = ('lora', 'shared', 'full')
# What a system needs to be built here: without files of other runs, and with numbers of skills that eight divides.
NEEDS = {'expert': ("EXPERT_MATRIX = 'tasks/assets/latent_skills.csv'",), 'lora': ("MIXTURE_OR_TASK_NAME = 'latent_bodu'",),
         'cpoly': ('NUM_COMMON = 8',), 'cgc': ('NUM_COMMON = 8',)}
TINY = ("MODEL_DIR = 'unused'", 'EMB_DIM = 16', 'NUM_HEADS = 4', 'HEAD_DIM = 4', 'MLP_DIM = 32', 'NUM_ENCODER_LAYERS = 1',
        'NUM_DECODER_LAYERS = 1', 'BATCH_SIZE = 8', 'DROPOUT_RATE = 0.1', 'TRAIN_STEPS = 100')
STEPS = 3


def train(model, partitioner, **unused):
  """What the gin files configure as `train`, which looks for it in `__main__`: hands out its model and its partitioner."""
  del unused
  return model, partitioner


@functools.cache
def configured(train_fn):
  """`train` for gin; registered once."""
  return gin.configurable(train_fn)


def _build(system: str, mesh: str, *bindings: str):
  """Returns (model, partitioner) of a gin file of each kind."""
  gin.clear_config()
  entry_point = configured(sys.modules['__main__'].train)
  files = ['gin_configs/cpoly_tiny.gin', f'gin_configs/systems/{system}.gin', f'gin_configs/meshes/{mesh}.gin']
  gin_utils.parse_gin_flags([str(ROOT)], files, [*TINY, *NEEDS.get(system, ()), *bindings])
  return entry_point()


def _batches(tasks: int):
  rng = np.random.default_rng(0)
  for _ in range(STEPS):
    tokens = {name: rng.integers(3, 200, (8, 6)).astype(np.int32)
              for name in ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')}
    tokens['encoder_input_tokens'][0, 3:] = 0
    yield {**tokens, 'decoder_loss_weights': np.ones((8, 6), np.int32),
           'task_id': rng.integers(0, tasks, (8, 1)).astype(np.int32)}


def _variables(model):
  """Returns the shapes of a model's variables."""
  shapes = {name: value.shape for name, value in next(_batches(1)).items()}
  types = {name: jnp.int32 for name in shapes}
  return dict(jax.eval_shape(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes, types)))


@functools.cache
def _reference(system: str):
  """Returns the losses of a system on one device, and random parameters to start from."""
  model, partitioner = _build(system, 'data')
  partitioner._mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ('data', 'model'))
  rng = np.random.default_rng(1)
  # Banks start at zero, which would hide most faults.
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), _variables(model)['params'])
  return _losses(model, partitioner, params), params


def _losses(model, partitioner, params):
  """Returns the losses of a few steps."""
  create = functools.partial(train_state_lib.FlaxOptimTrainState.create, model.optimizer_def)
  variables = _variables(model)
  axes = partitioner.get_mesh_axes(jax.eval_shape(create, variables))
  state = partitioner.move_params_to_devices(create({**variables, 'params': params}), axes)

  def step(state, batch):
    rng = jax.random.fold_in(jax.random.PRNGKey(2), state.step)
    return trainer_lib.train_with_lr(state, batch, jnp.float32(1e-2), rng, model, None)

  compiled = partitioner.partition(step, (axes, P('data')), (axes, None), donate_argnums=(0,))
  losses = []
  for batch in _batches(len(model.task_index.names)):
    state, metrics = compiled(state, partitioner.shard_batch(batch))
    losses.append(float(metrics['loss'].total))
  return losses


def _collectives(text: str):
  """Returns [(kind, elements of the largest result)] of the collectives of a compiled program."""
  found = []
  kinds = 'all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all'
  for result, kind in re.findall(rf'= (.*?) ({kinds})(?:-start)?\(', text):
    sizes = [math.prod(map(int, filter(None, dims.split(',')))) for dims in re.findall(r'\[([\d,]*)\]', result)]
    found.append((kind, max(sizes)))
  return found


@unittest.skipUnless(jax.device_count() == 8 and __name__ == '__main__', 'needs eight devices; InOwnProcess* run it')
class MeshCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    jax.config.update('jax_disable_most_optimizations', True)

  def equals_one_device(self, system, mesh):
    losses, params = _reference(system)
    self.assertTrue(np.isfinite(losses).all())
    self.assertNotEqual(losses[0], losses[1])
    twenty_skills = (system, mesh) == ('expert', 'skill_sharded')
    model, partitioner = _build(system, mesh, *(['NUM_PARTITIONS = 2'] if twenty_skills else []))
    self.assertEqual(partitioner.mesh.devices.shape, (4, 2) if twenty_skills else SHAPES[mesh])
    if mesh == 'skill_sharded' and system in WITHOUT_INVENTORY[:2]:
      with self.assertRaisesRegex(ValueError, r"skills/\w+: dimension 0 \('skill', size 1\).* make it 8"):
        _losses(model, partitioner, params)
      return
    np.testing.assert_allclose(_losses(model, partitioner, params), losses, rtol=1e-5)

  def gathers_no_bank(self, axis, num_partitions):
    """Compares a step with skills over a mesh axis, group_factors of C-Poly, with one device's, and looks at what crosses."""
    rows, length, inputs, outputs, rank, common, own = 16, 4, 32, 48, 4, 8, 128
    partitioner = partitioning.PjitPartitioner(
        num_partitions, logical_axis_rules=cpoly_partitioning.logical_axis_rules(additional_rules=(('skill', axis),)))
    shapes = {'common': ((own, common), ('task', 'skill')), 'specific': ((own, own), ('task', 'skill')),
              'down': ((common + own, inputs, rank), ('skill', 'embed', 'rank')),
              'up': ((common + own, rank, outputs), ('skill', 'rank', 'joined_kv'))}
    specs = {name: flax_partitioning.logical_to_mesh_axes(axes, partitioner.logical_axis_rules)
             for name, (_, axes) in shapes.items()}
    self.assertEqual((specs['down'][0], specs['up'][0]), (axis, axis))

    def loss(params, x, tasks):
      groups = [SkillGroup(params[name][tasks][:, None], start=start) for name, start in (('common', 0), ('specific', common))]
      return jnp.sum(mixing.mix_group_factors(x, groups, params['down'], params['up'])**2)

    step = partitioner.partition(jax.value_and_grad(loss), (specs, P('data'), P('data')), (None, specs))
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, (shape, _) in shapes.items()}
    x, tasks = rng.normal(size=(rows, length, inputs)).astype(np.float32), rng.integers(0, own, rows).astype(np.int32)
    expected, expected_grads = jax.jit(jax.value_and_grad(loss))(params, x, tasks)
    found, grads = step(params, x, tasks)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name, grad in expected_grads.items():
      np.testing.assert_allclose(grads[name], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=name)

    share = (common + own) // partitioner.mesh.shape[axis]
    collectives = _collectives(step.lower(params, x, tasks).compile().as_text())
    # What may cross: mixed factors of all examples, the common skills, which each device reads, a device's share of the bank.
    allowed = rank * outputs * max(rows, common, share)
    self.assertLess(allowed, own * rank * inputs)
    self.assertNotEmpty(collectives)
    self.assertEqual([c for c in collectives if c[1] > allowed], [])


class EightDevices(MeshCase):

  @parameterized.named_parameters(
      ('over_data', ()),
      # As cpoly_jax.plan says for many tasks: each bank over both axes.
      ('over_both', ('NUM_PARTITIONS = 2', f'ADDITIONAL_AXIS_RULES = {meshes.SHARDED_SKILLS}')))
  def test_base_and_skills_split(self, bindings):
    losses, params = _reference('cpoly')
    model, partitioner = _build('cpoly', 'skill_sharded', 'PARAMETER_PARTITIONING_DIMS = 2', *bindings)
    np.testing.assert_allclose(_losses(model, partitioner, params), losses, rtol=1e-5)

  def test_skills_that_do_not_divide(self):
    model, partitioner = _build('cpoly', 'skill_sharded', 'NUM_COMMON = 3')
    create = functools.partial(train_state_lib.FlaxOptimTrainState.create, model.optimizer_def)
    state = jax.eval_shape(create, _variables(model))
    with self.assertRaisesRegex(ValueError, r"\('skill', size (3|19)\) is not divisible by the 8 devices .*make it (8|24)"):
      partitioner.get_mesh_axes(state)

  @parameterized.named_parameters(('over_data', 'data', 1), ('over_model_with_data', 'model', 4))
  def test_no_bank_is_gathered(self, axis, num_partitions):
    self.gathers_no_bank(axis, num_partitions)


class Matrix(MeshCase):

  @parameterized.product(system=SYSTEMS, mesh=MESHES)
  def test_equals_one_device(self, system, mesh):
    self.equals_one_device(system, mesh)

  @parameterized.parameters(
      'NUM_PARTITIONS = 4', 'ICI_MESH_SHAPE = (2, 4)', 'MODEL_PARALLEL_SUBMESH = (2, 2, 1, 1)\nNUM_PARTITIONS = None')
  def test_shapes_written_in_several_ways(self, binding):
    _, partitioner = _build('cpoly', 'model_parallel', *binding.splitlines())
    self.assertEqual(partitioner.mesh.devices.shape, (2, 4))

  @parameterized.named_parameters(('over_model', 'model', 8), ('over_data_with_model', 'data', 2))
  def test_no_bank_is_gathered(self, axis, num_partitions):
    self.gathers_no_bank(axis, num_partitions)

  def test_skills_over_model(self):
    losses, params = _reference('cpoly')
    model, partitioner = _build('cpoly', 'skill_sharded', 'NUM_PARTITIONS = 4', "SKILL_MESH_AXIS = 'model'")
    np.testing.assert_allclose(_losses(model, partitioner, params), losses, rtol=1e-5)


class InOwnProcessTest(absltest.TestCase):

  @unittest.skipIf(__name__ == '__main__', 'this is that process')
  def test_eight_devices(self):
    eight_devices.run(self, __file__)


@pytest.mark.slow
class InOwnProcessMatrixTest(absltest.TestCase):

  @unittest.skipIf(__name__ == '__main__', 'this is that process')
  def test_matrix(self):
    eight_devices.run(self, __file__, 'Matrix')


if __name__ == '__main__':
  os.chdir(ROOT)
  absltest.main()
