"""Tests of Super-NI: prompts to the byte, splits, registration, faults, metrics by hand."""

from __future__ import annotations

import collections
import importlib.resources.abc
import json
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cpoly_jax import testing
from tasks import sources
from tasks import superni
from tasks import superni_metrics
from tasks import superni_prompts

LENGTHS = {'inputs': 1024, 'targets': 128}


def _task(number=12, **changes):
  return {
      'Definition': ['Say the opposite'],
      'Categories': ['Word Semantics'],
      'Positive Examples': [
          {'input': 'hot', 'output': 'cold', 'explanation': 'They differ'},
          {'input': 'up? ', 'output': 'down.', 'explanation': 'So do they!'},
          {'input': 'in', 'output': 'out'}],
      'Negative Examples': [{'input': 'wet', 'output': 'damp', 'explanation': 'Alike'}],
      'Instances': [{'id': f'task1-{i}', 'input': f'word {i}',
                     'output': [f'a{i}', f'b{i}', f'c{i}']} for i in range(number)],
      **changes}


DEFAULT_PROMPT = (
    'Definition: Say the opposite.\n\n'
    ' Positive Example 1 -\nInput: hot.\n Output: cold.\n\n'
    ' Positive Example 2 -\nInput: up?\n Output: down.\n\n'
    'Now complete the following example -\nInput: word 0.\nOutput: ')


class SuperNiTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {superni.SPLITS_VARIABLE: ''}))
    self.addCleanup(gin.clear_config)

  def register(self, train=(), test=(), variable=superni.VARIABLE, tasks=None):
    """Writes task files and lists, and registers them."""
    lists = self.folder / 'splits' / 'default'
    for path in (lists, self.folder / 'tasks'):
      path.mkdir(parents=True, exist_ok=True)
    for name, content in (tasks or {}).items():
      (self.folder / 'tasks' / f'{name}.json').write_text(
          content if isinstance(content, str) else json.dumps(content))
    (lists / 'train_tasks.txt').write_text(''.join(f'{name}\n' for name in train))
    (lists / 'test_tasks.txt').write_text(''.join(f'{name}\n' for name in test))
    folder = self.folder if variable == superni.VARIABLE else lists
    self.enter_context(mock.patch.dict(os.environ, {superni.VARIABLE: '', variable: str(folder)}))
    superni.register()

  def examples(self, name, split, lengths=None, **kwargs):
    dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, split, shuffle=False, **kwargs)
    return list(tfds.as_numpy(dataset))

  def prompt(self, lengths=None):
    """The first validation prompt of `task1_a`."""
    example = self.examples('superni_task1_a', 'validation', lengths)[0]
    return example['inputs_pretokenized'].decode()


