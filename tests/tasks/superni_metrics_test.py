"""Tests of Super-NI's metrics, by hand."""

from __future__ import annotations

from absl.testing import absltest

from tasks import superni_metrics


class MetricsTest(absltest.TestCase):

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
    self.assertEqual(superni_metrics.benchmark_scores(metrics), {'rougeL': 40.0})
    scores = superni_metrics.benchmark_scores(metrics, {'a': 100, 'b': 50, 'c': 50},
                                      {'a': 'X', 'b': 'X', 'c': 'Y'})
    # (10 * 100 + 40 * 50 + 70 * 50) / 200; X: (10 * 100 + 40 * 50) / 150.
    self.assertEqual(scores, {'rougeL': 32.5, 'rougeL/X': 20.0, 'rougeL/Y': 70.0})
    with self.assertRaisesRegex(ValueError, 'no category given for c'):
      superni_metrics.benchmark_scores(metrics, None, {'a': 'X', 'b': 'X'})
    with self.assertRaisesRegex(ValueError, 'c has the metrics'):
      superni_metrics.benchmark_scores({**metrics, 'c': {}})
    with self.assertRaisesRegex(ValueError, 'no metrics of any task'):
      superni_metrics.benchmark_scores({})

  def test_official_scores(self):
    metrics = {'a': {'rougeL': 10.0, 'exact_match': 0.0, 'rouge1': 1.0},
               'b': {'rougeL': 40.0, 'exact_match': 50.0, 'rouge1': 3.0},
               'c': {'rougeL': 70.0, 'exact_match': 100.0, 'rouge1': 7.0}}
    categories = {'a': 'Data to Text', 'b': 'Data to  text', 'c': 'Misc.'}
    scores = superni_metrics.official_scores(metrics, {'a': 300, 'b': 100, 'c': 100}, categories)
    # All: weights 3, 1, 1; data_to_text: 3, 1.
    self.assertEqual(scores, {
        'rougeL': 28.0, 'exact_match': 30.0, 'rouge1': 2.6,
        'rougeL/data_to_text': 17.5, 'exact_match/data_to_text': 12.5, 'rougeL/misc.': 70.0, 'exact_match/misc.': 100.0})


if __name__ == '__main__':
  absltest.main()
