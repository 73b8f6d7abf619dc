"""Tests of own tasks as SeqIO tasks: registration, held-out validation, batches, metrics, rates."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import gin
import numpy as np
import seqio

from cpoly_jax import task_index
from cpoly_jax.training import features as training_features
from tasks import features
from tasks import own_data
from tasks import own_data_metrics
from tasks.own_data_files import Row
from tests.tasks import command_case


class OwnDataTest(command_case.FolderTestCase):

  def setUp(self):
    super().setUp()
    features.vocabulary()

  def mixture(self, **settings):
    name = own_data.mixture(self.folder, **settings)
    self.addCleanup(own_data.unregister, name)
    return seqio.get_mixture_or_task(name)

  def test_tasks_and_their_rows(self):
    self.write('my task-1.jsonl', [('a', 'b'), ('c', 'd')])
    self.write('qa/train.jsonl', [('e', 'f')])
    self.write('qa/validation.jsonl', [('g', ['h', 'i'])])
    mixture = self.mixture()
    self.assertEqual(mixture.name, 'own_data')
    self.assertEqual(task_index.from_mixture('own_data').names, ('own_data_my_task_1', 'own_data_qa'))
    task = seqio.TaskRegistry.get('own_data_qa')
    self.assertEqual((task.splits, task.num_input_examples('train')), (('train', 'validation'), 1))
    example, = task.get_dataset({'inputs': 8, 'targets': 8}, 'validation', shuffle=False).as_numpy_iterator()
    self.assertEqual([example['inputs'].tolist(), example['targets'].tolist(), example['task_id'].tolist()],
                     [[ord('g') + 3, 1], [ord('h') + 3, 1], [task_index.task_key('own_data_qa')]])
    self.assertEqual(task.postprocess_fn(decoded_model_output='h', example=example, is_target=True), ['h', 'i'])
    self.assertEqual(task.postprocess_fn(decoded_model_output='x', example=example, is_target=False), 'x')

  def test_all_tasks_share_their_preprocessors(self):
    self.write('a.jsonl', [('a', 'b'), ('c', 'd')])
    self.write('b.jsonl', [('a', 'b'), ('c', 'd')])
    first, second = (task.preprocessors for task in self.mixture().tasks)
    self.assertTrue(all(one is other for one, other in zip(first, second, strict=True)))

  def test_evaluation_by_seqio(self):
    self.write('qa.jsonl', [(f'q{i}', f'A {i}') for i in range(20)])
    task, = self.mixture(held_out=0.2).tasks
    converter = training_features.converter_for(task_index.from_mixture('own_data'))
    evaluator = seqio.Evaluator('own_data', converter(pack=False), eval_split='validation')
    answers = [row.targets[0] for row in task.source.rows('validation')]
    self.assertLen(answers, 4)
    given = [answers[0], f'{answers[1].lower()}!', 'nothing', 'x y']
    tokens = [features.default_vocabulary().encode(text.ljust(10)) for text in given]  # Of one length, as a model gives them.
    metrics, _ = evaluator.evaluate(compute_metrics=True, step=None, predict_fn=lambda dataset: [
        (i, tokens[i]) for i, _ in dataset.enumerate().as_numpy_iterator()])
    # The second is right but for its case and stop; ROUGE and F1 see the numbers alone.
    self.assertEqual(metrics.result()['own_data_qa'], {'exact_match': 50., 'f1': 50., 'rougeL': 50.})

  def test_gin(self):
    self.write('a.jsonl', [('a', 'b'), ('c', 'd')])
    gin.parse_config(f"""
        from __gin__ import dynamic_registration
        from tasks import own_data
        from cpoly_jax import task_index
        MIXTURE = @own_data.mixture()
        own_data.mixture.folder = {str(self.folder)!r}
        own_data.mixture.name = 'mine'
        task_index.from_mixture.mixture_or_task_name = %MIXTURE
    """)
    self.addCleanup(own_data.unregister, 'mine')
    from_mixture = gin.get_configurable(task_index.from_mixture)
    self.assertEqual([from_mixture().names for _ in range(2)], [('mine_a',)] * 2)  # A macro is evaluated again and again.

  @parameterized.parameters(
      ({'name': 'my tasks'}, "own_data.mixture.name is 'my tasks'; write letters, digits and _"),
      ({'rate': 'best'}, "own_data.mixture.rate is 'best'; write one of proportional, equal, temperature"),
      ({'held_out': 1.0}, 'own_data.mixture.held_out is 1.0; set it to a share from 0 to less than 1'),
      ({'held_out': None}, 'own_data.mixture.held_out is None'),
      ({'metrics': ['rough']}, "own_data.mixture.metrics: there is no metric 'rough'; did you mean rouge?"),
      ({'metrics': 'rouge'}, "own_data.mixture.metrics is 'rouge'; write a list of different ones of accuracy, exact_match"),
      ({'metrics': []}, r'own_data.mixture.metrics is \[\]; write a list'),
  )
  def test_wrong_settings(self, settings, message):
    self.write('a.jsonl', [('a', 'b'), ('c', 'd')])
    with self.assertRaisesRegex(ValueError, message):
      own_data.mixture(self.folder, **settings)

  def test_names_that_are_taken(self):
    self.write('a.jsonl', [('a', 'b'), ('c', 'd')])
    self.mixture()
    with self.assertRaisesRegex(ValueError, "the name 'own_data' is that of .* with other settings; set own_data.mixture.name"):
      own_data.mixture(self.folder, held_out=0.5)
    self.write('a-b.jsonl', [('a', 'b')])
    self.write('a_b.jsonl', [('a', 'b')])
    with self.assertRaisesRegex(ValueError, "the tasks 'a-b' and 'a_b' both become new_a_b; rename one of them"):
      own_data.mixture(self.folder, name='new')
    self.assertNotIn('new_a', seqio.TaskRegistry.names())

  def test_the_first_fault_of_the_folder_is_told(self):
    self.write('a.json', [])
    self.write('b.json', [])
    with self.assertRaisesRegex(ValueError, r'a.json: no .jsonl, .*; 1 more such faults, see python -m tasks.check'):
      own_data.mixture(self.folder)
    with self.assertRaisesRegex(ValueError, r"own_data.mixture.folder is not set; .*\(OWN_DATA = 'my_tasks'\)"):
      own_data.mixture()

  # Validation.

  def test_a_share_of_the_inputs_is_held_out(self):
    rows = [Row(f'{i // 2}', (str(i),), f'f:{i}') for i in range(40)]  # 20 inputs, twice each.
    found = own_data.hold_out({'train': rows}, 0.1, 'f')
    self.assertLen({row.input for row in found['validation']}, 2)
    self.assertLen(found['validation'], 4)  # Both records of each input.
    self.assertCountEqual(found['train'] + found['validation'], rows)
    again = own_data.hold_out({'train': rows[::-1]}, 0.1, 'f')
    self.assertCountEqual(again['validation'], found['validation'])
    self.assertLen(own_data.hold_out({'train': rows[:6]}, 0.1, 'f')['validation'], 2)  # At least one input.
    self.assertLen(own_data.hold_out({'train': rows[:4]}, 0.99, 'f')['train'], 2)  # And one is left.

  def test_nothing_is_held_out(self):
    rows = [Row('a', ('b',), 'f:1')]
    for splits, share in (({'train': rows}, 0), ({'train': rows, 'validation': rows}, 0.1), ({'test': rows}, 0.1)):
      self.assertEqual(own_data.hold_out(splits, share, 'f'), splits)
    with self.assertRaisesRegex(ValueError, 'f: only one training input, so that none can be held out'):
      own_data.hold_out({'train': rows}, 0.1, 'f')

  # Metrics and rates.

  def test_metrics_follow_the_targets(self):
    self.write('sentiment.jsonl', [(f'{i}', ['yes', 'no'][i % 2]) for i in range(10)])
    self.write('text.jsonl', [(f'{i}', f'word {i}') for i in range(10)])
    label, text = (task.predict_metric_fns[0] for task in self.mixture().tasks)
    self.assertEqual(label([['yes'], ['no'], ['no'], ['no']], ['yes', ' no\n', 'yes', 'No']), {'accuracy': 50.})
    self.assertEqual(text([['the cat sat'], ['x', 'a dog']], ['Cat sat.', 'dog']),
                     # SQuAD drops articles: F1 is 1 for both. ROUGE-L keeps them: 2 of 2 and 2 of 3 words, 1 of 1 and 1 of 2.
                     {'exact_match': 0., 'f1': 100., 'rougeL': np.mean([80., 100 * 2 / 3])})

  def test_metrics_that_are_asked_for(self):
    self.write('a.jsonl', [(f'{i}', ['yes', 'no'][i % 2]) for i in range(10)])
    metric = self.mixture(metrics=['exact_match', 'rouge']).tasks[0].predict_metric_fns[0]
    self.assertEqual(metric([['yes']], ['YES']), {'exact_match': 100., 'rougeL': 100.})
    with self.assertRaisesRegex(ValueError, "own_data_a: examples of this split have no target .* on 'validation'"):
      metric([['yes'], []], ['yes', 'no'])

  @parameterized.parameters(
      ([['a']] * 3 + [['b']], {'a': 3, 'b': 1}),
      ([['a'], ['b'], ['a']], {}),  # Each comes 1.5 times.
      ([['a'], ['a', 'b'], ['a'], ['a']], {}),
      ([[str(i % 21)] for i in range(99)], {}),
      ([['a'], ['a'], []], {'a': 2}),
      ([], {}),
  )
  def test_labels(self, targets, expected):
    self.assertEqual(own_data_metrics.label_counts(targets), expected)

  @parameterized.parameters(('proportional', (1., 4.)), ('equal', (1., 1.)), ('temperature', (1., 2.)))
  def test_rates(self, rate, expected):
    for name, number in (('a', 1), ('b', 4)):
      self.write(f'{name}/train.jsonl', [(f'{i}', 'x') for i in range(number)])
      self.write(f'{name}/validation.jsonl', [('v', 'x')])
    mixture = self.mixture(rate=rate)
    self.assertEqual(tuple(mixture.get_rate(task) for task in mixture.tasks), expected)


if __name__ == '__main__':
  absltest.main()
