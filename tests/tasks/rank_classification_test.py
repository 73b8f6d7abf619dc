"""Tests of rank classification: examples, the choice against probabilities worked out apart, groups, faults, SuperGLUE."""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gin
import jax
import numpy as np
import seqio
import tensorflow_datasets as tfds
from t5x import decoding

from cpoly_jax import testing
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex, from_mixture, task_key
from cpoly_jax.training.models import CPolyModel
from tasks import features
from tasks import rank_classification
from tasks import sources
from tasks import superglue
from tasks import superglue_metrics
from tasks import superglue_rank

setUpModule, tearDownModule = testing.quick_compilation()

_NUMBER = itertools.count()
COLOURS = ('red', 'green', 'blue')
ROWS = ({'text': 'rose', 'colour': 'red'}, {'text': 'leaf', 'colour': 'green'}, {'text': 'sky', 'colour': 'blue'})


class _Rows(sources.RowSource):
  """Rows that are given."""

  def __init__(self, task, rows):
    super().__init__(task)
    self._rows = rows

  def origin(self):
    return 'memory'

  @property
  def splits(self):
    return ('train', 'validation')

  def read(self, split):
    return self._rows

  def to_example(self, row, split, seed):
    return {'inputs': f"colour of {row['text']}", 'targets': row['colour'], 'kind': row.get('kind', 7)}


def _exact(targets, predictions):
  return {'exact': 100 * float(np.mean([t == p for t, p in zip(targets, predictions)])), 'rows': len(targets)}


def _lower(text, example=None, is_target=False):
  del example
  return f'{text.lower()}{"!" if is_target else ""}'


def _add(rows=ROWS, choices=COLOURS, metric_fns=(_exact,), postprocess_fn=None, **kwargs):
  """Registers a task of `rows` and its ranked one; returns the name of the former and the latter."""
  name = f'colours_{next(_NUMBER)}'
  seqio.TaskRegistry.add(name, source=_Rows(name, rows), output_features=features.output_features(),
                         preprocessors=features.pipeline(), metric_fns=list(metric_fns), postprocess_fn=postprocess_fn)
  return name, rank_classification.add_task(f'{name}_rank', name, choices, **kwargs)


def _examples(task, split='validation', lengths=None, **kwargs):
  return list(tfds.as_numpy(task.get_dataset(lengths, split, **{'shuffle': False, **kwargs})))


def _targets(task, examples):
  """What SeqIO passes to the metrics as targets."""
  return [task.postprocess_fn(example['targets_pretokenized'].decode(), example=example, is_target=True)
          for example in examples]


def _metrics(task, scores, examples=None):
  metric, = task.score_metric_fns
  return metric(targets=_targets(task, _examples(task) if examples is None else examples), scores=np.array(scores))


