"""Support for the tests of command lines and of folders of tasks: what a program prints, and a folder to write files in."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import tempfile

from absl.testing import parameterized
import gin


def run(main, *arguments):
  """Returns (exit code, standard output, standard error) of a program, whose `main` takes a list of texts."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main(list(map(str, arguments)))
  return code, out.getvalue(), err.getvalue()


class FolderTestCase(parameterized.TestCase):
  """A test with a folder of its own, and nothing in gin."""

  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def write(self, name, content):
    """Writes text, bytes, or (input, target) pairs as JSON Lines to a file of the folder; returns its path."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
      content = ''.join(json.dumps({'input': a, 'target': b}) + '\n' for a, b in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
