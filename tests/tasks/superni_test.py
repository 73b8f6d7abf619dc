"""Tests of Super-NI's tasks and mixtures: registration, what is read and when, selections, TFDS, summaries, real tasks."""

from __future__ import annotations

import builtins
import collections
import importlib.resources.abc
import json
import os
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from etils import epath
import gin
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cpoly_jax import task_index
from cpoly_jax import testing
from cpoly_jax.training import features as training_features
from tasks import sources
from tasks import summaries
from tasks import superni
from tasks import superni_files
from tasks import superni_selection
from tasks import superni_source
from tests.tasks import superni_case

LENGTHS = {'inputs': 1024, 'targets': 128}
ROOT = pathlib.Path(__file__).resolve().parents[2]


def _source(name):
  return seqio.TaskRegistry.get(name).source


class RegistrationTest(superni_case.SuperNiTestCase):

  def test_reads_no_task_file_and_replaces_what_was_there(self):
    self.register(['task1-x y'], ['task2_b.json'],
                  tasks={'task1-x y': 'not read', 'task2_b': 'not read', 'task3_c': 'not read'})
    names = {name for name in seqio.TaskRegistry.names() if name.startswith('superni_')}
    self.assertEqual(names, {'superni_task1_x_y', 'superni_task2_b', 'superni_task3_c'})
    self.assertEqual({name: self.members(name) for name in superni.MIXTURES}, {
        'superni': ['superni_task1_x_y'], 'superni_test': ['superni_task2_b'],
        'superni_all': ['superni_task1_x_y', 'superni_task2_b']})
    self.assertEqual(seqio.TaskRegistry.get('superni_task1_x_y').splits, ('train', 'validation'))
    self.assertIn('test', seqio.TaskRegistry.get('superni_task2_b').splits)

  def test_as_many_tasks_as_the_benchmark_has(self):
    """No task file is opened before its data are wanted, and what is the same for all tasks is shared."""
    train, test, excluded = ([f'task{i:04}_{kind}' for i in range(number)]
                             for kind, number in (('train', 756), ('test', 119), ('excluded', 738)))
    opened = []

    def record(original):
      def fn(*args, **kwargs):
        opened.extend(str(arg) for arg in args if '/' in str(arg))
        return original(*args, **kwargs)
      return fn

    # The last is how TensorFlow, which SeqIO and TFDS read with, opens a file.
    with mock.patch.object(builtins, 'open', record(builtins.open)), \
         mock.patch.object(pathlib.Path, 'read_bytes', record(pathlib.Path.read_bytes)), \
         mock.patch.object(tf.io.gfile.GFile, '__init__', record(tf.io.gfile.GFile.__init__)):
      self.register(train, test, tasks=dict.fromkeys([*train, *test, *excluded], ''), excluded=excluded)
      written, opened[:] = list(opened), []
      superni.register()
      selected = superni_selection.mixture(100)
      indices = [task_index.from_mixture(name) for name in (*superni.MIXTURES, selected)]
    self.assertNotEmpty(written)
    self.assertEqual([len(index) for index in indices], [756, 119, 875, 100])
    self.assertLen([name for name in seqio.TaskRegistry.names() if name.startswith('superni_')], 1613)
    self.assertEqual([path for path in opened if '/tasks/' in path], [])
    self.assertCountEqual({pathlib.Path(path).name for path in opened},
                          ['train_tasks.txt', 'test_tasks.txt', 'excluded_tasks.txt'])
    one, other = (seqio.TaskRegistry.get(f'superni_{name}') for name in (train[0], excluded[-1]))
    self.assertEqual([*map(id, one.preprocessors)], [*map(id, other.preprocessors)])
    self.assertEqual([*map(id, one.output_features.values())], [*map(id, other.output_features.values())])

  def test_rates_are_counts(self):
    self.register(['task1_a', 'task2_b'], ['task3_c'],
                  tasks={name: superni_case.task(n) for name, n in (('task1_a', 400), ('task2_b', 50), ('task3_c', 120))})
    mixture = seqio.MixtureRegistry.get('superni')
    self.assertEqual([mixture.get_rate(task) for task in mixture.tasks], [100.0, 40.0])
    gin.parse_config('superni_splits.sizes.train = 300')
    self.assertEqual([mixture.get_rate(task) for task in mixture.tasks], [300.0, 40.0])

  def test_unset_variables_are_named_when_data_are_wanted(self):
    with mock.patch.dict(os.environ, {superni.VARIABLE: '', superni.SPLITS_VARIABLE: ''}):
      superni.register()
      for name in superni.MIXTURES:
        with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR is not set; set it.*<name>'):
          seqio.MixtureRegistry.get(name).get_dataset(LENGTHS, 'train')
      with self.assertRaisesRegex(FileNotFoundError, 'SUPERNI_DIR is not set'):
        superni_selection.mixture()


