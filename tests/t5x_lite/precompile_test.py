"""Tests of compiling ahead of time: training finds in the cache what was compiled, and gin may bind either function."""

import collections
import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from flax import traverse_util
import gin
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from t5x import adafactor
from t5x import optimizers
from t5x import precompile as precompile_lib
from t5x import train as train_lib
from t5x import utils

_SHAPES = {name: (8, 12) for name in ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')}
_STEPS = ('jit_train_step', 'jit_eval_step', 'jit_step')


@contextlib.contextmanager
def _cache(folder):
  """Lets jax keep every program in `folder`, or none if it is None."""
  wanted = {'jax_compilation_cache_dir': folder, 'jax_persistent_cache_min_compile_time_secs': 0.}
  before = {name: jax.config.values[name] for name in wanted}
  for values in (wanted, before):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if values is wanted:
      yield


def _programs(folder):
  """{name of a step: its files in the cache}."""
  found = collections.defaultdict(set)
  for path in pathlib.Path(folder).glob('*-cache'):
    found[path.name.rsplit('-', 2)[0]].add(path.name)
  return {name: found[name] for name in _STEPS}


def _precompile(model_dir, run=reversal.train, **overrides):
  """Precompiles what a function of `reversal` would train; returns the programs and what was printed."""
  out = io.StringIO()
  with mock.patch.object(train_lib, 'train', precompile_lib.train), contextlib.redirect_stdout(out):
    return run(model_dir, **overrides), out.getvalue()


@pytest.mark.slow
class CacheTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model_dir, cls.cache = tempfile.mkdtemp(), tempfile.mkdtemp()
    # Two kinds of metrics: predictions and scores.
    data = {'infer_eval_dataset_cfg': reversal.config('validation', name='rev_scored', task_feature_lengths=None)}
    with _cache(cls.cache):
      cls.programs, cls.text = _precompile(cls.model_dir, **data)
      cls.ahead = _programs(cls.cache)
      cls.written = os.listdir(cls.model_dir)
      cls.again, _ = _precompile(cls.model_dir, **data)
      cls.other_seed, _ = _precompile(cls.model_dir, reversal.train_without_evaluation, random_seed=1)
      cls.with_other_seed = _programs(cls.cache)
      with precompile_lib._cache_events() as cls.events:
        cls.step, _ = reversal.train(cls.model_dir, **data)
      cls.trained = _programs(cls.cache)

  def test_tells_what_it_compiled(self):
    names = [program.name for program in self.programs]
    self.assertEqual(names, ['train step', 'training eval step', 'predict_batch', 'score_batch'])
    lines = self.text.splitlines()
    self.assertLen(lines, 4)
    self.assertRegex(lines[0], r'^train step: compiled, now in the cache, [\d.]+ s, [\d.e-]+ GFLOP, [\d.]+ MiB a device$')

  def test_flops_and_bytes_are_those_of_the_step(self):
    train, evaluation = self.programs[:2]
    # Parameters and Adafactor's state in float32 are the least that a step needs; backward costs twice as much as forward.
    shapes = jax.eval_shape(lambda: reversal.model().get_initial_variables(jax.random.PRNGKey(0), _SHAPES))
    self.assertGreater(train.bytes, 4 * sum(x.size for x in jax.tree.leaves(shapes['params'])))
    self.assertBetween(train.flops / evaluation.flops, 2., 4.)

  def test_one_program_for_each_step(self):
    self.assertEqual({name: len(files) for name, files in self.ahead.items()},
                     {'jit_train_step': 1, 'jit_eval_step': 1, 'jit_step': 2})

  def test_the_second_time_all_comes_from_the_cache(self):
    self.assertEqual([program.cached for program in self.programs], [False] * 4)
    self.assertEqual([program.cached for program in self.again], [True] * 4)

  def test_training_compiles_no_step(self):
    self.assertEqual(self.step, 6)
    self.assertEqual(self.trained, self.with_other_seed)
    # The run reads all four from the cache.
    self.assertGreaterEqual(self.events.count(precompile_lib._HIT), 4)

  def test_another_seed_is_another_step(self):
    self.assertEqual([program.cached for program in self.other_seed], [False])
    self.assertLen(self.with_other_seed['jit_train_step'], 2)

  def test_writes_nothing_to_the_model_dir(self):
    self.assertEqual(self.written, [])


class RunTest(absltest.TestCase):

  def test_without_a_cache(self):
    with _cache(None), contextlib.redirect_stdout(io.StringIO()) as out:
      program = precompile_lib._timed('a step', jax.jit(lambda x: x @ x).lower(jnp.ones((2, 2))).compile)
    self.assertIsNone(program.cached)
    self.assertRegex(out.getvalue(), r'^a step: compiled, not cached, [\d.]+ s, 1\.[26]e-08 GFLOP, 0.00 MiB a device\n$')

  def test_says_that_without_a_seed_no_run_finds_the_step(self):
    with mock.patch.object(precompile_lib, '_timed', lambda *_: None), mock.patch.object(
        precompile_lib.multihost, 'set_hardware_rng_ops'):
      _, text = _precompile(tempfile.mkdtemp(), reversal.train_without_evaluation, random_seed=None)
    self.assertStartsWith(text, 'note: without RANDOM_SEED each run has a key of its own')

  def test_an_unknown_task(self):
    with self.assertRaisesRegex(ValueError, "There is no task or mixture 'rev_': did you mean rev"):
      unknown = reversal.config('train', name='rev_')
      _precompile(tempfile.mkdtemp(), reversal.train_without_evaluation, train_dataset_cfg=unknown)

  def test_gin_may_bind_precompile_alone(self):
    self.addCleanup(gin.clear_config)
    gin.configurable(precompile_lib.precompile)
    for name, value in (('model', reversal.model()), ('train_dataset_cfg', reversal.config('train')), ('random_seed', 0),
                        ('partitioner', reversal.partitioner()), ('model_dir', tempfile.mkdtemp())):
      gin.bind_parameter(f'precompile.{name}', value)
    with mock.patch.object(precompile_lib, '_timed', lambda name, compile_fn: name):
      self.assertEqual(precompile_lib.train(), ['train step'])


class FrozenTest(absltest.TestCase):
  """Frozen parameters have in the program the dtype that restoring gives them."""

  def _dtypes(self, checkpoint_cfg):
    trains = lambda path, _: path.startswith('/decoder')
    optimizer = optimizers.MultiOptimizer(((traverse_util.ModelParamTraversal(trains), adafactor.Adafactor()),))
    state = utils.TrainStateInitializer(optimizer, reversal.model().get_initial_variables, _SHAPES, reversal.partitioner())
    params = precompile_lib._restored(state.global_train_state_shape, '', checkpoint_cfg).params
    return {(name.split('/')[0], leaf.dtype.name) for name, leaf in traverse_util.flatten_dict(params, sep='/').items()}

  def test_given_dtype(self):
    cfg = utils.CheckpointConfig(restore=utils.RestoreCheckpointConfig(path='/none/checkpoint_1', dtype='bfloat16'))
    self.assertEqual(self._dtypes(cfg), {('decoder', 'float32'), ('encoder', 'bfloat16'), ('token_embedder', 'bfloat16')})

  def test_from_scratch(self):
    cfg = utils.CheckpointConfig(restore=utils.RestoreCheckpointConfig(path=[], dtype='bfloat16'))
    expected = {(name, 'float32') for name in ('decoder', 'encoder', 'token_embedder')}
    self.assertEqual(self._dtypes(cfg), expected)
    self.assertEqual(self._dtypes(None), expected)

  def test_stored_dtype(self):
    stored = {'target/encoder/encoder_norm/scale': mock.Mock(dtype=jnp.dtype('float16'))}
    with mock.patch.object(precompile_lib, '_frozen_dtype', lambda *_: (None, stored)):
      self.assertContainsSubset({('encoder', 'float16'), ('encoder', 'float32')}, self._dtypes(None))


class CommandTest(absltest.TestCase):

  @pytest.mark.slow
  def test_of_a_training_run_and_of_its_own_gin_file(self):
    here, cache = os.path.dirname(os.path.abspath(__file__)), tempfile.mkdtemp()
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([here, *filter(None, sys.path)]), 'JAX_PLATFORMS': 'cpu',
                   'T5X_COMPILATION_CACHE': cache}

    def run(*arguments):
      return subprocess.run([sys.executable, '-m', 't5x.precompile', *arguments], env=environment, text=True,
                            capture_output=True, check=False)

    vocabulary = ["--gin.VOCABULARY=@seqio.ByteVocabulary()", "--gin_file=t5x/examples/t5/t5_1_1/tiny.gin"]
    task = ["--gin.MIXTURE_OR_TASK_NAME='rev'", "--gin.MIXTURE_OR_TASK_MODULE='reversal'", "--gin.MODEL_DIR='/none'",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 12}", '--gin.BATCH_SIZE=8', '--gin.RANDOM_SEED=0',
            '--gin.USE_CACHED_TASKS=False']
    done = run(*vocabulary, '--gin_file=t5x/configs/runs/precompile.gin', *task, '--gin.DROPOUT_RATE=0.0')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertRegex(done.stdout, 'train step: compiled, now in the cache')
    done = run(*vocabulary, '--gin_file=t5x/configs/runs/pretrain.gin', *task, '--gin.TRAIN_STEPS=5')
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    self.assertRegex(done.stdout, '(?s)train step: .*training eval step: ')
    done = run('--gin_file=none.gin')
    self.assertEqual(done.returncode, 1)
    self.assertStartsWith(done.stderr.strip().splitlines()[-1], 'error: gin file none.gin not found')


if __name__ == '__main__':
  absltest.main()
