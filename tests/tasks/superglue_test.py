"""Tests of SuperGLUE: formats, faults, both origins of the data, metrics by hand, mixtures."""

from __future__ import annotations

import importlib.resources.abc
import json
import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import seqio
import tensorflow_datasets as tfds

from cpoly_jax import testing
from tasks import sources
from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_metrics

LENGTHS = {'inputs': 4096, 'targets': 128}
PASSAGE = 'Ann met Bob.\n@highlight\nThe end\n@highlight\nBob left'

# A line of each official file, and the texts that T5 makes of its first row.
CASES = {
    'boolq': ({'passage': 'P', 'question': 'is it', 'idx': 3, 'label': True},
              'boolq passage: P question: is it', 'True'),
    'cb': ({'premise': 'P.', 'hypothesis': 'H', 'idx': 3, 'label': 'neutral'},
           'cb hypothesis: H premise: P.', 'neutral'),
    'copa': ({'premise': 'P.', 'choice1': 'A.', 'choice2': 'B.', 'question': 'effect', 'idx': 3,
              'label': 1},
             'copa choice1: A. choice2: B. premise: P. question: effect', 'choice2'),
    'multirc': ({'idx': 3, 'version': 1.1, 'passage': {
        'text': '<b>Sent 1: </b>It rains.<br>It pours.',
        'questions': [{'question': 'What?', 'idx': 7, 'answers': [
            {'text': 'Rain', 'idx': 11, 'label': 1}, {'text': 'Sun', 'idx': 12, 'label': 0}]}]}},
                'multirc question: What? answer: Rain paragraph: Sent 1: It rains. It pours.',
                'True'),
    'record': ({'source': 's', 'idx': 3, 'passage': {
        'text': PASSAGE, 'entities': [{'start': 8, 'end': 10}, {'start': 0, 'end': 2},
                                      {'start': 43, 'end': 45}]},
                'qas': [{'query': '@placeholder left', 'idx': 9, 'answers': [
                    {'start': 8, 'end': 10, 'text': 'Bob'}, {'start': 43, 'end': 45, 'text': 'Bob'},
                    {'start': 0, 'end': 2, 'text': 'Ann'}]}]},
               'record query: @placeholder left entities: Ann, Bob passage: Ann met Bob. The end. '
               'Bob left',
               'Ann'),
    'rte': ({'premise': 'P.', 'hypothesis': 'H.', 'idx': 3, 'label': 'not_entailment'},
            'rte hypothesis: H. premise: P.', 'not_entailment'),
    'wic': ({'word': 'w', 'sentence1': 'A w.', 'sentence2': 'No w.', 'idx': 3, 'label': False,
             'start1': 2, 'end1': 3, 'start2': 3, 'end2': 4, 'version': 1.1},
            'wic sentence1: A w. sentence2: No w. word: w', 'False'),
    'wsc': ({'text': 'In it , the tree fell and it broke.', 'idx': 3, 'label': True, 'target': {
        'span1_index': 3, 'span1_text': 'The tree', 'span2_index': 7, 'span2_text': 'it'}},
            'wsc: In it , the tree fell and *it* broke.', 'the tree'),
}


def _lines(*records):
  return ''.join(json.dumps(record) + '\n' for record in records)


class SuperGlueTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.use(self.folder)

  def use(self, folder):
    self.enter_context(mock.patch.dict(os.environ, {superglue.VARIABLE: str(folder)}))

  def write(self, task, split, text):
    path = self.folder / superglue_formats.FORMATS[task].folder / f'{split}.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)

  def examples(self, task, split, **kwargs):
    dataset = seqio.TaskRegistry.get(f'superglue_{task}').get_dataset(
        LENGTHS, split, shuffle=False, **kwargs)
    return list(tfds.as_numpy(dataset))

  @parameterized.parameters(*CASES)
  def test_format(self, task):
    line, inputs, target = CASES[task]
    self.write(task, 'train', _lines(line))
    example = self.examples(task, 'train')[0]
    self.assertEqual(example['inputs_pretokenized'].decode(), inputs)
    self.assertEqual(example['targets_pretokenized'].decode(), target)
    vocabulary = seqio.ByteVocabulary()
    np.testing.assert_array_equal(example['inputs'], vocabulary.encode(inputs) + [1])
    np.testing.assert_array_equal(example['targets'], vocabulary.encode(target) + [1])
    self.assertEqual(example['task_id'].shape, (1,))

  @parameterized.parameters(*CASES)
  def test_test_split_may_lack_labels(self, task):
    text = json.dumps(CASES[task][0])
    line = json.loads(text)
    line.pop('label', None)
    for question in line.get('passage', {}).get('questions', []) if task == 'multirc' else []:
      for answer in question['answers']:
        del answer['label']
    for query in line.get('qas', []):
      del query['answers']
    self.write(task, 'test', _lines(line))
    target = self.examples(task, 'test')[0]['targets_pretokenized'].decode()
    self.assertEqual(target, 'the tree' if task == 'wsc' else '<unk>')
    self.write(task, 'val', _lines(line))
    with self.assertRaisesRegex(ValueError, r"val.jsonl:1: .*field '(label|answers)' is missing"):
      self.examples(task, 'validation')

  def test_multirc_rows(self):
    self.write('multirc', 'val', _lines(CASES['multirc'][0]))
    rows = self.examples('multirc', 'validation')
    self.assertEqual([(r['idx/paragraph'], r['idx/question'], r['idx/answer'], r['label'])
                      for r in rows], [(3, 7, 11, 1), (3, 7, 12, 0)])

  def test_record_has_a_row_per_answer_in_training_and_per_query_otherwise(self):
    for split in ('train', 'val'):
      self.write('record', split, _lines(CASES['record'][0]))
    self.assertEqual([r['targets_pretokenized'] for r in self.examples('record', 'train')],
                     [b'Ann', b'Bob'])
    (row,) = self.examples('record', 'validation')
    self.assertEqual(list(row['answers']), [b'Ann', b'Bob'])
    self.assertEqual((row['idx/passage'], row['idx/query']), (3, 9))

  def test_wsc_trains_on_true_pairs_only(self):
    line = CASES['wsc'][0]
    for split in ('train', 'val'):
      self.write('wsc', split, _lines({**line, 'label': False}, line, {**line, 'label': False}))
    self.assertLen(self.examples('wsc', 'train'), 1)
    self.assertEqual([r['label'] for r in self.examples('wsc', 'validation')], [0, 1, 0])

  @parameterized.parameters(
      # As T5's repairs of the two official rows: glued punctuation; an index that is off by one.
      ('out loud. "Good for him," he said. ', 'him', 4, 'out loud. "Good for *him* ," he said.'),
      ('want to use it , but', 'it', 2, 'want to use *it* , but'),
      ('it was it .', 'it', 2, 'it was *it* .'),
      ('He ran . ', 'He', 0, '*He* ran . '),
  )
  def test_mark_pronoun(self, text, pronoun, index, expected):
    self.assertEqual(superglue_formats.mark_pronoun(text, pronoun, index), expected)

  @parameterized.parameters(
      ('boolq', {'label': 'true'}, r"train.jsonl:2: label 'true' is not one of False, True"),
      ('boolq', {'label': 1}, r'train.jsonl:2: label 1 is not one of False, True'),
      ('copa', {'label': True}, r'train.jsonl:2: label True is not one of 0, 1'),
      ('cb', {'label': 'Neutral'}, r"train.jsonl:2: label 'Neutral' is not one of 'entailment', "),
      ('rte', {'premise': None}, r"train.jsonl:2: field 'premise' is None, wanted str"),
      ('wsc', {'target': {}}, r"train.jsonl:2: target: field 'span1_text' is missing"),
      ('multirc', {'passage': {'text': 'x'}},
       r"train.jsonl:2: passage: field 'questions' is missing"),
      ('record', {'qas': [{'query': 'q', 'idx': 1}]},
       r"train.jsonl:2: qas: field 'answers' is missing"),
  )
  def test_faults_name_the_line(self, task, change, message):
    line = CASES[task][0]
    self.write(task, 'train', _lines(line, {**line, **change}))
    with self.assertRaisesRegex(ValueError, message):
      self.examples(task, 'train')

  def test_wsc_index_beyond_the_text(self):
    line = json.loads(json.dumps(CASES['wsc'][0]))
    line['target']['span2_index'] = 40
    self.write('wsc', 'train', _lines(line))
    with self.assertRaisesRegex(ValueError, 'train.jsonl:1: span2_index is 40, but the text has 9'):
      self.examples('wsc', 'train')

  def test_missing_data(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*CB/train.jsonl; SUPERGLUE_DIR must'):
      self.examples('cb', 'train')
    self.write('cb', 'train', '\n')
    with self.assertRaisesRegex(ValueError, 'CB/train.jsonl: no examples in the file'):
      self.examples('cb', 'train')
    self.write('wsc', 'train', _lines({**CASES['wsc'][0], 'label': False}))
    with self.assertRaisesRegex(ValueError, "no examples for split 'train' in .*WSC"):
      self.examples('wsc', 'train')
    self.use(self.folder / 'absent')
    with self.assertRaisesRegex(FileNotFoundError, 'SUPERGLUE_DIR=.*absent is not a folder'):
      self.examples('cb', 'train')

  def test_no_folder_and_no_prepared_tfds(self):
    self.use('')
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder)}):
      with self.assertRaisesRegex(
          FileNotFoundError,
          'SUPERGLUE_DIR is not set and TFDS has no prepared super_glue/cb in .*; set SUPERGLUE_'):
        self.examples('cb', 'train')

  def test_test_split_exists_with_its_file(self):
    task = seqio.TaskRegistry.get('superglue_cb')
    self.assertEqual(task.splits, ('train', 'validation'))
    self.write('cb', 'test', '')
    self.assertEqual(task.splits, ('train', 'validation', 'test'))

  @parameterized.parameters(*CASES)
  def test_tfds_gives_the_same_examples(self, task):
    """The very TFDS data set, prepared from the same files, instead of the folder."""
    official = testing.shared_data('superglue')
    form = superglue_formats.FORMATS[task]
    shutil.copytree(official / form.folder, self.folder / 'zip' / form.folder,
                    copy_function=shutil.copyfile)
    train = self.folder / 'zip' / form.folder / 'train.jsonl'
    shutil.copyfile(train, train.with_name('test.jsonl'))
    # TFDS builders import importlib_resources, which is the standard library's by now.
    with mock.patch.object(tfds.download.DownloadManager, 'download_and_extract',
                           return_value=str(self.folder / 'zip')), mock.patch.dict(
                               sys.modules, {'importlib_resources': importlib.resources}):
      builder = tfds.builder(f'super_glue/{form.config}', data_dir=self.folder / 'tfds')
      builder.download_and_prepare()
    source = superglue.SuperGlueSource('superglue_x', form)

    def texts(split):
      rows = [source.to_example(row, split, 0) for row in source.rows(split)]
      return sorted(json.dumps(row, sort_keys=True) for row in rows)

    with mock.patch.dict(os.environ, {superglue.VARIABLE: str(official)}):
      expected = {split: texts(split) for split in ('train', 'validation')}
    self.use('')
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder / 'tfds')}):
      for split in expected:
        self.assertEqual(texts(split), expected[split])


