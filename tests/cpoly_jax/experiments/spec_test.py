"""Files of experiments: what they say, and every mistake in one line with file and key."""

from __future__ import annotations

import os
import sys

from absl.testing import absltest
from absl.testing import parameterized

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sample_experiments  # pylint: disable=g-import-not-at-top
from cpoly_jax.experiments import spec as spec_lib
from cpoly_jax.experiments import values

HEAD = "title = 'x'\ngin_files = ['gin_configs/cpoly_tiny.gin']\n"
GRID = "[grid]\nsystem = ['cpoly', 'poly']\n"
WRONG = {
    'unknown key': (HEAD + 'tittle = 1\n' + GRID, "tittle: unknown key; did you mean title?"),
    'unknown key below': (HEAD + GRID + "[tune]\nseed = 7\nbinding = {}\n[tune.grid]\nX = [1]",
                          'tune.binding: unknown key; did you mean bindings?'),
    'no title': (GRID, 'title: is not there'),
    'no grid': (HEAD, 'grid: is not there'),
    'empty grid': (HEAD + '[grid]\nsystem = []', 'grid.system: is []'),
    'empty axis': (HEAD + GRID + 'RANK = []', 'grid.RANK: write a list of values'),
    'no list': (HEAD + GRID + 'RANK = 4', 'grid.RANK: write a list of values'),
    'same system': (HEAD + "[grid]\nsystem = ['poly', 'poly']", 'grid.system: poly is there twice'),
    'same seed': (HEAD + GRID + 'seed = [1, 1]', 'grid.seed: 1 is there twice'),
    'seed that is none': (HEAD + GRID + 'seed = [true]', 'grid.seed: is [True]'),
    'same value': (HEAD + GRID + 'RANK = [1, 1]', 'grid.RANK: 1 is there twice'),
    'seed as binding': (HEAD + '[bindings]\nRANDOM_SEED = 1\n' + GRID, 'bindings.RANDOM_SEED: is set by the experiment'),
    'no gin name': (HEAD + "[bindings]\n'a b' = 1\n" + GRID, 'bindings.a b: is no name of a gin macro'),
    'raw of two lines': (HEAD + "[bindings]\nX = {gin = \"1\\nY = 2\"}\n" + GRID, 'bindings.X: '),
    'reference': (HEAD + "reference = 'mhr'\n" + GRID, "reference: is 'mhr', which is not in grid.system"),
    'tuning seed': (HEAD + GRID + '[tune]\nseed = 0\n[tune.grid]\nX = [1]', 'tune.seed: 0 is in grid.seed'),
    'tuning without grid': (HEAD + GRID + '[tune]\nseed = 7', 'tune.grid: is not there'),
    'budget lacks': (HEAD + GRID + "[budget]\nequal = 'active'", 'budget.vary: lacks poly'),
    'budget of what': (HEAD + GRID + "[budget]\nequal = 'all'", "budget.equal: is 'all': write one of trainable, active"),
    'vary of none': (HEAD + GRID + "[budget]\nequal = 'active'\nvary = {mhr = 'RANK'}",
                     'budget.vary.mhr: is not in grid.system'),
    'stage twice': (HEAD + GRID + "[[after]]\nname = 'a'\n[[after]]\nname = 'a'", 'after[1].name: a is there twice'),
    'stage main': (HEAD + GRID + "[[after]]\nname = 'main'", 'after[0].name: main is the name of another stage'),
    'alone without files': (HEAD + GRID + "[[after]]\nname = 'a'\nalone = true", 'after[0].gin_files: is not there'),
    'share': (HEAD + 'fractions = [2]\n' + GRID, 'fractions: is [2]'),
    'truth': (HEAD + "truth = 'nowhere.csv'\n" + GRID, "truth: is 'nowhere.csv': write the path of a file that is there"),
    'no toml': ('title = ', 'is no TOML'),
    'ablation of nothing': (HEAD + GRID + "[ablate]\nsystem = 'poly'", 'ablate: has no setting to change'),
}


class ReadTest(parameterized.TestCase):

  @parameterized.named_parameters((name, *case) for name, case in WRONG.items())
  def test_mistake_is_one_line_with_file_and_key(self, text, told):
    with self.assertRaises(spec_lib.reading.SpecError) as caught:
      sample_experiments.read_spec(text)
    self.assertNotIn('\n', str(caught.exception))
    self.assertRegex(str(caught.exception), r'^\S+some\.toml: ')
    self.assertIn(f'some.toml: {told}', str(caught.exception))

  def test_everything(self):
    found = sample_experiments.read_spec(HEAD + """
metric = 'exact_match'
fractions = [0.5]
minutes_per_run = 2
[bindings]
TRAIN_STEPS = 10
MIXING = 'products'
'train/utils.DatasetConfig.shuffle' = false
RATE = {gin = '%OTHER'}
LENGTHS = {inputs = 24, targets = 28}
[grid]
system = ['cpoly', 'hard']
seed = [3, 4]
RANK = [1, 2]
[variants.hard]
system = 'poly'
bindings = {HARD_EVALUATION = true}
[budget]
equal = 'trainable'
free = ['hard']
[tune]
seed = 7
[tune.grid]
SKILLS_LEARNING_RATE = [1e-3, 0.01]
[[after]]
name = 'few shot'
systems = ['hard']
bindings = {TRAINED = '{first}'}
""")
    self.assertEqual(found.bindings, {
        'TRAIN_STEPS': '10', 'MIXING': "'products'", 'train/utils.DatasetConfig.shuffle': 'False', 'RATE': '%OTHER',
        'LENGTHS': "{'inputs': 24, 'targets': 28}"})
    self.assertEqual((found.systems, found.seeds, found.axes), (('cpoly', 'hard'), (3, 4), {'RANK': ('1', '2')}))
    self.assertEqual(found.variants, {'hard': spec_lib.Variant('poly', (), {'HARD_EVALUATION': 'True'})})
    self.assertEqual((found.reference, found.budget.to, found.budget.free), ('cpoly', 'cpoly', ('hard',)))
    self.assertEqual(found.tune.grid, {'SKILLS_LEARNING_RATE': ('0.001', '0.01')})
    self.assertEqual(found.afters, (spec_lib.After('few shot', ('hard',), None, False, (), {'TRAINED': "'{first}'"}, None),))
    self.assertEqual((found.metric, found.ceiling, found.fractions, found.minutes_per_run), ('exact_match', 1., (0.5,), 2))


class ValuesTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, '1'), (0.003, '0.003'), (True, 'True'), ("it's", '"it\'s"'), ([1, 'a'], "[1, 'a']"), ({'gin': ' @f() '}, '@f()'),
      ({'a': [{'gin': 'None'}]}, "{'a': [None]}"))
  def test_as_gin(self, value, expected):
    self.assertEqual(values.to_gin(value), expected)

  @parameterized.parameters((float('inf'),), ({'gin': 3},))
  def test_refused(self, value):
    with self.assertRaises(ValueError):
      values.to_gin(value)

  def test_later_bindings_win_and_come_last(self):
    self.assertEqual(list(values.merged({'A': '1', 'B': '2'}, {'A': '3'}).items()), [('B', '2'), ('A', '3')])

  def test_flags(self):
    self.assertEqual(values.flags({'A': "'x y'"}), ["--gin.A='x y'"])


if __name__ == '__main__':
  absltest.main()