class PromptTest(SuperNiTestCase):

  def setUp(self):
    super().setUp()
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': _task(), 'task2_b': _task()})

  def test_default(self):
    self.assertEqual(self.prompt(), DEFAULT_PROMPT)

  def test_all_options(self):
    gin.parse_config("""
        superni_prompts.prompt_options.task_name = True
        superni_prompts.prompt_options.num_positive = 1
        superni_prompts.prompt_options.num_negative = 2
        superni_prompts.prompt_options.explanation = True""")
    self.assertEqual(
        self.prompt(),
        'task1_a. Definition: Say the opposite.\n\n'
        ' Positive Example 1 -\nInput: hot.\n Output: cold.\n Explanation: They differ.\n\n'
        ' Negative Example 1 -\nInput: wet.\n Output: damp.\n Explanation: Alike.\n\n'
        'Now complete the following example -\nInput: word 0.\nOutput: ')

  def test_bare(self):
    gin.parse_config("""
        superni_prompts.prompt_options.definition = False
        superni_prompts.prompt_options.num_positive = 0""")
    self.assertEqual(self.prompt(),
                     'Now complete the following example -\nInput: word 0.\nOutput: ')

  def test_missing_explanation_and_empty_output(self):
    pieces = superni_prompts.prompt_pieces(
        't', 'Do.', [{'input': 'a', 'output': ''}], [], 'x!',
        superni_prompts.PromptOptions(explanation=True))
    self.assertEqual(pieces['positive'], [' Positive Example 1 -\nInput: a.\n Output: .\n\n', ''])
    self.assertEqual(pieces['head'], 'Definition: Do.\n\n')
    self.assertEqual(pieces['tail'], 'Now complete the following example -\nInput: x!\nOutput: ')

  def test_an_example_is_added_only_where_the_whole_fits(self):
    # In bytes; the end of sequence is one more token.
    whole = len(DEFAULT_PROMPT) + 1
    second = DEFAULT_PROMPT.index(' Positive Example 2')
    first = DEFAULT_PROMPT.index(' Positive Example 1')
    tail = DEFAULT_PROMPT.index('Now complete')
    one = DEFAULT_PROMPT[:second] + DEFAULT_PROMPT[tail:]
    none = DEFAULT_PROMPT[:first] + DEFAULT_PROMPT[tail:]
    for limit, expected in ((whole, DEFAULT_PROMPT), (whole - 1, one), (len(one) + 1, one),
                            (len(one), none)):
      self.assertEqual(self.prompt({'inputs': limit, 'targets': 8}), expected)
      gin.parse_config(f'superni_prompts.prompt_options.max_source_length = {limit}')
      self.assertEqual(self.prompt(), expected)
      gin.clear_config()

  def test_a_long_example_stops_its_kind_but_not_the_other(self):
    task = _task()
    task['Positive Examples'][0]['input'] = 'long ' * 500
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': task})
    gin.parse_config('superni_prompts.prompt_options.num_negative = 1')
    prompt = self.prompt()
    self.assertNotIn('Positive Example', prompt)
    self.assertIn(' Negative Example 1 -\nInput: wet.\n', prompt)

  def test_what_is_still_too_long_is_cut_and_ended(self):
    example = self.examples('superni_task1_a', 'validation', {'inputs': 20, 'targets': 2})[0]
    self.assertEqual(seqio.ByteVocabulary().decode(example['inputs'][:-1].tolist()),
                     'Definition: Say the')
    self.assertLen(example['inputs'], 20)
    self.assertEqual(example['inputs'][-1], 1)
    self.assertLen(example['targets'], 2)

  @parameterized.parameters(
      {'num_positive': -1}, {'max_source_length': 1}, {'max_target_length': 0})
  def test_bad_options(self, **options):
    with self.assertRaisesRegex(ValueError, f'{next(iter(options))}='):
      superni_prompts.prompt_options(**options)


