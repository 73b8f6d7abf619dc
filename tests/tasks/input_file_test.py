"""Tests of a JSONL file of inputs as a task: its lines, their tasks, its faults, and the lines that come out."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import seqio
import tensorflow as tf

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.task_index import task_key
from cpoly_jax.training.models import CPolyModel
from tasks import input_file
from tasks import records

LENGTHS = {'inputs': 12, 'targets': 8}
LINES = ({'id': 7, 'task': 'rte', 'input': 'one', 'target': 'yes', 'more': {'é': [1.5, None]}},
         {'inputs': 'two', 'task': 'cb'},
         {'task': 'rte', 'input': 'three'})


def _model(names=('cb', 'rte'), **kwargs):
  vocabulary = seqio.ByteVocabulary()
  return CPolyModel(network.Transformer(testing.small_config(vocab_size=264)), vocabulary, vocabulary, None,
                    task_index=TaskIndex(names), **kwargs)


class InputFileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.addCleanup(lambda: [seqio.TaskRegistry.remove(name) for name in list(input_file._registered)
                             if input_file._registered.pop(name)])

  def _task(self, lines, name='questions.jsonl', **kwargs):
    path = self.folder / name
    path.write_text(''.join(line if isinstance(line, str) else json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return seqio.TaskRegistry.get(input_file.task(**{'path': path, 'model': _model(), 'lengths': LENGTHS, **kwargs}))

  def _examples(self, task):
    return list(task.get_dataset(LENGTHS, 'infer', shuffle=False).as_numpy_iterator())

  def test_examples_are_routed_by_their_lines(self):
    task = self._task(LINES)
    self.assertEqual((task.name, task.num_input_examples('infer'), task.splits), ('questions', 3, ('infer',)))
    self.assertEqual(task.source.routed_tasks, ['cb', 'rte'])
    _model().check_mixture(task)
    examples = self._examples(task)
    self.assertEqual([int(e['task_id'][0]) for e in examples], [task_key(name) for name in ('rte', 'cb', 'rte')])
    self.assertEqual(examples[0]['inputs'].tolist(), [byte + 3 for byte in b'one'] + [1])
    self.assertEqual(examples[0]['targets'].tolist(), [1])  # Predictions do without.
    batch = next(_model().FEATURE_CONVERTER_CLS(pack=False)(
        task.get_dataset(LENGTHS, 'infer', shuffle=False), LENGTHS).batch(3).as_numpy_iterator())
    self.assertEqual(batch['task_id'].tolist(), [[1], [0], [1]])

  @parameterized.parameters(
      ('predict', ([[116, 105, 1, 0], [113, 1, 0, 0], [1, 0, 0, 0]], {}), ({'prediction': 'qf'}, {'prediction': 'n'},
                                                                           {'prediction': ''})),
      ('predict_with_aux', ([[116, 1], [113, 1], [1, 0]], {'scores': [-1.0, -2.0, -0.5]}),
       ({'prediction': 'q', 'scores': -1.0}, {'prediction': 'n', 'scores': -2.0}, {'prediction': '', 'scores': -0.5})),
      ('predict', ([[[116, 1], [113, 1]]] * 3, {}), ({'prediction': ['q', 'n']},) * 3))
  def test_lines_come_back_with_a_field_more(self, mode, inferences, added):
    task = self._task(LINES, mode=mode)
    path = self.folder / 'out'
    input_file.write(str(path), inferences, task.get_dataset(LENGTHS, 'infer', shuffle=False), mode, seqio.ByteVocabulary())
    wanted = [{**line, **more} for line, more in zip(LINES, added)]
    self.assertEqual(path.read_text(encoding='utf-8'), ''.join(json.dumps(w, ensure_ascii=False) + '\n' for w in wanted))
    self.assertEqual(sorted(os.listdir(self.folder)), ['out', 'questions.jsonl'])

  def test_scores(self):
    lines = [{'task': 'rte', 'input': 'one', 'target': 'yes'}, {'task': 'cb', 'input': 'two', 'targets': ['no']}]
    task = self._task(lines, mode='score')
    self.assertEqual([e['targets_pretokenized'] for e in self._examples(task)], [b'yes', b'no'])
    input_file.write(str(self.folder / 'out'), ([-1.5, -2.5], {}), task.get_dataset(LENGTHS, 'infer', shuffle=False), 'score')
    self.assertEqual([json.loads(line)['score'] for line in (self.folder / 'out').read_text().splitlines()], [-1.5, -2.5])

  def test_one_task_for_all(self):
    lines = [{'input': 'one'}, {'input': 'two', 'task': 'cb'}]
    self.assertEqual(self._task(lines, task='rte').source.routed_tasks, ['cb', 'rte'])
    alone = self._task(lines[:1], name='alone.jsonl', model=_model(('rte',)))
    self.assertEqual(alone.source.routed_tasks, ['rte'])
    with self.assertRaisesRegex(ValueError, "task 'rtd' has no routing row; did you mean 'rte'"):
      self._task(lines, task='rtd')

  @parameterized.parameters(
      ('predict', {'input': 'a'}, "field 'task' is missing or empty; write .* or set TASK"),
      ('predict', {'task': 'rtd', 'input': 'a'}, "task 'rtd' has no routing row; did you mean 'rte'"),
      ('predict', {'task': 'cb', 'text': 'a'}, r"field 'input' is missing \(fields here: task, text\)"),
      ('predict', {'task': 'cb', 'input': 'a', 'inputs': 'a'}, "both 'input' and 'inputs'"),
      ('predict', {'task': 'cb', 'input': ['a']}, 'wanted one text'),
      ('predict', {'task': 'cb', 'input': ' '}, 'not empty'),
      ('predict', {'task': 'cb', 'input': 'a' * 12}, 'the input has 13 tokens with its end, more than 12; .*TRUNCATE = True'),
      ('predict', {'task': 'cb', 'input': 'a', 'prediction': 1}, "field 'prediction' is there already; rename it"),
      ('score', {'task': 'cb', 'input': 'a'}, "field 'target' is missing"),
      ('score', {'task': 'cb', 'input': 'a', 'targets': ['a', 'b']}, 'wanted one text'),
      ('predict', '{"task": "cb", "inp\n', 'not valid JSON'))
  def test_bad_lines(self, mode, line, told):
    task = self._task([{'task': 'cb', 'input': 'a', 'target': 'b'}, line], mode=mode)
    with self.assertRaisesRegex(records.BadRecord, f'questions.jsonl:2: .*{told}') as error:
      task.num_input_examples('infer')
    self.assertNotIn('\n', str(error.exception))

  def test_long_texts_may_be_cut(self):
    task = self._task([{'task': 'cb', 'input': 'a' * 20}], truncate=True)
    self.assertEqual(self._examples(task)[0]['inputs'].tolist(), [100] * 11 + [1])

  def test_unknown_tasks_may_get_the_average(self):
    model = _model(unknown_task=routing.AVERAGE)
    task = self._task([{'task': 'new', 'input': 'a'}], model=model)
    model.check_mixture(task)
    self.assertEqual(self._examples(task)[0]['task_id'].tolist(), [task_key('new')])

  def test_the_digest_tells_files_apart(self):
    digests = [self._task(lines, name=f'{i}.jsonl').source.content_digest('infer')
               for i, lines in enumerate((LINES, LINES, LINES[::-1], LINES[:2]))]
    self.assertEqual(digests[0], digests[1])
    self.assertLen(set(digests), 3)

  def test_names(self):
    first = self._task(LINES, name='my questions.v2.jsonl')
    self.assertEqual(first.name, 'my_questions_v2')
    self.assertIs(self._task(LINES, name='my questions.v2.jsonl').source, first.source)
    self.assertIsNot(self._task(LINES, name='my questions.v2.jsonl', truncate=True).source, first.source)
    with mock.patch.object(input_file, '_registered', {}):
      with self.assertRaisesRegex(ValueError, "there is a task or mixture 'my_questions_v2' already; rename the file"):
        self._task(LINES, name='my questions.v2.jsonl')

  @parameterized.parameters(
      (dict(path=None), "INPUT_FILE = 'questions.jsonl'"),
      (dict(mode='guess'), 'write one of predict, predict_with_aux, score'),
      (dict(lengths=None), 'TASK_FEATURE_LENGTHS is not set'))
  def test_wrong_settings(self, settings, told):
    with self.assertRaisesRegex(ValueError, told):
      input_file.task(**{'path': 'x.jsonl', 'model': _model(), 'lengths': LENGTHS, **settings})

  def test_no_file(self):
    name = input_file.task(path=self.folder / 'absent.jsonl', model=_model(), lengths=LENGTHS)
    with self.assertRaisesRegex(FileNotFoundError, 'absent.jsonl'):
      seqio.TaskRegistry.get(name).num_input_examples('infer')

  def test_chunks_of_the_file_are_its_lines(self):
    ds = self._task(LINES).get_dataset(LENGTHS, 'infer', shuffle=False)
    self.assertEqual(int(ds.cardinality()), 3)
    self.assertEqual(ds.element_spec[input_file.RECORD].dtype, tf.string)


if __name__ == '__main__':
  absltest.main()
