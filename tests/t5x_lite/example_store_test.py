"""Tests of reading examples: one pipeline for many tasks, caches, random preprocessors, faults."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import seqio
import tensorflow as tf

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import input_testing as inputs  # pylint: disable=g-import-not-at-top
from cpoly_jax import testing
from t5x import datasets
from t5x import example_order
from t5x import example_store
from t5x import indexed
from t5x import task_pipelines


def drop_some(dataset):
  """A preprocessor that keeps a varying number of examples of each task."""
  return dataset.filter(lambda ex: tf.strings.length(ex['targets']) > 2).take(6)


def count(dataset):
  """A preprocessor that writes the place of an example in its task into it, if it has a place at all."""

  def add(i, ex):
    if i > 2:  # Only AutoGraph makes this an operation of TensorFlow.
      ex['inputs'] = tf.strings.join([tf.strings.as_string(i), ex['inputs']])
    return ex

  return dataset.enumerate().map(add)


@seqio.map_over_dataset(num_seeds=1)
def draw(ex, seed):
  number = tf.random.stateless_uniform([], seed, 0, 1000, tf.int32)
  return {**ex, 'targets': tf.strings.as_string(number)}


def nested_draw(dataset):
  """As `draw`, without an argument that shows it."""
  return draw(dataset)


def _conversion(**overrides):
  return task_pipelines.Conversion(**{**dict(split='train', feature_lengths=inputs.LENGTHS, seed=5,
                                             converter=seqio.EncDecFeatureConverter(pack=False)), **overrides})


def _rows(pipelines, number):
  """All rows of task `number`."""
  (pipeline,) = [p for p in pipelines if number in p.tasks]
  rows = [row for slab, tasks in pipeline.slabs()
          for row, task in zip(zip(*[map(tuple, slab[name]) for name in sorted(slab)]), tasks) if task == number]
  return rows


class PipelinesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('plain', ()), ('filter', (drop_some,)), ('place', (count,)), ('random', (draw,)))
  def test_one_pipeline_makes_of_each_task_what_its_own_makes(self, first):
    preprocessors = (*first, *inputs.PREPROCESSORS)
    tasks = [inputs.task(name, size, preprocessors) for name, size in (('a', 9), ('b', 14), ('c', 1))]
    together = task_pipelines.open_pipelines(tasks, [False] * 3, _conversion())
    alone = task_pipelines.open_pipelines(tasks, [True] * 3, _conversion())
    self.assertEqual([p.tasks for p in together], [(0, 1, 2)])
    self.assertEqual([p.tasks for p in alone], [(0,), (1,), (2,)])
    for number, task in enumerate(tasks):
      rows = _rows(together, number)
      self.assertEqual(rows, _rows(alone, number))
      # What SeqIO itself gives for the task.
      wanted = seqio.get_dataset(task, inputs.LENGTHS, seqio.EncDecFeatureConverter(pack=False), 'train', shuffle=False, seed=5)
      self.assertEqual([inputs.decode(ex['encoder_input_tokens']) for ex in wanted.as_numpy_iterator()],
                       [inputs.decode(row[3]) for row in rows])
      if not first:
        self.assertLen(rows, (9, 14, 1)[number])

  def test_functions_are_traced_once_for_all_tasks(self):
    traced = []

    def look(dataset):
      def note(ex):
        traced.append(1)
        return ex
      return dataset.map(note)

    tasks = [inputs.task(f'a{i}', 3, (look, *inputs.PREPROCESSORS)) for i in range(20)]
    (pipeline,) = task_pipelines.open_pipelines(tasks, [False] * 20, _conversion())
    self.assertLen(list(pipeline.slabs())[0][1], 60)
    self.assertLen(traced, 1)

  def test_other_preprocessors_features_and_layouts_are_kept_apart(self):
    sized = {name: seqio.Feature(seqio.ByteVocabulary(extra_ids=9), add_eos=True) for name in inputs.LENGTHS}
    with_id = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({'inputs': 'x', 'targets': 'y', 'id': 1}),
        splits=['train'], num_input_examples={'train': 1})
    tasks = [inputs.task('a', 3), inputs.task('b', 3, (count, *inputs.PREPROCESSORS)), inputs.task('c', 3),
             seqio.Task('d', source=inputs.source('d', 3), preprocessors=inputs.PREPROCESSORS, output_features=sized),
             seqio.Task('e', source=with_id, preprocessors=inputs.PREPROCESSORS, output_features=inputs.FEATURES)]
    pipelines = task_pipelines.open_pipelines(tasks, [False] * 5, _conversion())
    self.assertCountEqual([p.tasks for p in pipelines], [(0, 2), (1,), (3,), (4,)])

  def test_what_cannot_be_traced_together_is_opened_one_by_one(self):
    def look_inside(dataset):
      return dataset.take(int(dataset.cardinality()))  # A number outside of functions only.

    tasks = [inputs.task(name, 4, (look_inside, *inputs.PREPROCESSORS)) for name in 'ab']
    pipelines = task_pipelines.open_pipelines(tasks, [False] * 2, _conversion())
    self.assertEqual([p.tasks for p in pipelines], [(0,), (1,)])
    self.assertLen(_rows(pipelines, 1), 4)

  def test_a_sentencepiece_vocabulary_works_in_and_after_one_pipeline(self):
    path = testing.shared_data('sentencepiece') / 'sentencepiece.model'
    features = {name: seqio.Feature(seqio.SentencePieceVocabulary(str(path)), add_eos=True) for name in inputs.LENGTHS}
    tasks = [seqio.Task(name, source=inputs.source(name, 4), preprocessors=inputs.PREPROCESSORS, output_features=features)
             for name in 'ab']
    (pipeline,) = task_pipelines.open_pipelines(tasks, [False] * 2, _conversion())
    self.assertLen(_rows([pipeline], 1), 4)
    ids = features['inputs'].vocabulary.encode_tf(inputs.text('b', 0)).numpy().tolist()
    encoded = next(iter(pipeline.slabs()))[0]['encoder_input_tokens'][4]
    np.testing.assert_array_equal(encoded, np.pad([*ids, 1], (0, inputs.LENGTHS['inputs'] - len(ids) - 1)))


def _open(tasks, alone=None):
  return example_store.ExampleStore([t.name for t in tasks], task_pipelines.open_pipelines(
      tasks, alone or [False] * len(tasks), _conversion()))


class StoreTest(absltest.TestCase):

  def test_examples_have_the_places_that_they_have_in_their_task(self):
    tasks = [inputs.task('a', 300), inputs.task('b', 5, (count, *inputs.PREPROCESSORS)), inputs.task('c', 7)]
    store = _open(tasks)
    np.testing.assert_array_equal(store.sizes, [300, 5, 7])
    wanted = [(0, 0), (0, 299), (1, 2), (2, 6), (2, 0), (0, 0)]
    ids = store.ids(*np.array(wanted).T)
    self.assertEqual([inputs.decode(row) for row in store.get('encoder_input_tokens', ids)],
                     [inputs.text('abc'[task], j) for task, j in wanted])
    np.testing.assert_array_equal(store.lengths(['decoder_target_tokens'], ids), [j % 6 + 2 for _, j in wanted])
    self.assertEqual(store.get('decoder_loss_weights', ids).shape, (6, 8))
    self.assertEqual(store.get('decoder_loss_weights', ids[:0]).shape, (0, 8))

  def test_a_large_task_is_used_while_it_is_read(self):
    go_on = threading.Event()
    size = example_order.LARGE + 1

    def dataset_fn(split, shuffle_files, seed=None):
      del split, shuffle_files, seed

      def rows():
        for j in range(size):
          if j == 6000:
            go_on.wait(60)
          yield {'inputs': inputs.text('a', j), 'targets': 'x'}

      ds = tf.data.Dataset.from_generator(rows, output_signature={k: tf.TensorSpec([], tf.string) for k in inputs.LENGTHS})
      return ds.apply(tf.data.experimental.assert_cardinality(size))

    task = seqio.Task('a', source=seqio.FunctionDataSource(dataset_fn, ['train'], {'train': size}),
                      preprocessors=inputs.PREPROCESSORS, output_features=inputs.FEATURES, shuffle_buffer_size=10)
    self.addCleanup(go_on.set)
    ds = inputs.get(task)
    first = inputs.inputs(inputs.read(ds, 4))
    self.assertContainsSubset(first, [inputs.text('a', j) for j in range(example_order.CHUNK)])
    go_on.set()
    last = inputs.inputs(inputs.read(ds.skip(size // 8), 1))
    self.assertIn(inputs.text('a', size - 1), inputs.inputs(inputs.read(ds.skip(size // 8 - 260), 262)))
    self.assertLen(last, 8)

  def test_a_fault_of_the_data_is_raised_where_examples_are_asked_for(self):
    def broken(dataset):
      return dataset.map(lambda ex: {**ex, 'inputs': tf.strings.as_string(tf.strings.to_number(ex['inputs']))})

    store = _open([inputs.task('a', 3, (broken, *inputs.PREPROCESSORS))])
    for _ in range(2):
      with self.assertRaises(tf.errors.InvalidArgumentError):
        store.get('encoder_input_tokens', np.array([0]))

  def test_a_task_of_which_nothing_is_left_is_named(self):
    def drop_all(dataset):
      return dataset.filter(lambda ex: False)

    store = _open([inputs.task('a', 3), inputs.task('b', 3, (drop_all, *inputs.PREPROCESSORS))])
    with self.assertRaisesRegex(ValueError, "^Task 'b' has no examples once its preprocessors have run: [^\n]*$"):
      _ = store.sizes


class ChoiceTest(parameterized.TestCase):
  """Which data sets are indexed and which are streamed, and what is said about it."""

  def _is_indexed(self, source, reason=None, **overrides):
    with self.assertLogs(level='INFO') as logs:
      ds = inputs.get(source, **overrides)
    line = '\n'.join(logs.output)
    self.assertIn('is indexed in memory' if reason is None else f'is streamed: {reason}', line)
    self.assertEqual(isinstance(ds, indexed.IndexedDataset), reason is None)
    return ds

  def test_small_tasks_are_indexed(self):
    self._is_indexed(inputs.mixture())

  @parameterized.parameters(draw, nested_draw)
  def test_random_preprocessors_are_streamed_as_each_epoch_differs(self, preprocessor):
    task = inputs.task('a', 8, (preprocessor, *inputs.PREPROCESSORS))
    ds = self._is_indexed(task, 'a preprocesses at random', shuffle=False)
    first, second = inputs.read(ds, 2)
    self.assertTrue((first['decoder_target_tokens'] != second['decoder_target_tokens']).any())
    mixed = seqio.Mixture('m', [(task, 1), (inputs.task('b', 8, (preprocessor, *inputs.PREPROCESSORS)), 1)])
    self._is_indexed(mixed, 'a preprocesses at random')

  def test_unknown_sizes_and_own_sampling_are_streamed(self):
    self._is_indexed(inputs.task('a', 8, stated=None), 'a does not know how many examples it has')
    sampled = seqio.Mixture('m', [(inputs.task('a', 8), 1)],
                            sample_fn=lambda *args: tf.data.Dataset.sample_from_datasets(*args))
    self._is_indexed(sampled, 'the mixture has a sample_fn of its own')
    self._is_indexed(inputs.task('a', 70_000, (drop_some, *inputs.PREPROCESSORS)), 'a is large and makes an unknown number')

  def test_the_limit_is_set_by_gin(self):
    import gin
    self.addCleanup(gin.clear_config)
    gin.parse_config('from __gin__ import dynamic_registration\nfrom t5x import datasets\n'
                     'datasets.in_memory_limit.examples = 48')
    self._is_indexed(inputs.mixture(), '49 examples are more than datasets.in_memory_limit.examples = 48')
    gin.bind_parameter('t5x.datasets.in_memory_limit.examples', 0)
    self._is_indexed(inputs.mixture(), 'datasets.in_memory_limit.examples is 0')

  def test_streamed_batches_are_those_of_seqio(self):
    with mock.patch.object(datasets, 'in_memory_limit', return_value=0):
      streamed = inputs.read(self._is_indexed(inputs.mixture(), 'datasets'), 5)
    wanted = seqio.get_dataset(inputs.mixture(), inputs.LENGTHS, seqio.EncDecFeatureConverter(pack=False), 'train',
                               shuffle=True, seed=3, num_epochs=None, batch_size=8)
    inputs.assert_batches_equal(self, streamed, list(wanted.take(5).as_numpy_iterator()))


class CacheTest(absltest.TestCase):
  """Tasks with an offline cache, in the files that SeqIO reads; its writer needs Apache Beam and is not used here."""

  def setUp(self):
    super().setUp()
    before = seqio.get_global_cache_dirs()
    self.addCleanup(seqio.set_global_cache_dirs, before)
    self.folder = tempfile.mkdtemp()
    seqio.set_global_cache_dirs([self.folder])

  def _write(self, task, texts):
    folder = os.path.join(self.folder, seqio.get_task_dir_from_name(task.name))
    os.makedirs(folder)
    vocabulary = seqio.ByteVocabulary()
    features = {name: {'dtype': 'int32', 'shape': [None]} for name in inputs.LENGTHS}
    with open(os.path.join(folder, 'info.train.json'), 'w', encoding='utf-8') as file:
      json.dump({'num_shards': 2, 'features': features, 'seqio_version': '0.0.20'}, file)
    with open(os.path.join(folder, 'stats.train.json'), 'w', encoding='utf-8') as file:
      json.dump({'examples': len(texts)}, file)
    for shard in range(2):
      with tf.io.TFRecordWriter(os.path.join(folder, f'train.tfrecord-{shard:05}-of-00002')) as writer:
        for text in texts[shard::2]:
          tokens = np.array(vocabulary.encode(text))
          writer.write(seqio.dict_to_tfexample({name: tokens for name in inputs.LENGTHS}).SerializeToString())
    open(os.path.join(folder, 'COMPLETED'), 'w', encoding='utf-8').close()

  def _task(self, name, required=False):
    return inputs.task(name, 3, (seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(required=required),
                                 seqio.preprocessors.append_eos_after_trim))

  def test_the_cache_is_read_where_it_is_asked_for(self):
    tasks = {name: self._task(name) for name in ('cached_a', 'cached_b')}
    texts = {name: [f'{name}{j}' for j in range(size)] for (name, size) in zip(tasks, (12, 5))}
    for name, task in tasks.items():
      self._write(task, texts[name])
    mixture = seqio.Mixture('m', [(task, size) for task, size in zip(tasks.values(), (12, 5))])
    ds = inputs.get(mixture, use_cached=True, batch_size=17)
    self.assertIsInstance(ds, indexed.IndexedDataset)
    found = inputs.inputs(inputs.read(ds, 40))
    for name in tasks:
      size = len(texts[name])
      of_task = [text for text in found if text.startswith(name)]
      self.assertAlmostEqual(len(of_task) / 40, size, delta=1)
      for epoch in range(20):
        self.assertCountEqual(of_task[epoch * size:(epoch + 1) * size], texts[name])
    uncached = inputs.inputs(inputs.read(inputs.get(mixture), 3))
    self.assertContainsSubset(uncached, [inputs.text(name, j) for name in tasks for j in range(3)])

  def test_a_cache_that_is_required_or_absent_is_told(self):
    with self.assertRaisesRegex(ValueError, "'needs_cache' requires caching"):
      inputs.get(self._task('needs_cache', required=True))
    with self.assertRaisesRegex(ValueError, "^Task 'no_cache' is in none of the cache folders [^\n]*USE_CACHED_TASKS[^\n]*$"):
      inputs.get(self._task('no_cache'), use_cached=True)


class ColumnTest(absltest.TestCase):

  def test_values_come_back_whatever_their_shape(self):
    rng = np.random.default_rng(0)
    for shape in ((), (5,), (4, 3)):
      values = rng.integers(0, 2, (40, *shape)).astype(np.float32)
      column = example_store._Column(shape, values.dtype)
      column.reserve(40)
      for ids in np.split(rng.permutation(40), 4):
        column.put(ids, values[ids])
      ids = rng.integers(0, 40, 100)
      np.testing.assert_array_equal(column.get(ids), values[ids])


if __name__ == '__main__':
  absltest.main()