class SplitTest(SuperNiTestCase):

  def positions(self, split, number, is_test):
    return list(superni.select(range(number), split, is_test))

  @parameterized.parameters(
      (220, False, (0, 44), (44, 144)), (400, False, (0, 50), (50, 150)),
      (10, False, (0, 2), (2, 10)), (3, False, (0, 1), (1, 3)),
      (220, True, (100, 124), (124, 220)), (500, True, (100, 150), (150, 250)),
      (100, True, (100, 100), (100, 100)))
  def test_positions(self, number, is_test, validation, train):
    self.assertEqual(self.positions('validation', number, is_test), list(range(*validation)))
    self.assertEqual(self.positions('train', number, is_test), list(range(*train)))
    if is_test:
      self.assertEqual(self.positions('test', number, is_test), list(range(100)))

  def test_training_reference_is_drawn_by_instance_and_seed(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': _task(120), 'task2_b': _task(120)})

    def targets(seed, split='train', **kwargs):
      return {e['id']: e['targets_pretokenized'].decode()
              for e in self.examples('superni_task1_a', split, seed=seed, **kwargs)}

    drawn = targets(1)
    self.assertEqual(drawn, targets(1))
    self.assertEqual(drawn, {**targets(1, shard_info=seqio.ShardInfo(0, 2)),
                             **targets(1, shard_info=seqio.ShardInfo(1, 2))})
    self.assertNotEqual(drawn, targets(2))
    counts = collections.Counter(target[0] for target in drawn.values())
    self.assertLen(drawn, 96)
    self.assertEqual(set(counts), {'a', 'b', 'c'})
    self.assertGreater(min(counts.values()), 15)
    self.assertEqual({t[0] for t in targets(1, 'validation').values()}, {'a'})

  def test_evaluation_carries_all_references(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': _task(), 'task2_b': _task(120)})
    task = seqio.TaskRegistry.get('superni_task2_b')
    example = self.examples(task.name, 'test')[3]
    self.assertEqual(task.postprocess_fn('x', example=example, is_target=True), ['a3', 'b3', 'c3'])
    self.assertEqual(task.postprocess_fn('x', example=example, is_target=False), 'x')


class RegistrationTest(SuperNiTestCase):

  def test_reads_no_task_file_and_replaces_what_was_there(self):
    self.register(['task1-x y'], ['task2_b.json'],
                  tasks={'task1-x y': 'not read', 'task2_b': 'not read', 'task3_c': 'not read'})
    names = {name for name in seqio.TaskRegistry.names() if name.startswith('superni_')}
    self.assertEqual(names, {'superni_task1_x_y', 'superni_task2_b', 'superni_task3_c'})
    members = {name: [task.name for task in seqio.MixtureRegistry.get(name).tasks]
               for name in superni.MIXTURES}
    self.assertEqual(members, {'superni': ['superni_task1_x_y'],
                               'superni_test': ['superni_task2_b']})
    self.assertEqual(seqio.TaskRegistry.get('superni_task1_x_y').splits, ('train', 'validation'))
    self.assertIn('test', seqio.TaskRegistry.get('superni_task2_b').splits)

  def test_rates_are_capped_counts(self):
    self.register(['task1_a', 'task2_b'], ['task3_c'],
                  tasks={'task1_a': _task(400), 'task2_b': _task(50), 'task3_c': _task(120)})
    mixture = seqio.MixtureRegistry.get('superni')
    self.assertEqual([mixture.get_rate(task) for task in mixture.tasks], [100.0, 40.0])

  def test_unset_variables_are_named_when_data_are_wanted(self):
    with mock.patch.dict(os.environ, {superni.VARIABLE: '', superni.SPLITS_VARIABLE: ''}):
      superni.register()
      for name in superni.MIXTURES:
        with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR is not set; set it.*<name>'):
          seqio.MixtureRegistry.get(name).get_dataset(LENGTHS, 'train')

  def test_faulty_layouts(self):
    with self.assertRaisesRegex(ValueError, 'train_tasks.txt: no task in the list'):
      self.register([], ['task2_b'])
    with self.assertRaisesRegex(ValueError, 'both list task1_a'):
      self.register(['task1_a'], ['task1_a'], tasks={'task1_a': _task()})
    with self.assertRaisesRegex(FileNotFoundError, 'lists 1 tasks without a file in .*task9_z.js'):
      self.register(['task1_a'], ['task9_z'])
    with self.assertRaisesRegex(ValueError, '2 task files become superni_task4_x_y'):
      self.register(['task1_a'], ['task4_x-y'], tasks={'task4_x-y': _task(), 'task4_x_y': _task()})
    (self.folder / 'splits' / 'default' / 'test_tasks.txt').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*test_tasks.txt; SUPERNI_DIR must'):
      superni.register()
    with mock.patch.dict(os.environ, {superni.VARIABLE: str(self.folder / 'absent')}):
      with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR=.*absent is not a folder'):
        superni.register()

  @parameterized.parameters(
      ('{"Definition":\n ["x"],,}', r'task1_a.json:2: not valid JSON'),
      ({'Instances': []}, r"no examples for split 'train' in .*task1_a.json"),
      ({'Definition': []}, r"task1_a.json: field 'Definition' has no text"),
      ({'Instances': [{'id': 'i', 'input': 'x'}]}, r"json: Instances 1: field 'output' is missing"),
      ({'Instances': [{'id': 'i', 'input': 'x', 'output': []}]}, r'Instances 1: .* at least one'),
      ({'Positive Examples': [{'input': 'x'}]}, r"Positive Examples 1: field 'output' is missing"),
  )
  def test_faulty_task_files(self, content, message):
    content = content if isinstance(content, str) else {**_task(), **content}
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': content, 'task2_b': _task()})
    with self.assertRaisesRegex(ValueError, message):
      self.examples('superni_task1_a', 'train')

  def test_earlier_scheme(self):
    """Before the final release: a plain definition, plain outputs, no instance ids."""
    self.register(['task1_a'], ['task2_b'], tasks={'task2_b': _task(), 'task1_a': _task(
        Definition='Say it', Instances=[{'input': 'x', 'output': 'y'}] * 2)})
    (example,) = self.examples('superni_task1_a', 'train')
    self.assertStartsWith(example['inputs_pretokenized'].decode(), 'Definition: Say it.\n\n')
    self.assertEqual((example['targets_pretokenized'], example['id']), (b'y', b'task1_a-2'))

  def test_categories(self):
    self.register(['task1-a'], ['task2_b'],
                  tasks={'task1-a': _task(), 'task2_b': _task(Categories=[])})
    self.assertEqual(superni.categories(self.folder, ['task1-a']),
                     {'superni_task1_a': 'Word Semantics'})
    with self.assertRaisesRegex(ValueError, "task2_b.json: field 'Categories' is empty"):
      superni.categories(self.folder, ['task2_b'])

  def test_from_tfds(self):
    """The very TFDS data set, prepared from a task file, with the lists of SUPERNI_SPLITS."""
    path = self.folder / 'task1_a.json'
    path.write_text(json.dumps(_task(10, Source=['s'])))
    # TFDS builders import importlib_resources, which is the standard library's by now.
    with mock.patch.dict(sys.modules, {'importlib_resources': importlib.resources}):
      builder = tfds.builder('natural_instructions', data_dir=self.folder / 'tfds')
      with mock.patch.object(tfds.download.DownloadManager, 'download_and_extract',
                             return_value={'task1_a': path}):
        builder.download_and_prepare()
    self.register(['task1_a'], ['task2_b'], superni.SPLITS_VARIABLE)
    superni._tfds_instances.cache_clear()  # pylint: disable=protected-access
    self.addCleanup(superni._tfds_instances.cache_clear)  # pylint: disable=protected-access
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder / 'tfds')}):
      rows = [example for split in ('train', 'validation')
              for example in self.examples('superni_task1_a', split)]
      with self.assertRaisesRegex(ValueError, "no examples for split 'test' in TFDS task2_b"):
        self.examples('superni_task2_b', 'test')
    texts = {(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode()) for e in rows}
    self.assertEqual(texts, {(
        'Definition: Say the opposite.\n\nNow complete the following example -\n'
        f'Input: word {i}.\nOutput: ', f'a{i}') for i in range(10)})

  def test_tfds_not_prepared(self):
    self.register(['task1_a'], ['task2_b'], superni.SPLITS_VARIABLE)
    superni._tfds_instances.cache_clear()  # pylint: disable=protected-access
    variables = {'TFDS_DATA_DIR': str(self.folder), sources.ALLOW_DOWNLOAD: ''}
    with mock.patch.dict(os.environ, variables):
      with self.assertRaisesRegex(FileNotFoundError, 'no prepared natural_instructions in .*; set '
                                  'SUPERNI_DIR to a folder with .*CPOLY_ALLOW_DOWNLOAD=1'):
        self.examples('superni_task1_a', 'train')


