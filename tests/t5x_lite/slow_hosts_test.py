"""Tests for slow_hosts: who is named, when, and how often; with clocks that the tests turn."""

from __future__ import annotations

import json
import os
import socket
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from t5x import slow_hosts
from t5x.slow_hosts import DEVICE, INPUT


class _Time:
  """A clock that stands still until it is turned."""

  def __init__(self):
    self.seconds = 1000.0

  def __call__(self):
    return self.seconds


def _steps(clock, time, first, last, waits=0.25, seconds=1.0):
  """Makes steps of so many seconds, of which the first part is for the input."""
  for step in range(first, last + 1):
    clock.waits(INPUT, step)
    time.seconds += waits
    clock.waits(DEVICE, step)
    time.seconds += seconds - waits
    clock.done(step)


class StepWatchTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.time = _Time()
    self.clock = slow_hosts.StepClock(self.time)
    self.watch = slow_hosts.StepWatch(self.clock, 30.0)

  def test_what_the_clock_tells(self):
    _steps(self.clock, self.time, 1, 9)
    self.assertIsNone(self.clock.median())
    _steps(self.clock, self.time, 10, 12)
    self.assertEqual(self.clock.median(), 1.0)
    self.assertEqual(self.clock.waited_for_input(), 12 * 0.25)
    self.clock.waits(INPUT, 13)
    self.time.seconds += 5
    self.assertEqual(self.clock.waited_for_input(), 12 * 0.25 + 5)
    self.assertEqual(self.clock.note, (INPUT, 12, 1012.0))

  @parameterized.parameters(
      (INPUT, 'waits for its input; its batch is not there'), (DEVICE, 'waits for its devices; the devices have not finished'))
  def test_a_slow_step_is_told_once_with_what_it_waits_for(self, what, expected):
    _steps(self.clock, self.time, 1, 20)
    self.clock.waits(INPUT, 21)
    self.clock.waits(what, 21)
    self.time.seconds += 30
    self.assertEqual(self.watch.look(), [])
    self.time.seconds += 1
    line, = self.watch.look()
    self.assertStartsWith(line, 'warning: step 21 has taken 31 s so far, others 1 s: it ')
    self.assertIn(expected, line)
    self.time.seconds += 100
    self.assertEqual(self.watch.look(), [])
    self.clock.done(21)
    self.clock.waits(INPUT, 22)
    self.time.seconds += 31
    self.assertLen(self.watch.look(), 1)

  def test_the_wait_before_a_save_counts(self):
    _steps(self.clock, self.time, 1, 20)
    self.clock.rests()
    self.time.seconds += 1000
    self.clock.drains()
    self.time.seconds += 31
    line, = self.watch.look()
    self.assertIn('it waits for its devices', line)
    self.assertEqual(self.clock.waited_for_input(), 20 * 0.25)
    self.clock.rests()
    self.time.seconds += 1000
    self.assertEqual(self.watch.look(), [])

  def test_long_steps_take_longer_to_be_slow(self):
    _steps(self.clock, self.time, 1, 20, seconds=5.0)
    self.clock.waits(INPUT, 21)
    self.time.seconds += 50
    self.assertEqual(self.watch.look(), [])
    self.time.seconds += 1
    self.assertLen(self.watch.look(), 1)

  def test_saving_and_the_first_steps_do_not_count(self):
    self.clock.waits(INPUT, 1)
    self.time.seconds += 1000  # Compiles.
    self.assertEqual(self.watch.look(), [])
    self.clock.done(1)
    _steps(self.clock, self.time, 2, 20)
    self.clock.rests()
    self.time.seconds += 1000
    self.assertEqual(self.watch.look(), [])
    _steps(self.clock, self.time, 21, 21)
    self.assertEqual((self.watch.look(), self.clock.median()), ([], 1.0))


def _beats(*steps, waits=DEVICE, beat=0, **inputs):
  return {i: {'host': f'h{i}', 'step': step, 'waits': waits, 'beat': beat, 'input': inputs.get(f'input{i}', 0.0)}
          for i, step in enumerate(steps)}


class HostsWatchTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.watch = slow_hosts.HostsWatch(60.0)
    self.beat = 0

  def look(self, now, *steps, **kwargs):
    self.beat += 1
    return self.watch.look(now, _beats(*steps, beat=self.beat, **kwargs))

  def test_the_one_behind_is_named_once(self):
    for now in range(0, 61, 5):
      self.assertEqual(self.look(now, 20, 12, 20, waits=INPUT), [])
    self.assertEqual(self.look(65, 20, 12, 20, waits=INPUT), [
        'warning: process 1 on h1 has been at step 12 for 65 s, while others are at step 20: it waits for its input.'])
    self.assertEqual(self.look(70, 20, 12, 20, waits=INPUT), [])
    # It catches up, and is named again when it falls behind again.
    self.assertEqual(self.look(75, 21, 13, 21), [])
    self.assertEqual(self.look(130, 21, 13, 21), [])
    self.assertLen(self.look(140, 21, 13, 21), 1)

  def test_equal_steps_and_moving_ones_are_fine(self):
    for now in range(0, 1000, 50):
      self.assertEqual(self.look(now, 7, 7), [])
    for now in range(1000, 3000, 50):
      self.assertEqual(self.look(now, now + 8, now), [])

  def test_a_silent_one_is_named(self):
    for now in (0, 30, 60):
      self.assertEqual(self.look(now, 20, 20), [])
      dead = _beats(20, 20, beat=self.beat)[1]
    lines = []
    for now in (90, 125, 130):
      self.beat += 1
      lines += self.watch.look(now, {0: _beats(20, beat=self.beat)[0], 1: dead})
    self.assertEqual(lines, ['warning: process 1 on h1 has not been heard of for 65 s; it was at step 20, the first is at step '
                             '20: see whether the machine is up.'])

  def test_a_slow_input_is_named_until_it_is_better(self):
    told = {}
    for now, waited in ((0, 0.), (30, 20.), (61, 40.), (122, 60.), (183, 61.), (244, 100.)):
      told[now] = self.look(now, now, now, now, input2=waited)
    self.assertEqual({now: len(lines) for now, lines in told.items()}, {0: 0, 30: 0, 61: 1, 122: 0, 183: 0, 244: 1})
    self.assertStartsWith(told[61][0], 'warning: process 2 on h2 waited for its input during 66% of the last 61 s')

  def test_a_single_process(self):
    self.assertEqual(self.look(0, 1), [])
    line, = self.look(60, 9, input0=45.0)
    self.assertStartsWith(line, 'warning: training waited for its input during 75% of the last 60 s')


class _Store(dict):
  """The key-value store of jax.distributed."""

  def key_value_set(self, key, value, allow_overwrite=False):
    if key in self and not allow_overwrite:
      raise ValueError(f'{key} is set')
    self[key] = value

  def key_value_dir_get(self, prefix):
    return [(key, value) for key, value in self.items() if key.startswith(prefix)]


class HeartbeatTest(parameterized.TestCase):

  def test_two_processes_meet_in_the_store(self):
    store, time, told = _Store(), _Time(), [[], []]
    beats = []
    for index in (0, 1):
      with mock.patch.object(jax, 'process_index', lambda i=index: i), mock.patch.object(jax, 'process_count', lambda: 2), \
           mock.patch.object(slow_hosts, '_client', lambda: store), mock.patch.dict(os.environ, {slow_hosts.VARIABLE: '10'}):
        beats.append(slow_hosts.Heartbeat(slow_hosts.StepClock(time), told[index].append))
    fast, slow = (beat._clock for beat in beats)
    _steps(fast, time, 1, 20)
    _steps(slow, time, 1, 12)
    slow.waits(INPUT, 13)
    fast.waits(DEVICE, 21)
    for _ in range(8):
      time.seconds += 2
      beats[1].beat()
      beats[0].beat()
    self.assertEqual(json.loads(store['t5x_heartbeat/1'])['waits'], INPUT)
    # Process 0 does not say that its own step is slow: the reason is another one.
    self.assertEqual([line for line in told[0] if 'during' not in line], [
        f'warning: process 1 on {socket.gethostname()} has been at step 12 for 12 s, while others are at step 20: it waits for '
        'its input.'])
    self.assertEqual(told[1], [])

  def test_the_thread_ends_with_its_context(self):
    with mock.patch.dict(os.environ, {slow_hosts.VARIABLE: '1000'}):
      with slow_hosts.Heartbeat(slow_hosts.StepClock(), print) as heartbeat:
        self.assertTrue(heartbeat._thread.is_alive())
      self.assertFalse(heartbeat._thread.is_alive())
    with mock.patch.dict(os.environ, {slow_hosts.VARIABLE: '0'}):
      with slow_hosts.Heartbeat(slow_hosts.StepClock(), print) as heartbeat:
        self.assertFalse(heartbeat._thread.is_alive())

  @parameterized.parameters('soon', '-1', 'nan', 'inf')
  def test_setting(self, value):
    with mock.patch.dict(os.environ, {slow_hosts.VARIABLE: value}):
      with self.assertRaisesRegex(ValueError, f'T5X_SLOW_SECONDS={value} is no number of seconds: write e.g. 60'):
        slow_hosts.seconds_from_environment()


if __name__ == '__main__':
  absltest.main()