class SourceTest(superni_case.SuperNiTestCase):

  def test_a_file_is_parsed_once_for_everything_and_only_what_is_used_is_kept(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(), 'task2_b': superni_case.task(5000)})
    mixture = seqio.MixtureRegistry.get('superni_test')
    with mock.patch.object(superni_files, 'read_task', wraps=superni_files.read_task) as read:
      self.assertEqual(mixture.get_rate(mixture.tasks[0]), 100.0)
      for split in ('train', 'validation', 'test', 'train'):
        self.examples('superni_task2_b', split)
      self.assertEqual(superni.categories(['superni_task2_b']), {'superni_task2_b': 'Word Semantics'})
      read.assert_called_once_with(epath.Path(self.folder / 'tasks' / 'task2_b.json'))
      # Other sizes are other rows.
      gin.parse_config('superni_splits.sizes.validation = 7')
      self.assertLen(self.examples('superni_task2_b', 'validation'), 7)
      self.assertEqual(read.call_count, 2)
    source = _source('superni_task2_b')
    self.assertLen({id(row) for rows in (*source._loaded[2].values(), *source._cache.values()) for row in rows}, 207)

  def test_another_folder_is_read_again(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(), 'task2_b': superni_case.task()})
    source = _source('superni_task1_a')
    self.assertEqual((source.num_input_examples('train'), source.category()), (10, 'Word Semantics'))
    other = self.folder / 'other'
    (other / 'tasks').mkdir(parents=True)
    (other / 'tasks' / 'task1_a.json').write_text(json.dumps(superni_case.task(4, Categories=['Misc.'])))
    with mock.patch.dict(os.environ, {superni.VARIABLE: str(other)}):
      self.assertEqual((source.num_input_examples('train'), source.category()), (3, 'Misc.'))

  def test_faults_reach_whoever_wants_the_data(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(0), 'task2_b': superni_case.task()})
    with self.assertRaisesRegex(ValueError, "no examples for split 'train' in .*task1_a.json"):
      self.examples('superni_task1_a', 'train')
    with self.assertRaisesRegex(ValueError, "no examples for split 'validation' in .*task2_b.json"):
      self.examples('superni_task2_b', 'validation')
    with self.assertRaisesRegex(ValueError, "no split 'test' in .*task1_a.json; it has train, validation"):
      self.examples('superni_task1_a', 'test')

  def test_training_reference_is_drawn_by_instance_and_seed(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(120), 'task2_b': superni_case.task(120)})

    def targets(seed, split='train', **kwargs):
      return {e['id']: e['targets_pretokenized'].decode()
              for e in self.examples('superni_task1_a', split, seed=seed, **kwargs)}

    drawn = targets(1)
    self.assertEqual(drawn, targets(1))
    self.assertEqual(drawn, {**targets(1, shard_info=seqio.ShardInfo(0, 2)), **targets(1, shard_info=seqio.ShardInfo(1, 2))})
    self.assertNotEqual(drawn, targets(2))
    counts = collections.Counter(target[0] for target in drawn.values())
    self.assertLen(drawn, 96)
    self.assertEqual(set(counts), {'a', 'b', 'c'})
    self.assertGreater(min(counts.values()), 15)
    self.assertEqual({t[0] for t in targets(1, 'validation').values()}, {'a'})

  def test_evaluation_carries_all_references(self):
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(), 'task2_b': superni_case.task(120)})
    task = seqio.TaskRegistry.get('superni_task2_b')
    example = self.examples(task.name, 'test')[3]
    self.assertEqual(task.postprocess_fn('x', example=example, is_target=True), ['a3', 'b3', 'c3'])
    self.assertEqual(task.postprocess_fn('x', example=example, is_target=False), 'x')

  def test_from_tfds(self):
    """The very TFDS data set, prepared from a task file, with the lists of SUPERNI_SPLITS."""
    path = self.folder / 'task1_a.json'
    path.write_text(json.dumps(superni_case.task(10, Source=['s'])))
    # TFDS builders import importlib_resources, which is the standard library's by now.
    with mock.patch.dict(sys.modules, {'importlib_resources': importlib.resources}):
      builder = tfds.builder('natural_instructions', data_dir=self.folder / 'tfds')
      with mock.patch.object(tfds.download.DownloadManager, 'download_and_extract', return_value={'task1_a': path}):
        builder.download_and_prepare()
    self.register(['task1_a'], ['task2_b'], superni.SPLITS_VARIABLE)
    superni_source.tfds_instances.cache_clear()
    self.addCleanup(superni_source.tfds_instances.cache_clear)
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.folder / 'tfds')}):
      rows = [example for split in ('train', 'validation') for example in self.examples('superni_task1_a', split)]
      self.assertEqual(superni.categories(['superni_task1_a']), {'superni_task1_a': 'unknown'})
      with self.assertRaisesRegex(ValueError, "no examples for split 'test' in TFDS task2_b"):
        self.examples('superni_task2_b', 'test')
      self.assertLen(superni_source.tfds_instances(4)['task1_a'], 4)
    texts = {(e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode()) for e in rows}
    self.assertEqual(texts, {(
        'Definition: Say the opposite.\n\nNow complete the following example -\n'
        f'Input: word {i}.\nOutput: ', f'a{i}') for i in range(10)})

  def test_tfds_not_prepared(self):
    self.register(['task1_a'], ['task2_b'], superni.SPLITS_VARIABLE)
    superni_source.tfds_instances.cache_clear()
    variables = {'TFDS_DATA_DIR': str(self.folder), sources.ALLOW_DOWNLOAD: ''}
    with mock.patch.dict(os.environ, variables):
      with self.assertRaisesRegex(FileNotFoundError, 'no prepared natural_instructions in .*; set '
                                  'SUPERNI_DIR to a folder with .*CPOLY_ALLOW_DOWNLOAD=1'):
        self.examples('superni_task1_a', 'train')


