"""The command line with gin as runs have it: what is planned, what is refused before anything runs, folders, patterns."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_experiments  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from cpoly_jax.experiments import __main__ as command
from cpoly_jax.experiments import configuring
from cpoly_jax.experiments import folders
from cpoly_jax.experiments import plans
from cpoly_jax.systems import configured

setUpModule, tearDownModule = testing.quick_compilation()

HEAD = "title = 'x'\ngin_files = ['gin_configs/cpoly_tiny.gin']\n"
GRID = "[grid]\nsystem = ['cpoly', 'poly']\nseed = [0, 1]\n"
WRONG = {
    'unknown system': (HEAD + "[grid]\nsystem = ['polly']", r'grid\.system: no file .* named polly; did you mean poly\?'),
    'unknown gin file': ("title = 'x'\ngin_files = ['gin_configs/cpoly_tinny.gin']\n" + GRID,
                         r'gin_files: there is no gin file .*tinny\.gin; did you mean gin_configs/cpoly_tiny\.gin\?'),
    'unknown size': ("title = 'x'\n" + GRID + "size = ['tny']", r'grid\.size: .*cpoly_tny\.gin; did you mean'),
    'no gin file': ("title = 'x'\n" + GRID, 'gin_files: is not there'),
    'unknown macro': (HEAD + '[bindings]\nRNAK = 3\n' + GRID, r'bindings\.RNAK: no gin file uses .* RNAK; did you mean RANK\?'),
    # The file on top has C-Poly's router, which Poly's replaces.
    'axis that a system has not': (HEAD + GRID + 'NUM_COMMON = [2, 3]',
                                   r'grid\.NUM_COMMON: poly NUM_COMMON=2: no gin file uses the macro NUM_COMMON'),
    'tuning of what a system has not': (HEAD + GRID + '[tune]\nseed = 7\n[tune.grid]\nNUM_COMMON = [1]',
                                        r'tune\.grid\.NUM_COMMON: poly: no gin file uses'),
    'parameter that is none': (HEAD + "[bindings]\n'routing.Sampling.nose' = 1\n" + GRID, r"cpoly: .*no parameter 'nose'"),
    'required': (HEAD + "[grid]\nsystem = ['expert']", 'expert: EXPERT_MATRIX must be given'),
    'value that the network refuses': (HEAD + "[bindings]\nMIXING = 'mean'\n" + GRID, "cpoly: .*mean"),
    'default as ablation': (HEAD + GRID + '[ablate]\nNUM_COMMON = [3]', 'grid: cpoly NUM_COMMON=3 is the same as cpoly: leave'),
    'two variants alike': (HEAD + "[grid]\nsystem = ['a', 'b']\n[variants]\na = {system = 'poly'}\nb = {system = 'poly'}",
                           'grid: b is the same as a: leave'),
    'variant that nothing uses': (HEAD + GRID + "[variants.a]\nsystem = 'poly'", r'variants\.a: is not in grid\.system'),
    'budget by what it has not': (HEAD + GRID + "[budget]\nequal = 'trainable'\nvary = {poly = 'NUM_COMMON'}",
                                  r'budget\.vary\.poly: poly: no gin file uses the macro NUM_COMMON'),
    'budget by no number': (HEAD + GRID + "[budget]\nequal = 'trainable'\nvary = {poly = 'MIXING'}",
                            r'budget\.vary\.poly: poly: has MIXING = .factors., which is no whole number'),
    'budget by what does not matter': (HEAD + GRID + "[budget]\nequal = 'trainable'\nvary = {poly = 'TRAIN_STEPS'}",
                                       r'budget\.vary\.poly: poly: has the same trainable parameters whatever TRAIN_STEPS'),
    'budget that is too far': (HEAD + GRID + "[budget]\nequal = 'trainable'\ntolerance = 1e-4\nvary = {poly = 'RANK'}",
                               r'budget\.vary\.poly: poly comes no nearer than [+-]\d'),
    'unknown macro after': (HEAD + GRID + "[[after]]\nname = 'more'\nbindings = {TRAINED = '{first}'}",
                            r'after more\.bindings\.TRAINED: no gin file uses'),
}


def _run(*arguments):
  """Returns exit code, stdout and the lines of stderr."""
  out, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    code = command.main(arguments)
  return code, out.getvalue(), errors.getvalue().splitlines()


class CommandTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(contextlib.chdir(self.folder))

  def _write(self, text):
    (self.folder / 'some.toml').write_text(text)
    return 'some.toml'

  @parameterized.named_parameters((name, *case) for name, case in WRONG.items())
  def test_refused_before_anything_runs(self, text, told):
    code, out, errors = _run(self._write(text), '--numbers_only')
    self.assertEqual((code, out), (1, ''))
    self.assertLen(errors, 1)
    self.assertRegex(errors[0], f'^error: some.toml: {told}')
    self.assertFalse(os.path.exists('outputs'))

  def test_dry_run(self):
    text = 'minutes_per_run = 2\n' + HEAD + GRID + "[budget]\nequal = 'trainable'\nvary = {poly = 'NUM_SKILLS'}\n"
    code, out, _ = _run(self._write(text), '--dry_run')
    self.assertEqual(code, 0)
    self.assertIn('x: 4 runs, 0 done; about 8:00 one at a time', out)
    # C-Poly on 16 tasks has 3 + 16 skills of rank 4 on 24 projections of 128 x 128, and 16 x 19 weights each.
    self.assertRegex(out, r'cpoly seed=0 +main +- +474,240 +467,400 +500 +2:00')
    self.assertRegex(out, r'poly +NUM_SKILLS +8 +19 +474,240 +0\.00')
    self.assertFalse(os.path.exists('outputs'))

  def test_axes_and_size(self):
    _, out, _ = _run(self._write("title = 'x'\n[grid]\nsystem = ['poly']\nsize = ['tiny']\nRANK = [1, 2]\n"), '--dry_run')
    # 8 skills of 24 projections of 128 x 128, and 16 x 8 weights of each.
    self.assertIn('x: 2 runs, 0 done; time unknown, 2 runs without minutes_per_run in the file', out)
    self.assertRegex(out, r'poly tiny RANK=1 seed=0 +main +- +52,224 +')
    self.assertRegex(out, r'poly tiny RANK=2 seed=0 +main +- +101,376 +')

  def test_settings_of_other_systems_are_left_out(self):
    with contextlib.chdir(configured.ROOT):
      spec = sample_experiments.read_spec(HEAD + '[bindings]\nNUM_COMMON = 2\nTRAIN_STEPS = 3\n' + GRID)
      plan = plans.make(spec, str(self.folder))
    cpoly, poly = plan.runs[1], plan.runs[3]
    self.assertEqual(cpoly.bindings, {'NUM_COMMON': '2', 'TRAIN_STEPS': '3', 'RANDOM_SEED': '1'})
    self.assertEqual(poly.bindings, {'TRAIN_STEPS': '3', 'RANDOM_SEED': '1'})
    self.assertEqual((poly.steps, poly.batch_size), (3, 64))
    self.assertContainsSubset(['-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', '--gin.TRAIN_STEPS=3',
                               f"--gin.MODEL_DIR='{poly.folder.path}'"], plan.command(poly))

  def test_macros_of_what_is_not_referred_to(self):
    text = '''A = @routing.Poly
B = 3
routing.Poly.skills = %SKILLS
routing.Poly.sampling = \\
    @one/routing.Sampling()
one/routing.Sampling.noise = %NOISE
routing.CPoly.common = %COMMON
routing.CPoly.inner = @routing.Inner()
routing.Inner.depth = %DEPTH
train.steps = %STEPS
'''
    self.assertEqual(configuring.used_macros(text), {'SKILLS', 'NOISE', 'STEPS'})

  def test_fingerprint_is_of_what_gin_makes_of_it(self):
    files = ['gin_configs/cpoly_tiny.gin']
    prints = [configuring.read(files, bindings).fingerprint() for bindings in (
        {}, {'RANK': '4'}, {'RANK': '5'}, {'RANDOM_SEED': '1'}, {'SKILLS_LEARNING_RATE': '0.003'})]
    self.assertEqual(prints[0], prints[1])
    self.assertEqual(prints[0], prints[4])
    self.assertLen(set(prints), 3)

  def test_report_of_nothing(self):
    code, out, _ = _run(self._write(HEAD + GRID), '--report', '--numbers_only')
    self.assertEqual(code, 0)
    self.assertIn('0 of 4 runs are done', out)
    self.assertIn('| poly seed=1 | main | not started |', pathlib.Path('outputs/experiments/some/report/report.md').read_text())

  def test_folder_of_something_else(self):
    (self.folder / 'mine').mkdir()
    (self.folder / 'mine' / 'thesis.txt').touch()
    code, _, errors = _run(self._write(HEAD + GRID), '--report', '--out=mine', '--numbers_only')
    self.assertEqual(code, 1)
    self.assertRegex(errors[-1], 'is not empty and holds no experiment: name another folder with --out')

  @parameterized.parameters('--jobs=0', '--bogus', '--only=nothing*')
  def test_wrong_flag(self, flag):
    code, _, errors = _run(self._write(HEAD + GRID), flag, '--dry_run')
    self.assertEqual(code, 1)
    self.assertStartsWith(errors[-1], f'error: {flag.partition("=")[0]}' if flag != '--bogus' else 'error: unrecognized')

  def test_no_such_file(self):
    code, _, errors = _run('none.toml')
    self.assertEqual(code, 1)
    self.assertIn('none.toml', errors[-1])

  def test_children_get_the_environment_as_it_was_given(self):
    seen = {}
    with absltest.mock.patch.object(command, 'run', lambda given, environment: (seen.update(environment), ('', 0))[1]):
      with absltest.mock.patch.dict(os.environ):
        os.environ.pop('JAX_PLATFORMS', None)
        _run('x')
    self.assertNotIn('JAX_PLATFORMS', seen)


class WantedTest(parameterized.TestCase):

  @parameterized.parameters(
      ('poly seed=1', ['poly seed=1']), ('*seed=0*', ['cpoly seed=0', 'poly seed=0', 'cpoly seed=0 more', 'poly seed=0 more']),
      ('poly * more', ['poly seed=0', 'poly seed=1', 'poly seed=0 more', 'poly seed=1 more']))
  def test_what_matches_and_what_it_needs(self, only, expected):
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(sample_experiments.TWO + "[[after]]\nname = 'more'\nbindings = {RATE = 1}\n")
    self.assertEqual([run.name for run in command.wanted(plan.runs, only)], expected)

  def test_first_run_is_named_in_the_command(self):
    text = sample_experiments.TWO + "[[after]]\nname = 'more'\nbindings = {A = '{first}', B = '{first_checkpoint}'}\n"
    with sample_experiments.without_gin():
      plan = sample_experiments.make_plan(text)
      first, after = plan.runs[0], plan.runs[4]
      self.assertEqual(after.name, 'cpoly seed=0 more')
      sample_experiments.end_run(first, {'a': {4: 1.}})
      for step in (0, 8, 12):
        (first.folder.path / f'checkpoint_{step}').mkdir()
      plan.settle()
      self.assertContainsSubset([f"--gin.A='{first.folder.path}'", f"--gin.B='{first.folder.path}/checkpoint_12'"],
                                plan.command(after))
      self.assertNotEqual(after.folder.fingerprint, first.folder.fingerprint)
      self.assertIsNone(plan.runs[5].folder)


@pytest.mark.slow
class SmokeTest(absltest.TestCase):

  def test_smoke_file_runs(self):
    out = tempfile.mkdtemp()
    with contextlib.chdir(configured.ROOT):
      code, text, errors = _run('experiments/smoke.toml', f'--out={out}', '--jobs=2')
    self.assertEqual(code, 0, '\n'.join(errors))
    self.assertIn('8 of 8 runs are done', text)
    page = pathlib.Path(out, 'report', 'report.html').read_text()
    self.assertIn('Scores after adapted', page)
    for file in pathlib.Path(out).glob(f'runs/*/{folders.STATE}'):
      self.assertIn('"state": "done"', file.read_text())


if __name__ == '__main__':
  absltest.main()
