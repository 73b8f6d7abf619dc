"""Tests of errors: which exceptions become one line, and which line."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile
from unittest import mock

from absl import app
from absl.testing import absltest
from absl.testing import parameterized
import gin

from t5x import errors


def _raised(fn, *args, **kwargs):
  try:
    fn(*args, **kwargs)
  except Exception as exc:
    return exc
  raise AssertionError(f'{fn} raised nothing')


class Inner:
  """A class whose arguments the tests get wrong."""

  def __init__(self, size):
    self.size = size


def outer(inner, rate=1.0):
  """A function that takes an Inner."""
  if rate < 0:
    raise ValueError(f'rate must not be negative, got {rate}\nmore\ntext')
  if rate == 0:
    raise TypeError('a fault')
  return inner


class ReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    gin.clear_config()
    self.addCleanup(gin.clear_config)
    for fn in (outer, Inner):
      gin.external_configurable(fn, module='errors_test')
    self.outer = gin.get_configurable('errors_test.outer')

  @parameterized.parameters(
    (ValueError('one\ntwo'), 'one'),
    (ValueError('\n  one'), 'one'),
    (ValueError(''), 'ValueError'),
    (KeyError('rank'), "unknown name 'rank'"),
    (KeyError('There is no task x:\nit is not registered'), 'There is no task x:'),
    (
      FileNotFoundError(2, 'No such file or directory', '/a/b'),
      "[Errno 2] No such file or directory: '/a/b'",
    ),
    (ImportError("cannot import name 'x'"), "cannot import name 'x'"),
    (
      ModuleNotFoundError("No module named 'x'"),
      "No module named 'x': install it, or put the folder it lies in on PYTHONPATH",
    ),
    (SyntaxError('invalid syntax', ('x.py', 3, 1, 'a b')), 'invalid syntax (x.py, line 3)'),
    (app.UsageError('too many'), 'too many'),
    (
      RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore'),
      'out of memory: use a smaller batch, more microbatches or more devices '
      '(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes)',
    ),
  )
  def test_line(self, exc, line):
    self.assertTrue(errors.is_user_error(exc))
    self.assertEqual(errors.report(exc), line)

  @parameterized.parameters(
    TypeError('x'), AssertionError('x'), RuntimeError('x'), AttributeError('x')
  )
  def test_faults_of_the_program_are_no_user_errors(self, exc):
    self.assertFalse(errors.is_user_error(exc))

  def test_what_gin_appends_is_dropped(self):
    gin.parse_config('errors_test.outer.inner = 1\nerrors_test.outer.rate = -1.0')
    exc = _raised(self.outer)
    self.assertIn('In call to configurable', str(exc))
    self.assertEqual(errors.report(exc), 'rate must not be negative, got -1.0')

  def test_the_place_in_a_gin_file_is_kept(self):
    path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'x.gin')
    pathlib.Path(path).write_text('import no_such_module')
    exc = _raised(gin.parse_config_file, path)
    self.assertEndsWith(errors.report(exc), f'on PYTHONPATH ({path}, line 1)')

  def test_missing_and_unknown_arguments_of_bindings(self):
    exc = _raised(self.outer)
    self.assertTrue(errors.is_user_error(exc))
    self.assertEqual(
      errors.report(exc),
      'outer has no value for inner: give the gin file of this run with --gin_file=..., '
      'or set --gin.outer.inner=...',
    )
    gin.parse_config('errors_test.outer.inner = @errors_test.Inner()')
    exc = _raised(self.outer)
    self.assertStartsWith(errors.report(exc), 'Inner has no value for size: ')
    exc = _raised(self.outer, 1, colour='red')
    self.assertEqual(
      errors.report(exc), "outer has no parameter 'colour': remove or correct its binding"
    )

  def test_a_type_error_inside_a_call_by_gin_is_a_fault(self):
    gin.parse_config('errors_test.outer.inner = 1\nerrors_test.outer.rate = 0')
    self.assertFalse(errors.is_user_error(_raised(self.outer)))

    @gin.configurable(module='errors_test')
    def calls_wrongly():
      Inner()

    self.assertFalse(errors.is_user_error(_raised(calls_wrongly)))


class RunReportingTest(parameterized.TestCase):
  def _run(self, fn, **environment):
    stderr = io.StringIO()
    with mock.patch.dict(os.environ, environment), contextlib.redirect_stderr(stderr):
      with self.assertRaises(SystemExit) as raised:
        errors.run_reporting(fn)
    return raised.exception.code, stderr.getvalue()

  def test_returns_what_the_function_returns(self):
    self.assertEqual(errors.run_reporting(lambda: 3), 3)

  def test_user_error_is_one_line(self):
    def fail():
      raise ValueError('use a\nor b')

    self.assertEqual(self._run(fail), (1, 'error: use a\n'))
    with mock.patch.dict(os.environ, {errors.TRACEBACK_VARIABLE: '1'}):
      with self.assertRaisesRegex(ValueError, 'use a'):
        errors.run_reporting(fail)

  def test_a_fault_stays_an_exception(self):
    def fail():
      raise TypeError('x')

    with self.assertRaises(TypeError):
      errors.run_reporting(fail)

  def test_interrupt(self):
    def fail():
      raise KeyboardInterrupt

    self.assertEqual(self._run(fail), (130, 'interrupted\n'))

  def test_exit_codes_pass(self):
    def leave():
      raise SystemExit(5)

    self.assertEqual(self._run(leave), (5, ''))


class DataErrorTest(absltest.TestCase):
  """Errors of tf.data, which reads in threads of its own."""

  def _error(self, error):
    import tensorflow as tf

    def examples():
      yield 1
      raise error

    dataset = tf.data.Dataset.from_generator(
      examples, output_signature=tf.TensorSpec((), tf.int32)
    ).prefetch(1)
    return _raised(lambda: list(dataset.as_numpy_iterator()))

  def test_wrong_data_is_one_line(self):
    error = self._error(ValueError('train.jsonl:2: not valid JSON'))
    self.assertTrue(errors.is_user_error(error))
    self.assertEqual(
      errors.report(error),
      'TensorFlow could not read or write data: ValueError: train.jsonl:2: not valid JSON',
    )

  def test_a_fault_in_a_function_stays_an_exception(self):
    self.assertFalse(errors.is_user_error(self._error(TypeError('x'))))

  def test_through_gin(self):
    def read():
      raise self._error(ValueError('bad'))

    error = _raised(gin.external_configurable(read, 'read_data'))
    self.assertTrue(errors.is_user_error(error))
    self.assertEndsWith(errors.report(error), 'read or write data: ValueError: bad')


if __name__ == '__main__':
  absltest.main()
