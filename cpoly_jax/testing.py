"""Support for the tests: small networks and adapters, quick compilation, and where the optional sample data lies.

Some tests compare with real data and with golden values that are not part of this repository. They look
for a folder named by the variable `CPOLY_SHARED` (default: `shared` beside the checkout) and skip,
saying so, where it is absent.
"""

from __future__ import annotations

import functools
import os
import pathlib
import unittest

SHARED_VARIABLE = 'CPOLY_SHARED'
_DEFAULT = pathlib.Path(__file__).resolve().parents[2] / 'shared'


def shared_data(relative: str = '') -> pathlib.Path:
  """Returns the path of `relative` inside the shared folder's `data`.

  Args:
    relative: a path below `data`, e.g. `golden/network`.

  Returns:
    The existing path.

  Raises:
    unittest.SkipTest: where the folder is absent; the test is then reported as skipped.
  """
  root = pathlib.Path(os.environ.get(SHARED_VARIABLE, _DEFAULT))
  path = root / 'data' / relative
  if not path.exists():
    raise unittest.SkipTest(f'{path} is absent: set {SHARED_VARIABLE} to the folder that has data/{relative}')
  return path


def quick_compilation():
  """Returns `setUpModule` and `tearDownModule` that turn most of XLA's optimizations off.

  For tests whose programs run once or twice and are tiny, so that compiling them well costs more than it gains.
  """
  import jax
  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  return lambda: jax.config.update(name, True), lambda: jax.config.update(name, before)


def small_config(**overrides):
  """Returns a T5Config of 1 + 1 layers, D = 16, 2 heads, vocabulary 32; `overrides` change its fields."""
  from cpoly_jax.t5 import network  # Here: looking for data needs no network.
  sizes = dict(vocab_size=32, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1,
               mlp_activations=('gelu', 'linear'), dropout_rate=0.)
  return network.T5Config(**{**sizes, **overrides})


def cpoly_adapter(num_tasks: int, *, router=None, inventory=None, targets: str = '.*', granularity: str = 'projection'):
  """Returns a C-Poly adapter on all projections; `router` and `inventory` are settings of the two."""
  from cpoly_jax import adapters, routing, skills
  return adapters.Adapter(
      router=functools.partial(routing.CPolyRouter, num_tasks=num_tasks, **(router or {})),
      inventory=functools.partial(skills.LoRA, **(inventory or {})), targets=targets, granularity=granularity)


def randomized(params, seed: int = 0, scale: float = 0.3):
  """Returns `params` with every skill and routing leaf moved by normal noise, so that nothing is zero by its start.

  The positions of sparse skills, which are whole numbers and never move, stay.
  """
  import jax
  import numpy as np
  rng = np.random.default_rng(seed)

  def moved(path, leaf):
    names = [getattr(k, 'key', None) for k in path]
    if names[-1] == 'indices' or not {'skills', 'routing'} & set(names):
      return leaf
    return leaf + (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(moved, params)
