"""Dockerfile: what it copies is there, what it installs exists, and its shell does what it says."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess

from absl.testing import absltest
from absl.testing import parameterized

from tests.launch import machines

ROOT = machines.ROOT


def instructions():
  """Returns (instruction, its text) of the Dockerfile, continued lines joined by a space."""
  text = re.sub(r'(?m)^#.*\n', '', (ROOT / 'Dockerfile').read_text(encoding='utf-8')).replace('\\\n', ' ')
  return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def texts(name):
  return [text for instruction, text in instructions() if instruction == name]


def setup_argument(name):
  """Returns the value of an argument of setup.py."""
  for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8'))):
    if isinstance(node, ast.keyword) and node.arg == name:
      return ast.literal_eval(node.value)
  raise KeyError(name)


class DockerfileTest(machines.ScriptTestCase):

  def install(self, accelerator):
    """Runs the RUN instruction that installs, with pip imitated."""
    command, = (text for text in texts('RUN') if 'pip install' in text)
    for name in ('pip', 'chown', 'mkdir'):
      self.imitate(name)
    return self.bash(['-c', command], ACCELERATOR=accelerator)

  @parameterized.parameters('cpu', 'tpu', 'gpu')
  def test_installs(self, accelerator):
    process = self.install(accelerator)
    self.assertEqual((process.returncode, process.stderr), (0, ''))
    pip = self.calls()[0]
    files = [value for flag, value in zip(pip, pip[1:]) if flag in ('-r', '-c')]
    self.assertEqual(files, ['requirements.txt', 'constraints.txt'])
    project = pip[pip.index('-e') + 1]
    self.assertEqual(project, '.' if accelerator == 'cpu' else f'.[{accelerator}]')
    if accelerator != 'cpu':
      self.assertIn(accelerator, setup_argument('extras_require'))

  def test_unknown_accelerator(self):
    process = self.install('npu')
    self.assertEqual((process.returncode, self.calls()), (1, []))
    self.assertEqual(process.stderr, 'ACCELERATOR=npu: write cpu, tpu or gpu\n')

  def test_base(self):
    base, = texts('FROM')
    version = re.fullmatch(r'python:(\d+\.\d+)-slim-\w+', base)
    self.assertIsNotNone(version, base)
    least = setup_argument('python_requires').removeprefix('>=')
    self.assertGreaterEqual(tuple(map(int, version[1].split('.'))), tuple(map(int, least.split('.'))))

  def test_user_is_not_root(self):
    user = texts('USER')[-1]
    self.assertIn(f'--uid {user} ', texts('RUN')[0] + ' ')
    self.assertNotIn(user, ('root', '0'))
    self.assertEqual(instructions()[-3], ('USER', user))

  def test_entry_point(self):
    self.assertEqual(json.loads(texts('ENTRYPOINT')[0]), ['python', '-m', 't5x.train'])
    self.assertEqual(json.loads(texts('CMD')[0]), ['--help'])

  def test_what_it_needs_is_copied(self):
    self.assertEqual(texts('COPY'), ['. .'])
    ignored = [line for line in (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines() if line and line[0] != '#']
    needed = ['requirements.txt', 'constraints.txt', 'setup.py', 'README.md', 'pyproject.toml', 't5x_lite/setup.py',
              't5x_lite/README.md', 't5x_lite/t5x/train.py', 'launch/worker.sh', 'launch/common.sh',
              'gin_configs/cpoly_tiny.gin', 'cpoly_jax/assets/tiny_base', 'tasks/assets']
    for name in needed:
      self.assertTrue((ROOT / name).exists(), name)
      parts = [name, *(name[:i] for i, letter in enumerate(name) if letter == '/')]
      matched = [p for p in ignored for part in parts if fnmatch.fnmatch(part, p) or fnmatch.fnmatch(f'/{part}', p)]
      self.assertEqual(matched, [], name)
    for name in ('.git', '.venv', 'outputs'):
      self.assertIn(name, ignored)

  def test_lint(self):
    hadolint = machines.program('hadolint')
    if hadolint is None:
      self.skipTest('hadolint is not installed: it is in the extra test')
    process = subprocess.run([hadolint, '--no-color', ROOT / 'Dockerfile'], capture_output=True, text=True, check=False)
    self.assertEqual((process.returncode, process.stdout), (0, ''), process.stderr)


if __name__ == '__main__':
  absltest.main()
