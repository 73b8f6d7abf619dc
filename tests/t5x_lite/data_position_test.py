"""Tests of where batches come from: any number of hosts, any place to begin, places in checkpoints."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import input_testing as inputs  # pylint: disable=g-import-not-at-top
import reversal
from t5x import batches
from t5x import datasets
from t5x import indexed
from t5x import packing
from t5x import trainer as trainer_lib
from t5x import utils

_KINDS = parameterized.product(pack=(False, True), shuffle=(False, True))


class HostsTest(parameterized.TestCase):

  @_KINDS
  def test_the_global_batch_is_the_same_for_any_number_of_hosts(self, pack, shuffle):
    whole = inputs.read(inputs.get(inputs.mixture(), pack=pack, shuffle=shuffle), 12)
    for hosts in (2, 4):
      parts = [inputs.read(inputs.get(inputs.mixture(), host, hosts, pack=pack, shuffle=shuffle), 12) for host in range(hosts)]
      self.assertEqual(parts[0][0]['encoder_input_tokens'].shape[0], 8 // hosts)
      inputs.assert_batches_equal(
          self, [{name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]} for k in range(12)], whole)

  def test_hosts_do_not_overlap(self):
    # One epoch of a task in whole batches: every example is in one batch of one host.
    parts = [inputs.inputs(inputs.read(inputs.get(inputs.task('a', 32), host, 4), 4)) for host in range(4)]
    self.assertCountEqual(sum(parts, []), [inputs.text('a', j) for j in range(32)])

  def test_hosts_as_processes(self):
    self._assert_hosts_as_processes(pack=True)

  @pytest.mark.slow
  def test_hosts_as_processes_with_padded_rows(self):
    self._assert_hosts_as_processes(pack=False)

  def _assert_hosts_as_processes(self, pack):
    folder = tempfile.mkdtemp()
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path)), 'TF_CPP_MIN_LOG_LEVEL': '3'}
    running = []
    for host in range(2):
      arguments = {'host': host, 'hosts': 2, 'pack': pack, 'batches': 5, 'path': os.path.join(folder, f'{host}.npz')}
      running.append(subprocess.Popen([sys.executable, inputs.__file__, json.dumps(arguments)], env=environment,
                                      stderr=subprocess.PIPE, text=True))
    for process in running:
      _, errors = process.communicate(timeout=300)
      self.assertEqual(process.returncode, 0, errors)
    parts = [np.load(os.path.join(folder, f'{host}.npz'), allow_pickle=False) for host in range(2)]
    whole = inputs.read(inputs.get(inputs.mixture(), pack=pack), 5)
    found = [{name: np.concatenate([part[name][k] for part in parts]) for name in parts[0]} for k in range(5)]
    inputs.assert_batches_equal(self, found, whole)


class PlaceTest(parameterized.TestCase):

  @_KINDS
  def test_a_run_goes_on_from_any_step(self, pack, shuffle):
    # Packed, 60 batches of 32 rows are more than one window.
    get = lambda: inputs.get(inputs.mixture(), pack=pack, shuffle=shuffle, batch_size=32)
    whole = inputs.read(get(), 60)
    first = batches.BatchIterator(get())
    for step in (0, 1, 25, 58):
      while first._places[-1][0] < step:
        next(first)
      place = json.loads(json.dumps(first.place_after(step)))
      resumed = batches.BatchIterator(get(), place=place, skip=1)
      skipping = batches.BatchIterator(get(), skip=step)
      for iterator in (resumed, skipping):
        inputs.assert_batches_equal(self, [next(iterator), next(iterator)], whole[step:step + 2])
    if pack:
      self.assertGreater(place['window'], 0)

  def test_beginning_at_a_place_reads_nothing_before_it(self):
    ds = inputs.get(inputs.mixture(), pack=True)
    planned = []
    plan = ds.stream._plan
    ds.stream._plan = lambda window: planned.append(window) or plan(window)
    batches.BatchIterator(ds, place={'window': 10**6, 'row': 3, 'examples': packing.WINDOW}).peek()
    self.assertEqual(set(planned), {10**6})
    far = inputs.get(inputs.mixture()).skip(10**9)
    self.assertLen(inputs.inputs([next(iter(far))]), 8)

  def test_a_place_is_kept_where_the_batch_size_changes(self):
    rows = inputs.inputs(inputs.read(inputs.get(inputs.mixture(), batch_size=1), 60))
    place = {'example': 40}
    resumed = batches.BatchIterator(inputs.get(inputs.mixture(), batch_size=4), place=place, skip=5)
    self.assertEqual(inputs.inputs([next(resumed)]), rows[40:44])

  def test_a_place_of_another_kind_is_not_taken(self):
    whole = inputs.read(inputs.get(inputs.mixture()), 6)
    for place in ({'window': 2, 'row': 1, 'examples': packing.WINDOW}, {}, None):
      resumed = batches.BatchIterator(inputs.get(inputs.mixture()), place=place, skip=5)
      inputs.assert_batches_equal(self, [next(resumed)], whole[5:])
    other_window = {'window': 2, 'row': 1, 'examples': packing.WINDOW + 1}
    self.assertFalse(inputs.get(inputs.mixture(), pack=True).stream.accepts(other_window))

  @_KINDS
  def test_a_saved_iterator_is_restored(self, pack, shuffle):
    get = lambda: batches.BatchIterator(inputs.get(inputs.mixture(), pack=pack, shuffle=shuffle), 'the words')
    iterator, path = get(), os.path.join(tempfile.mkdtemp(), 'train_ds')
    next(iterator), next(iterator)
    iterator.peek()
    iterator.save(path)
    wanted, other = [next(iterator)], get()
    other.restore(path)
    inputs.assert_batches_equal(self, [next(other)], wanted)
    with self.assertRaisesRegex(ValueError, '^[^\n]*is not a position in the words[^\n]*pack[^\n]*$'):
      batches.BatchIterator(inputs.get(inputs.mixture(), pack=not pack), 'the words').restore(path)

  def test_places_of_the_last_batches_are_known(self):
    iterator = batches.BatchIterator(inputs.get(inputs.mixture()))
    self.assertEqual(iterator.place_after(0), {'example': 0})
    for _ in range(20):
      next(iterator)
    self.assertEqual([iterator.place_after(n) for n in (20, 19, 3, 21)], [{'example': 160}, {'example': 152}, None, None])

  def test_streamed_data_have_no_place(self):
    with mock.patch.object(datasets, 'in_memory_limit', return_value=0):
      iterator = batches.BatchIterator(inputs.get(inputs.mixture()))
    next(iterator)
    self.assertIsNone(iterator.place_after(1))


class ReadAheadTest(absltest.TestCase):

  def _threads(self):
    return {t for t in threading.enumerate() if t.name == 'read_batches'}

  def test_batches_are_made_before_they_are_asked_for_but_not_endlessly(self):
    ds = inputs.get(inputs.mixture())
    made = []
    read = ds.stream.read
    ds.stream.read = lambda *args: made.append(1) or read(*args)
    iterator = batches.BatchIterator(ds)
    next(iterator)
    deadline = time.monotonic() + 60
    while len(made) < 1 + batches._AHEAD and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(2 * batches._POLL_SECONDS)
    self.assertBetween(len(made), 1 + batches._AHEAD, 2 + batches._AHEAD)

  def test_its_thread_ends_with_the_iterator(self):
    before = self._threads()
    iterator = batches.BatchIterator(inputs.get(inputs.mixture()))
    next(iterator)
    (thread,) = self._threads() - before
    del iterator
    gc.collect()
    thread.join(60)
    self.assertFalse(thread.is_alive())

  def test_the_end_and_faults_reach_the_reader_each_time(self):
    iterator = batches.BatchIterator(inputs.get(inputs.mixture()).take(2), 'the words')
    next(iterator), next(iterator)
    for _ in range(2):
      with self.assertRaisesRegex(ValueError, 'the words yields no further batch'):
        next(iterator)
    ds = inputs.get(inputs.mixture())
    ds.stream.read = mock.Mock(side_effect=KeyError('lost'))
    iterator = batches.BatchIterator(ds)
    for _ in range(2):
      with self.assertRaisesRegex(KeyError, 'lost'):
        next(iterator)


class DatasetTest(absltest.TestCase):

  def test_skip_and_take_count_from_where_they_are(self):
    ds = inputs.get(inputs.mixture())
    whole = inputs.read(ds, 12)
    inputs.assert_batches_equal(self, list(ds.skip(3).take(4)), whole[3:7])
    inputs.assert_batches_equal(self, list(ds.take(6).skip(4)), whole[4:6])
    inputs.assert_batches_equal(self, list(ds.skip(2).skip(3).take(9).take(1)), whole[5:6])
    self.assertEmpty(list(ds.take(2).skip(3)))

  def test_the_spec_is_that_of_the_batches(self):
    for pack in (False, True):
      ds = inputs.get(inputs.mixture(), 1, 2, pack=pack)
      (batch,) = inputs.read(ds, 1)
      self.assertEqual({k: (v.shape, v.dtype) for k, v in batch.items()},
                       {k: (tuple(v.shape), v.dtype.as_numpy_dtype) for k, v in ds.element_spec.items()})


class _StoppedTrainer(trainer_lib.Trainer):
  """Fails once step 5 is recorded."""

  def train(self, batch_iter, num_steps, start_step=None):
    shown = self.on_step

    def on_step(step, metrics):
      shown(step, metrics)
      if step == 5:
        raise RuntimeError('killed')

    self.on_step = on_step
    try:
      return super().train(batch_iter, num_steps, start_step)
    finally:
      self.on_step = shown


class CheckpointTest(parameterized.TestCase):
  """Places in the checkpoints of training runs."""

  def _train(self, folder, **overrides):
    cfg = reversal.config('train', name=inputs.mixture())
    with contextlib.redirect_stdout(io.StringIO()):
      reversal.train_without_evaluation(folder, 9, **{'train_dataset_cfg': cfg, **overrides})
    return self._record(folder)

  def _record(self, folder):
    return pathlib.Path(folder, 'train/metrics.jsonl').read_text()

  _whole_folder = None

  def _whole(self):
    """The folder of a run that nothing stops."""
    if CheckpointTest._whole_folder is None:
      CheckpointTest._whole_folder = tempfile.mkdtemp()
      self._train(CheckpointTest._whole_folder)
    return CheckpointTest._whole_folder

  def _killed(self, **overrides):
    """The folder of a run that was killed at step 5."""
    folder = tempfile.mkdtemp()
    with self.assertRaisesRegex(RuntimeError, 'killed'):
      self._train(folder, trainer_cls=reversal.trainer(_StoppedTrainer), **overrides)
    return folder

  def _place(self, folder, step):
    return json.loads(pathlib.Path(folder, f'checkpoint_{step}/metadata/metadata').read_text())['data_place']

  def test_a_killed_run_goes_on_at_the_place_of_its_checkpoint(self):
    whole, killed = self._whole(), self._killed()
    self.assertEqual(self._place(whole, 0), {'window': 0, 'row': 0, 'examples': packing.WINDOW})
    self.assertEqual(self._place(whole, 6), {'window': 0, 'row': 48, 'examples': packing.WINDOW})
    # Were the batches counted instead of looked up, this would be noticed.
    with mock.patch.object(indexed.IndexedDataset, 'skip', side_effect=AssertionError('read from the start')):
      self.assertEqual(self._train(killed), self._record(whole))
    self.assertEqual(self._place(killed, 9), self._place(whole, 9))

  def test_where_no_place_was_saved_batches_are_counted(self):
    killed = self._killed()
    path = pathlib.Path(killed, 'checkpoint_3/metadata/metadata')
    metadata = json.loads(path.read_text())
    for key in ('data_place', 'checksums', 'digest'):  # None of which older versions saved.
      del metadata[key]
    path.write_text(json.dumps(metadata))
    self.assertEqual(self._train(killed), self._record(self._whole()))

  def test_t5x_own_format_counts_batches(self):
    killed = self._killed(use_orbax=False)
    self.assertEqual(self._train(killed, use_orbax=False), self._record(self._whole()))

  @parameterized.parameters('indexed', 'streamed')
  def test_a_damaged_checkpoint_gives_way_to_the_place_of_the_one_before(self, kind):
    limit = mock.patch.object(datasets, 'in_memory_limit', return_value=0 if kind == 'streamed' else 100)
    self.enter_context(limit)
    if kind == 'streamed':
      whole = tempfile.mkdtemp()
      self._train(whole)
    else:
      whole = self._whole()
    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(dtype='float32', checkpoint_steps=[2, 4]))
    damaged = self._killed(checkpoint_cfg=cfg)
    for path in pathlib.Path(damaged, 'checkpoint_4/state').rglob('*'):
      if path.is_file():
        path.write_bytes(path.read_bytes()[:10])
    self.assertEqual(self._train(damaged, checkpoint_cfg=cfg), self._record(whole))


if __name__ == '__main__':
  absltest.main()
