"""Tests of gin_utils: the command line, explained errors, and every gin file of the package."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import jax
import jax.numpy as jnp

import t5x
from t5x import gin_utils

PACKAGE = pathlib.Path(t5x.__file__).parent
RUNS = sorted(p.stem for p in (PACKAGE / 'configs/runs').glob('*.gin'))
MODELS = sorted(f'{p.parent.name}/{p.stem}' for p in (PACKAGE / 'examples/t5').glob('*/*.gin'))

# Width, heads, layers of the encoder and of the decoder, size of a head, width of the MLP.
_SMALL, _BASE = (512, 6, 8, 8, 64, 1024), (768, 12, 12, 12, 64, 2048)
_LARGE, _XL = (1024, 16, 24, 24, 64, 2816), (2048, 32, 24, 24, 64, 5120)
_XXL, _TINY = (4096, 64, 24, 24, 64, 10240), (8, 4, 2, 2, 3, 16)
_T5_1_1 = dict(tiny=_TINY, small=_SMALL, base=_BASE, large=_LARGE, xl=_XL, xxl=_XXL)
SIZES = {
  **{f't5_1_1/{size}': dims for size, dims in _T5_1_1.items()},
  **{f'mt5/{size}': dims for size, dims in _T5_1_1.items()},
  't5_1_0/tiny': _TINY,
  't5_1_0/small': (512, 8, 6, 6, 64, 2048),
  't5_1_0/base': (768, 12, 12, 12, 64, 3072),
  't5_1_0/large': (1024, 16, 24, 24, 64, 4096),
  't5_1_0/3B': (1024, 32, 24, 24, 128, 16384),
  't5_1_0/11B': (1024, 128, 24, 24, 128, 65536),
  'byt5/tiny': _TINY,
  'byt5/small': (1472, 6, 12, 4, 64, 3584),
  'byt5/base': (1536, 12, 18, 6, 64, 3968),
  'byt5/large': (1536, 16, 36, 12, 64, 3840),
  'byt5/xl': (2560, 32, 36, 12, 64, 6720),
  'byt5/xxl': (4672, 64, 36, 12, 64, 12352),
}
VOCAB_SIZES = {'t5_1_0': 32128, 't5_1_1': 32128, 'mt5': 250112, 'byt5': 384}

ENTRY_POINT = """
from t5x import gin_utils

def train(total_steps, model_dir='nowhere'):
  if total_steps > 5:
    raise TypeError('a fault')
  print('trained', total_steps, model_dir)

if __name__ == '__main__':
  gin_utils.run_entry_point(train)