class ExamplesTest(parameterized.TestCase):

  def test_one_example_per_choice(self):
    name, task = _add()
    examples = _examples(task)
    self.assertEqual([e['inputs_pretokenized'] for e in examples],
                     [b'colour of rose'] * 3 + [b'colour of leaf'] * 3 + [b'colour of sky'] * 3)
    self.assertEqual([e['targets_pretokenized'] for e in examples], [b'red', b'green', b'blue'] * 3)
    self.assertEqual([(e['rank/example'], e['rank/choice'], e['rank/right']) for e in examples],
                     [(0, 0, 1), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 1), (1, 2, 0), (2, 0, 0), (2, 1, 0), (2, 2, 1)])
    for example in examples:
      self.assertEqual(example['task_id'], [task_key(name)])
      self.assertEqual(example['rank/num_choices'], 3)
      self.assertEqual(example['kind'], 7)
      text = example['targets_pretokenized']
      self.assertEqual(list(example['targets']), [byte + 3 for byte in text] + [1])
      self.assertEqual(example['rank/tokens'], len(text) + 1)
      self.assertEqual(set(example) & {'rank/all_choices', 'rank/golds'}, set())

  def test_choices_of_each_row(self):
    rows = [{'text': 'x', 'colour': 'b', 'all': ('a', 'b')}, {'text': 'y', 'colour': 'c', 'all': ('b', 'c', 'd')}]
    _, task = _add(rows, lambda row, example: row['all'])
    self.assertEqual([(e['rank/example'], e['targets_pretokenized'], e['rank/num_choices']) for e in _examples(task)],
                     [(0, b'a', 2), (0, b'b', 2), (1, b'b', 3), (1, b'c', 3), (1, b'd', 3)])

  def test_choices_are_asked_for_when_a_dataset_is_built(self):
    choices = []
    _, task = _add(choices=lambda row, example: choices)
    choices[:] = COLOURS
    self.assertLen(_examples(task), 9)
    choices.append('black')
    self.assertLen(_examples(task), 12)

  def test_several_right_choices(self):
    _, task = _add(golds=lambda row, example: ('red', 'blue'))
    self.assertEqual([e['rank/right'] for e in _examples(task)], [1, 0, 1] * 3)

  def test_shards_are_a_partition(self):
    _, task = _add()
    shards = [_examples(task, shard_info=seqio.ShardInfo(i, 2)) for i in range(2)]
    self.assertEqual([[e['rank/example'] for e in shard] for shard in shards], [[0] * 3 + [2] * 3, [1] * 3])

  def test_all_have_the_same_preprocessors(self):
    one, other = _add()[1], _add(choices=lambda row, example: COLOURS)[1]
    self.assertEqual(list(map(id, one.preprocessors)), list(map(id, other.preprocessors)))

  def test_wrong_answers_cannot_be_trained_on(self):
    name, task = _add()
    self.assertEqual(tuple(task.splits), ('validation',))
    mixture = f'{name}_both'
    seqio.MixtureRegistry.add(mixture, [name, task.name], default_rate=1)
    dataset = seqio.get_mixture_or_task(mixture).get_dataset({'inputs': 32, 'targets': 8}, 'train', num_epochs=1, shuffle=False,
                                                               copy_pretokenized=True)
    self.assertEqual([e['targets_pretokenized'] for e in tfds.as_numpy(dataset)], [b'red', b'green', b'blue'])
    with self.assertRaisesRegex(ValueError, "^no split 'train' in memory; it has validation$"):
      _examples(task, 'train')

  def test_routed_as_the_task(self):
    name, task = _add()
    self.assertEqual(from_mixture(task.name), TaskIndex((name,)))
    TaskIndex((name,)).check_covers([task.name])


class FaultsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('none', (), 'has no choices; ranking needs at least two'),
      ('one', ('red',), 'has 1 choice; ranking needs at least two'),
      ('double', ('red', 'blue', 'red'), "has the choice 'red' more than once; each must differ"))
  def test_choices(self, choices, message):
    _, task = _add(choices=lambda row, example: choices)
    with self.assertRaisesRegex(ValueError, f"^{task.name}: row 1 of 'validation' in memory {message}$"):
      _examples(task)
    with self.assertRaisesRegex(ValueError, f'^colours_.*_rank {message}$'):
      _add(choices=choices)

  def test_gold_is_no_choice(self):
    _, task = _add((*ROWS, {'text': 'coal', 'colour': 'black'}))
    with self.assertRaisesRegex(
        ValueError, "^.*_rank: row 4 of 'validation' in memory: the right answer 'black' is not among its choices 'red', "
        "'green', 'blue'$"):
      _examples(task)

  def test_tasks_that_cannot_be_ranked(self):
    with self.assertRaisesRegex(ValueError, "^x_rank: no task is named 'x'; register it first$"):
      rank_classification.add_task('x_rank', 'x', COLOURS)
    with self.assertRaisesRegex(ValueError, '^.*_rank: the source of .* is a FunctionDataSource; choices need a .*RowSource$'):
      rank_classification.add_task('y_rank', self._task_of_a_function(), COLOURS)
    with self.assertRaisesRegex(ValueError, '^.*_rank: .* has no metric of predictions .*; give it metric_fns$'):
      _add(metric_fns=())

  def _task_of_a_function(self):
    name = f'colours_{next(_NUMBER)}'
    source = seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: None, splits=('validation',))
    seqio.TaskRegistry.add(name, source=source, output_features=features.output_features(), metric_fns=[_exact])
    return name


