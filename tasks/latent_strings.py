"""The strings of the latent-skill suite: multi-task data whose true skills are known, made on the spot.

A task turns a short string into another by a composition of atomic skills, and most tasks add an idiosyncrasy of their
own, which no other task has:

    input    kesta: bo5 mila ru      the task's code name, then the string
    target   RU-MILA-BO#             (here: words reversed, digits masked, spaces to dashes, upper case)

The code name says which task it is but not what the task does, so one shared adapter is a fair baseline. `SKILLS` are
the atomic skills, `TASKS` the seen tasks and `HELD_OUT` recombinations of the same skills for few-shot adaptation;
`skill_matrix` is the ground truth that a learned routing can be compared with.

A string is in the same split for all tasks, whatever the number of examples: a hash decides. `latent_skills` registers
the tasks with SeqIO. `pretraining_example` makes what the small base is pretrained on: single skills and short
compositions called by their names, and gap filling; neither code names nor tails occur there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

VOWELS = 'aeiou'
CONSONANTS = 'bcdfghjklmnpqrstvwxyz'
SPLIT_SIZES = {'train': 1000, 'validation': 50, 'test': 100}


def _reverse(s: str) -> str:
  return ' '.join(reversed(s.split(' ')))


def _shift(s: str) -> str:
  """Each consonant becomes the next one."""
  return s.translate(str.maketrans(CONSONANTS, CONSONANTS[1:] + CONSONANTS[0]))


def _double(s: str) -> str:
  return ''.join(c * 2 if c in VOWELS else c for c in s)


def _mask_digits(s: str) -> str:
  return ''.join('#' if c.isdigit() else c for c in s)


def _drop_last(s: str) -> str:
  """Each word loses its last letter."""
  return ' '.join(word[:-1] for word in s.split(' '))


def _bracket(s: str) -> str:
  return f'[{s}]'


# In the order in which a task applies them.
SKILLS: Mapping[str, Callable[[str], str]] = {
    'reverse': _reverse,
    'drop_last': _drop_last,
    'shift': _shift,
    'double': _double,
    'digits': _mask_digits,
    'dashes': lambda s: s.replace(' ', '-'),
    'upper': str.upper,
    'bracket': _bracket,
}


@dataclasses.dataclass(frozen=True)
class LatentTask:
  """One task of the suite.

  Attributes:
    code: the code name in its inputs.
    skills: names of `SKILLS`, applied in that table's order.
    own: the idiosyncrasy, a text that is appended after the skills; '' for none.
  """

  code: str
  skills: tuple[str, ...]
  own: str = ''

  @property
  def name(self) -> str:
    """The SeqIO name."""
    return f'latent_{self.code}'

  def transform(self, string: str) -> str:
    """Returns the target of an input string."""
    return compose(self.skills, string) + self.own


def compose(skills: Sequence[str], string: str) -> str:
  """Applies the named skills in the order of `SKILLS`."""
  for name, function in SKILLS.items():
    if name in skills:
      string = function(string)
  return string


# Each skill serves 4 to 7 seen tasks; most tasks add a tail of their own.
TASKS: tuple[LatentTask, ...] = (
    LatentTask('bodu', ('reverse', 'upper'), '~k1'),
    LatentTask('cifa', ('shift', 'dashes'), '~wo'),
    LatentTask('dema', ('double', 'bracket')),
    LatentTask('fipo', ('digits', 'upper', 'dashes'), '~9z'),
    LatentTask('gane', ('drop_last', 'bracket'), '~ub'),
    LatentTask('hulo', ('reverse', 'digits'), '~m4'),
    LatentTask('jeri', ('shift', 'upper')),
    LatentTask('kesta', ('double', 'digits', 'dashes'), '~yi'),
    LatentTask('lomu', ('drop_last', 'dashes'), '~p7'),
    LatentTask('mirax', ('reverse', 'bracket')),
    LatentTask('nudo', ('shift', 'digits', 'bracket'), '~ce'),
    LatentTask('pavi', ('double', 'upper'), '~3h'),
    LatentTask('quro', ('drop_last', 'digits'), '~lo'),
    LatentTask('rizet', ('reverse', 'double', 'dashes')),
    LatentTask('sobi', ('drop_last', 'shift'), '~v8'),
    LatentTask('teno', ('upper', 'bracket', 'digits'), '~gu'),
)

HELD_OUT: tuple[LatentTask, ...] = (
    LatentTask('vaku', ('reverse', 'shift')),
    LatentTask('wemi', ('double', 'shift'), '~d2'),
    LatentTask('xilo', ('drop_last', 'upper')),
    LatentTask('yanef', ('reverse', 'dashes', 'upper'), '~fa'),
    LatentTask('zoru', ('digits', 'bracket', 'double')),
    LatentTask('agip', ('drop_last', 'reverse'), '~6q'),
    LatentTask('ebolt', ('shift', 'bracket', 'upper')),
    LatentTask('ilmes', ('digits', 'dashes'), '~ro'),
)


def skill_matrix(tasks: Sequence[LatentTask] = TASKS) -> np.ndarray:
  """The true allocation: [tasks, skills] bool, tasks sorted by name (the rows of a TaskIndex), skills as in SKILLS."""
  return np.array([[skill in task.skills for skill in SKILLS] for task in sorted(tasks, key=lambda t: t.name)])


def random_string(rng: random.Random) -> str:
  """Two or three pronounceable words of two to four characters; in half of them one is a digit."""
  words = []
  for _ in range(rng.choice((2, 3))):
    word = [rng.choice(VOWELS if i % 2 else CONSONANTS) for i in range(rng.choice((2, 3, 4)))]
    if rng.random() < 0.5:
      word[rng.randrange(len(word))] = rng.choice('0123456789')
    words.append(''.join(word))
  return ' '.join(words)


def split_of(string: str) -> str:
  """Returns the split of a string, the same for all tasks: 10 % validation, 10 % test."""
  return {0: 'validation', 1: 'test'}.get(hashlib.sha256(string.encode()).digest()[0] % 10, 'train')


def strings(stream: str, split: str) -> Iterator[str]:
  """Yields different strings of a split without end, always the same ones for the same `stream`."""
  rng = random.Random(f'{stream}/{split}')  # Text seeds are hashed with SHA-512: the same on every machine.
  seen = set()
  while True:
    string = random_string(rng)
    if string not in seen and split_of(string) == split:
      seen.add(string)
      yield string


def examples(task: LatentTask, split: str) -> list[dict[str, str]]:
  """Returns the split's examples: `inputs`, `targets` and `string`, what a copy of the input would be."""
  stream = strings(task.code, split)
  return [{'inputs': f'{task.code}: {s}', 'targets': task.transform(s), 'string': s}
          for s, _ in zip(stream, range(SPLIT_SIZES[split]))]


@functools.cache
def find(code_or_name: str) -> LatentTask:
  """Returns the task of a code name or SeqIO name; raises KeyError if there is none."""
  return {key: task for task in (*TASKS, *HELD_OUT) for key in (task.code, task.name)}[code_or_name]


def pretraining_example(rng: random.Random) -> dict[str, str]:
  """Returns one example for the base: up to three skills by name ('rev upp: ba ce'), or a gap ('gap: b_ ce')."""
  string = random_string(rng)
  count = rng.choice((0, 1, 1, 2, 2, 3))
  if not count and rng.random() < 0.7:
    gap = rng.randrange(len(string))
    return {'inputs': f'gap: {string[:gap]}_{string[gap + 1:]}', 'targets': string[gap]}
  skills = rng.sample(list(SKILLS), count)
  names = ' '.join(skill[:3] for skill in skills)
  return {'inputs': f'{names}: {string}', 'targets': compose(skills, string)}