"""


@functools.cache
def _running_module():
  """A stand-in for the `__main__` of a run: gin files import the entry points from there."""
  import seqio  # noqa: F401  TensorFlow cannot be imported once `__main__` is replaced
  from t5x import eval as eval_module
  from t5x import infer
  from t5x import precompile
  from t5x import train

  module = types.ModuleType('__main__')
  module.train, module.evaluate, module.infer = train.train, eval_module.evaluate, infer.infer
  module.precompile = precompile.precompile
  module.create_task_from_tfexample_file = infer.create_task_from_tfexample_file
  return module


class GinTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    self.folder = self.enter_context(tempfile.TemporaryDirectory())

  def parse(self, text='', bindings=(), **kwargs):
    """Parses the text of a gin file, then bindings."""
    path = os.path.join(self.folder, 'test.gin')
    pathlib.Path(path).write_text(text)
    gin_utils.parse_gin_flags([self.folder], [path], bindings, **kwargs)

  def assert_explained(self, pattern, text='', bindings=(), error=ValueError):
    with self.assertRaisesRegex(error, pattern) as raised:
      self.parse(text, bindings)
    self.assertNotIn('\n', str(raised.exception))


class RewriteGinArgsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('--gin_file=x', '--gin_file=x'),
    ('--gin_bindings=x = 1', '--gin_bindings=x = 1'),
    ('gin.x=2', 'gin.x=2'),
    ('-gin.x=2', '-gin.x=2'),
    ('--gin.NAME=1', '--gin_bindings=NAME = 1'),
    ("--gin.NAME='a=b'", "--gin_bindings=NAME = 'a=b'"),
    (
      '--gin.train/utils.DatasetConfig.x=[1, 2]',
      '--gin_bindings=train/utils.DatasetConfig.x = [1, 2]',
    ),
    ('--gin.a.b = 3', '--gin_bindings=a.b  =  3'),
  )
  def test_rewrite(self, arg, expected):
    self.assertEqual(gin_utils.rewrite_gin_args(['x.py', arg]), ['x.py', expected])

  def test_no_value(self):
    message = "must be of the form '--gin.<param>=<value>', got: --gin.foo"
    with self.assertRaisesRegex(ValueError, message):
      gin_utils.rewrite_gin_args(['x.py', '--gin.foo'])


class ParseTest(GinTestCase):
  def test_files_then_bindings(self):
    pathlib.Path(self.folder, 'other.gin').write_text('A = 1\nB = 1\nC = 1')
    self.parse("include 'other.gin'\nB = 2\nC = 2", ['C = 3'])
    self.assertEqual([gin.query_parameter(f'{n}/macro.value') for n in 'ABC'], [1, 2, 3])
    self.assertTrue(gin.config_is_locked())
    self.assertIn('C = 3', gin_utils.get_gin_config_str())

  def test_without_finalizing(self):
    self.parse('A = %gin.REQUIRED', finalize_config=False)
    self.assertFalse(gin.config_is_locked())

  def test_skip_unknown(self):
    self.parse('no.such_thing.x = 1', skip_unknown=True)
    self.assertNotIn('such_thing', gin.config_str())

  def test_own_paths_come_before_the_package(self):
    # A path relative to the search paths only: the package has one of the same name further below.
    pathlib.Path(self.folder, 'finetune.gin').write_text('MINE = 1')
    gin_utils.parse_gin_flags([self.folder], ['finetune.gin'], [])
    self.assertEqual(gin.query_parameter('MINE/macro.value'), 1)

  def test_required(self):
    self.assert_explained(
      r'^A, B must be set: --gin.A=... --gin.B=...$', 'A = %gin.REQUIRED\nB = %gin.REQUIRED'
    )

  def test_macro_set_nowhere(self):
    text = 'MODEL_DIR = 1\nOTHER = %MODEL_DIRS'
    self.assert_explained(
      r'the macro MODEL_DIRS is used but set nowhere: .* or --gin.MODEL_DIRS=...; '
      r'did you mean MODEL_DIR',
      text,
    )

  def test_misspelt_macro_on_the_command_line(self):
    text = 'EVAL_PERIOD = 1\nX = %EVAL_PERIOD'
    self.assert_explained(
      r'no gin file uses the macro EVAL_PERID; did you mean EVAL_PERIOD\?', text, ['EVAL_PERID = 2']
    )

  def test_unused_macro_on_the_command_line_is_only_a_warning(self):
    with self.assertLogs(level='WARNING') as logs:
      self.parse('EVAL_PERIOD = 1\nX = %EVAL_PERIOD', ['COLOUR = 2'])
    self.assertIn('No gin file uses the macro COLOUR', logs.output[0])

  def test_file_not_found(self):
    pathlib.Path(self.folder, 'cpoly_tiny.gin').write_text('')
    message = r'gin file cpoly_tny.gin not found; searched .*; did you mean cpoly_tiny.gin\?'
    with self.assertRaisesRegex(FileNotFoundError, message):
      gin_utils.parse_gin_flags([self.folder], ['cpoly_tny.gin'], [])

  def test_file_of_the_same_name_elsewhere(self):
    with self.assertRaisesRegex(FileNotFoundError, r'did you mean t5x/configs/runs/pretrain.gin\?'):
      gin_utils.parse_gin_flags([self.folder], ['pretrain.gin'], [])

  def test_included_file_not_found(self):
    self.assert_explained(
      r'gin file t5x/configs/runs/pretrian.gin not found \(.*test.gin, line 2\); .*'
      r'did you mean t5x/configs/runs/pretrain.gin',
      "A = 1\ninclude 't5x/configs/runs/pretrian.gin'",
      error=FileNotFoundError,
    )

  def test_module_not_found(self):
    with self.assertRaisesRegex(ModuleNotFoundError, 'no_such_tasks'):
      self.parse('import no_such_tasks')

  @parameterized.parameters(
    ('/tmp/x', r"cannot parse the binding A = /tmp/x; .* --gin.A=\"'/tmp/x'\""),
    ('predict', r"cannot parse the binding A = predict; .* --gin.A=\"'predict'\""),
    ('[1, 2', r'a bracket or a quote is not closed \(EOF in multi-line statement, line 2\)'),
  )
  def test_binding_without_quotes(self, value, pattern):
    self.assert_explained(pattern, '', [f'A = {value}'])

  def test_syntax_error_in_a_file(self):
    self.assert_explained(
      r"binding B = abc \(.*test.gin, line 2\); a text needs quotes: B = 'abc'$",
      'A = 1\nB = abc',
    )


class UnknownNamesTest(GinTestCase):
  FILE = """from __gin__ import dynamic_registration
