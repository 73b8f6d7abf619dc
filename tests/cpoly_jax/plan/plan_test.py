"""Tests of plans: bytes by hand and against arrays that are there, layouts, estimates, devices, mistakes told in one line."""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from cpoly_jax.plan import __main__ as command
from cpoly_jax.plan import devices, memory, meshes, report, roofline, runs, train_step

TINY = 'gin_configs/cpoly_tiny.gin'
SMALL = ['BATCH_SIZE = 8', "BASE_DTYPE = 'bfloat16'"]
# Tiny: D = H * K = 128, F = 256, a vocabulary of 264, 2 + 2 layers with 24 adapted projections; 3 + 16 skills of rank 4.
D, F, V, PROJECTIONS, SKILLS, RANK, TASKS = 128, 256, 264, 24, 19, 4, 16


def _main(*arguments):
  """Returns exit code, stdout and stderr."""
  out, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    try:
      code = command.main(arguments)
    except SystemExit as e:
      code = e.code
  return code, out.getvalue(), errors.getvalue()


class TinyTest(parameterized.TestCase):
  """A run on one device, configured and traced once."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.run_ = cls.enterClassContext(runs.configured([TINY], SMALL))
    partitioner = train_step.on_mesh(cls.run_.partitioner, train_step.make_mesh({'data': 1, 'model': 1}))
    cls.state = train_step.state_of(cls.run_, partitioner)
    cls.logical = train_step.flat(partitioner.get_logical_axes(cls.state.shapes))
    cls.costs = meshes.costs_of(cls.run_, cls.state, cls.logical)

  def test_batch_is_what_the_feature_converter_makes(self):
    self.assertEqual({name: (x.shape, x.dtype) for name, x in self.run_.batch.items()}, {
        'encoder_input_tokens': ((8, 24), jnp.int32), 'decoder_input_tokens': ((8, 28), jnp.int32),
        'decoder_target_tokens': ((8, 28), jnp.int32), 'decoder_loss_weights': ((8, 28), jnp.int32),
        'task_id': ((8, 1), jnp.int32)})

  def test_parameters(self):
    counts = memory.parameter_counts(self.state, meshes.group_of)
    self.assertEqual(counts['skills'], PROJECTIONS * SKILLS * RANK * 2 * D)
    self.assertEqual(counts['routing'], PROJECTIONS * TASKS * SKILLS)
    attention, mlp, norms = 4 * D * D, 3 * D * F, D
    layers = 2 * (attention + mlp + 2 * norms) + 2 * (2 * attention + mlp + 3 * norms)
    self.assertEqual(counts['base'], layers + 2 * V * D + 2 * norms + 2 * 4 * 32)

  def test_state_bytes_by_hand(self):
    counts, held = memory.parameter_counts(self.state, meshes.group_of), memory.state_bytes(self.state)
    trained = counts['skills'] + counts['routing']
    self.assertEqual((held.frozen, held.trainable, held.gradients), (2 * counts['base'], 4 * trained, 4 * trained))
    # AdamW's two moments, and int32 counts of steps: the state's, and each group's in AdamW and in its schedule.
    self.assertEqual(held.optimizer, 8 * trained + 4 * (1 + 2 * 2))
    self.assertEqual(held.kept, held.frozen + held.trainable + held.optimizer)

  def test_checkpoint_bytes(self):
    counts, held = memory.parameter_counts(self.state, meshes.group_of), memory.state_bytes(self.state)
    changes = held.trainable + held.optimizer
    self.assertEqual(memory.checkpoint_bytes(self.state, 'float32'), (changes, changes + 4 * counts['base']))
    self.assertEqual(memory.checkpoint_bytes(self.state, 'bfloat16')[0], changes - held.trainable // 2)

  def test_estimate_splits_the_state(self):
    plain, sharded = (meshes.estimate(self.run_, self.state, self.costs, meshes.Layout(2, 2, dims)) for dims in (1, 2))
    whole = memory.state_bytes(self.state)
    # With dims = 2 kernels and embeddings are split in four, norms over data, and biases of positions [H, 32] over model.
    norms = 2 * (2 * 2 + 2 * 3 + 2) * D
    biases = 2 * 2 * 4 * 32
    self.assertEqual(sharded.state.frozen, (whole.frozen - norms - biases) // 4 + norms // 2 + biases // 2)
    self.assertEqual(plain.state.frozen, (whole.frozen - norms - biases) // 2 + norms + biases // 2)
    self.assertLess(sharded.bytes, plain.bytes)
    self.assertGreater(sharded.work.sent, plain.work.sent)  # Weights are gathered.

  def test_estimate_of_more_devices(self):
    one, four = (meshes.estimate(self.run_, self.state, self.costs, meshes.Layout(d, 1)) for d in (1, 4))
    self.assertAlmostEqual(four.activations * 4, one.activations)
    self.assertEqual(four.work.flops * 4, one.work.flops)
    self.assertEqual((one.work.sent, four.work.sent), (0, 2 * one.state.gradients * 3 / 4))

  def test_legal_layouts(self):
    found = list(meshes.legal(self.run_, self.state, self.logical, 16))
    # 4 heads: model is at most 4; 8 examples: data at most 8. 19 skills cannot be split.
    self.assertEqual({(layout.data, layout.model) for layout in found}, {(8, 2), (4, 4)})
    self.assertEqual({layout.dims for layout in found}, {1, 2})
    self.assertEmpty(list(meshes.legal(self.run_, self.state, self.logical, 64)))
    self.assertNotIn(meshes.SHARDED_SKILLS, {layout.axis_rules for layout in found})

  def test_rank_prefers_what_fits(self):
    slow, quick = (meshes.estimate(self.run_, self.state, self.costs, meshes.Layout(d, 1)) for d in (1, 8))
    chip = devices.device('v5e')
    self.assertEqual(meshes.rank([slow, quick], chip), [quick, slow])
    full = meshes.Estimate(quick.layout, quick.state, 17e9, quick.working, quick.work)
    self.assertEqual(meshes.rank([full, slow], chip), [slow, full])

  def test_kept_activations_shrink_with_microbatches(self):
    parts = runs.dataclasses.replace(self.run_, microbatches=2)
    size = lambda run: sum(math.prod(x.shape) * x.dtype.itemsize for x in meshes.kept_activations(run, self.state))
    self.assertEqual(size(parts) * 2, size(self.run_))

  def test_axes_of_sharded_skills(self):
    specs = meshes.mesh_axes(self.logical, meshes.Layout(2, 2, 2, meshes.SHARDED_SKILLS))
    of = lambda name: specs[f'target/encoder/layers_0/attention/query/{name}']
    self.assertEqual((of('skills/down'), of('skills/up')), (P('data', 'model', None), P('data', None, 'model')))
    self.assertEqual(of('kernel'), P('data', 'model'))


class CompiledTest(absltest.TestCase):
  """The whole command on one device."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.code, cls.text, cls.errors = _main(
        f'--gin_file={TINY}', '--mesh=data=1', '--device=a100', '--gin.BATCH_SIZE=4', '--gin.NUM_ENCODER_LAYERS=1',
        '--gin.NUM_DECODER_LAYERS=1', "--gin.ADAPTER_TARGETS='encoder/.*/query'")

  def test_tells_what_a_device_needs(self):
    self.assertEqual(self.code, 0, self.errors)
    amounts = dict(re.findall(r'^  (\S.*?) {2,}([\d.]+ [kMG]?B)$', self.text, re.MULTILINE))
    # 1 projection: 19 skills and 16 x 19 routing weights; two moments of AdamW and 5 counts.
    trained = SKILLS * RANK * 2 * D + TASKS * SKILLS
    self.assertEqual(amounts['trainable parameters'], report.size(4 * trained))
    self.assertEqual(amounts['optimizer state'], report.size(8 * trained + 20))
    self.assertIn('activations and other temporaries', amounts)
    self.assertIn('fits the 80.00 GB of a100', self.text)

  def test_tells_the_parts_of_the_time(self):
    self.assertRegex(self.text, r'time of a step on a100: at least [\d.e-]+ ms, for memory; compute .*, interconnect 0 ms')
    self.assertIn('40 % of the peak (assumed)', self.text)

  def test_xla_and_hand_agree(self):
    found = re.search(r'FLOPs of a step: ([\d.]+) GFLOP.* by hand ([\d.]+) GFLOP', self.text)
    xla, by_hand = map(float, found.groups())
    self.assertAlmostEqual(xla / by_hand, 1, delta=.15)


class MistakesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('no gin file', ['--mesh=data=1'], 'give the gin file of a training run: --gin_file=gin_configs/cpoly_xxl.gin'),
      ('no mesh', [f'--gin_file={TINY}'], 'give --mesh=data=8,model=8, or --devices=64 to find the best mesh'),
      ('a wrong axis', [f'--gin_file={TINY}', '--mesh=dat=8'], '--mesh=dat=8: write --mesh=data=8,model=8, with numbers'),
      ('an axis twice', [f'--gin_file={TINY}', '--mesh=data=8,data=1'], '--mesh=data=8,data=1: write --mesh=data=8,model=8'),
      ('an empty axis', [f'--gin_file={TINY}', '--mesh=data=0'], '--mesh=data=0: write --mesh=data=8,model=8'),
      ('two meshes', [f'--gin_file={TINY}', '--mesh=data=1', '--devices=4'], '--mesh and --devices exclude each'),
      ('too many', [f'--gin_file={TINY}', '--devices=100000'], '100000 devices: write 1 to 4096'),
      ('an unknown device', [f'--gin_file={TINY}', '--mesh=data=1', '--device=v5'], 'no device is named v5; did you mean v5'),
      ('an impossible share', [f'--gin_file={TINY}', '--mesh=data=1', '--mfu=40'], '--mfu=40.0: write a share of the peak'),
      ('an unknown flag', [f'--gin_file={TINY}', '--mesh=data=1', '--chip=v4'], 'unrecognized arguments: --chip=v4'),
      ('a binding without a value', [f'--gin_file={TINY}', '--gin.BATCH_SIZE'], '--gin.BATCH_SIZE has no value'),
      ('an unknown macro', [f'--gin_file={TINY}', '--mesh=data=1', '--gin.BATCHSIZE=4'],
       'no gin file of this run uses the macro BATCHSIZE; did you mean BATCH_SIZE?'),
      ('an unknown gin file', ['--gin_file=gin_configs/cpoly_tony.gin', '--mesh=data=1'],
       'gin file gin_configs/cpoly_tony.gin not found'),
      ('no training run', ['--gin_file=gin_configs/systems/cpoly.gin', '--mesh=data=1'], 'give'),
      ('an empty batch', [f'--gin_file={TINY}', '--mesh=data=1', '--gin.BATCH_SIZE=0'],
       'BATCH_SIZE = 0: write a whole number above 0'),
      ('a TPU compiler for a GPU', [f'--gin_file={TINY}', '--mesh=data=1', '--device=h100', '--compiler=tpu'],
       '--compiler=tpu compiles for TPUs only'))
  def test_one_line(self, arguments, expected):
    code, out, errors = _main(*arguments)
    self.assertEqual((code, out), (1, ''))
    line = errors.strip().splitlines()[-1]
    self.assertStartsWith(line, 'error: ')
    self.assertIn(expected, line)

  def test_devices(self):
    with self.assertRaisesRegex(ValueError, 'no slice of v5e has 24 chips: write a power of two'):
      devices.topology(devices.device('v5e'), 24)

  def test_too_few_virtual_devices(self):
    with self.assertRaisesRegex(ValueError, r'4096 virtual devices are needed .*device_count=4096 before jax starts'):
      train_step.make_mesh({'data': 64, 'model': 64})


