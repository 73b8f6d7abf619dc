"""docs/prediction.md: its lines of Python and its commands run on a run of the tasks that it names; its tables are complete."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import pathlib
import re
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from flax import traverse_util
import gin
import jax
import seqio
from t5x import dry_run
from t5x import gin_utils
from t5x import infer as infer_lib

from cpoly_jax import model_settings
from cpoly_jax import predictor as predictor_lib
from cpoly_jax import task_index
from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.training.models import CPolyModel
from tests.cpoly_jax.checkpoints import small_runs
from tests.docs import docs_page

PAGE = docs_page.Page('prediction')
setUpModule, tearDownModule = testing.quick_compilation()


@functools.cache
def _folder():
  """Returns a folder with the file of the page, and a run of all tasks of the latent skills: one that holds all parameters."""
  folder = pathlib.Path(tempfile.mkdtemp())
  block, = PAGE.blocks('json')
  (folder / 'questions.jsonl').write_text(block, encoding='utf-8')
  index = task_index.from_mixture('latent_skills', 'tasks')
  transformer = network.Transformer(testing.small_config(vocab_size=264),
                                    testing.cpoly_adapter(len(index), targets='.*attention/query'))
  model = CPolyModel(transformer, seqio.ByteVocabulary(), seqio.ByteVocabulary(), None, task_index=index)
  params = jax.jit(lambda rng: model.get_initial_variables(rng, small_runs.SHAPES)['params'])(jax.random.PRNGKey(0))
  model_dir = str(folder / 'outputs/cpoly_tiny')
  small_runs.write_native(model_dir, 5, traverse_util.flatten_dict(jax.device_get(params), sep='/'))
  model_settings.save(model.checkpoint_metadata(), model_dir)
  return folder


@functools.wraps(infer_lib.infer)
def _infer(**arguments):
  """What gin configures, once for both ways to run it."""
  return dry_run.tell(infer_lib.infer, arguments) if _infer.dry else infer_lib.infer(**arguments)


_infer.dry = False
_infer.__signature__ = inspect.signature(infer_lib.infer)


class PredictionDocsTest(docs_page.DocsTestCase):

  page = PAGE

  def setUp(self):
    super().setUp()
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(_folder())

  def _infer(self, words, dry=False):
    """Runs `t5x.infer` with the gin flags among the words, in this process; returns what it prints."""
    files = [word.removeprefix('--gin_file=') for word in words if word.startswith('--gin_file=')]
    bindings = [word.removeprefix('--gin_bindings=') for word in gin_utils.rewrite_gin_args(words)
                if word.startswith('--gin_bindings=')]
    out = io.StringIO()
    with mock.patch.object(sys.modules['__main__'], 'infer', _infer, create=True), contextlib.redirect_stdout(out):
      gin_utils.parse_gin_flags([str(docs_page.ROOT)], files, bindings)
      with mock.patch.object(_infer, 'dry', dry):
        gin.get_configurable(_infer)()
    return out.getvalue()

  def test_python(self):
    names = {}
    for block in PAGE.blocks('python'):
      exec(block, names)  # pylint: disable=exec-used
    self.assertEqual(names['scores'].shape, (1, 2))
    self.assertEqual(names['predictor'].compilations, 2)

  def test_commands(self):
    command, dry = PAGE.commands('t5x.infer')
    self.assertEqual(dry[-1], '--dry_run')
    told = self._infer(dry[:-1], dry=True)
    self.assertIn('writes  outputs/answers/questions-predict.jsonl-00000-of-00001', told)
    self.assertFalse(os.path.exists('outputs/answers'))
    gin.clear_config()
    self.assertIn('questions: 2/2 examples', self._infer(command))
    result, = re.findall(r'writes `(outputs/answers/[^`]*)`', PAGE.text)
    lines = [json.loads(line) for line in pathlib.Path(result).read_text(encoding='utf-8').splitlines()]
    self.assertEqual([list(line) for line in lines], [['id', 'task', 'input', 'prediction']] * 2)

  def test_tables_of_options(self):
    for heading, function, defaults in (
        ('Option of `Predictor`', predictor_lib.Predictor, {'lengths': predictor_lib.LENGTHS}),
        ('Option of `predict`', predictor_lib.Predictor.predict, {})):
      options = {name: defaults.get(name, option.default) for name, option in inspect.signature(function).parameters.items()
                 if option.kind is option.KEYWORD_ONLY}
      rows = {row[0]: row[1] for row in PAGE.table(heading)}
      self.assertEqual(rows.keys(), options.keys())
      for name, told in rows.items():
        if options[name] is not None or told == 'None':
          self.assertEqual(told, repr(options[name]), name)

  def test_settings_are_those_of_the_gin_file(self):
    text = (docs_page.ROOT / 'gin_configs/runs/infer_jsonl.gin').read_text(encoding='utf-8')
    macros = dict(re.findall(r'^([A-Z_]+) = (.*)$', text, re.MULTILINE))
    for name in ('MODEL', 'MIXTURE_OR_TASK_NAME', 'INFER_SPLIT'):  # Not for users.
      del macros[name]
    told = {row[0]: row[1] for row in PAGE.table('Setting')}
    required = {'CHECKPOINT_PATH', 'INPUT_FILE', 'INFER_OUTPUT_DIR'}
    self.assertEqual({name for name, default in told.items() if default == 'must be set'}, required)
    self.assertEqual({k: v for k, v in told.items() if k not in required},
                     {k: v for k, v in macros.items() if k not in required})

  def test_macros_exist(self):
    self.assertEqual(PAGE.unknown_macros() - {'JAX_COMPILATION_CACHE_DIR'}, set())


if __name__ == '__main__':
  absltest.main()
