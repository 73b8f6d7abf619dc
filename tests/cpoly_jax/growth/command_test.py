"""Tests of `python -m cpoly_jax.growth`: files that it writes, what reads them, and mistakes of one line."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from t5x import checkpoints

import cpoly_jax
from cpoly_jax import testing
from cpoly_jax.checkpoints import loading
from cpoly_jax.growth import __main__ as command
from cpoly_jax.task_index import TaskIndex
from tests.cpoly_jax.checkpoints import small_runs

setUpModule, tearDownModule = testing.quick_compilation()
COMMON = 'encoder/layers_0/attention/query/routing/common'


def _run(*arguments):
  """Returns exit code, stdout and stderr of a command."""
  out, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    code = command.main(arguments)
  return code, out.getvalue(), errors.getvalue()


class GrowthTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.trained = small_runs.files().run

  def _out(self, name):
    return os.path.join(self.folder, name)

  def _done(self, *arguments):
    code, out, errors = _run(*arguments)
    self.assertEqual((code, errors), (0, ''), errors)
    return out

  def test_twice_and_one_dropped(self):
    """What is left has all of its bits, and the network's logits are those of the run."""
    out = self._done('add', self.trained, self._out('one'), '--tasks=wic,wsc')
    self.assertEqual(out.splitlines()[1:], [
        '  tasks   3 -> 5', '  skills  6 -> 8 of each adapted projection',
        f'  skills and routing: {3 * (9 + 9 + 6 * 128):,} -> {3 * (15 + 25 + 8 * 128):,} parameters',
        '  wic: row 3, skills 6', '  wsc: row 4, skills 7'])
    self._done('add', self._out('one'), self._out('two'), '--tasks=axb,axg', '--num_specific=axb=2,axg=0')
    self._done('drop', self._out('two'), self._out('three'), '--tasks=axb')
    before, after = loading.load(self.trained), loading.load(self._out('three'))
    self.assertEqual(after.task_index.names, ('cb', 'copa', 'rte', 'wic', 'wsc', 'axg'))
    self.assertEqual(after.description['adapter']['router']['num_specific'], [1, 1, 1, 1, 1, 0])
    flat = small_runs.flat(after.params)
    for path, value in small_runs.flat(before.params).items():
      self.assertEqual(flat[path][tuple(map(slice, value.shape))].tobytes(), value.tobytes(), path)
    np.testing.assert_array_equal(small_runs.logits(after.params, after.transformer), small_runs.logits(before.params))

  def test_a_checkpoint_of_any_t5x(self):
    path = self._out('full/checkpoint_9')
    self._done('add', self.trained, path, '--tasks=wic')
    stored = small_runs.flat(checkpoints.load_t5x_checkpoint(path)['target'])
    self.assertEqual(stored[COMMON].shape, (4, 3))
    self.assertEqual(set(stored), set(loading.shapes(loading.load(path).transformer)))
    self.assertEqual(TaskIndex.load(self._out('full')).names, ('cb', 'copa', 'rte', 'wic'))
    base = small_runs.base_params()
    self.assertTrue(all(stored[name].tobytes() == value.tobytes() for name, value in base.items()))
    predictor = cpoly_jax.Predictor(path, lengths={'inputs': 16, 'targets': 4}, batch_size=2)
    self.assertEqual(predictor.tasks, ('cb', 'copa', 'rte', 'wic'))
    code, _, errors = _run('add', self.trained, self._out('full/checkpoint_10'), '--tasks=wic')
    self.assertEqual(code, 1)
    self.assertIn('is of another model and is not overwritten', errors)

  def test_dropped_although_others_borrow(self):
    code, _, errors = _run('drop', self.trained, self._out('out'), '--tasks=copa')
    self.assertEqual(code, 1)
    self.assertRegex(errors, r'^error: (cb|rte) borrows from copa with a weight of up to 0\.\d+: give --borrowed=keep .*\n$')
    self._done('drop', self.trained, self._out('kept'), '--tasks=copa', '--borrowed=keep')
    self._done('drop', self.trained, self._out('lost'), '--tasks=copa', '--borrowed=drop')
    kept, lost = loading.load(self._out('kept')), loading.load(self._out('lost'))
    self.assertEqual([model.transformer.adapter.describe().num_skills for model in (kept, lost)], [6, 5])
    self.assertEqual(kept.task_index.names, ('cb', 'rte'))

  def test_dry_run_writes_nothing(self):
    out = self._done('add', self.trained, self._out('dry'), '--tasks=wic', '--dry_run')
    self.assertStartsWith(out, f'would write {self._out("dry")}, from {self.trained}')
    self.assertEqual(os.listdir(self.folder), [])

  @parameterized.parameters(
      (['add', '/no/such/run', 'x', '--tasks=a'], 'error: .*/no/such/run'),
      (['add', 'RUN', 'x', '--tasks=rte'], r'error: rte has a routing row already \(row 2\)'),
      (['add', 'RUN', 'x', '--tasks=,'], 'error: --tasks=, names no task'),
      (['add', 'RUN', 'x'], 'error: the following arguments are required: --tasks'),
      (['add', 'RUN', 'x', '--tasks=a', '--num_specific=two'], 'error: --num_specific=two: write a whole number'),
      (['add', 'RUN', 'RUN', '--tasks=a'], 'error: .* exists and is not overwritten'),
      (['add', 'RUN', 'x/checkpoint_1', '--tasks=a', '--base=OTHER'], 'error: .*base'),
      (['drop', 'RUN', 'x', '--tasks=rt'], "error: task 'rt' has no routing row; did you mean 'rte'"),
      (['drop', 'RUN', 'x', '--tasks=cb,copa,rte'], 'error: nothing is left without cb, copa, rte'),
      (['grow', 'RUN', 'x'], "error: .*invalid choice: 'grow'"))
  def test_mistakes(self, arguments, message):
    places = {'RUN': self.trained, 'x': self._out('x'), 'x/checkpoint_1': self._out('x/checkpoint_1'),
              '--base=OTHER': f'--base={small_runs.files().other}'}
    code, out, errors = _run(*(places.get(argument, argument) for argument in arguments))
    self.assertEqual((code, out), (1, ''))
    self.assertLen(errors.splitlines(), 1, errors)
    self.assertRegex(errors, message)
    self.assertFalse(os.path.exists(self._out('x')))

  def test_no_base_apart(self):
    run = small_runs.write_complete_run(self.folder)
    code, _, errors = _run('add', run, self._out('out'), '--tasks=wic')
    self.assertEqual(code, 1)
    self.assertRegex(errors, 'names no base: name a checkpoint, e.g. .*/out/checkpoint_107')
    self._done('add', run, self._out('out/checkpoint_107'), '--tasks=wic')
    self.assertLen(loading.load(self._out('out')).task_index, 4)


if __name__ == '__main__':
  absltest.main()
