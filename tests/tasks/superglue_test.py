"""Tests of SuperGLUE: T5's formats, faults, both origins of the data, few-shot subsets, mixtures."""

from __future__ import annotations

import importlib.resources.abc
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import numpy as np
import seqio
import tensorflow_datasets as tfds

from cpoly_jax import task_index
from cpoly_jax import testing
from tasks import sources
from tasks import superglue
from tasks import superglue_formats
from tasks import superglue_metrics
from tasks import superglue_prompts
from tasks import superglue_sources

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


AX_LINES = {
    'axb': {'sentence1': 'P.', 'sentence2': 'H.', 'idx': 4, 'label': 'not_entailment', 'logic': 'Negation'},
    'axg': {'premise': 'P.', 'hypothesis': 'H.', 'idx': 4, 'label': 'not_entailment', 'pair_id': 551},
}
DPR_LINE = {'sentence': 'Bob asked Tom if he can lend some money, as he is poor.', 'pronoun': 'he',
            'candidates': ['Bob', 'Tom'], 'label': 1}


class FolderTest(parameterized.TestCase):
  """Base of tests that write the official files."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.use(self.folder)
    self.addCleanup(gin.clear_config)

  def use(self, folder):
    self.enter_context(mock.patch.dict(os.environ, {superglue.VARIABLE: str(folder)}))

  def write(self, task, split, text):
    forms = {**superglue_formats.FORMATS, **superglue_formats.DIAGNOSTICS, 'dpr': superglue_formats.DPR}
    path = self.folder / forms[task].folder / f'{split}.jsonl'
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)

  def examples(self, task, split, **kwargs):
    dataset = seqio.TaskRegistry.get(f'superglue_{task}').get_dataset(
        LENGTHS, split, shuffle=False, **kwargs)
    return list(tfds.as_numpy(dataset))

  def texts(self, task, split):
    return [(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode()) for e in self.examples(task, split)]


class SuperGlueTest(FolderTest):

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
      self.write('wsc', split, _lines(*({**line, 'label': i == 1, 'idx': i} for i in range(3))))
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
    self.assertEqual(superglue_prompts.mark_pronoun(text, pronoun, index), expected)

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
      ('copa', {'question': 'why'}, "train.jsonl:2: question 'why' is neither 'cause' nor 'effect'"),
      ('boolq', {}, 'train.jsonl:2: idx 3 is that of line 1 already; remove one of them or give it a number of its own'),
      ('multirc', {}, 'train.jsonl:2: idx/paragraph 3, idx/question 7, idx/answer 11 is that of line 1 already'),
      ('record', {}, 'train.jsonl:2: idx/passage 3, idx/query 9 is that of line 1 already'),
  )
  def test_faults_name_the_line(self, task, change, message):
    line = CASES[task][0]
    self.write(task, 'train', _lines(line, {**line, **change}))
    with self.assertRaisesRegex(ValueError, message):
      self.examples(task, 'train')

  def test_a_broken_line_is_named(self):
    self.write('boolq', 'train', _lines(CASES['boolq'][0]) + '{"idx": 4, \n')
    with self.assertRaisesRegex(ValueError, r'BoolQ/train.jsonl:2: not valid JSON \(.*\); fix or remove the line$'):
      self.examples('boolq', 'train')

  def test_answers_of_one_line_with_one_number(self):
    line = json.loads(json.dumps(CASES['multirc'][0]))
    line['passage']['questions'][0]['answers'][1]['idx'] = 11
    self.write('multirc', 'train', _lines(line))
    with self.assertRaisesRegex(ValueError, 'train.jsonl:1: .*idx/answer 11 is that of line 1 already'):
      self.examples('multirc', 'train')

  def test_wsc_index_beyond_the_text(self):
    line = json.loads(json.dumps(CASES['wsc'][0]))
    line['target']['span2_index'] = 40
    self.write('wsc', 'train', _lines(line))
    with self.assertRaisesRegex(ValueError, 'train.jsonl:1: span2_index is 40, but the text has 9'):
      self.examples('wsc', 'train')

  def test_missing_data(self):
    for split, name in (('train', 'train'), ('validation', 'val')):
      with self.assertRaisesRegex(FileNotFoundError, f'no file .*CB/{name}.jsonl; SUPERGLUE_DIR must'):
        self.examples('cb', split)
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
    source = superglue_sources.SuperGlueSource('superglue_x', task, form)

    def texts(split):
      rows = [source.to_example(row, split, 0) for row in source.rows(split)]
      return sorted(json.dumps(row, sort_keys=True) for row in rows)

    with mock.patch.dict(os.environ, {superglue.VARIABLE: str(official)}):
      expected = {split: texts(split) for split in ('train', 'validation')}
    self.use('')
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder / 'tfds')}):
      for split in expected:
        self.assertEqual(texts(split), expected[split])
      # Chosen by the examples' own numbers, so the same ones in whatever order they come.
      gin.bind_parameter('superglue.few_shot.k', 8)
      few = texts('train')
    with mock.patch.dict(os.environ, {superglue.VARIABLE: str(official)}):
      self.assertEqual(texts('train'), few)


class DiagnosticsTest(FolderTest):

  @parameterized.parameters(*AX_LINES)
  def test_written_and_routed_as_rte(self, task):
    self.write(task, superglue_formats.DIAGNOSTICS[task].folder, _lines(AX_LINES[task]))
    for split in ('validation', 'test'):
      self.assertEqual(self.texts(task, split), [('rte hypothesis: H. premise: P.', 'not_entailment')])
    example, = self.examples(task, 'test')
    self.assertEqual(example['task_id'], [task_index.task_key('superglue_rte')])
    self.assertEqual((example['idx'], example['label']), (4, 1))
    index = task_index.from_mixture('superglue_diagnostics')
    self.assertEqual(index.names, ('superglue_rte',))
    task_index.from_mixture('superglue').check_covers(superglue.DIAGNOSTICS)

  def test_the_file_has_to_be_there_with_its_labels(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*AX-b/AX-b.jsonl; add it to SUPERGLUE_DIR, or evaluate'):
      self.examples('axb', 'test')
    line = dict(AX_LINES['axg'])
    del line['label']
    self.write('axg', 'AX-g', _lines(line))
    with self.assertRaisesRegex(ValueError, "AX-g.jsonl:1: field 'label' is missing"):
      self.examples('axg', 'test')
    self.write('axg', 'AX-g', _lines({**AX_LINES['axg'], 'pair_id': '551'}))
    with self.assertRaisesRegex(ValueError, "AX-g.jsonl:1: field 'pair_id' is '551', wanted int"):
      self.examples('axg', 'test')
    with self.assertRaisesRegex(ValueError, "no split 'train' in .*AX-b.*; it has validation, test"):
      self.examples('axb', 'train')

  def test_from_tfds(self):
    rows = {'super_glue/axb': [{'sentence1': 'P.', 'sentence2': 'H.', 'idx': 4, 'label': 1}],
            'super_glue/axg': [{'premise': 'P.', 'hypothesis': 'H.', 'idx': i, 'label': 1} for i in (0, 1, 2)]}
    self.use('')
    with mock.patch.object(sources, 'prepared_tfds', side_effect=lambda name, split, *_: rows[name] if split == 'test' else 1):
      source = superglue_sources.DiagnosticSource('x', 'rte', superglue_formats.DIAGNOSTICS['axb'])
      example = source.to_example(source.rows('validation')[0], 'validation', 0)
      self.assertEqual((example['inputs'], example['targets']), ('rte hypothesis: H. premise: P.', 'not_entailment'))
      source = superglue_sources.DiagnosticSource('x', 'rte', superglue_formats.DIAGNOSTICS['axg'])
      self.assertEqual([row['pair_id'] for row in source.rows('test')], [0, 0, 1])

  def test_metrics_through_the_tasks(self):
    yes, no = superglue_formats.DIAGNOSTICS['axg'].labels
    lines = [{**AX_LINES['axg'], 'idx': i, 'pair_id': pair, 'label': label}
             for i, (pair, label) in enumerate([(5, yes), (5, yes), (6, no), (6, yes)])]
    self.write('axg', 'AX-g', _lines(*lines))
    self.assertEqual(_score('superglue_axg', self.examples('axg', 'test'), ['entailment'] * 4),
                     {'accuracy': 75.0, 'gender_parity': 100.0})
    lines = [{**AX_LINES['axb'], 'idx': i, 'label': label} for i, label in enumerate(['entailment', 'not_entailment'] * 2)]
    self.write('axb', 'AX-b', _lines(*lines))
    self.assertEqual(_score('superglue_axb', self.examples('axb', 'test'), ['not_entailment', 'entailment'] * 2),
                     {'matthews_correlation': -100.0})


class PronounTest(FolderTest):

  def test_written_as_wsc_and_routed_so(self):
    self.write('dpr', 'train', _lines(DPR_LINE))
    self.assertEqual(self.texts('dpr', 'train'),
                     [('wsc: Bob asked Tom if *he* can lend some money, as he is poor.', 'Tom')])
    self.assertEqual(self.examples('dpr', 'train')[0]['task_id'], [task_index.task_key('superglue_wsc')])
    self.assertEqual(seqio.TaskRegistry.get('superglue_dpr').splits, ('train',))
    self.assertEqual(task_index.from_mixture('superglue_with_dpr'), task_index.from_mixture('superglue'))

  @parameterized.parameters(
      ('Ann saw Eve, so she, alone, left.', 'she', 'Ann saw Eve, so *she*, alone, left.'),
      ('The shelf fell since the book hit it.', 'it', 'The shelf fell since the book hit *it*.'),
      ('They won, the judges said.', 'they', '*They* won, the judges said.'),
      ("Eve said it's late and it is.", 'it', "Eve said it's late and *it* is."),
  )
  def test_the_first_such_word_is_marked(self, sentence, pronoun, expected):
    self.write('dpr', 'train', _lines({**DPR_LINE, 'sentence': sentence, 'pronoun': pronoun}))
    self.assertEqual(self.texts('dpr', 'train'), [(f'wsc: {expected}', 'Tom')])

  def test_letters_ask_for_both_candidates(self):
    gin.bind_parameter('superglue.prompt.style', 'letters')
    self.write('dpr', 'train', _lines(DPR_LINE))
    question = ('Bob asked Tom if *he* can lend some money, as he is poor.\nQuestion: Does *he* refer to {}?\n'
                'A. Yes\nB. No\nAnswer:')
    self.assertEqual(self.texts('dpr', 'train'), [(question.format('Bob'), 'B'), (question.format('Tom'), 'A')])

  def test_its_own_folder_goes_first(self):
    self.write('dpr', 'train', _lines(DPR_LINE))
    own = self.folder / 'own'
    own.mkdir()
    for split in ('train', 'test'):
      (own / f'{split}.jsonl').write_text(_lines({**DPR_LINE, 'label': 0}))
    with mock.patch.dict(os.environ, {superglue_sources.DPR_VARIABLE: str(own)}):
      self.assertEqual([target for _, target in self.texts('dpr', 'train')], ['Bob'])
      # In evaluation the answer is held against both candidates, as in WSC.
      self.assertEqual(_score('superglue_dpr', self.examples('dpr', 'test'), ['Bob', 'Bob']), {'accuracy': 100.0})

  @parameterized.parameters(
      ({'candidates': ['Bob']}, r"train.jsonl:1: candidates are \['Bob'\]; wanted two texts"),
      ({'label': 2}, "train.jsonl:1: label 2 is not one of 0, 1, the right candidate's index"),
      ({'pronoun': 'she'}, "train.jsonl:1: pronoun 'she' is not a word of the sentence"),
      ({'pronoun': ''}, "train.jsonl:1: pronoun '' is not a word of the sentence"),
      ({'sentence': None}, "train.jsonl:1: field 'sentence' is None, wanted str"),
  )
  def test_faults(self, change, message):
    self.write('dpr', 'train', _lines({**DPR_LINE, **change}))
    with self.assertRaisesRegex(ValueError, message):
      self.examples('dpr', 'train')

  def test_where_it_is_not_available(self):
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder)}):
      with self.assertRaisesRegex(
          FileNotFoundError, r'DPR_DIR is not set and TFDS has no prepared definite_pronoun_resolution/plain_text in .*; set '
          r'DPR_DIR to a folder with train.jsonl \(fields sentence, pronoun, candidates, label\), or CPOLY_ALLOW_DOWNLOAD=1'):
        self.examples('dpr', 'train')
    (self.folder / 'DPR').mkdir()
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*DPR/train.jsonl; DPR_DIR must name a folder with train.jsonl'):
      self.examples('dpr', 'train')

  def test_from_tfds(self):
    self.use('')
    with mock.patch.object(sources, 'prepared_tfds', return_value=[DPR_LINE]) as read:
      source = superglue_sources.PronounSource('x', 'wsc', superglue_formats.DPR)
      self.assertEqual([row['span1_text'] for row in source.rows('train')], ['Tom'])
      self.assertEqual(source.splits, ('train', 'test'))
    self.assertEqual(read.call_args.args[:2], ('definite_pronoun_resolution/plain_text', 'train'))


class FewShotTest(FolderTest):

  def test_k_of_the_training_examples_by_seed(self):
    line = CASES['boolq'][0]
    for split in ('train', 'val'):
      self.write('boolq', split, _lines(*({**line, 'idx': i} for i in range(60))))
    task = seqio.TaskRegistry.get('superglue_boolq')
    chosen = {}
    for seed in (0, 1):
      gin.clear_config()
      gin.bind_parameter('superglue.few_shot.k', 8)
      gin.bind_parameter('superglue.few_shot.seed', seed)
      chosen[seed] = [e['idx'] for e in self.examples('boolq', 'train')]
      self.assertLen(chosen[seed], 8)
      self.assertEqual(task.num_input_examples('train'), 8)
      self.assertEqual(task.num_input_examples('validation'), 60)
    self.assertNotEqual(chosen[0], chosen[1])
    gin.clear_config()
    self.assertEqual(task.num_input_examples('train'), 60)

  def test_questions_and_queries_keep_their_rows(self):
    question = lambda i: {'question': 'What?', 'idx': i, 'answers': [
        {'text': str(j), 'idx': 10 * i + j, 'label': j % 2} for j in range(3)]}
    self.write('multirc', 'train', _lines(*({'idx': p, 'passage': {
        'text': 'T', 'questions': [question(2 * p), question(2 * p + 1)]}} for p in range(10))))
    query = lambda i: {**CASES['record'][0]['qas'][0], 'idx': i}
    self.write('record', 'train', _lines(*({**CASES['record'][0], 'idx': p, 'qas': [query(p)]} for p in range(10))))
    gin.bind_parameter('superglue.few_shot.k', 4)
    rows = self.examples('multirc', 'train')
    self.assertLen(rows, 12)
    self.assertLen({row['idx/question'] for row in rows}, 4)
    rows = self.examples('record', 'train')  # Two answers each.
    self.assertLen(rows, 8)
    self.assertLen({row['idx/query'] for row in rows}, 4)

  def test_fewer_examples_than_wanted_are_told(self):
    self.write('boolq', 'train', _lines(CASES['boolq'][0]))
    gin.bind_parameter('superglue.few_shot.k', 4)
    with self.assertLogs(level=logging.WARNING) as logs:
      self.assertLen(self.examples('boolq', 'train'), 1)
    self.assertIn('boolq has 1 training examples, fewer than superglue.few_shot.k = 4: all are used', logs.output[-1])

  @parameterized.parameters(0, -3, 2.5, True, '8')
  def test_k_must_be_a_number_of_examples(self, k):
    gin.bind_parameter('superglue.few_shot.k', k)
    with self.assertRaisesRegex(ValueError, 'superglue.few_shot.k is .*; set it to a positive whole number, or to None'):
      self.examples('boolq', 'train')


def _score(name, examples, texts):
  """Metrics of a task whose predictions are `texts`."""
  task = seqio.TaskRegistry.get(name)
  gold = [task.postprocess_fn(e['targets_pretokenized'].decode(), example=e, is_target=True) for e in examples]
  predictions = [task.postprocess_fn(t, example=e, is_target=False) for t, e in zip(texts, examples)]
  scores = {}
  for metric in task.metric_fns:
    scores.update(metric(gold, predictions))
  return scores


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
        marked = superglue_prompts.mark_pronoun(row['text'], row['span2_text'], row['span2_index'])
        self.assertIn(f"*{row['span2_text']}*", marked)

  @parameterized.parameters(*TRAIN)
  def test_gold_predictions_score_100(self, name):
    task = seqio.TaskRegistry.get(f'superglue_{name}')
    examples = list(tfds.as_numpy(task.get_dataset(LENGTHS, 'validation', shuffle=False)))
    scores = _score(task.name, examples, [example['targets_pretokenized'].decode() for example in examples])
    self.assertContainsSubset(superglue_metrics.OFFICIAL_METRICS[task.name], scores)
    # Naming the candidate always is right where it is the referent: 24 of 52 pairs.
    expected = 100 * 24 / 52 if name == 'wsc' else 100.0
    for value in scores.values():
      self.assertAlmostEqual(value, expected)
    gin.bind_parameter('superglue.prompt.style', 'letters')
    self.addCleanup(gin.clear_config)
    examples = list(tfds.as_numpy(task.get_dataset(LENGTHS, 'validation', shuffle=False)))
    for value in _score(task.name, examples, [e['targets_pretokenized'].decode() for e in examples]).values():
      self.assertAlmostEqual(value, 100.0)  # WSC's too: letters answer both kinds of pairs.


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