from t5x import schedules
from t5x.examples.t5 import network
schedules.create_learning_rate_scheduler.warmup_steps = 3
network.T5Config.emb_dim = 4
"""

  def test_the_file_itself_is_right(self):
    self.parse(self.FILE, ['create_learning_rate_scheduler.warmup_steps = 7'])
    schedule = gin.get_configurable('create_learning_rate_scheduler')('linear_warmup')
    self.assertAlmostEqual(float(schedule(1)), 1 / 7, places=6)

  @parameterized.parameters(
    (
      'schedules.create_learning_rate_schedule.x = 1',
      r"t5x.schedules has no 'create_learning_rate_schedule' \(.*line 6\); "
      r'did you mean create_learning_rate_scheduler',
    ),
    (
      'schedule.create_learning_rate_scheduler.x = 1',
      r"'schedule' is not imported \(.*line 6\): add an import of schedule to the file",
    ),
    ('nonsense.x = 1', r"'nonsense' is not imported \(.*\): add an import of nonsense"),
    (
      'network.T5Config.emb_dims = 1',
      r"network.T5Config has no parameter 'emb_dims' \(.*line 6\); did you mean emb_dim",
    ),
    (
      'schedules.create_learning_rate_scheduler.factor = 1',
      r"has no parameter 'factor' \(.*line 6\); did you mean factors",
    ),
  )
  def test_in_a_file(self, line, pattern):
    self.assert_explained(pattern, self.FILE + line)

  @parameterized.parameters(
    (
      'network.T5Confg.emb_dim = 1',
      r"no configurable 'network.T5Confg' \(--gin.network.T5Confg.emb_dim = 1\); "
      r'did you mean T5Config\?',
    ),
    (
      'my_alias.create_learning_rate_scheduler.factors = 1',
      r'did you mean create_learning_rate_scheduler\?',
    ),
    ('T5Config.mlp_dims = 1', r"T5Config has no parameter 'mlp_dims' .*; did you mean mlp_dim"),
    ('A = @T5Confg()', r"no configurable 'T5Confg'.*did you mean T5Config\?"),
  )
  def test_on_the_command_line(self, binding, pattern):
    self.assert_explained(pattern, self.FILE, [binding])


class SummaryTest(GinTestCase):
  def test_writes_the_file_and_the_text(self):
    self.parse('A = 1')
    writer = mock.Mock()
    gin_utils.summarize_gin_config(self.folder, writer, 7)
    text = pathlib.Path(self.folder, 'config.gin').read_text()
    self.assertIn('A = 1', text)
    (step, texts), _ = writer.write_texts.call_args
    self.assertEqual((step, list(texts)), (7, ['config']))
    self.assertIn('A = 1', texts['config'])

  def test_no_writer(self):
    self.parse('A = 2')
    gin_utils.summarize_gin_config(self.folder, None, 0)
    self.assertIn('A = 2', pathlib.Path(self.folder, 'config.gin').read_text())


class GinFunctionsTest(GinTestCase):
  def test_in_a_gin_file(self):
    self.parse(
      """from __gin__ import dynamic_registration
