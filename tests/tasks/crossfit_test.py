"""CrossFit: its table, the splits of each partition, prompts, the user's own mixtures, and what a user is told."""

from __future__ import annotations

import collections
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from cpoly_jax import task_index
from cpoly_jax.training import features as cpoly_features
from tasks import crossfit
from tasks import crossfit_files
from tasks import crossfit_metrics
from tasks import features
from tasks import summaries

SEEDS = (100, 13, 21, 42, 87)
# Counted in the authors' table of metrics, over all tasks and over the RANDOM test partition.
COUNTS = {'ACC': 51, 'Classification-F1': 51, 'EM': 28, 'Rouge-L': 17, 'QA-F1': 9, 'Pearson-Correlation': 3,
          'Matthew-Correlation': 1}
TEST_COUNTS = {'Classification-F1': 8, 'ACC': 6, 'EM': 3, 'QA-F1': 1, 'Rouge-L': 1, 'Matthew-Correlation': 1}
LENGTHS = {'inputs': 64, 'targets': 16}


def _write(folder, task, shots, seeds=SEEDS, output='yes', parts=('train', 'dev', 'test')):
  """Writes files of one row each, which tells the part and seed."""
  (folder / task).mkdir(exist_ok=True)
  for seed in seeds:
    for part in parts:
      (folder / task / f'{task}_{shots}_{seed}_{part}.tsv').write_text(f'{part} {seed}\t{output}\n')


class CrossFitTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {crossfit.VARIABLE: str(self.folder)}))
    self.addCleanup(gin.clear_config)
    features.vocabulary()

  def _inputs(self, task, split):
    source = seqio.TaskRegistry.get(task).source
    return [row['input'] for row in source.rows(split)]


class TableTest(parameterized.TestCase):

  def test_counts(self):
    table = crossfit.task_table()
    self.assertLen(table, 160)
    self.assertEqual(collections.Counter(task.partition for task in table.values()), {'train': 120, 'dev': 20, 'test': 20})
    self.assertEqual(collections.Counter(task.metric for task in table.values()), COUNTS)
    self.assertEqual(collections.Counter(task.metric for task in table.values() if task.partition == 'test'), TEST_COUNTS)
    self.assertEqual({task.metric for task in table.values()}, set(crossfit_metrics.METRICS))

  def test_shots(self):
    table = crossfit.task_table()
    self.assertEqual({task.shots for task in table.values()}, {16, 32})
    # Only classification is drawn per label; F1 over classes is one for all but a task of free labels.
    self.assertEqual({task.shots for task in table.values() if task.metric in ('EM', 'QA-F1', 'Rouge-L')}, {32})
    self.assertEqual([table[name].shots for name in ('glue-cola', 'boolq', 'mocha', 'ai2_arc')], [16, 16, 16, 32])

  @parameterized.parameters(('glue-cola', 'test', 'Matthew-Correlation'), ('mocha', 'train', 'Pearson-Correlation'),
                            ('quoref', 'test', 'QA-F1'), ('kilt_fever', 'dev', 'ACC'), ('circa', 'test', 'Classification-F1'),
                            ('superglue-record', 'train', 'QA-F1'), ('wiki_split', 'test', 'Rouge-L'))
  def test_facts(self, name, partition, metric):
    task = crossfit.task_table()[name]
    self.assertEqual((task.partition, task.metric), (partition, metric))
    registered = seqio.TaskRegistry.get(crossfit.task_name(name))
    self.assertEqual(registered.metric_fns, [crossfit_metrics.METRICS[metric]])

  def test_mixtures(self):
    for partition, number in (('train', 120), ('dev', 20), ('test', 20)):
      index = task_index.from_mixture(f'crossfit_random_{partition}')
      self.assertLen(index, number)
      self.assertEqual(set(index.names), {crossfit.task_name(task.name) for task in crossfit.task_table().values()
                                          if task.partition == partition})
    self.assertEqual(crossfit.task_name('break-QDMR-high-level'), 'crossfit_break_QDMR_high_level')

  def test_tasks_share_their_preprocessors(self):
    tasks = [seqio.TaskRegistry.get(crossfit.task_name(name)) for name in ('boolq', 'xsum', 'glue-cola')]
    for other in tasks[1:]:
      self.assertEqual(list(other.preprocessors), list(tasks[0].preprocessors))