class ChoiceTest(parameterized.TestCase):

  # Of the rows rose, leaf, sky: log-likelihoods of red, green, blue.
  SCORES = (-1., -2., -3., -2., -1., -3., -1., -2., -3.)  # Chosen: red, green, red.

  def test_the_likeliest_is_judged_by_the_metrics_of_the_task(self):
    _, task = _add()
    metrics = _metrics(task, self.SCORES)
    self.assertAlmostEqual(metrics['exact'], 200 / 3)
    self.assertEqual(metrics['rows'], 3)

  def test_the_postprocessor_of_the_task_is_used(self):
    seen = []

    def note(targets, predictions):
      seen.extend(zip(targets, predictions))
      return {'noted': 1}

    _, task = _add(metric_fns=(_exact, note), postprocess_fn=_lower)
    self.assertEqual(set(_metrics(task, self.SCORES)), {'exact', 'rows', 'noted'})
    self.assertEqual(seen, [('red!', 'red'), ('green!', 'green'), ('blue!', 'red')])

  def test_any_order(self):
    _, task = _add()
    order = np.random.default_rng(0).permutation(9)
    examples = _examples(task)
    self.assertEqual(_metrics(task, np.array(self.SCORES)[order], [examples[i] for i in order]), _metrics(task, self.SCORES))

  def test_equal_scores_choose_the_first(self):
    self.assertEqual(rank_classification.best_choice([-2, -1, -1], [1, 1, 1]), 1)

  def test_length_normalised(self):
    # Leaves: 'red' with its end has 4 tokens, 'green' 6. Sums -4.8 > -6, means -1.2 < -1.
    _, task = _add([*ROWS[1:2]] * 3)
    self.assertEqual(_metrics(task, [-4.8, -6, -90] * 3)['exact'], 0)
    _, normalised = _add([*ROWS[1:2]] * 3, length_normalised=True)
    self.assertEqual(_metrics(normalised, [-4.8, -6, -90] * 3)['exact'], 100)
    self.addCleanup(gin.clear_config)
    gin.parse_config('rank_classification.best_choice.length_normalised = True')
    self.assertEqual(_metrics(task, [-4.8, -6, -90] * 3)['exact'], 100)
    _, summed = _add([*ROWS[1:2]] * 3, length_normalised=False)
    self.assertEqual(_metrics(summed, [-4.8, -6, -90] * 3)['exact'], 0)

  def test_incomplete_rows_are_left_out(self):
    _, task = _add()
    examples = _examples(task)
    with self.assertLogs(level='WARNING') as logs:
      metrics = _metrics(task, self.SCORES[:8], examples[:8])
    self.assertEqual(metrics, {'exact': 100, 'rows': 2})
    self.assertRegex(logs.output[0], '_rank: 1 of 3 rows lack some of their choices, and are left out')
    # Somewhere in the middle.
    kept = [i for i in range(9) if i != 4]
    with self.assertLogs(level='WARNING'):
      metrics = _metrics(task, [self.SCORES[i] for i in kept], [examples[i] for i in kept])
    self.assertEqual(metrics, {'exact': 50, 'rows': 2})
    with self.assertRaisesRegex(ValueError, '^.*_rank: none of 1 rows has all its choices; EVALUATOR_NUM_EXAMPLES .*raise it$'):
      _metrics(task, self.SCORES[:2], examples[:2])

  def test_scores_that_cannot_be_compared(self):
    _, task = _add()
    with self.assertRaisesRegex(ValueError, '^.*_rank: 1 of 9 scores are not finite; did training diverge?'):
      _metrics(task, (*self.SCORES[:8], math.nan))
    with self.assertRaisesRegex(ValueError, '^.*_rank: 9 examples have 8 scores; wanted one each$'):
      _metrics(task, self.SCORES[:8])

  def test_choices_that_are_cut(self):
    _, task = _add()
    examples = _examples(task, lengths={'inputs': 32, 'targets': 5})
    self.assertEqual([len(e['targets']) for e in examples[:3]], [4, 5, 5])
    with self.assertLogs(level='WARNING') as logs:
      _metrics(task, self.SCORES, examples)
    # 'green' has 6 tokens with its end; 'blue' has 5.
    self.assertRegex(logs.output[0], "3 of 9 choices are cut .* raise TASK_FEATURE_LENGTHS\\['targets'\\]")


