"""Support for the tests of launch/: runs its scripts where client programs are imitated and nothing else can be reached."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
# What the scripts use of a system; clients of clouds and clusters are not among it, even if this machine has them.
_TOOLS = ('awk', 'basename', 'bash', 'cat', 'curl', 'dirname', 'env', 'gzip', 'mkdir', 'mktemp', 'nohup', 'python3',
          'rm', 'sed', 'sleep', 'tail', 'tar', 'tr')
# Writes its arguments to a file of the folder CALLS, one for each call; then runs its reply.
_IMITATION = '''#!/usr/bin/env bash
number=$(cat "$CALLS/count" 2> /dev/null || echo 0)
echo $((number + 1)) > "$CALLS/count"
printf '%s\\0' {name} "$@" > "$CALLS/$(printf %03d "$number")"
{reply}
'''
# Texts that a shell, gin or a manifest could misread.
HARD_FLAGS = ("--gin.A='a b'", '--gin.B="x"', '--gin.C=\'it\\\'s $HOME `ls` $(ls) ${X} \\ * ? & ; | < > # ~ !\'',
              '--gin.D=$$(HOME)', '--gin.E=', '--gin.F=(1, [2], {"a": None})', '--gin.G=ä€')


class ScriptTestCase(parameterized.TestCase):
  """A test with its own folder and PATH."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.bin, self.records = self.folder / 'bin', self.folder / 'calls'
    self.bin.mkdir()
    self.records.mkdir()
    for tool in _TOOLS:
      real = sys.executable if tool == 'python3' else shutil.which(tool)
      self.assertIsNotNone(real, f'{tool} is needed')
      # A program that starts the real one, not a link to it: what is written here must never reach the system's.
      (self.bin / tool).write_text(f'#!/bin/sh\nexec {shlex.quote(real)} "$@"\n', encoding='utf-8')
      (self.bin / tool).chmod(0o755)

  def imitate(self, name: str, reply: str = '', folder: pathlib.Path | None = None) -> pathlib.Path:
    """Writes a program that records its arguments, then runs the lines of bash `reply`."""
    path = (folder or self.bin) / name
    self.assertTrue(path.is_relative_to(self.folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(_IMITATION.format(name=name, reply=reply), encoding='utf-8')
    path.chmod(0o755)
    return path

  def script(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs launch/<name> with these arguments and variables."""
    return self.bash([LAUNCH / name, *arguments], **variables)

  def bash(self, arguments, **variables: str) -> subprocess.CompletedProcess:
    """Runs bash with these arguments, and no variables but the given ones."""
    environment = {'PATH': str(self.bin), 'HOME': str(self.folder), 'CALLS': str(self.records), 'TMPDIR': str(self.folder),
                   'LC_ALL': 'C.UTF-8', **variables}
    return subprocess.run(['bash', *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=self.folder,
                          stdin=subprocess.DEVNULL, timeout=60, check=False)

  def succeeds(self, name: str, *arguments: str, **variables: str) -> str:
    """Runs a script that must succeed and be silent on stderr; returns what it printed."""
    process = self.script(name, *arguments, **variables)
    self.assertEqual((process.returncode, process.stderr), (0, ''), process.stdout)
    return process.stdout

  def fails(self, name: str, *arguments: str, **variables: str) -> str:
    """Runs a script that must fail; returns its only line of stderr."""
    process = self.script(name, *arguments, **variables)
    self.assertNotEqual(process.returncode, 0, process.stdout)
    self.assertRegex(process.stderr, r'\Aerror: [^\n]+\n\Z')
    return process.stderr

  def calls(self) -> list[list[str]]:
    """Returns the calls of imitated programs, in order: name and arguments."""
    files = sorted(path for path in self.records.iterdir() if path.name != 'count')
    return [file.read_text(encoding='utf-8').split('\0')[:-1] for file in files]


def commands(printed: str) -> list[list[str]]:
  """Returns the words of each line that a dry run printed."""
  return [shlex.split(line) for line in printed.splitlines()]


def option(words: list[str], name: str) -> str:
  """Returns the value of the only `--name=value` among words."""
  value, = (word.partition('=')[2] for word in words if word.startswith(f'--{name}='))
  return value


def script_settings(name: str) -> set[str]:
  """Returns the names of settings in the usage text of a script."""
  usage = re.match(r'#!.*\n((?:#.*\n)*)', (LAUNCH / name).read_text(encoding='utf-8'))[1]
  return set(re.findall(r'\b[A-Z][A-Z_]{3,}\b', usage))


def program(name: str) -> str | None:
  """Returns the path of a linter: of this environment, or of the system."""
  beside = os.path.join(os.path.dirname(sys.executable), name)
  return beside if os.access(beside, os.X_OK) else shutil.which(name)
