"""Tests of SuperGLUE with lettered options: the exact texts, and that the run's style is asked for, not that of the import."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
import tensorflow_datasets as tfds

from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_prompts

# A line of each official file, the letters style of its first row, its target, and the letter of each class.
CASES = {
    'boolq': ({'passage': 'P {x}.', 'question': 'is it', 'idx': 3, 'label': True},
              'P {x}.\nQuestion: is it\nA. Yes\nB. No\nAnswer:', 'A', ('B', 'A')),
    'cb': ({'premise': 'P.', 'hypothesis': 'H', 'idx': 3, 'label': 'neutral'},
           'P.\nH\nIs the sentence below entailed by the sentence above?\nA. Yes\nB. No\nC. Maybe\nAnswer:', 'C',
           ('A', 'B', 'C')),
    'copa': ({'premise': 'P.', 'choice1': 'X.', 'choice2': 'Y {z}.', 'question': 'cause', 'idx': 3, 'label': 1},
             'P.\nQuestion: What was the cause of this?\nA. X.\nB. Y {z}.\nAnswer:', 'B', ('A', 'B')),
    'multirc': ({'idx': 3, 'passage': {'text': '<b>Sent 1: </b>It rains.<br>It pours.', 'questions': [
        {'question': 'What?', 'idx': 7, 'answers': [{'text': 'Sun', 'idx': 11, 'label': 0}]}]}},
                'Sent 1: It rains. It pours.\nQuestion: What?\nAnswer: Sun\nIs it true?\nA. Yes\nB. No\nAnswer:', 'B',
                ('B', 'A')),
    'record': ({'idx': 3, 'passage': {'text': 'Ann met Bob.\n@highlight\nThe end', 'entities': [
        {'start': 8, 'end': 10}, {'start': 0, 'end': 2}]},
                'qas': [{'query': '@placeholder left', 'idx': 9, 'answers': [{'start': 8, 'end': 10, 'text': 'Bob'}]}]},
               'record query: @placeholder left entities: Ann, Bob passage: Ann met Bob. The end', 'Bob', ()),
    'rte': ({'premise': 'P.', 'hypothesis': 'H.', 'idx': 3, 'label': 'not_entailment'},
            'P.\nH.\nIs the sentence below entailed by the sentence above?\nA. Yes\nB. No\nAnswer:', 'B', ('A', 'B')),
    'wic': ({'word': 'w', 'sentence1': 'A w.', 'sentence2': 'No w.', 'idx': 3, 'label': False},
            "Sentence 1: A w.\nSentence 2: No w.\nAre 'w' in the above two sentences the same?\nA. Yes\nB. No\nAnswer:", 'B',
            ('B', 'A')),
    'wsc': ({'text': 'In it , the tree fell and it broke.', 'idx': 3, 'label': False, 'target': {
        'span1_index': 3, 'span1_text': 'The tree', 'span2_index': 7, 'span2_text': 'it'}},
            'In it , the tree fell and *it* broke.\nQuestion: Does *it* refer to the tree?\nA. Yes\nB. No\nAnswer:', 'B',
            ('B', 'A')),
}


class LettersTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {superglue.VARIABLE: str(self.folder)}))
    self.addCleanup(gin.clear_config)
    self.use('letters')

  def use(self, style):
    gin.clear_config()
    gin.parse_config('from __gin__ import dynamic_registration\nfrom tasks import superglue\n'
                     f"superglue.prompt.style = '{style}'")

  def write(self, task, *lines):
    path = self.folder / superglue_formats.FORMATS[task].folder / 'train.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    path.with_name('test.jsonl').write_text(path.read_text())

  def texts(self, task, split='train'):
    dataset = seqio.TaskRegistry.get(f'superglue_{task}').get_dataset({'inputs': 999, 'targets': 99}, split, shuffle=False)
    return [(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode()) for e in tfds.as_numpy(dataset)]

  @parameterized.parameters(*CASES)
  def test_texts(self, task):
    line, inputs, target, letters = CASES[task]
    self.write(task, line)
    self.assertEqual(self.texts(task), [(inputs, target)])
    self.assertEqual(superglue.labels(task), letters)

  def test_copa_asks_for_effects(self):
    self.write('copa', {**CASES['copa'][0], 'question': 'effect'})
    self.assertEqual(self.texts('copa'), [('P.\nQuestion: What happened as a result?\nA. X.\nB. Y {z}.\nAnswer:', 'B')])

  def test_hidden_labels_stay_hidden(self):
    line = dict(CASES['boolq'][0])
    del line['label']
    self.write('boolq', line)
    self.assertEqual(self.texts('boolq', 'test')[0][1], '<unk>')

  def test_wsc_trains_on_both_kinds_of_pairs(self):
    line = CASES['wsc'][0]
    self.write('wsc', line, {**line, 'idx': 4, 'label': True})
    self.assertEqual([target for _, target in self.texts('wsc')], ['B', 'A'])
    self.use('t5')
    self.assertEqual(self.texts('wsc'), [('wsc: In it , the tree fell and *it* broke.', 'the tree')])

  def test_the_style_is_that_of_the_moment(self):
    self.write('rte', CASES['rte'][0])
    self.assertEqual(self.texts('rte')[0][1], 'B')
    task = seqio.TaskRegistry.get('superglue_rte')
    self.assertEqual([task.postprocess_fn(t, example=None) for t in ('A', 'entailment')], [0, -1])
    self.use('t5')
    self.assertEqual(self.texts('rte'), [('rte hypothesis: H. premise: P.', 'not_entailment')])
    self.assertEqual([task.postprocess_fn(t, example=None) for t in ('A', 'entailment')], [-1, 0])

  def test_label_texts_of_t5(self):
    self.use('t5')
    self.assertEqual(superglue.labels('cb'), ('entailment', 'contradiction', 'neutral'))
    self.assertEqual(superglue.labels('copa'), ('choice1', 'choice2'))
    self.assertEqual((superglue.labels('wsc'), superglue.labels('record')), ((), ()))

  def test_unknown_style(self):
    self.use('T5')
    with self.assertRaisesRegex(ValueError, "superglue.prompt.style is 'T5'; set it to 't5' or 'letters'"):
      superglue_prompts.prompt()


if __name__ == '__main__':
  absltest.main()
