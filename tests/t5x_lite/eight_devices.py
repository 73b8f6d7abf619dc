"""Runs those tests of a file that need eight devices in a process that has them."""

from __future__ import annotations

import os
import subprocess
import sys


def run(test, file, name='EightDevices', **environment):
  """Runs a class of a test file, and fails `test` where a test of it fails or skips, or none is there.

  Args:
    test: the test that calls.
    file: the path of the test file.
    name: the class.
    **environment: more variables of the process.
  """
  result = subprocess.run(
      [sys.executable, file, name], text=True, capture_output=True, check=False,
      env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
           'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), **environment})
  test.assertEqual(result.returncode, 0, result.stderr[-5000:])
  test.assertRegex(result.stderr, r'Ran [1-9]\d* tests')
  test.assertNotIn('skipped', result.stderr)
