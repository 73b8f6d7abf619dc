"""Start-up: process start to first step done, cpoly_tiny, beside google-research/t5x where its path is given.

    python -m benchmarks.startup
    python -m benchmarks.startup --reference_python=/env/bin/python --reference_path=/src/t5x:/src/airio:/src/jestimator

Runs of both alternate; the first of each, which warms the file cache, does not count. Prints medians and their ratio, and with
`--json=FILE` writes them.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

from benchmarks.first_step import REPORT_VARIABLE, START_VARIABLE

_RUNS = flags.DEFINE_integer('runs', 3, 'Runs of each that count.', lower_bound=1)
_REFERENCE_PYTHON = flags.DEFINE_string('reference_python', sys.executable, 'Interpreter of the reference.')
_REFERENCE_PATH = flags.DEFINE_string('reference_path', None, 'PYTHONPATH with google-research/t5x; none: ours alone.')
_JSON = flags.DEFINE_string('json', None, 'File for the figures.')

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def start_once(python: str, path: str | None) -> float:
  """Starts one run and returns the seconds until its first step was done.

  Args:
    python: interpreter.
    path: PYTHONPATH of the provider of t5x, None for what `python` has installed.

  Raises:
    RuntimeError: the run failed; with the end of what it printed.
  """
  with tempfile.TemporaryDirectory() as folder:
    report = pathlib.Path(folder, 'report.json')
    environment = {**os.environ, REPORT_VARIABLE: str(report), START_VARIABLE: repr(time.time())}
    inherited = None if path else os.environ.get('PYTHONPATH')  # Two providers on one path would shadow each other.
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(_ROOT), path, inherited)))
    command = [python, '-m', 't5x.train', '--gin_file=benchmarks/startup.gin', f"--gin.MODEL_DIR='{folder}/run'"]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not report.exists():
      raise RuntimeError(f'{" ".join(command)} failed: {done.stderr[-2000:]}')
    return json.loads(report.read_text())['seconds']


def main(argv) -> None:
  del argv
  contenders = {'ours': (sys.executable, None)}
  if _REFERENCE_PATH.value:
    contenders['google-research/t5x'] = (_REFERENCE_PYTHON.value, _REFERENCE_PATH.value)
  seconds = {name: [] for name in contenders}
  for run in range(_RUNS.value + 1):
    for name, contender in contenders.items():
      value = start_once(*contender)
      if run:
        seconds[name].append(value)
      print(f'run {run} {name}: {value:.2f} s{"" if run else " (not counted)"}', flush=True)
  medians = {name: statistics.median(values) for name, values in seconds.items()}
  result = {'seconds': seconds, 'median_seconds': medians}
  if len(medians) > 1:
    result['ratio'] = medians['ours'] / medians['google-research/t5x']
    print(f'start-up ratio, ours / google-research/t5x: {result["ratio"]:.2f}')
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