class SharedSuperNiTest(SuperNiTestCase):
  """The hundred tasks of the shared folder."""

  def setUp(self):
    super().setUp()
    folder = testing.shared_data('superni')
    self.enter_context(mock.patch.dict(os.environ, {superni.VARIABLE: str(folder)}))
    superni.register()

  def test_tasks_and_counts(self):
    train = seqio.MixtureRegistry.get('superni').tasks
    test = seqio.MixtureRegistry.get('superni_test').tasks
    self.assertLen(train, 84)
    self.assertLen(test, 16)
    for task in (train[0], train[40], test[0]):
      self.assertBetween(task.num_input_examples('train'), 40, 100)
      self.assertBetween(task.num_input_examples('validation'), 10, 50)
    self.assertEqual(test[5].num_input_examples('test'), 100)
    self.assertIn('superni_task105_story_cloze_rocstories_sentence_generation',
                  [task.name for task in train])

  def test_nothing_is_in_two_splits(self):
    source = seqio.TaskRegistry.get('superni_task033_winogrande_answer_generation').source
    ids = [row['id'] for split in source.splits for row in source.rows(split)]
    self.assertLen(set(ids), 220)
    self.assertLen(ids, 220)

  def test_gold_predictions_score_100_and_the_iterator_can_be_saved(self):
    task = seqio.TaskRegistry.get('superni_task388_torque_token_classification')
    dataset = task.get_dataset(LENGTHS, 'validation', shuffle=False)
    examples = list(tfds.as_numpy(dataset))
    targets = [task.postprocess_fn('', example=e, is_target=True) for e in examples]
    scores = {}
    for metric in task.metric_fns:
      scores.update(metric(targets, [references[-1] for references in targets]))
    self.assertEqual(
        scores, {name: 100.0 for name in ('rouge1', 'rougeL', 'rougeLsum', 'exact_match')})
    iterator = iter(task.get_dataset(LENGTHS, 'train', seed=0, num_epochs=None))
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    next(iterator)
    path = checkpoint.write(str(self.folder / 'iterator'))
    wanted = [next(iterator)['inputs_pretokenized'].numpy() for _ in range(5)]
    checkpoint.read(path)
    self.assertEqual([next(iterator)['inputs_pretokenized'].numpy() for _ in range(5)], wanted)


