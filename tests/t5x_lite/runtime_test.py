"""Tests of runtime: what the entry points leave out of stderr, and what they do not."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

PACKAGE = """
import os
os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n')
os.write(2, b'I0000 00:00:1 2 cudart_stub.cc:31] Could not find cuda drivers on your machine.\\n')
os.write(2, b'a warning of value\\n')
{last}
"""


class QuietImportTest(absltest.TestCase):

  def _stderr(self, last, code):
    """Returns what a process writes that imports a package named tensorflow, whose last line is `last`."""
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / 'tensorflow').mkdir()
    (folder / 'tensorflow' / '__init__.py').write_text(PACKAGE.format(last=last))
    (folder / 'tensorflow' / 'part.py').write_text('VALUE = 1')
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    code = f'from t5x import runtime\nruntime.quiet_environment()\nimport sys\nassert "tensorflow" not in sys.modules\n{code}'
    return subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': path}, capture_output=True,
                          text=True, check=False).stderr

  def test_chatter_of_the_import_is_left_out(self):
    code = 'from tensorflow import part\nassert part.VALUE == 1\nprint("after", file=sys.stderr)'
    self.assertEqual(self._stderr('', code), 'a warning of value\nafter\n')

  def test_an_import_that_fails_is_told_whole(self):
    told = self._stderr('raise ImportError("no such library")', 'import tensorflow')
    self.assertStartsWith(told, 'a warning of value\n')
    self.assertIn('ImportError: no such library', told)


if __name__ == '__main__':
  absltest.main()
