"""What the tests of the provider share: their programs are tiny, so that compiling them is most of the time.

They are compiled without most optimizations, which would cost more than they gain, and the same program only once: many tests
train the same small model.
"""

import gin
import jax
import pytest


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('compiled'))


@pytest.fixture(autouse=True, scope='module')
def quick_compilation(cache_dir):
  wanted = {'jax_disable_most_optimizations': True, 'jax_compilation_cache_dir': cache_dir,
            'jax_persistent_cache_min_compile_time_secs': 0.1}
  before = {name: jax.config.values[name] for name in wanted}
  for name, value in wanted.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True, scope='module')
def nothing_bound_before():
  """A module begins without bindings of another one, of things that may not be registered any more."""
  gin.clear_config()
