"""The report in a real browser, offline: Chromium shows its headings and has nothing to complain about."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_runs  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from cpoly_jax.analysis import __main__ as command
from tests.tasks import command_case

setUpModule, tearDownModule = testing.quick_compilation()

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_OFFLINE = ('--proxy-server=127.0.0.1:9', '--host-resolver-rules=MAP * ~NOTFOUND', '--disable-background-networking')
TASKS = ('<script>document.title = "run"; console.error("run")</script>', '<img src=x onerror=console.error(1)>',
         '日本語 & "quotes"')


def _open(browser: str, page: pathlib.Path, folder: str) -> tuple[str, list[str]]:
  """Returns the document as the browser has it in the end, and what it wrote to its console."""
  flags = ('--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', f'--user-data-dir={folder}', *_OFFLINE)
  done = subprocess.run([browser, *flags, '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
  return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


class BrowserTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if cls.browser is None:
      raise unittest.SkipTest(f'there is no browser ({", ".join(_NAMES)}): apt-get install chromium')
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())

  def test_a_fault_would_be_seen(self):
    page = pathlib.Path(self.folder) / 'fault.html'
    page.write_text('<!DOCTYPE html><title>x</title><script>console.error("broken")</script>')
    _, console = _open(self.browser, page, self.folder)
    self.assertLen(console, 1)
    self.assertIn('broken', console[0])

  def test_report(self):
    run = sample_runs.write(os.path.join(self.folder, 'run'), TASKS, sample_runs.transformer(len(TASKS), layers=1))
    code, _, errors = command_case.run(command.main, run)
    self.assertEqual((code, errors), (0, ''))
    document, console = _open(self.browser, pathlib.Path(run) / 'analysis' / 'report.html', self.folder)
    self.assertEqual(console, [])
    self.assertEqual(re.findall(r'<title>(.*?)</title>', document), ['What run learned'])
    self.assertEqual(re.findall(r'<h2 id="\w+">(.*?)</h2>', document), [
        'Which tasks use which skills', 'How sharp, sparse and evenly used', 'Which tasks are alike', 'Who borrows from whom',
        'How skills differ', 'Files'])
    self.assertGreater(document.count('<svg'), 4)
    self.assertNotIn('<script', document)


if __name__ == '__main__':
  absltest.main()