class SplitsTest(CrossFitTestCase):

  def test_of_each_partition(self):
    for task, shots in (('boolq', 16), ('glue-cola', 16), ('trec', 16)):
      _write(self.folder, task, shots)
    # Train partition: both files of all seeds.
    self.assertEqual(self._inputs('crossfit_boolq', 'train'), [f'{part} {seed}' for seed in SEEDS for part in ('train', 'dev')])
    self.assertEqual(self._inputs('crossfit_boolq', 'validation'), ['dev 100'])
    self.assertEqual(self._inputs('crossfit_boolq', 'test'), ['test 100'])
    # Test and dev partitions: those of one.
    for task in ('crossfit_glue_cola', 'crossfit_trec'):
      self.assertEqual(self._inputs(task, 'train'), ['train 100'])
      self.assertEqual(self._inputs(task, 'validation'), ['dev 100'])

  def test_settings_act_at_once(self):
    _write(self.folder, 'boolq', 16)
    _write(self.folder, 'glue-cola', 4, seeds=(100, 42))
    self.assertLen(self._inputs('crossfit_boolq', 'train'), 10)
    gin.parse_config("tasks.crossfit.few_shot.seed = 42\ntasks.crossfit.few_shot.pooled = ('dev',)")
    self.assertEqual(self._inputs('crossfit_boolq', 'train'), ['train 42'])
    gin.parse_config('tasks.crossfit.few_shot.shots = 4')
    self.assertEqual(self._inputs('crossfit_glue_cola', 'train'), ['train 42'])

  def test_whole_files(self):
    (self.folder / 'glue-cola').mkdir()
    for part in ('train', 'test'):
      (self.folder / 'glue-cola' / f'glue-cola_{part}.tsv').write_text(
          ''.join(f'{part} {i}\t{"" if i % 5 else "un"}acceptable\n' for i in range(200)))
    gin.parse_config('tasks.crossfit.few_shot.seed = 5')
    self.assertLen(self._inputs('crossfit_glue_cola', 'train'), 32)
    self.assertLen(self._inputs('crossfit_glue_cola', 'validation'), 32)
    self.assertLen(self._inputs('crossfit_glue_cola', 'test'), 200)

  def test_dataset(self):
    _write(self.folder, 'glue-cola', 16, output='acceptable\tfine')
    task = seqio.TaskRegistry.get('crossfit_glue_cola')
    [example] = task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator()
    self.assertEqual(example['inputs_pretokenized'], b'[glue-cola] dev 100')
    self.assertEqual(example['targets_pretokenized'], b'acceptable')
    self.assertEqual(list(example['references']), [b'acceptable', b'fine'])
    self.assertEqual(list(example['task_id']), [task_index.task_key('crossfit_glue_cola')])
    self.assertEqual(task.postprocess_fn('acceptable', example=example, is_target=True), ['acceptable', 'fine'])
    gin.parse_config('tasks.crossfit.prompt.task_name = False')
    [example] = task.get_dataset(LENGTHS, 'validation', shuffle=False).as_numpy_iterator()
    self.assertEqual(example['inputs_pretokenized'], b'dev 100')

  def test_training_draws_one_output(self):
    (self.folder / 'quoref').mkdir()
    rows = ''.join(f'question {i}\ta\tb\tc\n' for i in range(30))
    (self.folder / 'quoref' / 'quoref_32_100_train.tsv').write_text(rows)
    task = seqio.TaskRegistry.get('crossfit_quoref')

    def targets(seed):
      dataset = task.get_dataset(LENGTHS, 'train', shuffle=False, seed=seed)
      return [example['targets_pretokenized'] for example in dataset.as_numpy_iterator()]

    self.assertEqual(set(targets(0)), {b'a', b'b', b'c'})
    self.assertEqual(targets(0), targets(0))
    self.assertNotEqual(targets(0), targets(1))

  def test_a_mixture_counts_all_rows_alike(self):
    _write(self.folder, 'boolq', 16)
    _write(self.folder, 'xsum', 32)
    (self.folder / 'xsum' / 'xsum_32_21_train.tsv').write_text('a\tb\n' * 6)
    mixture = seqio.MixtureRegistry.get(crossfit.mixture(['boolq', 'xsum']))
    self.assertEqual([mixture.get_rate(task) for task in sorted(mixture.tasks, key=lambda task: task.name)], [10, 15])