class DevicesTest(parameterized.TestCase):

  @parameterized.parameters(('v5e', 8, 'v5e:2x4'), ('v5e', 64, 'v5e:8x8'), ('v6e', 4, 'v6e:2x2'), ('v4', 4, 'v4:2x2x1'),
                            ('v5p', 32, 'v5p:2x4x4'), ('v4', 64, 'v4:4x4x4'))
  def test_topology(self, name, number, expected):
    self.assertEqual(devices.topology(devices.device(name), number), expected)

  def test_roofline(self):
    chip = devices.Device('x', flops=100., memory=1, bandwidth=10., interconnect=5., source='', topology=0)
    work = roofline.Work(flops=200., moved=30., sent=5.)
    self.assertEqual(work.seconds(chip), {'compute': 2., 'memory': 3., 'interconnect': 1.})
    self.assertEqual(work.least(chip), ('memory', 3.))
    self.assertEqual((work.likely(chip, .5), work.likely(chip, 1.)), (4., 3.))

  @parameterized.parameters((P('data', 'model'), 3 * 2 * 4), (P(None, ('data', 'model')), 6 * 1 * 4), (None, 6 * 8 * 4))
  def test_leaf_bytes(self, spec, expected):
    leaf = jax.ShapeDtypeStruct((6, 8), jnp.float32)
    self.assertEqual(memory.leaf_bytes(leaf, spec, {'data': 2, 'model': 4}), expected)