class ModelTest(absltest.TestCase):
  """SeqIO's evaluation with a small random model, against probabilities of one example at a time, without padding."""

  def test_the_argmax_of_the_probabilities(self):
    rng = np.random.default_rng(0)
    word = lambda: ''.join(map(chr, rng.integers(97, 123, 4)))
    rows = [{'text': word(), 'colour': COLOURS[i % 3]} for i in range(3)]
    one, one_ranked = _add(rows)
    own = [tuple(word() for _ in range(2 + i % 2)) for i in range(7)]
    other_rows = [{'text': word(), 'colour': words[i % 2], 'own': words} for i, words in enumerate(own)]
    other, other_ranked = _add(other_rows, lambda row, example: row['own'])
    mixture = f'{one}_mixture'
    seqio.MixtureRegistry.add(mixture, [one_ranked.name, other_ranked.name], default_rate=1)
    index = from_mixture(mixture)
    self.assertEqual(set(index.names), {one, other})

    module = network.Transformer(testing.small_config(vocab_size=264),
                                 testing.cpoly_adapter(len(index), targets='.*(query|value)'))
    vocabulary = features.default_vocabulary()
    model = CPolyModel(module, vocabulary, vocabulary, None, decode_fn=decoding.temperature_sample, task_index=index)
    evaluator = seqio.Evaluator(mixture, model.FEATURE_CONVERTER_CLS(pack=False), logger_cls=[seqio.JSONLogger],
                                log_dir=tempfile.mkdtemp(), shuffle=True)
    spec = evaluator.cached_model_datasets[one_ranked.name].element_spec[1]
    size = 4
    shapes, types = ({k: f(v) for k, v in spec.items()} for f in (lambda v: (size, *v.shape), lambda v: v.dtype.as_numpy_dtype))
    variables = jax.jit(lambda key: model.get_initial_variables(key, shapes, types)['params'])(jax.random.PRNGKey(0))
    params = testing.randomized(variables)

    score = jax.jit(lambda batch: model.score_batch(params, batch))

    def score_fn(dataset):
      examples = list(tfds.as_numpy(dataset))
      found = []
      for start in range(0, len(examples), size):  # The last batch is filled up.
        chunk = (examples[start:start + size] + examples[:size])[:size]
        scores = score({k: np.stack([e[k] for _, e in chunk]) for k in spec})
        found += [(i, float(s)) for (i, _), s in zip(chunk, scores)][:len(examples) - start]
      return found[::-1]

    def nothing(dataset):
      raise AssertionError('a task that is ranked must not generate')

    metrics = evaluator.evaluate(compute_metrics=True, step=0, score_fn=score_fn, predict_fn=nothing,
                                 predict_with_aux_fn=nothing)[0].result()
    evaluator.close()

    logits = jax.jit(lambda inputs, shifted, targets, row: module.apply(
        {'params': params}, inputs, shifted, targets, enable_dropout=False, task_ids=row))
    encode = lambda text: np.array([[byte + 3 for byte in text.encode()] + [1]], np.int32)

    def log_probability(row, choice, task):
      inputs, targets = encode(f"colour of {row['text']}"), encode(choice)
      values = np.asarray(logits(inputs, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets,
                                 np.array([index.row(task)], np.int32)), np.float64)[0]
      log_probabilities = values - np.log(np.exp(values).sum(-1, keepdims=True))
      return sum(log_probabilities[i, token] for i, token in enumerate(targets[0]))

    for task, ranked, all_rows in ((one, one_ranked, rows), (other, other_ranked, other_rows)):
      expected = [{choice: log_probability(row, choice, task) for choice in row.get('own', COLOURS)} for row in all_rows]
      written = pathlib.Path(evaluator.loggers[0].output_dir, f'{ranked.name}-000000.jsonl').read_text().splitlines()
      self.assertLen(written, sum(map(len, expected)))
      for line in map(json.loads, written):
        place = line['input']
        self.assertAlmostEqual(
            line['score'], expected[place['rank/example']][place['targets_pretokenized']], delta=1e-3)
      best = [max(scores, key=scores.get) for scores in expected]
      if task == other:  # Some first and some others, some right and some wrong: else the test could not tell.
        self.assertGreater(len({list(scores).index(b) for b, scores in zip(best, expected)}), 1)
        self.assertBetween(metrics[ranked.name]['exact'], 1, 99)
      self.assertAlmostEqual(metrics[ranked.name]['exact'],
                             100 * np.mean([b == row['colour'] for b, row in zip(best, all_rows)]))


