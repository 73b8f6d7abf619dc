"""Support for the tests of the guides: a small run where the pages say that one is, and a place beside it to write in."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile

from flax import traverse_util
import jax
import seqio

from cpoly_jax import model_settings
from cpoly_jax import task_index
from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.training.models import CPolyModel
from tests.cpoly_jax.checkpoints import small_runs
from tests.docs import docs_page


@functools.cache
def sample_run() -> pathlib.Path:
  """Returns a folder with a small run of the latent skills where the pages say, and another one to compare with."""
  folder = pathlib.Path(tempfile.mkdtemp())
  index = task_index.from_mixture('latent_skills', 'tasks')
  transformer = network.Transformer(testing.small_config(vocab_size=264, num_encoder_layers=2),
                                    testing.cpoly_adapter(len(index), targets='.*attention/query'))
  model = CPolyModel(transformer, seqio.ByteVocabulary(), seqio.ByteVocabulary(), None, task_index=index)
  params = jax.jit(lambda rng: model.get_initial_variables(rng, small_runs.SHAPES)['params'])(jax.random.PRNGKey(0))
  flat = traverse_util.flatten_dict(jax.device_get(testing.randomized(params)), sep='/')
  for step in (250, 500):
    small_runs.write_native(str(folder / 'outputs/cpoly_tiny'), step, flat)
  model_settings.save(model.checkpoint_metadata(), str(folder / 'outputs/cpoly_tiny'))
  (folder / 'outputs/cpoly_tiny/config.gin').write_text(
      "MIXTURE_OR_TASK_MODULE = 'tasks'\nMIXTURE_OR_TASK_NAME = 'latent_skills'\n"
      "TASK_FEATURE_LENGTHS = {'inputs': 24, 'targets': 28}\n")
  small_runs.write_native(str(folder / 'base'), 0, {name: value for name, value in flat.items() if small_runs.is_base(name)})
  (folder / 'outputs/shared').mkdir()
  for run, score in (('cpoly_tiny', .9), ('shared', .5)):
    results = {'metrics': {name: {'exact_match': score} for name in index.names}}
    (folder / 'outputs' / run / 'results.json').write_text(json.dumps(results))
  (folder / 'tasks').symlink_to(docs_page.ROOT / 'tasks')
  return folder


class InFolderTestCase(docs_page.DocsTestCase):
  """A test beside the small run, in a place where programs write."""

  def setUp(self):
    super().setUp()
    self.addCleanup(os.chdir, os.getcwd())
    here = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for name in ('outputs', 'base', 'tasks'):
      (here / name).symlink_to(sample_run() / name)
    os.chdir(here)

  def run_blocks(self):
    """Runs the Python of the page; returns the names that it gave."""
    names = {}
    for block in self.page.blocks('python'):
      exec(block, names)  # pylint: disable=exec-used
    return names