class MetricsTest(parameterized.TestCase):

  def test_rouge_l(self):
    # Stems: "the cats sat" against "the cat sat down": common subsequence 3, precision 3/3,
    # recall 3/4, F = 6/7; the second reference shares one word of 2 and 3: F = 2/5.
    scores = superni_metrics.rouge([['The cat sat down.', 'a dog sat here, the']],
                                   ['the cats sat'])
    self.assertAlmostEqual(scores['rougeL'], 100 * 6 / 7)
    # In another order the unigrams all match, the longest common subsequence is one word of two.
    scores = superni_metrics.rouge([['sat there']], ['there sat'])
    self.assertAlmostEqual(scores['rouge1'], 100.0)
    self.assertAlmostEqual(scores['rougeL'], 50.0)

  def test_mean_over_instances(self):
    scores = superni_metrics.rouge([['yes'], ['no', 'nope']], ['yes', 'maybe'])
    self.assertAlmostEqual(scores['rougeL'], 50.0)

  def test_exact_match(self):
    targets = [['The  answer!'], ['no', 'nope'], ['an apple'], ['']]
    predictions = ['the answer', 'Nope.', 'apple', ' ']
    # Articles stay, so that the third differs.
    self.assertEqual(superni_metrics.exact_match(targets, predictions), {'exact_match': 75.0})

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, '1 targets and 0 predictions'):
      superni_metrics.rouge([['x']], [])
    with self.assertRaisesRegex(ValueError, 'an instance has no reference'):
      superni_metrics.exact_match([[]], ['x'])

  def test_benchmark_scores(self):
    metrics = {'a': {'rougeL': 10.0}, 'b': {'rougeL': 40.0}, 'c': {'rougeL': 70.0}}
    self.assertEqual(superni.benchmark_scores(metrics), {'rougeL': 40.0})
    scores = superni.benchmark_scores(metrics, {'a': 100, 'b': 50, 'c': 50},
                                      {'a': 'X', 'b': 'X', 'c': 'Y'})
    # (10 * 100 + 40 * 50 + 70 * 50) / 200; X: (10 * 100 + 40 * 50) / 150.
    self.assertEqual(scores, {'rougeL': 32.5, 'rougeL/X': 20.0, 'rougeL/Y': 70.0})
    with self.assertRaisesRegex(ValueError, 'no category given for c'):
      superni.benchmark_scores(metrics, None, {'a': 'X', 'b': 'X'})
    with self.assertRaisesRegex(ValueError, 'c has the metrics'):
      superni.benchmark_scores({**metrics, 'c': {}})
    with self.assertRaisesRegex(ValueError, 'no metrics of any task'):
      superni.benchmark_scores({})


if __name__ == '__main__':
  absltest.main()
