"""How the process behaves: quiet logs, a cache of compiled programs, a clean end on a signal.

Nothing here knows a model. The three entry points call `prepare` before anything else.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import flags
from absl import logging

# Folder of compiled programs; the empty string turns the cache off.
CACHE_VARIABLE = 'T5X_COMPILATION_CACHE'
# Libraries that report at INFO, or through Python's logging, what no user asked for.
_CHATTY = ('jax', 'orbax', 'tensorflow', 'h5py', 'fsspec', 'etils')
# What TensorFlow's libraries write while they are loaded, whatever the log level: the machine has no GPU for it.
_CHATTER = re.compile(rb'before absl::InitializeLog\(\)|cudart_stub\.cc|cuda_platform\.cc.*cuInit')
# The tasks of this project are made of rows in memory, which are shuffled as a whole.
_UNCACHED = 'Using an uncached FunctionDataset for training is not recommended'


def quiet_environment() -> None:
  """Silences the C++ side of TensorFlow and XLA; it reads this when it is first imported."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # TensorFlow only reads data here: its faster kernels change nothing but announce themselves.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  if 'tensorflow' not in sys.modules:
    sys.meta_path.insert(0, _QuietTensorFlow())


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
  """Import hook: leaves TensorFlow's chatter out, when and if something imports it. Works once."""

  def find_spec(self, fullname, path=None, target=None):
    """Returns the ordinary spec of `tensorflow`, its loader wrapped; None for all other modules."""
    del path, target
    if fullname != 'tensorflow':
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(fullname)
    if spec is not None and spec.loader is not None:
      load = spec.loader.exec_module

      def exec_module(module):
        with _without_chatter():
          load(module)

      spec.loader.exec_module = exec_module
    return spec


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
  """Holds back what C++ and Python write to stderr, then writes all of it but the lines of `_CHATTER`."""
  try:
    real = os.dup(2)
  except OSError:  # The process was started without a stderr.
    yield
    return
  with tempfile.TemporaryFile() as held:
    sys.stderr.flush()
    os.dup2(held.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(real, 2)
      os.close(real)
      held.seek(0)
      for line in held:
        if not _CHATTER.search(line):
          os.write(2, line)


def quiet_logging() -> None:
  """Shows warnings and errors only, unless -v or --verbosity was given."""
  import logging as std_logging
  flag = flags.FLAGS['verbosity'] if 'verbosity' in flags.FLAGS else None
  if flag is None or flag.using_default_value or not flag.present:
    logging.set_verbosity(logging.WARNING)
    for name in _CHATTY:
      std_logging.getLogger(name).setLevel(std_logging.WARNING)
    logging.get_absl_handler().addFilter(_is_news)
    if not os.environ.get('T5X_TRACEBACK', '').strip('0'):
      threading.excepthook = _report_thread
      sys.unraisablehook = _report_unraisable


def _is_news(record) -> bool:
  """Log filter: False for SeqIO's advice, and for tracebacks of a failed save, which whoever waits reports."""
  if str(record.msg).startswith(_UNCACHED):
    return False
  from_save = 'orbax' in record.pathname or record.name in ('concurrent.futures', 'asyncio')
  return not (from_save and record.exc_info and not os.environ.get('T5X_TRACEBACK', '').strip('0'))


def _report_thread(args: threading.ExceptHookArgs) -> None:
  """Prints what a thread dies of, but for those of Orbax, which hand it to whoever waits for the save."""
  if not type(args.thread).__module__.startswith('orbax.'):
    threading.__excepthook__(args)


def _report_unraisable(args: sys.UnraisableHookArgs) -> None:
  """Prints what a callback dies of, but for writes of tensorstore that end after the save they belong to has failed."""
  if not (isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == 'Event loop is closed'):
    sys.__unraisablehook__(args)


def compilation_cache_dir() -> str:
  """Returns the folder for compiled programs, '' where the user turned it off."""
  given = os.environ.get(CACHE_VARIABLE)
  if given is not None:
    return given
  root = os.environ.get('XDG_CACHE_HOME') or str(pathlib.Path.home() / '.cache')
  return os.path.join(root, 't5x', 'compiled')


def enable_compilation_cache() -> None:
  """Lets a second start find what the first one compiled, unless jax was told otherwise."""
  import jax
  directory = compilation_cache_dir()
  if not directory or jax.config.jax_compilation_cache_dir:
    return
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as e:
    logging.warning('No compilation cache: %s. Set %s to a folder that can be written.', e, CACHE_VARIABLE)
    return
  jax.config.update('jax_compilation_cache_dir', directory)
  # The many small programs of start-up cost as much together as the train step of a small model.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def forget_traces() -> None:
  """Makes the next program the same whatever was traced before in this process, so that it is found in the cache.

  jax lowers equal inner functions as one where an earlier trace of them is remembered, and as several where not; their names
  are a part of what the cache knows a program by.
  """
  import jax
  if jax.config.jax_compilation_cache_dir:
    jax.clear_caches()


def hide_gpus_from_tensorflow() -> None:
  """Keeps TensorFlow, which only reads data here, from taking the memory of the GPUs."""
  import jax
  if jax.default_backend() == 'gpu':
    import tensorflow as tf
    tf.config.experimental.set_visible_devices([], 'GPU')


def leave_after(entry_point: Callable[[], None]) -> NoReturn:
  """Runs an entry point and ends the process with its exit code, without the interpreter's teardown.

  Threads and destructors of TensorFlow, tensorstore and XLA have been seen to block in it for ever after an error,
  with the message long printed. Whatever must be finished (checkpoints, events) is by the time this is called.
  """
  code = 0
  try:
    entry_point()
  except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if isinstance(stop.code, str):
      print(stop.code, file=sys.stderr)
  except BaseException:  # What the interpreter would print.
    traceback.print_exc()
    code = 1
  multihost = sys.modules.get('t5x.multihost')
  if multihost is not None:
    multihost.leave(clean=code == 0)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class StopSignals:
  """Context in which SIGTERM and the first SIGINT ask for a stop instead of killing the process.

  With several processes a signal to any of them stops all, after the same step: each asks `reached` after every step.

  Attributes:
    received: the signal, or None; SIGTERM in a process that another one has told.
  """

  def __init__(self, on_stop: Callable[[], None]):
    """Creates the context.

    Args:
      on_stop: called in the handler, or by `reached`; must be quick, e.g. set a flag that the step loop reads.
    """
    self._on_stop = on_stop
    self._previous = {}
    self._shared = False
    self.received: signal.Signals | None = None

  def __enter__(self) -> StopSignals:
    from t5x import multihost
    # Only the main thread may install handlers; elsewhere the defaults stay.
    if threading.current_thread() is threading.main_thread():
      self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
      self._shared = multihost.share_stop_signal()
      for number in (signal.SIGINT,) if self._shared else self._previous:
        signal.signal(number, self._handle)
    return self

  def _handle(self, number, frame) -> None:
    del frame
    if self.received is not None:
      # Asked a second time: the user does not want to wait for the save.
      raise KeyboardInterrupt
    self.received = signal.Signals(number)
    if self._shared:
      os.kill(os.getpid(), signal.SIGTERM)  # That one is passed on.
    else:
      self._on_stop()

  def reached(self, step: int) -> None:
    """Stops all processes after this step, if they have agreed on it; does nothing with one process."""
    if self._shared:
      from t5x import multihost
      if multihost.is_agreed_stop(step):
        self.received = self.received or signal.SIGTERM
        self._on_stop()

  def __exit__(self, *exc) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
