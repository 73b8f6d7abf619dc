"""Tests of the benchmark of the input pipeline: what it counts, and that each way of reading is the one that it names."""

import json
import subprocess
import sys

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
import pytest
import numpy as np

from benchmarks import input as input_benchmark
from benchmarks import train_step


def setUpModule():
  # pytest does not parse absl's flags.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


class InputTest(absltest.TestCase):

  def test_rows_examples_and_places_are_counted(self):
    tokens = np.array([[5, 5, 0, 0], [5, 5, 5, 5]])
    segments = np.array([[1, 2, 0, 0], [1, 1, 1, 1]])
    padded = input_benchmark.read(iter([{'encoder_input_tokens': tokens}] * 2), 2)
    packed = input_benchmark.read(iter([{'encoder_input_tokens': tokens, 'encoder_segment_ids': segments}] * 2), 2)
    self.assertEqual((padded['fill'], packed['fill']), (0.75, 0.75))
    self.assertAlmostEqual(padded['examples_per_second'] / padded['rows_per_second'], 1)
    self.assertAlmostEqual(packed['examples_per_second'] / packed['rows_per_second'], 1.5)

  @pytest.mark.slow
  def test_a_mixture_is_measured(self):
    with flagsaver.flagsaver(rounds=1, steps=1, batches=3, batch=4, inputs=64, targets=16):
      figures = input_benchmark.measure('latent_skills_held_out')
    self.assertEqual(figures['tasks'], 8)
    self.assertGreater(figures['packed']['fill'], figures['padded']['fill'])
    for name in ('padded', 'packed'):
      self.assertAlmostEqual(figures[name]['times_the_train_step'],
                             figures[name]['rows_per_second'] / figures[name]['train_rows_per_second'])
    text = input_benchmark.table({'m': {**figures, 'first_batch_seconds': {'indexed': 1.5}}})
    self.assertIn('m: 8 tasks', text)
    self.assertIn('first batch, indexed: 1.5 s', text)

  @pytest.mark.slow
  def test_the_first_batch_is_timed_in_a_process_of_its_own(self):
    command = [sys.executable, '-m', 'benchmarks.first_batch', 'latent_skills_held_out', 'indexed', '4', '64', '16']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertGreater(json.loads(done.stdout.splitlines()[-1])['seconds'], 0)
    with flagsaver.flagsaver(batch=4, inputs=64, targets=16):
      self.assertEqual(train_step.shape(), (4, 64, 16))
      with self.assertRaisesRegex(RuntimeError, 'no_such_mixture'):
        input_benchmark.first_batch_seconds('no_such_mixture', 'indexed', 1)


if __name__ == '__main__':
  absltest.main()