class OwnMixtureTest(CrossFitTestCase):

  def _tasks(self, name):
    return list(task_index.from_mixture(name).names)

  def test_tasks_that_are_there(self):
    _write(self.folder, 'boolq', 16)
    _write(self.folder, 'glue-cola', 16)
    _write(self.folder, 'xsum', 32)
    _write(self.folder, 'mocha', 16, seeds=(100, 13))
    name = crossfit.mixture()
    self.assertEqual(self._tasks(name), ['crossfit_boolq', 'crossfit_xsum'])
    self.assertEqual(crossfit.mixture(), name)
    self.assertEqual(self._tasks(crossfit.mixture(partition='test')), ['crossfit_glue_cola'])
    gin.parse_config('tasks.crossfit.few_shot.pooled = ()')
    self.assertEqual(self._tasks(crossfit.mixture()), ['crossfit_boolq', 'crossfit_mocha', 'crossfit_xsum'])

  def test_named_tasks(self):
    name = crossfit.mixture(['glue-cola', 'crossfit_boolq', 'boolq'])
    self.assertEqual(self._tasks(name), ['crossfit_boolq', 'crossfit_glue_cola'])
    self.assertNotEqual(crossfit.mixture(['glue-cola', 'xsum']), name)

  def test_mean(self):
    metrics = {'crossfit_boolq': {'accuracy': 50.0}, 'crossfit_xsum': {'rouge_l': 10.0}}
    for name in ('crossfit_random_train', crossfit.mixture(['boolq', 'xsum'])):
      self.assertEqual(summaries.summarize(name, metrics), {'mean': 30.0})

  @parameterized.parameters(
      (dict(tasks=['boolq', 'bolq']), r"crossfit\.mixture\.tasks is \['boolq', 'bolq'\].*\('bolq' is none\)"),
      (dict(tasks='boolq'), 'set it to a list of CrossFit tasks'),
      (dict(tasks=[]), 'set it to a list of CrossFit tasks'),
      (dict(partition='random'), "partition is 'random'; set it to one of train, dev, test"),
      (dict(), 'has the files of no task of the train partition'),
  )
  def test_faults(self, arguments, expected):
    with self.assertRaisesRegex(ValueError, expected):
      crossfit.mixture(**arguments)


