"""Tests of the ranked view of any mixture: which tasks have label words, what they are, and the summary of both views."""

from __future__ import annotations

import json
import pathlib
import tempfile

from absl.testing import absltest
import numpy as np
import seqio
import tensorflow_datasets as tfds

from cpoly_jax.task_index import from_mixture
from tasks import own_data
from tasks import rank_labels
from tasks import summaries
import tasks  # noqa: F401  (it registers)


def _write(folder, task, split, pairs):
  path = folder / task / f'{split}.jsonl'
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps({'input': text, 'target': target}) + '\n' for text, target in pairs))


class RankLabelsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.name = f'ranked_{self.id().rpartition(".")[2]}'

  def _own_data(self):
    self.addCleanup(own_data.unregister, self.name)
    return own_data.mixture(self.folder, self.name)

  def _labelled(self):
    """A task of three labels, one of which only validation has, and one of free text."""
    _write(self.folder, 'mood', 'train', [('a', 'sad'), ('b', 'glad'), ('c', 'sad'), ('d', 'glad')])
    _write(self.folder, 'mood', 'validation', [('e', 'calm'), ('f', 'sad')])
    _write(self.folder, 'echo', 'train', [(text, text) for text in 'abcd'])
    _write(self.folder, 'echo', 'validation', [('e', 'e')])
    return self._own_data()

  def test_tasks_with_labels(self):
    of = self._labelled()
    name = rank_labels.mixture(of)
    self.assertEqual(name, f'{of}_both')
    members = {task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))}
    self.assertEqual(members, {f'{of}_mood', f'{of}_echo', f'{of}_mood_rank'})
    self.assertEqual(from_mixture(name), from_mixture(of))
    self.assertEqual(rank_labels.mixture(of), name)

    ranked = seqio.TaskRegistry.get(f'{of}_mood_rank')
    examples = list(tfds.as_numpy(ranked.get_dataset(None, 'validation', shuffle=False)))
    self.assertEqual([(e['inputs_pretokenized'], e['targets_pretokenized'], e['rank/right']) for e in examples],
                     [(b'e', b'calm', 1), (b'e', b'glad', 0), (b'e', b'sad', 0),
                      (b'f', b'calm', 0), (b'f', b'glad', 0), (b'f', b'sad', 1)])
    targets = [ranked.postprocess_fn(e['targets_pretokenized'].decode(), example=e, is_target=True) for e in examples]
    metric, = ranked.score_metric_fns
    self.assertEqual(metric(targets=targets, scores=np.array([-1., -2., -3.] * 2))['accuracy'], 50)

  def test_summary(self):
    of = self._labelled()
    name = rank_labels.mixture(of)
    metrics = {f'{of}_mood': {'accuracy': 10., 'other': 30.}, f'{of}_echo': {'exact': 90.},
               f'{of}_mood_rank': {'accuracy': 50.}}
    self.assertEqual(summaries.summarize(name, metrics), {'score_labelled': 20, 'score_labelled_rank': 50})
    summaries.register(of, lambda found: {'tasks': len(found)})
    self.assertEqual(summaries.summarize(name, metrics)['tasks'], 2)
    del metrics[f'{of}_mood_rank']
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(summaries.summarize(name, metrics), {})
    self.assertIn(f'no metrics of both views of {of}_mood', logs.output[0])

  def test_tasks_that_are_ranked_already(self):
    self.assertEqual(rank_labels.mixture('superglue'), 'superglue_both')
    members = {task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(rank_labels.mixture('superglue_boolq')))}
    self.assertEqual(members, {'superglue_boolq', 'superglue_boolq_rank'})

  def test_nothing_to_rank(self):
    _write(self.folder, 'echo', 'train', [(text, text) for text in 'abcd'])
    of = self._own_data()
    with self.assertRaisesRegex(ValueError, f"^no task of '{of}' has label words to rank: their targets are free text"):
      rank_labels.mixture(of)
    with self.assertRaisesRegex(ValueError, "^rank_labels.mixture.of is 'nonsense', but no task or mixture has this name"):
      rank_labels.mixture('nonsense')


if __name__ == '__main__':
  absltest.main()
