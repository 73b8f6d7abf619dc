"""What metrics of several benchmarks share: SQuAD's normalisation of answers and F1 of their words (arXiv 1606.05250)."""

from __future__ import annotations

import collections
import re
import string


def squad_normalise(text: str) -> str:
  """Returns the text in lower case, without ASCII punctuation and the articles a, an, the, with single spaces."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def token_f1(answer: str, text: str) -> float:
  """Returns F1, from 0 to 1, of the words of two normalised texts, each counted as often as both have it."""
  gold, predicted = answer.split(), text.split()
  same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
  return 2 * same / (len(gold) + len(predicted)) if same else 0.0