class SelectionTest(superni_case.SuperNiTestCase):

  def setUp(self):
    super().setUp()
    self.train, self.test = ([f'task{i}_{kind}' for i in range(number)] for kind, number in (('train', 12), ('test', 3)))
    self.register(self.train, self.test, tasks=dict.fromkeys([*self.train, *self.test], 'not read'))

  def test_depends_on_names_and_seed_alone(self):
    self.assertEqual(superni_selection.mixture(4, seed=0), 'superni_4_tasks_seed_0')
    # Of SHA-256 of '0:superni_task<i>_train' those of tasks 11, 1, 7 and 8 are the lowest, as sha256sum says.
    self.assertEqual(self.members('superni_4_tasks_seed_0'), [f'superni_task{i}_train' for i in (11, 1, 7, 8)])
    smaller, larger = (set(self.members(superni_selection.mixture(n))) for n in (4, 9))
    self.assertContainsSubset(smaller, larger)
    self.assertNotEqual(smaller, set(self.members(superni_selection.mixture(4, seed=1))))

  def test_choice_from_other_mixtures(self):
    name = superni_selection.mixture(15, of='superni_all')
    self.assertCountEqual(self.members(name), [f'superni_{task}' for task in self.train + self.test])
    self.assertEqual(self.members(superni_selection.mixture(3, of='superni_test')), self.members('superni_test'))

  def test_asked_again_it_is_the_same_object_until_tasks_are_registered_again(self):
    name = superni_selection.mixture(4)
    mixture = seqio.MixtureRegistry.get(name)
    self.assertIs(seqio.MixtureRegistry.get(superni_selection.mixture(4)), mixture)
    superni.register()
    again = seqio.MixtureRegistry.get(superni_selection.mixture(4))
    self.assertEqual([task.name for task in again.tasks], [task.name for task in mixture.tasks])
    self.assertIs(again.tasks[0], seqio.TaskRegistry.get(again.tasks[0].name))

  @parameterized.parameters(
      (dict(num_tasks=13), 'num_tasks is 13 and superni has 12 tasks; set it to 1 to 12'),
      (dict(num_tasks=0), 'num_tasks is 0'),
      (dict(of='superglue'), "of is 'superglue'; set it to superni, superni_test, superni_all"))
  def test_refusals(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      superni_selection.mixture(**arguments)

  def test_gin_file(self):
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_files_and_bindings(['gin_configs/runs/superni.gin'], [
        'SUPERNI_TASKS = 5', 'SUPERNI_TRAIN = 20', 'SUPERNI_SEED = 3'])
    name = gin.query_parameter('%MIXTURE_OR_TASK_NAME').scoped_configurable_fn()
    self.assertEqual(name, 'superni_5_tasks_seed_3')
    self.assertEqual(self.members(name), self.members(superni_selection.mixture(5, 3)))
    (self.folder / 'tasks' / 'task0_train.json').write_text(json.dumps(superni_case.task(200)))
    self.assertEqual({split: _source('superni_task0_train').num_input_examples(split) for split in ('train', 'validation')},
                     {'train': 20, 'validation': 40})


class SummaryTest(superni_case.SuperNiTestCase):

  def test_means_by_category_of_an_evaluation(self):
    """Three tasks of two categories, the second with half as many instances; predictions are right for the first reference."""
    contents = {'task1_a': superni_case.task(10), 'task2_b': superni_case.task(5, Categories=['Text to Text', 'Misc.']),
                'task3_c': superni_case.task(10, Categories=['Text to Text'])}
    self.register(list(contents), ['task4_d'], tasks={**contents, 'task4_d': superni_case.task()})
    converter = training_features.converter_for(task_index.from_mixture('superni'))(pack=False)
    evaluator = summaries.Evaluator('superni', converter, eval_split='validation', logger_cls=[seqio.JSONLogger],
                                    log_dir=str(self.folder))
    right = {'superni_task1_a': 'a0', 'superni_task2_b': 'a0', 'superni_task3_c': 'nothing'}
    vocabulary = seqio.ByteVocabulary()
    sizes, names = {'superni_task1_a': 2, 'superni_task2_b': 1, 'superni_task3_c': 2}, iter(sorted(right))

    def predict(dataset):
      name = next(names)
      self.assertLen(list(dataset), sizes[name])
      return [(i, vocabulary.encode(right[name])) for i in range(sizes[name])]

    metrics, _ = evaluator.evaluate(compute_metrics=True, step=3, predict_fn=predict)
    # Right: 1 of 2, 1 of 1, 0 of 2.
    self.assertEqual(metrics.result()['superni'], {
        **{name: 40.0 for name in ('exact_match', 'rouge1', 'rougeL', 'rougeLsum')},
        'exact_match/word_semantics': 50.0, 'rougeL/word_semantics': 50.0,
        'exact_match/text_to_text': 100 / 3, 'rougeL/text_to_text': 100 / 3})
    evaluator.close()
    line = json.loads((self.folder / 'superni_task2_b-metrics.jsonl').read_text())
    self.assertEqual((line['category'], line['exact_match'], line['step']), ('Text to Text', 100.0, 3))
    line = json.loads((self.folder / 'superni-metrics.jsonl').read_text())
    self.assertEqual((line['rougeL'], line['exact_match/word_semantics']), (40.0, 50.0))


class SharedSuperNiTest(superni_case.SuperNiTestCase):
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
    self.assertIn('superni_task105_story_cloze_rocstories_sentence_generation', [task.name for task in train])
    self.assertLen(self.members(superni_selection.mixture(100, of='superni_all')), 100)

  def test_nothing_is_in_two_splits(self):
    source = _source('superni_task033_winogrande_answer_generation')
    for seed in (None, 0):
      gin.parse_config(f'superni_splits.sizes.seed = {seed}')
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
    self.assertEqual(scores.pop('category').textdata, 'Information Extraction')
    self.assertEqual(scores, {name: 100.0 for name in ('rouge1', 'rougeL', 'rougeLsum', 'exact_match')})
    iterator = iter(task.get_dataset(LENGTHS, 'train', seed=0, num_epochs=None))
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    next(iterator)
    path = checkpoint.write(str(self.folder / 'iterator'))
    wanted = [next(iterator)['inputs_pretokenized'].numpy() for _ in range(5)]
    checkpoint.read(path)
    self.assertEqual([next(iterator)['inputs_pretokenized'].numpy() for _ in range(5)], wanted)


if __name__ == '__main__':
  absltest.main()
