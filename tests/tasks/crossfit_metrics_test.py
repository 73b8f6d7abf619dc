"""CrossFit's metrics: values worked out by hand, and the same as scikit-learn, SciPy and `rouge` where they are installed."""

from __future__ import annotations

import importlib
import math
import random

from absl.testing import absltest
from absl.testing import parameterized
import gin

from tasks import crossfit_metrics
from tasks import superglue_metrics
from tasks import text_metrics


class ByHandTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.addCleanup(gin.clear_config)

  @parameterized.parameters(
      # Case is ignored, any acceptable output will do, and nothing else is forgiven.
      ('accuracy', [['Yes'], ['no', 'No way'], ['the cat'], ['b']], ['yes', 'no way', 'cat', 'b.'], 50),
      # Articles and punctuation are; two texts of nothing else are equal.
      ('exact_match', [['The cat.'], ['a', 'dog'], ['an'], ['b']], ['cat', 'Dog!', 'the', 'c'], 75),
      # black of black cat and black dog: 2 * 1 / 4; the second reference: 1; no word at all: 0.
      ('qa_f1', [['the black cat'], ['x', 'red dog'], ['a']], ['a black dog', 'dog red', 'the'], 50),
      # a: 2 * 1 / (2 + 1), b: 2 * 1 / (2 + 2), the stray B: 0.
      ('classification_f1', [['a'], ['a', 'B'], ['b'], ['b']], ['a', 'b', 'b', 'B'], 100 * (2 / 3 + 1 / 2) / 3),
      # One of two acceptable ones is found, both others are not: 1 * 2 / sqrt(1 * 2 * 2 * 3).
      ('matthews_correlation', [['acceptable'], ['acceptable'], ['unacceptable'], ['unacceptable']],
       ['acceptable', 'Acceptable', 'unacceptable', ''], 100 * 2 / math.sqrt(12)),
      ('matthews_correlation', [['acceptable'], ['unacceptable']], ['', ''], 0),
      # 3 / (sqrt(2) * sqrt(42) / 3).
      ('pearson_correlation', [['1'], ['2'], ['3', '9']], ['1', ' 2.0', '4'], 100 * 9 / math.sqrt(84)),
      # the, cat, on and mat of 5 different words in one text and 4 in the other.
      ('rouge_l', [['the cat sat on the mat'], ['x']], ['the cat on the mat', '?!'], 100 * (2 * 0.8 / 1.8) / 2),
      # Both sentences are found in the one; the second reference is the better one.
      ('rouge_l', [['x', 'a b. c d']], ['c d a b'], 100),
      # Stop words, case and other punctuation count.
      ('rouge_l', [['A dog, big']], ['a dog big'], 100 * 1 / 3),
  )
  def test_value(self, name, targets, predictions, expected):
    scores = getattr(crossfit_metrics, name)(targets, predictions)
    self.assertEqual(list(scores), [name])
    self.assertAlmostEqual(scores[name], expected, places=4)

  def test_a_prediction_that_is_no_number(self):
    targets, predictions = [['1'], ['2'], ['3']], ['1', 'two', '4']
    with self.assertLogs(level='WARNING') as logged:
      self.assertTrue(math.isnan(crossfit_metrics.pearson_correlation(targets, predictions)['pearson_correlation']))
    self.assertIn("1 of 3 predictions are no numbers, the first is 'two'", logged.output[0])
    gin.parse_config('tasks.crossfit_metrics.unparsable.value = 0')
    # x = -1 0 1 and y = 1 0 4 less 5/3: 3 / (sqrt(2) * sqrt(26 / 3)).
    self.assertAlmostEqual(crossfit_metrics.pearson_correlation(targets, predictions)['pearson_correlation'],
                           100 * 3 / math.sqrt(52 / 3), places=6)

  def test_equal_predictions_have_no_correlation(self):
    with self.assertLogs(level='WARNING') as logged:
      scores = crossfit_metrics.pearson_correlation([['1'], ['2'], ['3']], ['0.1', '0.1', '0.1'])
    self.assertTrue(math.isnan(scores['pearson_correlation']))
    self.assertIn('all predictions are equal', logged.output[0])

  @parameterized.parameters('nan', 'inf', 'high')
  def test_a_target_that_is_no_number(self, target):
    with self.assertRaisesRegex(ValueError, f"the target '{target}' is no number"):
      crossfit_metrics.pearson_correlation([['1'], [target]], ['1', '2'])

  @parameterized.parameters(*((function,) for function in crossfit_metrics.METRICS.values()))
  def test_faults(self, function):
    with self.assertRaisesRegex(ValueError, '1 targets and 2 predictions'):
      function([['1']], ['1', '2'])
    with self.assertRaisesRegex(ValueError, '0 targets and 0 predictions'):
      function([], [])
    with self.assertRaisesRegex(ValueError, 'a row has no reference'):
      function([['1'], []], ['1', '2'])

  def test_references(self):
    self.assertEqual(crossfit_metrics.references(' yes \n'), 'yes')
    example = {'references': [b'caf\xc3\xa9', 'no']}
    self.assertEqual(crossfit_metrics.references('x', example, is_target=True), ['café', 'no'])

  def test_mean_of_metrics(self):
    metrics = {'a': {'accuracy': 50.0}, 'b': {'rouge_l': 20.0, 'loss': 3.0}}
    self.assertEqual(crossfit_metrics.mean_of_metrics(metrics), {'mean': 35.0})
    with self.assertRaisesRegex(ValueError, 'the metric of b is not finite'):
      crossfit_metrics.mean_of_metrics({**metrics, 'b': {'pearson_correlation': math.nan}})
    with self.assertRaisesRegex(ValueError, 'no metric'):
      crossfit_metrics.mean_of_metrics({'a': {'loss': 3.0}})


