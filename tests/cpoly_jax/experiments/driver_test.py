"""The driver with a command that only pretends to train: n at a time, failures, stopping, killing and going on."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest
from absl.testing import parameterized

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_experiments  # pylint: disable=g-import-not-at-top
from cpoly_jax.experiments import cpus
from cpoly_jax.experiments import driver
from cpoly_jax.experiments import folders
from cpoly_jax.experiments import progress

HERE = os.path.dirname(os.path.abspath(__file__))
# fake.py SHARED MODEL_DIR NAME: does what the file SHARED/NAME says; notes its start in SHARED/log.
FAKE = """
import json, os, pathlib, signal, sys, time
shared, folder, name = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
def wait(done):
  end = time.monotonic() + 60
  while not done():
    if time.monotonic() > end:
      sys.exit('error: nothing came')
    time.sleep(0.01)
def results(step):
  (folder / 'inference_eval').mkdir(exist_ok=True)
  (folder / 'inference_eval' / 'a-metrics.jsonl').write_text(json.dumps({'step': step, 'exact_match': 0.5}) + '\\n')
  (folder / 'results.json').write_text(json.dumps({'step': step}))
alive = shared / 'alive' / name
alive.parent.mkdir(exist_ok=True)
alive.touch()
threads = os.environ['OMP_NUM_THREADS']
with open(shared / 'log', 'a') as f:
  f.write(json.dumps([name, len(os.listdir(alive.parent)), threads]) + '\\n')
what = (shared / name).read_text() if (shared / name).exists() else 'succeed'
if what == 'fail':
  print('loading')
  print('error: no such thing', file=sys.stderr)
  print('goodbye')
if what == 'wait for release':
  wait((shared / 'release').exists)
if what == 'wait for another':
  wait(lambda: len((shared / 'log').read_text().splitlines()) > 1)
if what == 'wait for a signal':
  signal.signal(signal.SIGTERM, lambda *_: (results(1), os._exit(0)))
  (shared / 'ready').touch()
  wait(lambda: False)
if what != 'fail':
  results(2 if what == 'end early' else 4)
alive.unlink(missing_ok=True)
sys.exit(3 if what == 'fail' else 0)
"""
# As an own process, so that it can be killed.
DRIVER = f"""
import sys
sys.path.insert(0, {HERE!r})
import driver_test
sys.exit(driver_test.drive(*sys.argv[1:4]).code)
"""


def drive(out, shared, text, jobs=1, stream=None, only=lambda run: True):
  """Runs a file's runs with the fake command; returns the outcome."""
  with sample_experiments.without_gin():
    plan = sample_experiments.make_plan(text, str(out))
    fake = str(pathlib.Path(shared, 'fake.py'))
    command = lambda run: [sys.executable, '-S', fake, str(shared), str(run.folder.path), run.name]
    runs = [run for run in plan.runs if only(run)]
    return driver.Driver(plan, runs, jobs, command=command, display=progress.Display(len(runs), stream)).run()


class _Stream(io.StringIO):
  """Calls a function when a text is written that has some words in it."""

  def __init__(self, words='', call=None):
    super().__init__()
    self._words, self._call = words, call

  def write(self, text):
    if self._call and self._words in text:
      self._call()
    return super().write(text)


class DriverTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.shared = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.out = self.shared / 'out'
    (self.shared / 'fake.py').write_text(FAKE)

  def _starts(self):
    return [json.loads(line) for line in (self.shared / 'log').read_text().splitlines()]

  def _say(self, name, what):
    (self.shared / name).write_text(what)

  def _kill_driver(self, when):
    """Starts a driver, kills it with SIGKILL when a file is there, and returns when it is gone."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, '-c', DRIVER, str(self.out), str(self.shared), sample_experiments.TWO],
                               env=environment, stderr=subprocess.PIPE, text=True)
    with process:
      for line in process.stderr:
        if when in line:
          break
      process.kill()
      process.stderr.read()

  def test_all_are_done_once(self):
    stream = _Stream()
    outcome = drive(self.out, self.shared, sample_experiments.TWO, stream=stream)
    names = ['cpoly seed=0', 'cpoly seed=1', 'poly seed=0', 'poly seed=1']
    self.assertEqual((outcome.done, outcome.code), (names, 0))
    self.assertEqual([name for name, *_ in self._starts()], names)
    self.assertRegex(stream.getvalue(), r'\[4/4\] poly seed=1: done in \d+:\d\d, score 0.500; ETA 0:00')
    noted = json.loads(next(self.out.glob('runs/poly_seed=1-*/experiment.json')).read_text())
    self.assertEqual((noted['state'], noted['exit_code'], noted['jobs']), ('done', 0, 1))
    again = drive(self.out, self.shared, sample_experiments.TWO)
    self.assertEqual(sorted(again.done), sorted(names))
    self.assertLen(self._starts(), 4)

  def test_other_settings_run_in_other_folders(self):
    drive(self.out, self.shared, sample_experiments.TWO)
    drive(self.out, self.shared, sample_experiments.TWO.replace('TRAIN_STEPS = 4', 'TRAIN_STEPS = 3'))
    self.assertLen(list(self.out.glob('runs/*')), 8)

  def test_two_at_a_time(self):
    for name in ('cpoly seed=0', 'cpoly seed=1'):
      self._say(name, 'wait for another')
    self.assertEqual(drive(self.out, self.shared, sample_experiments.TWO, jobs=2).code, 0)
    self.assertEqual(max(alive for _, alive, _ in self._starts()), 2)
    threads = {int(threads) for *_, threads in self._starts()}
    self.assertLessEqual(max(threads), max(1, (len(cpus.usable()) + 1) // 2))

  def test_failing_run(self):
    self._say('cpoly seed=1', 'fail')
    stream = _Stream()
    outcome = drive(self.out, self.shared, sample_experiments.TWO, stream=stream)
    self.assertEqual((outcome.done, outcome.code), (['cpoly seed=0', 'poly seed=0', 'poly seed=1'], 1))
    line, = [line for line in stream.getvalue().splitlines() if 'failed' in line]
    self.assertRegex(line, r'^\[2/4\] cpoly seed=1: failed: exit code 3: error: no such thing; log: .*experiment\.log$')
    log = pathlib.Path(line.rpartition('log: ')[2])
    self.assertEqual(log.read_text().splitlines(), ['loading', 'error: no such thing', 'goodbye'])
    self._say('cpoly seed=1', 'succeed')
    self.assertEqual(drive(self.out, self.shared, sample_experiments.TWO).code, 0)
    self.assertEqual([name for name, *_ in self._starts()].count('cpoly seed=1'), 2)
    self.assertLen(self._starts(), 5)

  def test_command_that_is_not_there(self):
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(sample_experiments.TWO, str(self.out))
      outcome = driver.Driver(plan, plan.runs, 1, command=lambda run: ['/no/such/program']).run()
    self.assertLen(outcome.failed, 4)
    self.assertIn('/no/such/program', outcome.failed['poly seed=0'])

  def test_run_that_ends_early_is_not_done(self):
    self._say('poly seed=0', 'end early')
    outcome = drive(self.out, self.shared, sample_experiments.TWO)
    self.assertStartsWith(outcome.failed['poly seed=0'], 'stopped at step 2 of 4')

  def test_what_needs_a_failed_run_is_left_out(self):
    text = sample_experiments.TWO + "[[after]]\nname = 'new tasks'\nsystems = ['poly']\nbindings = {X = '{first}'}\n"
    self._say('poly seed=0', 'fail')
    outcome = drive(self.out, self.shared, text)
    self.assertEqual(outcome.left_out, {'poly seed=0 new tasks': 'needs poly seed=0'})
    self.assertIn('poly seed=1 new tasks', outcome.done)

  def test_tuning_comes_first_and_decides(self):
    text = sample_experiments.TWO + '[tune]\nseed = 7\n[tune.grid]\nRATE = [1, 2]\n'
    outcome = drive(self.out, self.shared, text)
    self.assertEqual(outcome.code, 0)
    self.assertLen(outcome.done, 8)
    self.assertEqual({name for name, *_ in self._starts()[:4]}, {'cpoly RATE=1', 'cpoly RATE=2', 'poly RATE=1', 'poly RATE=2'})
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(text, str(self.out))
    # Equal scores: the first.
    self.assertEqual(next(run for run in plan.runs if run.name == 'poly seed=1').bindings['RATE'], '1')

  def test_killed_driver_leaves_a_run_that_is_waited_for(self):
    self._say('cpoly seed=1', 'wait for release')
    self._kill_driver('started cpoly seed=1')
    stream = _Stream('still runs', (self.shared / 'release').touch)
    outcome = drive(self.out, self.shared, sample_experiments.TWO, stream=stream)
    self.assertEqual(outcome.code, 0)
    self.assertIn('cpoly seed=1 still runs, started by an earlier command', stream.getvalue())
    self.assertCountEqual([name for name, *_ in self._starts()], ['cpoly seed=0', 'cpoly seed=1', 'poly seed=0', 'poly seed=1'])

  def test_run_killed_with_its_driver_goes_on(self):
    self._say('cpoly seed=1', 'wait for release')
    self._kill_driver('started cpoly seed=1')
    folder = next(self.out.glob('runs/cpoly_seed=1-*'))
    noted = json.loads((folder / folders.STATE).read_text())
    self.assertEqual(noted['state'], folders.RUNNING)
    os.kill(noted['pid'], signal.SIGKILL)
    self._say('cpoly seed=1', 'succeed')
    self.assertEqual(drive(self.out, self.shared, sample_experiments.TWO).code, 0)
    names = [name for name, *_ in self._starts()]
    self.assertEqual((names.count('cpoly seed=0'), names.count('poly seed=0')), (1, 1))

  def test_sigterm_lets_runs_save(self):
    self._say('cpoly seed=0', 'wait for a signal')
    code = textwrap.dedent(f"""
        import os, pathlib, signal, sys, threading, time
        sys.path.insert(0, {HERE!r})
        import driver_test
        def ask():
          while not pathlib.Path({str(self.shared)!r}, 'ready').exists():
            time.sleep(0.01)
          os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=ask).start()
        sys.exit(driver_test.drive(*sys.argv[1:4]).code)
    """)
    done = subprocess.run(
        [sys.executable, '-c', code, str(self.out), str(self.shared), sample_experiments.TWO], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}, check=False, timeout=300)
    self.assertEqual(done.returncode, 128 + signal.SIGTERM, done.stderr)
    self.assertIn('SIGTERM: stopping 1 runs', done.stderr)
    folder, = self.out.glob('runs/*')
    self.assertEqual(json.loads((folder / 'results.json').read_text()), {'step': 1})
    self.assertEqual(json.loads((folder / folders.STATE).read_text())['state'], folders.STOPPED)


class PartsTest(parameterized.TestCase):

  @parameterized.parameters(
      ([0, 1], 1, [[0, 1]]), ([0, 1], 2, [[0], [1]]), ([4, 5, 6], 2, [[4, 6], [5]]), ([0, 1], 3, [[0], [1], [0]]))
  def test_share(self, usable, jobs, expected):
    self.assertEqual([cpus.share(usable, jobs, slot) for slot in range(jobs)], expected)

  def test_lock_is_held_once(self):
    folder = folders.Folder(tempfile.mkdtemp(), 'f')
    first = folder.lock()
    self.assertIsNone(folder.lock())
    os.close(first)
    second = folder.lock()
    self.assertIsNotNone(second)
    os.close(second)

  def test_folder_of_other_settings(self):
    folder = folders.Folder(tempfile.mkdtemp(), 'f')
    folder.note('done')
    with self.assertRaisesRegex(ValueError, 'is of other settings: name another folder'):
      _ = folders.Folder(folder.path, 'g').is_done

  @parameterized.parameters((59.6, '1:00'), (125, '2:05'), (3725, '1:02:05'), (None, '?'))
  def test_duration(self, seconds, expected):
    self.assertEqual(progress.duration(seconds), expected)

  def test_time_that_is_left(self):
    text = 'minutes_per_run = 2\n' + sample_experiments.TWO
    with sample_experiments.without_gin():
      runs = sample_experiments.make_plan(text).runs
    self.assertEqual(progress.left(runs, 1, {}), 480)
    self.assertEqual(progress.left(runs, 2, {'cpoly seed=0': 60.}), 210)
    sample_experiments.end_run(runs[0], {'a': {4: 1.}})  # Took 6 seconds, alone.
    self.assertEqual(progress.left(runs, 1, {}), 18)
    self.assertEqual(progress.left(runs, 2, {}), 180)  # No run was one of two: as the file says.


if __name__ == '__main__':
  absltest.main()
