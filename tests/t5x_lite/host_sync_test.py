"""The training loop waits for no step but one that is eight steps old, and reads nothing else from the devices.

The arrays of the steps are stand-ins that write down when the host waits for them or asks for their value: on a real device
each of these would be a synchronisation. A CPU computes small programs at once, so that nothing could be seen there.
"""

from __future__ import annotations

import tempfile
import types

from absl.testing import absltest
from clu import metrics as clu_metrics
import flax
import jax
import numpy as np

from t5x import nonfinite
from t5x import progress as progress_lib
from t5x import trainer as trainer_lib

AHEAD = 8


class _DeviceArray:
  """A number on a device that never is ready by itself."""

  def __init__(self, log, step, name, value=0):
    self._log, self.step, self.name, self._value = log, step, name, value

  def is_ready(self):
    return False

  def copy_to_host_async(self):
    self._log.append(('copies', self.step, self.name))

  def block_until_ready(self):
    self._log.append(('waits', self.step, self.name))
    return self

  def __array__(self, dtype=None, copy=None):
    self._log.append(('reads', self.step, self.name))
    return np.asarray(self._value, dtype)

  def __int__(self):
    return int(self.__array__())

  __float__ = __index__ = __bool__ = __int__


@flax.struct.dataclass
class _Loss(clu_metrics.Metric):
  total: object

  def merge(self, other):
    return other


class _Trainer(trainer_lib.BaseTrainer):
  """Its steps only note that they were dispatched."""

  def __init__(self, log, bad=None):
    partitioner = types.SimpleNamespace(move_params_to_devices=lambda state, axes: state, shard_batch=lambda batch: batch)
    state = types.SimpleNamespace(step=np.int32(0), replace_step=lambda step: state)
    super().__init__(types.SimpleNamespace(), state, partitioner, [], None, None, jax.random.PRNGKey(0))
    self._log, self._bad = log, bad
    self._merge = lambda total, metrics: metrics  # On the devices, too.
    self._step = 0

  def _partitioned_train_step(self, state, batch):
    self._step += 1
    self._log.append(('dispatches', self._step, 'step'))
    array = lambda name, value=0: _DeviceArray(self._log, self._step, name, value)
    report = nonfinite.Report(array('kind', int(self._step == self._bad)), array('steps'), np.zeros(0, bool),
                              np.zeros((0, 0), np.int32), 'stop')
    return state, {'loss': _Loss(array('loss')), nonfinite.KEY: report}

  _partitioned_eval_step = None


def _train(log, steps, calls=1, bad=None, on_step=None):
  trainer = _Trainer(log, bad)
  trainer.on_step = on_step
  # What the summary's thread does is not part of the loop.
  trainer.train_metrics_manager = types.SimpleNamespace(
      start_duration_timer=lambda block_on: None, write_scalar=lambda *args: None, write_metrics_summary=lambda *args: None)
  for i in range(calls):
    trainer.train(iter([{}] * steps), steps, start_step=i * steps)
  return trainer


class HostSyncTest(absltest.TestCase):

  def test_few_steps_wait_for_nothing(self):
    log = []
    _train(log, 2, calls=AHEAD // 2)
    self.assertEqual([event for event in log if event[0] in ('waits', 'reads')], [])

  def test_a_step_is_waited_for_when_eight_are_dispatched_after_it(self):
    log, steps = [], 30
    _train(log, steps // 3, calls=3)  # Three periods of summaries.
    dispatched = 0
    for what, step, name in log:
      if what == 'dispatches':
        dispatched = step
      elif what in ('waits', 'reads'):
        self.assertEqual(step, dispatched - AHEAD, f'{what} {name}')
    self.assertEqual([step for what, step, name in log if (what, name) == ('waits', 'loss')], list(range(1, steps - AHEAD + 1)))

  def test_only_the_report_is_read_and_its_copy_was_asked_for_before(self):
    log = []
    _train(log, 20)
    reads = [event for event in log if event[0] == 'reads']
    self.assertEqual(reads, [('reads', step, 'kind') for step in range(1, 20 - AHEAD + 1)])
    for read in reads:
      self.assertLess(log.index(('copies', *read[1:])), log.index(('dispatches', read[1] + 1, 'step')))

  def test_the_display_does_not_wait_for_steps_that_are_not_ready(self):
    log = []
    shown = progress_lib.Progress(tempfile.mkdtemp(), 0, 20, 8, 1)
    _train(log, 20, on_step=shown)
    self.assertEqual({event[2] for event in log if event[0] == 'reads'}, {'kind'})

  def test_a_bad_step_is_known_eight_steps_later(self):
    log = []
    with self.assertRaisesRegex(nonfinite.NonfiniteError, 'The loss of step 5 is not finite'):
      _train(log, 30, bad=5)
    self.assertEqual([event for event in log if event[0] == 'dispatches'][-1][1], 5 + AHEAD)


if __name__ == '__main__':
  absltest.main()