class SharedSuperGlueTest(parameterized.TestCase):
  """The few-shot files: counts, rates, mixtures, and gold answers that score 100."""

  TRAIN = {'boolq': 64, 'cb': 64, 'copa': 64, 'multirc': 321, 'record': 44, 'rte': 64, 'wic': 64,
           'wsc': 42}
  VALIDATION = {'boolq': 1000, 'cb': 28, 'copa': 50, 'multirc': 2580, 'record': 32, 'rte': 139,
                'wic': 319, 'wsc': 52}

  def setUp(self):
    super().setUp()
    folder = testing.shared_data('superglue')
    self.enter_context(mock.patch.dict(os.environ, {superglue.VARIABLE: str(folder)}))

  def test_counts_and_rates(self):
    mixture = seqio.MixtureRegistry.get('superglue')
    equal = seqio.MixtureRegistry.get('superglue_equal')
    temperature = seqio.MixtureRegistry.get('superglue_temperature')
    self.assertLen(mixture.tasks, 8)
    for task in mixture.tasks:
      name = task.name.removeprefix('superglue_')
      self.assertEqual(task.num_input_examples('train'), self.TRAIN[name])
      self.assertEqual(task.num_input_examples('validation'), self.VALIDATION[name])
      self.assertEqual(mixture.get_rate(task), self.TRAIN[name])
      self.assertEqual(equal.get_rate(task), 1.0)
      self.assertAlmostEqual(temperature.get_rate(task), self.TRAIN[name]**0.5)

  def test_mixture_is_deterministic_and_mixed(self):
    mixture = seqio.MixtureRegistry.get('superglue_equal')

    def draw(seed):
      dataset = mixture.get_dataset({'inputs': 64, 'targets': 16}, 'train', seed=seed, num_epochs=1)
      return [(int(e['task_id'][0]), e['inputs'].tobytes())
              for e in tfds.as_numpy(dataset.take(100))]

    first = draw(0)
    self.assertEqual(first, draw(0))
    self.assertNotEqual(first, draw(1))
    self.assertLen({key for key, _ in first}, 8)

  def test_shards_split_the_rows(self):
    source = seqio.TaskRegistry.get('superglue_multirc').source

    def answers(**kwargs):
      return [e['idx/answer'] for e in tfds.as_numpy(source.get_dataset('validation', **kwargs))]

    whole = answers(shuffle=False)
    parts = [answers(seed=3, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    self.assertEqual(sorted(whole), sorted(sum(parts, [])))
    self.assertEmpty(list(source.get_dataset('train', shard_info=seqio.ShardInfo(400, 500))))

  def test_wsc_referents_are_in_the_text(self):
    for split in ('train', 'validation'):
      for row in seqio.TaskRegistry.get('superglue_wsc').source.rows(split):
        self.assertIn(row['span1_text'], row['text'])
        marked = superglue_formats.mark_pronoun(row['text'], row['span2_text'], row['span2_index'])
        self.assertIn(f"*{row['span2_text']}*", marked)

  @parameterized.parameters(*TRAIN)
  def test_gold_predictions_score_100(self, name):
    task = seqio.TaskRegistry.get(f'superglue_{name}')
    examples = list(tfds.as_numpy(task.get_dataset(LENGTHS, 'validation', shuffle=False)))
    gold = [example['targets_pretokenized'].decode() for example in examples]
    targets = [task.postprocess_fn(t, example=e, is_target=True) for t, e in zip(gold, examples)]
    predictions = [task.postprocess_fn(t, example=e, is_target=False)
                   for t, e in zip(gold, examples)]
    scores = {}
    for metric in task.metric_fns:
      scores.update(metric(targets, predictions))
    self.assertContainsSubset(superglue_metrics.OFFICIAL_METRICS[task.name], scores)
    # Naming the candidate always is right where it is the referent: 24 of 52 pairs.
    expected = 100 * 24 / 52 if name == 'wsc' else 100.0
    for value in scores.values():
      self.assertAlmostEqual(value, expected)


class MetricsTest(parameterized.TestCase):

  def test_class_index(self):
    post = superglue_metrics.class_index(('False', 'True'))
    self.assertEqual([post('True'), post('False'), post('true'), post(' True'), post('')],
                     [1, 0, -1, -1, -1])
    # The gold label comes from the example, whatever the text became.
    self.assertEqual(post('garbled', example={'label': np.int32(1)}, is_target=True), 1)

  def test_accuracy(self):
    self.assertEqual(superglue_metrics.accuracy([0, 1, 1, 0], [0, 1, 0, -1]), {'accuracy': 50.0})

  def test_mean_3class_f1(self):
    # Hits, gold and predicted of class 0: 1, 2, 1; class 1: 1, 1, 2; class 2: 1, 2, 1, as the last
    # answer is no class. 2 * hits / (gold + predicted) is 2/3 each time.
    score = superglue_metrics.mean_3class_f1([0, 0, 1, 2, 2], [0, 1, 1, 2, -1])
    self.assertAlmostEqual(score['mean_3class_f1'], 100 * 2 / 3)
    # Class 2 neither gold nor predicted: (1 + 1 + 0) / 3.
    score = superglue_metrics.mean_3class_f1([0, 1], [0, 1])
    self.assertAlmostEqual(score['mean_3class_f1'], 100 * 2 / 3)

  def test_multirc(self):
    example = {'idx/paragraph': np.int32(0), 'idx/question': np.int32(0), 'idx/answer': np.int32(0),
               'label': np.int32(1)}
    target = superglue_metrics.multirc_answer('True', example=example, is_target=True)
    self.assertEqual(target, {'value': 1, 'group': (0, 0)})
    self.assertEqual(superglue_metrics.multirc_answer('yes', example=example), {'value': -1})
    targets = [{'value': v, 'group': g} for v, g in
               [(1, (0, 0)), (0, (0, 0)), (1, (0, 1)), (0, (0, 1)), (1, (1, 2))]]
    predictions = [{'value': v} for v in [1, 0, 1, 1, -1]]
    # True positives 2, gold 3, predicted 3 (the invalid one counts as 0): F1 = 4/6.
    self.assertAlmostEqual(superglue_metrics.multirc_f1(targets, predictions)['f1'], 100 * 2 / 3)
    # Only question (0, 0) is right throughout.
    self.assertAlmostEqual(
        superglue_metrics.multirc_exact_match(targets, predictions)['exact_match'], 100 / 3)
    # An invalid answer to a gold 0 counts as 1: a false positive.
    score = superglue_metrics.multirc_f1(targets[:2], [{'value': 1}, {'value': -1}])
    self.assertAlmostEqual(score['f1'], 100 * 2 / 3)

  def test_record(self):
    example = {'answers': np.array([b'The Bob Smith', b'Smith'], object),
               'idx/passage': np.int32(1), 'idx/query': np.int32(2)}
    target = superglue_metrics.record_answer('x', example=example, is_target=True)
    self.assertEqual(target, {'value': ['The Bob Smith', 'Smith'], 'group': (1, 2)})
    targets = [target, target, {'value': ['New York City'], 'group': (1, 3)}]
    predictions = [{'value': v} for v in ['bob  smith!', 'wrong', 'York in New England']]
    # The second row repeats the first's query. Query 2: exact, F1 1. Query 3: 2 common words of 3
    # and 4: precision 2/4, recall 2/3, F1 4/7.
    scores = superglue_metrics.record_em_f1(targets, predictions)
    self.assertAlmostEqual(scores['em'], 50.0)
    self.assertAlmostEqual(scores['f1'], 100 * (1 + 4 / 7) / 2)

  @parameterized.parameters(
      ('The Fuzzy Bunny', 'bunny', 1), ('bunny', 'the fuzzy bunny', 1), ('Bob', "Bob's hat", 0),
      ("Bob's", "Bob's hat", 1), ('a cat', 'the dog', 0), ('the', 'the dog', -1), (' ', 'dog', -1),
      ('his dog', 'My dog', 1))
  def test_wsc_referent(self, prediction, referent, expected):
    example = {'targets_pretokenized': referent.encode(), 'label': np.int32(1)}
    self.assertEqual(superglue_metrics.wsc_referent(prediction, example=example), expected)
    self.assertEqual(superglue_metrics.wsc_referent(prediction, example=example, is_target=True), 1)

  def test_hidden_labels_are_refused(self):
    for metric in (superglue_metrics.accuracy, superglue_metrics.mean_3class_f1):
      with self.assertRaisesRegex(ValueError, "labels are hidden .*'validation'"):
        metric([-1, -1], [-1, 0])
    with self.assertRaisesRegex(ValueError, 'labels are hidden'):
      superglue_metrics.multirc_f1([{'value': -1, 'group': (0, 0)}], [{'value': 0}])
    with self.assertRaisesRegex(ValueError, 'answers are hidden'):
      superglue_metrics.record_em_f1([{'value': [], 'group': (0, 0)}], [{'value': 'x'}])

  def test_lengths_must_agree(self):
    with self.assertRaisesRegex(ValueError, '2 targets and 1 predictions'):
      superglue_metrics.accuracy([0, 1], [0])

  def test_benchmark_score(self):
    metrics = {task: {'accuracy': 60.0} for task in superglue_metrics.OFFICIAL_METRICS}
    metrics['superglue_cb'] = {'mean_3class_f1': 40.0, 'accuracy': 80.0}
    metrics['superglue_multirc'] = {'f1': 70.0, 'exact_match': 20.0}
    metrics['superglue_record'] = {'f1': 52.0, 'em': 50.0}
    # (5 * 60 + 60 + 45 + 51) / 8.
    self.assertAlmostEqual(superglue.benchmark_score({**metrics, 'other': {}}), 57.0)
    del metrics['superglue_multirc']['f1']
    with self.assertRaisesRegex(ValueError, 'no f1 of superglue_multirc'):
      superglue.benchmark_score(metrics)
    metrics['superglue_multirc']['f1'] = float('nan')
    with self.assertRaisesRegex(ValueError, 'not finite'):
      superglue.benchmark_score(metrics)


class SourcesTest(absltest.TestCase):

  def test_newest_prepared_version_is_read(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    for version in ('1.9.0', '1.10.0'):
      (folder / 'some' / version).mkdir(parents=True)
      (folder / 'some' / version / 'dataset_info.json').write_text('{}')
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(folder)}):
      with mock.patch.object(tfds, 'builder_from_directory') as builder:
        builder.return_value.as_dataset.return_value = []
        list(sources.prepared_tfds('some', 'train', 'X', 'x'))
    self.assertEqual(builder.call_args.args[0].name, '1.10.0')


if __name__ == '__main__':
  absltest.main()