FILES = {
    'BoolQ': [{'passage': 'P', 'question': 'q', 'idx': i, 'label': i == 0} for i in range(2)],
    'CB': [{'premise': 'P', 'hypothesis': 'H', 'idx': i, 'label': label}
           for i, label in enumerate(('entailment', 'contradiction', 'neutral', 'contradiction'))],
    'COPA': [{'premise': 'P', 'choice1': 'A', 'choice2': 'B', 'question': 'cause', 'idx': 0, 'label': 1}],
    'MultiRC': [{'idx': 0, 'passage': {'text': 'T', 'questions': [
        {'question': 'one', 'idx': 0, 'answers': [{'text': 'a', 'idx': 0, 'label': 1}, {'text': 'b', 'idx': 1, 'label': 0}]},
        {'question': 'two', 'idx': 1, 'answers': [{'text': 'c', 'idx': 2, 'label': 1}]}]}}],
    'ReCoRD': [{'idx': 0, 'passage': {'text': 'Ann Lee met Bob', 'entities': [
        {'start': 0, 'end': 6}, {'start': 12, 'end': 14}, {'start': 0, 'end': 2}]},
                'qas': [{'query': '@placeholder met Bob', 'idx': 0, 'answers': [
                    {'start': 0, 'end': 6, 'text': 'Ann Lee'}]}]}],
    'RTE': [{'premise': 'P', 'hypothesis': 'H', 'idx': 0, 'label': 'not_entailment'}],
    'WiC': [{'word': 'w', 'sentence1': 'A w', 'sentence2': 'B w', 'idx': 0, 'label': True, 'start1': 2, 'end1': 3, 'start2': 2,
             'end2': 3}],
}


class SuperGlueTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.dict(os.environ, {superglue.VARIABLE: str(self.folder)}))
    for task, records in FILES.items():
      (self.folder / task).mkdir()
      for split in ('train', 'val', *(['test'] if task == 'BoolQ' else [])):
        lines = [{k: v for k, v in record.items() if split != 'test' or k != 'label'} for record in records]
        (self.folder / task / f'{split}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))

  def _evaluate(self, task, *likeliest):
    """The metrics where the choices of these numbers are the likeliest of their rows."""
    ranked = seqio.TaskRegistry.get(f'superglue_{task}_rank')
    examples = _examples(ranked)
    return _metrics(ranked, [0. if likeliest[e['rank/example']] == e['rank/choice'] else -9. for e in examples], examples)

  @parameterized.parameters(
      ('boolq', ['False', 'True']), ('cb', ['entailment', 'contradiction', 'neutral']), ('copa', ['choice1', 'choice2']),
      ('multirc', ['False', 'True']), ('record', ['Ann', 'Ann Lee', 'Bob']), ('rte', ['entailment', 'not_entailment']),
      ('wic', ['False', 'True']))
  def test_choices(self, task, choices):
    examples = _examples(seqio.TaskRegistry.get(f'superglue_{task}_rank'))
    self.assertEqual([e['targets_pretokenized'].decode() for e in examples[:len(choices)]], choices)
    self.assertEqual(examples[0]['rank/num_choices'], len(choices))
    generated = _examples(seqio.TaskRegistry.get(f'superglue_{task}'))
    self.assertEqual(examples[0]['inputs_pretokenized'], generated[0]['inputs_pretokenized'])
    self.assertEqual(examples[0]['task_id'], generated[0]['task_id'])

  def test_metrics(self):
    self.assertEqual(self._evaluate('boolq', 1, 1), {'accuracy': 50})
    # Answers 0, 1, 1, 2 of golds 0, 1, 2, 1: F1 of the classes 1, 1/2, 0.
    self.assertEqual(self._evaluate('cb', 0, 1, 1, 2), {'mean_3class_f1': 50, 'accuracy': 50})
    # Golds True False | True. F1a of True: 2 right of 3 said and 2 wanted; one question of two is all right.
    self.assertEqual(self._evaluate('multirc', 1, 1, 1), {'f1': 80, 'exact_match': 50})
    self.assertEqual(self._evaluate('record', 1), {'em': 100, 'f1': 100})
    # 'Ann' for 'Ann Lee': precision 1, recall 1/2.
    self.assertEqual(self._evaluate('record', 0), {'em': 0, 'f1': 100 * (2 / 3)})

  def test_letters(self):
    self.addCleanup(gin.clear_config)
    gin.parse_config("superglue.prompt.style = 'letters'")
    examples = _examples(seqio.TaskRegistry.get('superglue_cb_rank'))
    self.assertEqual([(e['targets_pretokenized'], e['rank/right']) for e in examples[3:6]], [(b'A', 0), (b'B', 1), (b'C', 0)])
    self.assertEqual(self._evaluate('cb', 0, 1, 2, 1)['accuracy'], 100)
    self.assertEqual(self._evaluate('rte', 1), {'accuracy': 100})

  def test_hidden_labels(self):
    ranked = seqio.TaskRegistry.get('superglue_boolq_rank')
    examples = _examples(ranked, 'test')
    self.assertEqual([e['rank/right'] for e in examples], [0] * 4)
    with self.assertRaisesRegex(ValueError, "labels are hidden .*; evaluate on 'validation'"):
      _metrics(ranked, [0., 1.] * 2, examples)

  def test_mixtures(self):
    self.assertEqual(superglue_rank.TASKS, tuple(f'superglue_{task}_rank' for task in (
        'boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic')))
    members = lambda name: {task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))}
    self.assertEqual(members('superglue_rank'), set(superglue_rank.TASKS))
    self.assertEqual(members('superglue_both'), {*superglue_rank.TASKS, *superglue.TASKS})
    self.assertEqual(from_mixture('superglue_both'), from_mixture('superglue'))
    from_mixture('superglue').check_covers(sorted(members('superglue_rank')))

  def test_scores_of_both_views(self):
    metrics = {f'superglue_{task}': {name: 40. for name in names}
               for task, names in ((t.removeprefix('superglue_'), n) for t, n in superglue_metrics.OFFICIAL_METRICS.items())}
    metrics['superglue_wsc'] = {'accuracy': 80.}
    metrics |= {f'{task}_rank': {name: 60. for name in values} for task, values in metrics.items() if 'wsc' not in task}
    metrics['superglue_cb_rank'] = {'mean_3class_f1': 60. - 7, 'accuracy': 60. - 21}  # A mean of 14 below.
    self.assertEqual(superglue_rank.both_scores(metrics),
                     {'score': 45, 'score_without_wsc': 40, 'score_without_wsc_rank': 58})
    del metrics['superglue_cb_rank']['accuracy']
    with self.assertRaisesRegex(ValueError, '^no accuracy of superglue_cb_rank$'):
      superglue_rank.both_scores(metrics)


if __name__ == '__main__':
  absltest.main()