from t5x import gin_utils
from t5x.examples.t5 import network
gin_utils.sum_fn.var1 = 3
gin_utils.sum_fn.var2 = 4
network.T5Config.vocab_size = @gin_utils.sum_fn()
network.T5Config.logits_via_embedding = @gin_utils.bool_fn()
gin_utils.bool_fn.var1 = 1
network.T5Config.mlp_activations = @gin_utils.string_split_fn()
gin_utils.string_split_fn.text = 'gelu,linear'
gin_utils.string_split_fn.separator = ','
"""
    )
    config = gin.get_configurable('T5Config')()
    self.assertEqual(config.vocab_size, 7)
    self.assertIs(config.logits_via_embedding, True)
    self.assertEqual(config.mlp_activations, ['gelu', 'linear'])

  def test_part_of_a_split(self):
    self.assertEqual(gin_utils.string_split_fn('a/b/c', '/', index=-1), 'c')
    self.assertEqual(gin_utils.string_split_fn('a/b/c', '/', maxsplit=1), ['a', 'b/c'])


class ShippedFilesTest(GinTestCase):
  def setUp(self):
    super().setUp()
    # Not mock.patch.dict: it would also take back what the gin files import, registered with gin.
    replacement, original = _running_module(), sys.modules['__main__']
    sys.modules['__main__'] = replacement
    self.addCleanup(sys.modules.__setitem__, '__main__', original)

  def test_nothing_is_missing(self):
    self.assertEqual(set(MODELS), set(SIZES))
    self.assertEqual(
      RUNS,
      ['eval', 'finetune', 'finetune_no_eval', 'infer', 'infer_from_tfexample_file', 'precompile', 'pretrain'],
    )
    for folder in {p.parent for p in PACKAGE.rglob('*.gin')}:
      self.assertTrue((folder / '__init__.py').exists(), f'{folder} needs __init__.py')

  @parameterized.parameters(*SIZES)
  def test_model(self, model):
    gin_utils.parse_gin_flags([], [f't5x/examples/t5/{model}.gin'], ['DROPOUT_RATE = 0.25'])
    config = gin.get_configurable('T5Config')()
    layers = config.num_encoder_layers, config.num_decoder_layers
    dims = config.emb_dim, config.num_heads, *layers, config.head_dim, config.mlp_dim
    self.assertEqual(dims, SIZES[model])
    family, size = model.split('/')
    # The tiny files are one network in all families.
    gated = family != 't5_1_0' or size == 'tiny'
    self.assertEqual(config.mlp_activations, ('gelu', 'linear') if gated else ('relu',))
    self.assertEqual(config.logits_via_embedding, not gated)
    self.assertEqual(config.vocab_size, 32128 if size == 'tiny' else VOCAB_SIZES[family])
    self.assertEqual((config.dtype, config.dropout_rate), ('bfloat16', 0.25))

  @parameterized.parameters(
    ('t5_1_0/small', 60506624),
    ('t5_1_1/small', 76961152),
    ('mt5/small', 300176768),
    ('byt5/small', 299637760),
  )
  def test_number_of_parameters_is_that_of_the_public_model(self, model, expected):
    gin_utils.parse_gin_flags([], [f't5x/examples/t5/{model}.gin'], ['DROPOUT_RATE = 0.0'])
    module = gin.get_configurable('network.Transformer')()
    tokens = jnp.ones((1, 2), jnp.int32)

    def init():
      return module.init(jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False)

    params = jax.eval_shape(init)['params']
    self.assertEqual(sum(x.size for x in jax.tree.leaves(params)), expected)

  @parameterized.parameters(*RUNS)
  def test_run(self, run):
    files = ['t5x/examples/t5/t5_1_1/tiny.gin', f't5x/configs/runs/{run}.gin']
    with self.assertRaisesRegex(ValueError, 'must be set: --gin') as raised:
      gin_utils.parse_gin_flags([], files, [])
    required = str(raised.exception).split(' must be set')[0].split(', ')
    gin.clear_config()
    gin_utils.parse_gin_flags([], files, [f"{name} = 'x'" for name in required])
    entry = {'eval': 'evaluate', 'infer': 'infer', 'precompile': 'precompile'}.get(run.split('_')[0], 'train')
    bound = gin.get_bindings(entry, resolve_references=False)
    self.assertIn('model', bound)
    self.assertIn('partitioner', bound)

  def test_no_evaluation(self):
    files = ['t5x/examples/t5/t5_1_1/tiny.gin', 't5x/configs/runs/finetune_no_eval.gin']
    gin_utils.parse_gin_flags([], files, ['PACKING = False'], finalize_config=False)
    bound = gin.get_bindings('train', resolve_references=False)
    self.assertIsNone(bound['train_eval_dataset_cfg'])
    self.assertIsNone(bound['infer_eval_dataset_cfg'])
    self.assertFalse(gin.query_parameter('PACKING/macro.value'))

  def test_a_forgotten_model_is_named(self):
    values = dict.fromkeys(['INITIAL_CHECKPOINT_PATH', 'MIXTURE_OR_TASK_NAME', 'MODEL_DIR'], "'x'")
    values |= {'TASK_FEATURE_LENGTHS': '{}', 'TRAIN_STEPS': '1'}
    with self.assertRaisesRegex(ValueError, 'the macro MODEL is used but set nowhere'):
      gin_utils.parse_gin_flags(
        [], ['t5x/configs/runs/finetune.gin'], [f'{k} = {v}' for k, v in values.items()]
      )


class CommandLineTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.file = os.path.join(folder, 'entry.py')
    pathlib.Path(self.file).write_text(ENTRY_POINT)

  def _run(self, *args):
    path = [str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(path), 'JAX_PLATFORMS': 'cpu'}
    result = subprocess.run(
      [sys.executable, self.file, *args],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    return result.returncode, result.stdout, result.stderr

  def test_runs(self):
    code, out, err = self._run("--gin.train.model_dir='a=b'", '--gin.train.total_steps=3')
    self.assertEqual((code, out), (0, 'trained 3 a=b\n'), err)

  @parameterized.parameters(
    ((), 'error: nothing to do: give at least one --gin_file=<file>.gin\n'),
    (('--gin_fil=x',), 'error: unknown flag --gin_fil; did you mean --gin_file?\n'),
    (
      ('--gin.train.total_step=3',),
      "error: train has no parameter 'total_step' (--gin.train.total_step = 3); "
      'did you mean total_steps?\n',
    ),
  )
  def test_a_mistake_is_one_line(self, args, message):
    self.assertEqual(self._run(*args), (1, '', message))

  def test_a_fault_shows_its_traceback(self):
    code, _, err = self._run('--gin.train.total_steps=9')
    self.assertEqual(code, 1)
    self.assertIn('Traceback (most recent call last)', err)
    self.assertIn('TypeError: a fault', err)


if __name__ == '__main__':
  absltest.main()