class SharedTextTest(parameterized.TestCase):

  @parameterized.parameters(('The  Cat!', 'cat'), ('an  a-b', 'ab'), ('theory of a', 'theory of'), ('', ''))
  def test_squad_normalise(self, text, expected):
    self.assertEqual(text_metrics.squad_normalise(text), expected)

  def test_superglue_computes_the_same(self):
    pairs = [('the black cat', 'a black dog'), ('b b c', 'b c c'), ('', '')]
    for i, (answer, text) in enumerate(pairs):
      scores = superglue_metrics.record_em_f1([{'value': [answer], 'group': (0, i)}], [{'value': text}])
      self.assertEqual(scores['f1'], crossfit_metrics.qa_f1([[answer]], [text])['qa_f1'])
      self.assertEqual(scores['em'], crossfit_metrics.exact_match([[answer]], [text])['exact_match'])


def _optional(name):
  try:
    return importlib.import_module(name)
  except ImportError:
    raise absltest.SkipTest(f'{name} is not installed') from None


class OtherLibrariesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.random = random.Random(3)

  def _draw(self, choices, number=40):
    return [self.random.choice(choices) for _ in range(number)]

  def test_classification_f1(self):
    metrics = _optional('sklearn.metrics')
    for _ in range(20):
      gold, texts = self._draw(['a', 'b', 'c']), self._draw(['a', 'b', 'c', 'd', ''])
      self.assertAlmostEqual(crossfit_metrics.classification_f1([[g] for g in gold], texts)['classification_f1'],
                             100 * metrics.f1_score(gold, texts, average='macro'))

  def test_matthews_correlation(self):
    metrics = _optional('sklearn.metrics')
    for _ in range(20):
      gold, texts = self._draw(['acceptable', 'unacceptable']), self._draw(['acceptable', 'unacceptable', 'x'])
      self.assertAlmostEqual(
          crossfit_metrics.matthews_correlation([[g] for g in gold], texts)['matthews_correlation'],
          100 * metrics.matthews_corrcoef([g == 'acceptable' for g in gold], [t == 'acceptable' for t in texts]))

  def test_pearson_correlation(self):
    stats = _optional('scipy.stats')
    for _ in range(20):
      gold, texts = self._draw(['1', '2', '3.5']), self._draw(['1', '2', '-4e1'])
      self.assertAlmostEqual(crossfit_metrics.pearson_correlation([[g] for g in gold], texts)['pearson_correlation'],
                             100 * stats.pearsonr([float(g) for g in gold], [float(t) for t in texts])[0])

  def test_rouge_l(self):
    rouge = _optional('rouge').Rouge(metrics=['rouge-l'])

    def text():
      pieces = self._draw(['a', 'b', 'c', 'D', 'the', 'x,', '.', '. ', 'e.g.', '  '], self.random.randint(1, 14))
      return f'w {" ".join(pieces)}'.strip()

    seen = set()
    for _ in range(300):
      target, prediction = text(), text()
      expected = rouge.get_scores(prediction, target, avg=True)['rouge-l']['f']
      self.assertAlmostEqual(crossfit_metrics.rouge_l_f(target, prediction), expected, places=9, msg=(target, prediction))
      seen.add(round(expected, 3))
    self.assertGreater(len(seen), 20)


if __name__ == '__main__':
  absltest.main()
