"""Scores of one run against another's."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from cpoly_jax.analysis import comparison


class ComparisonTest(parameterized.TestCase):

  def _folder(self, text):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'results.json').write_text(text)
    return folder

  def test_scores(self):
    metrics = {'rte': {'accuracy': 80., 'f1': 60., 'baseline_copy': 99., 'category': 'inference'}, 'empty': {'note': 'x'}}
    self.assertEqual(comparison.read(self._folder(json.dumps({'metrics': metrics}))), {'rte': 70.})

  def test_gains_of_shared_tasks(self):
    found = comparison.gains({'a': 1., 'b': 5., 'c': 2.}, {'a': 2., 'b': 1., 'd': 9.})
    self.assertEqual([(gain.task, gain.gain) for gain in found], [('b', 4.), ('a', -1.)])

  def test_no_shared_task(self):
    with self.assertRaisesRegex(ValueError, 'share no evaluated task'):
      comparison.gains({'a': 1.}, {'b': 1.})

  @parameterized.parameters('{', '{}', '[]', '{"metrics": [1]}', '{"metrics": {"a": 3}}')
  def test_damaged(self, text):
    with self.assertRaisesRegex(ValueError, 'results.json is damaged') as caught:
      comparison.read(self._folder(text))
    self.assertNotIn('\n', str(caught.exception))

  def test_absent(self):
    with self.assertRaisesRegex(FileNotFoundError, 'results.json'):
      comparison.read(self.enterContext(tempfile.TemporaryDirectory()))


if __name__ == '__main__':
  absltest.main()
