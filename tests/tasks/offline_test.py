"""No network: importing everything, reading data and `python -m tasks.show` open no connection and look no name up."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

# Ends the process, so that no `except` can hide it. An audit hook sees what any Python code asks of sockets. Binding one is no
# use of the network: a library does so to find out whether there is IPv6.
_REFUSE = """
import os, sys
def refuse(event, args):
  if event in ('socket.connect', 'socket.sendto', 'socket.sendmsg', 'socket.getaddrinfo', 'socket.gethostbyname',
               'socket.gethostbyaddr', 'socket.getnameinfo', 'urllib.Request', 'http.client.connect'):
    os.write(2, f'network: {event} {args[1:]}'.encode())
    os._exit(7)
sys.addaudithook(refuse)
"""

_IMPORTS = """
import importlib, pkgutil
import cpoly_jax, t5x, tasks
from t5x import checkpoints, eval, infer, models, partitioning, train, trainer, utils
for package in (cpoly_jax, tasks):
  for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
    if not module.name.endswith('__main__'):
      try:
        importlib.import_module(module.name)
      except ModuleNotFoundError as e:
        assert e.name.split('.')[0] in ('torch', 'transformers', 'peft', 'matplotlib'), e
"""

_BATCHES = """
from cpoly_jax import task_index
from cpoly_jax.training import features
from tasks import own_data
for name in ('latent_skills', own_data.mixture(sys.argv[1])):
  config = utils.DatasetConfig(mixture_or_task_name=name, task_feature_lengths={'inputs': 24, 'targets': 28}, split='train',
                               batch_size=4, shuffle=True, seed=0, pack=False)
  batches = utils.get_dataset(config, 0, 1, features.converter_for(task_index.from_mixture(name)))
  batch = next(iter(batches))
  assert batch['encoder_input_tokens'].shape == (4, 24), batch
  assert batch['task_id'].shape == (4, 1), batch
print('batches read')
"""

_SHOW = """
import runpy
sys.argv = ['tasks.show', 'latent_skills', '--sample=2', '--n=1']
runpy.run_module('tasks.show', run_name='__main__', alter_sys=True)
"""


def run(script, *arguments):
  """Runs a script in a process of its own; returns the completed process."""
  root = pathlib.Path(__file__).resolve().parents[2]
  path = os.pathsep.join([str(root), *filter(None, sys.path)])
  env = {**os.environ, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'}
  return subprocess.run([sys.executable, '-c', _REFUSE + script, *map(str, arguments)], env=env, cwd=root, capture_output=True,
                        text=True, check=False)


class OfflineTest(absltest.TestCase):

  def test_imports_data_and_show(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    (folder / 'a.tsv').write_text('input\ttarget\n' + ''.join(f'in {i}\tout {i}\n' for i in range(12)))
    done = run(_IMPORTS + _BATCHES + _SHOW, folder)
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertIn('batches read', done.stdout)
    self.assertIn("latent_skills: 16 tasks, lengths of 32 examples of 'train'", done.stdout)

  def test_the_guard_sees_connections_and_names(self):
    for script in ('import socket; socket.create_connection(("127.0.0.1", 9))',
                   'import urllib.request\ntry:\n  urllib.request.urlopen("http://localhost:9")\nexcept Exception: pass',
                   'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))'):
      done = run(script)
      self.assertEqual(done.returncode, 7, done.stderr)
      self.assertStartsWith(done.stderr, 'network: ')


if __name__ == '__main__':
  absltest.main()