class OwnProcessTest(absltest.TestCase):
  """What needs several virtual devices."""

  def _run(self, *arguments):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True, check=False)

  @pytest.mark.slow
  def test_state_and_memory_are_those_of_a_step_that_runs(self):
    done = self._run(str(pathlib.Path(__file__).with_name('measured.py')), '2', '2', TINY, 'PARAMETER_PARTITIONING_DIMS=2')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(set(found['state measured'].values()), {found['state planned']})
    self.assertLen(found['state measured'], 4)
    measured = found['state planned'] + found['temporaries measured']
    self.assertAlmostEqual(found['all planned'] / measured, 1, delta=.1)

  @pytest.mark.slow
  def test_the_best_mesh_is_compiled(self):
    done = self._run('-m', 'cpoly_jax.plan', f'--gin_file={TINY}', '--devices=4', '--gin.BATCH_SIZE=8')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    best = re.search(r'best: data=(\d), model=(\d); write --gin.NUM_PARTITIONS=\2', done.stdout)
    self.assertIn(f'compiled     for data={best[1]}, model={best[2]} on 4 virtual CPU devices', done.stdout)
    first = re.search(r'-+\n +(\d+) +(\d+)', done.stdout)
    self.assertEqual(first.groups(), best.groups())
    self.assertRegex(done.stdout, r'all-reduce +\d+ times')

  @pytest.mark.slow
  def test_a_mesh_that_does_not_divide(self):
    done = self._run('-m', 'cpoly_jax.plan', f'--gin_file={TINY}', '--mesh=data=3')
    self.assertEqual((done.returncode, done.stdout), (1, ''))
    self.assertRegex(done.stderr.strip().splitlines()[-1], '^error: Batch size 64 is not divisible by the data axis .* 3 dev')


class FlatTest(absltest.TestCase):

  def test_names_of_the_state_are_those_of_its_dictionary(self):
    tree = {'target': {'a': {'kernel': 1}}, 'state': {'step': 2, 'param_states': None}}
    state = type('State', (), {'state_dict': lambda self: tree})()
    self.assertEqual(train_step.flat(state), traverse_util.flatten_dict(tree, sep='/'))


if __name__ == '__main__':
  absltest.main()
