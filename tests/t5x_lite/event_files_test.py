"""Tests for event_files: TensorBoard's curves of a run that was killed and went on have each step once."""

from __future__ import annotations

import os
import pathlib
import tempfile

from absl.testing import absltest
from clu import metric_writers
import tensorflow as tf

from t5x import event_files
from t5x import periodic_eval


def _write(folder, name, values):
  writer = metric_writers.create_default_writer(folder, collection=name, asynchronous=False)
  for step, value in values.items():
    writer.write_scalars(step, {'loss': value})
  writer.close()


def _curve(folder):
  """[(step, loss)] as TensorFlow reads them, checksums included."""
  return [(event.step, float(tf.make_ndarray(value.tensor))) for path in sorted(pathlib.Path(folder).glob('events*'))
          for event in tf.compat.v1.train.summary_iterator(str(path)) for value in event.summary.value]


class EventFilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()
    self.train = os.path.join(self.folder, 'train')

  def test_later_events_go_and_earlier_ones_stay_as_they_are(self):
    _write(self.folder, 'train', {1: 0.5, 2: 0.25, 300: 8.0, 70_000_000_000: 9.0})
    self.assertEqual(event_files.steps(self.train), {0, 1, 2, 300, 70_000_000_000})
    event_files.drop_after(self.train, 300)
    self.assertEqual(_curve(self.train), [(1, 0.5), (2, 0.25), (300, 8.0)])
    event_files.drop_after(self.train, 1)
    self.assertEqual(_curve(self.train), [(1, 0.5)])
    self.assertLen(os.listdir(self.train), 1)

  def test_a_file_without_later_events_is_not_touched(self):
    _write(self.folder, 'train', {1: 0.5})
    path, = pathlib.Path(self.train).iterdir()
    before = path.stat()
    event_files.drop_after(self.train, 1)
    self.assertEqual((path.stat().st_ino, path.stat().st_mtime_ns), (before.st_ino, before.st_mtime_ns))

  def test_a_record_that_was_cut_goes(self):
    _write(self.folder, 'train', {1: 0.5, 2: 0.25})
    path, = pathlib.Path(self.train).iterdir()
    whole = path.read_bytes()
    for lost in (1, 5, 20):
      path.write_bytes(whole[:-lost])
      event_files.drop_after(self.train, 9)
      self.assertEqual(_curve(self.train), [(1, 0.5)])

  def test_negative_steps_and_other_bytes(self):
    os.makedirs(self.train)
    path = pathlib.Path(self.train, 'events.out.tfevents.1.x')
    with tf.io.TFRecordWriter(str(path)) as writer:
      for event in (tf.compat.v1.Event(wall_time=1.0, step=-3), tf.compat.v1.Event(file_version='brain.Event:2')):
        writer.write(event.SerializeToString())
    self.assertEqual(event_files.steps(self.train), {-3, 0})
    path.write_bytes(b'no events at all, but long enough')
    self.assertEqual(event_files.steps(self.train), set())

  def test_absent_folders(self):
    event_files.drop_after(self.train, 3)
    self.assertEqual(event_files.folders(self.folder), [])

  def test_evaluations(self):
    for name in ('training_eval/a', 'inference_eval/b'):
      _write(self.folder, name, {3: 1.0, 6: 2.0})
    pathlib.Path(self.folder, 'inference_eval', 'b-metrics.jsonl').write_text('{"step": 3, "em": 1}\n{"step": 6, "em": 2}\n')
    periodic_eval.drop_later_metrics(self.folder, 3)
    for name in ('training_eval/a', 'inference_eval/b'):
      self.assertEqual(_curve(os.path.join(self.folder, name)), [(3, 1.0)])
    self.assertEqual(pathlib.Path(self.folder, 'inference_eval', 'b-metrics.jsonl').read_text(), '{"step": 3, "em": 1}\n')


if __name__ == '__main__':
  absltest.main()
