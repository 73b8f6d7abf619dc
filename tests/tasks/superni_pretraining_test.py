"""Tests of the gap filling that a small base for Super-NI is pretrained on."""

import os
import random
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from tasks import superni
from tasks import superni_pretraining
from tests.tasks import superni_case

WORDS = [f'w{i}' for i in range(24)]


def _filled(inputs, targets):
  """Puts the words of the targets into the gaps of the inputs."""
  spans = dict(zip(re.findall(r'<\d+>', targets), re.split(r' ?<\d+> ?', targets)[1:]))
  return ' '.join(spans.get(word, word) for word in inputs.split())


class LeaveOutTest(parameterized.TestCase):

  @parameterized.parameters((2, 1, 1), (10, 2, 1), (24, 4, 1), (60, 9, 3))
  def test_targets_fill_the_gaps(self, length, count, spans):
    words = [f'w{i}' for i in range(length)]
    for seed in range(50):
      inputs, targets = superni_pretraining.leave_out(words, random.Random(seed))
      self.assertEqual(_filled(inputs, targets).split(), words)
      self.assertLen([word for word in targets.split() if word.startswith('w')], count)
      self.assertEqual(re.findall(r'<(\d+)>', inputs), [str(i) for i in range(spans)])
      self.assertNotRegex(inputs, r'> <')  # Between two gaps there is a word.

  def test_gaps_are_everywhere_but_at_the_start(self):
    first = {superni_pretraining.leave_out(WORDS, random.Random(seed))[1].split()[1] for seed in range(400)}
    self.assertContainsSubset(['w1', 'w10', 'w20'], first)

  @parameterized.parameters((3, [3]), (24, [24]), (30, [24]), (36, [24, 12]), (0, []))
  def test_windows(self, words, lengths):
    self.assertEqual([len(w) for w in superni_pretraining.windows('x ' * words)], lengths)


class TaskTest(superni_case.SuperNiTestCase):

  def test_inputs_of_the_training_tasks_alone(self):
    said = {name: [{'id': f'{name}-{i}', 'input': f'{name} says {i} and no more', 'output': ['secret']} for i in range(10)]
            for name in ('task001_a', 'task002_b', 'task003_c')}
    self.register(['task001_a', 'task002_b'], ['task003_c'],
                  tasks={name: superni_case.task(Instances=instances) for name, instances in said.items()})
    found = self.examples(superni_pretraining.PRETRAINING, 'train')
    texts = {_filled(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode()) for e in found}
    self.assertLen(texts, 16)  # 20 % of each task's are for validation.
    self.assertEqual({text.split()[0] for text in texts}, {'task001_a', 'task002_b'})
    self.assertNotIn('secret', ' '.join(texts))
    others = {_filled(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode())
              for e in self.examples(superni_pretraining.PRETRAINING, 'validation')}
    self.assertLen(others, 4)
    self.assertEmpty(others & texts)

  def test_without_a_folder(self):
    self.enter_context(mock.patch.dict(os.environ, {superni.VARIABLE: ''}))
    with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR is not set; set it'):
      self.examples(superni_pretraining.PRETRAINING, 'train')


if __name__ == '__main__':
  absltest.main()
