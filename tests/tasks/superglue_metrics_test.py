"""Tests of SuperGLUE's metrics: worked by hand from the published rules, and against scikit-learn where that has them."""

from __future__ import annotations

import unittest

from absl.testing import absltest
from absl.testing import parameterized
import gin
import numpy as np

from tasks import superglue
from tasks import superglue_metrics

try:
  import sklearn.metrics
except ImportError:
  sklearn = None


class MetricsTest(parameterized.TestCase):

  def test_class_index(self):
    post = superglue_metrics.class_index('boolq')
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
    answer = superglue_metrics.grouped('multirc', 'idx/paragraph', 'idx/question')
    self.assertEqual(answer('True', example=example, is_target=True), {'value': 1, 'group': (0, 0)})
    self.assertEqual(answer('yes', example=example), {'value': -1})
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

  def test_letters_are_the_classes_where_prompts_have_them(self):
    gin.bind_parameter('superglue.prompt.style', 'letters')
    self.addCleanup(gin.clear_config)
    # A stands for yes: class 1 of BoolQ's False and True, class 0 of RTE's entailment and not_entailment.
    for task, expected in (('boolq', [1, 0, 1, -1, -1, -1]), ('rte', [0, 1, 0, -1, -1, -1]), ('cb', [0, 1, 0, 2, -1, -1]),
                           ('wsc', [1, 0, 1, -1, -1, -1])):
      post = superglue_metrics.wsc_answer if task == 'wsc' else superglue_metrics.class_index(task)
      self.assertEqual([post(text) for text in ('A', 'B', ' A ', 'C', 'True', 'a')], expected)
    # The gold label is the example's in either style.
    self.assertEqual(superglue_metrics.wsc_answer('A', example={'label': np.int32(0)}, is_target=True), 0)
    answer = superglue_metrics.grouped('multirc', 'idx/question')
    self.assertEqual(answer('A', example={'idx/question': 3}), {'value': 1})

  def test_matthews_correlation(self):
    # Of class 1: 2 true positives, 1 false negative, 1 false positive, 4 true negatives:
    # (2*4 - 1*1) / sqrt(3 * 3 * 5 * 5) = 7/15.
    score = superglue_metrics.matthews_correlation([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0])
    self.assertAlmostEqual(score['matthews_correlation'], 100 * 7 / 15)
    self.assertEqual(superglue_metrics.matthews_correlation([0, 1, 1], [1, 1, 1]), {'matthews_correlation': 0.0})
    # An answer that is no class is a third one. Of 4 examples 2 are right; classes have gold 2, 2, 0 and predicted 2, 1, 1:
    # (2*4 - (2*2 + 2*1)) / sqrt((16 - 6) * (16 - 8)) = 2 / sqrt(80).
    score = superglue_metrics.matthews_correlation([0, 0, 1, 1], [0, -1, 0, 1])
    self.assertAlmostEqual(score['matthews_correlation'], 100 * 2 / 80**0.5)

  def test_gender_parity(self):
    golds = [(7, 1), (7, 1), (3, 0), (9, 0), (3, 0), (9, 1), (4, 0), (4, 0), (5, 1)]
    targets = [{'value': value, 'group': (pair,)} for pair, value in golds]
    predictions = [{'value': v} for v in [0, 0, 1, 0, 0, 0, -1, -1, 1]]
    # Right: 9's first, 3's second, 5's only one: 3 of 9. Equal: pairs 7 (both wrong) and 9, not 3, nor 4, which are no
    # classes; 5 is no pair: 2 of 4.
    scores = superglue_metrics.accuracy_and_gender_parity(targets, predictions)
    self.assertAlmostEqual(scores['accuracy'], 100 / 3)
    self.assertAlmostEqual(scores['gender_parity'], 50.0)
    with self.assertRaisesRegex(ValueError, 'no pair has both its sentences'):
      superglue_metrics.accuracy_and_gender_parity(targets[-1:], predictions[-1:])

  def test_record_counts_the_best_answer_and_each_query_once(self):
    targets = [{'value': ['The White House', 'Obama'], 'group': (0, 0)}, {'value': ['Paris'], 'group': (0, 1)},
               {'value': ['Paris'], 'group': (0, 1)}, {'value': ['a the'], 'group': (2, 0)}]
    predictions = [{'value': v} for v in ['white house lawn', 'London', 'Paris', 'An']]
    # White House: F1 2*2/(2+3) = 0.8, better than 0 of Obama. The second row of Paris is not looked at. "a the" and "An" are
    # both empty once articles are dropped: an exact match, though they share no token.
    scores = superglue_metrics.record_em_f1(targets, predictions)
    self.assertAlmostEqual(scores['em'], 100 / 3)
    self.assertAlmostEqual(scores['f1'], 100 * 0.8 / 3)

  def test_questions_of_different_paragraphs_are_different(self):
    targets = [{'value': 1, 'group': (0, 0)}, {'value': 1, 'group': (1, 0)}]
    score = superglue_metrics.multirc_exact_match(targets, [{'value': 1}, {'value': 0}])
    self.assertEqual(score, {'exact_match': 50.0})

  @unittest.skipIf(sklearn is None, 'scikit-learn is not installed')
  def test_as_scikit_learn(self):
    rng = np.random.default_rng(0)
    for classes in (2, 3):
      gold = rng.integers(0, classes, 60)
      predicted = np.where(rng.random(60) < 0.6, gold, rng.integers(-1, classes, 60))
      ours = superglue_metrics.matthews_correlation(list(gold), list(predicted))['matthews_correlation']
      self.assertAlmostEqual(ours, 100 * sklearn.metrics.matthews_corrcoef(gold, predicted))
      ours = superglue_metrics.mean_3class_f1(list(gold), list(predicted))['mean_3class_f1']
      theirs = sklearn.metrics.f1_score(gold, predicted, labels=[0, 1, 2], average='macro', zero_division=0)
      self.assertAlmostEqual(ours, 100 * theirs)
      ours = superglue_metrics.accuracy(list(gold), list(predicted))['accuracy']
      self.assertAlmostEqual(ours, 100 * sklearn.metrics.accuracy_score(gold, predicted))
    gold, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    ours = superglue_metrics.multirc_f1([{'value': v, 'group': (0,)} for v in gold], [{'value': v} for v in predicted])['f1']
    self.assertAlmostEqual(ours, 100 * sklearn.metrics.f1_score(gold, predicted))

  def test_hidden_labels_are_refused(self):
    for metric in (superglue_metrics.accuracy, superglue_metrics.mean_3class_f1, superglue_metrics.matthews_correlation):
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


if __name__ == '__main__':
  absltest.main()
