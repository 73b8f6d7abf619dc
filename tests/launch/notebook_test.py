"""launch/cpoly_colab.ipynb runs top to bottom, in a fresh kernel, on the CPU."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest
import pytest

try:
  import ipykernel  # noqa: F401  (the kernel is started from it)
  import nbclient
  import nbformat
except ImportError as error:
  raise unittest.SkipTest(f'{error.name} is not installed: it is in the extra test') from error

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / 'launch' / 'cpoly_colab.ipynb'


def execute(model_dir, *, steps, evaluations):
  """Returns the executed notebook."""
  environment = {
      'CPOLY_NOTEBOOK_STEPS': str(steps), 'CPOLY_NOTEBOOK_EVALUATIONS': str(evaluations),
      'CPOLY_NOTEBOOK_MODEL_DIR': model_dir, 'JAX_PLATFORMS': 'cpu', 'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
      'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 't5x_lite'), os.environ.get('PYTHONPATH', '')]),
      # Programs that run a few times need not be compiled well.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
  }
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  with mock.patch.dict(os.environ, environment):
    resources = {'metadata': {'path': str(NOTEBOOK.parent)}}  # The working directory.
    nbclient.NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute()
  return notebook


def outputs(notebook, word):
  """Returns the outputs of the only cell of code that contains `word`: texts, and 'image' for an image."""
  cell, = (cell for cell in notebook.cells if cell.cell_type == 'code' and word in cell.source)
  return [out.get('text') or ('image' if 'image/png' in out.data else out.data['text/plain']) for out in cell.outputs]


class NotebookTest(absltest.TestCase):

  def test_file(self):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    self.assertEqual(notebook.nbformat, 4)
    for cell in notebook.cells:
      self.assertFalse(cell.get('outputs'))
      self.assertIsNone(cell.get('execution_count'))

  def test_runs(self):
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(folder, steps=6, evaluations=0)
      with open(os.path.join(folder, 'train', 'metrics.jsonl'), encoding='utf-8') as file:
        self.assertEqual([json.loads(line)['step'] for line in file][-1], 6)
    self.assertEqual(outputs(notebook, 'def accelerator()'), ["'cpu'"])
    self.assertIn('installed already', outputs(notebook, 'pip_install')[0])
    self.assertIn('image', outputs(notebook, 'plt.subplots(1, 2, figsize=(11, 3.5))'))
    self.assertIn('image', outputs(notebook, 'imshow'))
    decoded = ''.join(outputs(notebook, 'Predictor')).splitlines()
    self.assertLen([line for line in decoded if '->' in line], 16)

  @pytest.mark.slow
  def test_learns_and_evaluates(self):
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(folder, steps=300, evaluations=2)
      self.assertTrue(os.path.exists(os.path.join(folder, 'results.json')))
    decoded = ''.join(outputs(notebook, 'Predictor')).splitlines()
    self.assertGreater(sum(line.endswith(' ok') for line in decoded), 4)


if __name__ == '__main__':
  absltest.main()