class MessagesTest(CrossFitTestCase):

  def _fails(self, kind, expected, task='crossfit_boolq', split='train'):
    with self.assertRaisesRegex(kind, expected) as raised:
      self._inputs(task, split)
    # Gin adds a line about its own to errors of what it configures, which the programs drop.
    self.assertNotIn('\n', str(raised.exception).split('\n  In call to configurable')[0])

  def test_the_variable_is_not_set(self):
    os.environ[crossfit.VARIABLE] = ''
    self._fails(FileNotFoundError, 'CROSSFIT_DIR is not set; set it to the folder that holds <task>/<task>_<shots>')
    with self.assertRaisesRegex(FileNotFoundError, 'CROSSFIT_DIR is not set'):
      crossfit.mixture()

  def test_no_such_folder(self):
    os.environ[crossfit.VARIABLE] = str(self.folder / 'x')
    self._fails(FileNotFoundError, 'CROSSFIT_DIR=.*/x is not a folder')

  def test_tasks_without_files(self):
    for task in crossfit.task_table().values():
      if task.partition == 'train' and task.name not in ('boolq', 'xsum', 'anli'):
        _write(self.folder, task.name, task.shots, parts=('train', 'dev'))
    self._fails(FileNotFoundError, "boolq_16_100_train.tsv; 3 of the 120 tasks of the train partition lack files of split "
                "'train': anli, boolq, xsum. Add them, or, .* set MIXTURE_OR_TASK_NAME = @crossfit.mixture\\(\\)")
    self._fails(FileNotFoundError, "20 of the 20 tasks of the test partition .*'test': ag_news, .*, wiki_split, yelp_polarity",
                'crossfit_circa', 'test')

  def test_a_mixture_says_the_same(self):
    with self.assertRaisesRegex(FileNotFoundError, '120 of the 120 tasks of the train partition .* and 100 more'):
      seqio.MixtureRegistry.get('crossfit_random_train').get_dataset(LENGTHS, 'train', shuffle=False, num_epochs=1)

  def test_seeds(self):
    _write(self.folder, 'glue-cola', 16, seeds=(100, 13))
    gin.parse_config('tasks.crossfit.few_shot.seed = 7')
    self._fails(FileNotFoundError, 'glue-cola_16_7_dev.tsv; the folder has the training files of seeds 13, 100: add the file, '
                'or set crossfit.few_shot.seed to what is there', 'crossfit_glue_cola', 'validation')
    _write(self.folder, 'boolq', 16, seeds=(100, 13))
    self._fails(FileNotFoundError, r'boolq_16_21_train.tsv; .*crossfit\.few_shot\.pooled = \(\) and crossfit\.few_shot\.seed')

  @parameterized.parameters(('seed = "a"', 'few_shot.seed is .*whole number'), ('seed = -1', 'few_shot.seed is -1'),
                            ('shots = 0', 'few_shot.shots is 0'), ('pooled = "train"', "few_shot.pooled is 'train'"),
                            ('pooled = ["all"]', 'few_shot.pooled is .*all'))
  def test_settings(self, binding, expected):
    gin.parse_config(f'tasks.crossfit.few_shot.{binding}')
    self._fails(ValueError, expected)

  def test_a_bad_row(self):
    _write(self.folder, 'glue-cola', 16)
    (self.folder / 'glue-cola' / 'glue-cola_16_100_dev.tsv').write_text('fine\tacceptable\nhalf\n')
    self._fails(ValueError, r'glue-cola_16_100_dev.tsv:2: no tab in the line', 'crossfit_glue_cola', 'validation')


class EvaluationTest(CrossFitTestCase):

  def test_metrics_of_a_mixture(self):
    _write(self.folder, 'glue-cola', 16, output='acceptable')
    _write(self.folder, 'quoref', 32, output='the cat\tdog')
    texts = {'[glue-cola] dev 100': 'acceptable', '[quoref] dev 100': 'A black cat'}
    vocabulary = seqio.ByteVocabulary()

    def predict(dataset):
      inputs = [vocabulary.decode([int(i) for i in e['encoder_input_tokens']]) for _, e in dataset.as_numpy_iterator()]
      return [(i, vocabulary.encode(texts[text])) for i, text in enumerate(inputs)]

    name = crossfit.mixture(['glue-cola', 'quoref'])
    converter = cpoly_features.TaskFeatureConverter(task_index=task_index.from_mixture(name), pack=False)
    evaluator = summaries.Evaluator(name, converter, eval_split='validation', sequence_length=LENGTHS)
    metrics, _ = evaluator.evaluate(compute_metrics=True, step=0, predict_fn=predict)
    evaluator.close()
    found = {task: {name: float(getattr(value, 'value', value)) for name, value in values.items()}
             for task, values in metrics.result().items()}
    # One class on both sides: no correlation. cat of the words black cat and cat: 2 * 1 / 3.
    self.assertEqual(found['crossfit_glue_cola'], {'matthews_correlation': 0})
    self.assertAlmostEqual(found['crossfit_quoref']['qa_f1'], 200 / 3)
    self.assertAlmostEqual(found[name]['mean'], 100 / 3)


class RegistrationTest(absltest.TestCase):

  def test_again(self):
    before = set(seqio.TaskRegistry.names())
    crossfit.register()
    self.assertEqual(set(seqio.TaskRegistry.names()), before)

  def test_every_task_says_where_its_files_go(self):
    self.assertEqual(crossfit_files.SEEDS, SEEDS)
    self.assertContainsSubset([crossfit.task_name(name) for name in crossfit.task_table()], seqio.TaskRegistry.names())


if __name__ == '__main__':
  absltest.main()
