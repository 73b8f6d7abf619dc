"""A trained model as functions of texts: predictions, and scores of choices.

    predictor = cpoly_jax.Predictor('outputs/cpoly_tiny')
    predictor.predict(['ab cd'], task='latent_bodu')                                 # ['...']
    predictor.score(['ab cd'], choices=['dc ba', 'cd ab'], task='latent_bodu')       # [1, 2] log-probabilities

Programs are compiled for few shapes. Each text is padded to a *bucket*, the next power of two of its length, and batches are
of one bucket and always full, with copies of a text where texts are missing. So a text is computed in the same program in the
same shape whatever else is asked for: its result does not depend on the other texts, nor on their order.
"""

from __future__ import annotations

import collections
import copy
import os
from typing import Any
from collections.abc import Iterator, Mapping, Sequence
import zlib

import jax
import numpy as np

from cpoly_jax import routing
from cpoly_jax.task_index import routed_as
from cpoly_jax.training import trained
from cpoly_jax.training.features import TASK_ID
from cpoly_jax.training.models import CPolyModel

LENGTHS = {'inputs': 512, 'targets': 128}
BATCH_SIZE = 16
SMALLEST_BUCKET = 16


def bucket(length: int, limit: int) -> int:
  """Returns the length that rows of `length` tokens are padded to: a power of two from 16 on, but at most `limit`."""
  return min(max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()), limit)


class Predictor:
  """Predicts and scores with one trained model.

  Args:
    path: a MODEL_DIR (its newest checkpoint), a checkpoint_<step> folder, or a shared adapter's folder.
    base: the base checkpoint, where it is not at its recorded place.
    dtype: of the base's parameters and of activations, e.g. 'bfloat16'; None: as they were trained and stored.
    lengths: the most tokens of {'inputs', 'targets'}, with the end of sequence; without: 512 and 128.
    batch_size: B, texts that are computed at once.
    vocabulary: a seqio.Vocabulary, for a checkpoint whose vocabulary is of a kind of its own.
    truncate: cut texts that are too long, as training does; otherwise they are an error.

  Attributes:
    model: the `CPolyModel`.
    tasks: names of the tasks, in the order of the routing's rows.
    compilations: how many programs have been compiled.

  Raises:
    FileNotFoundError: there is no checkpoint, or not its base.
    ValueError: the checkpoint is damaged or does not describe its model, or an argument is wrong.
  """

  def __init__(self, path: str | os.PathLike, *, base: str | os.PathLike | None = None, dtype: Any = None,
               lengths: Mapping[str, int] | None = None, batch_size: int = BATCH_SIZE, vocabulary: Any = None,
               truncate: bool = False):
    from cpoly_jax.checkpoints import loading
    opened = loading.open_files(path, base=base)
    model = trained.model(opened.path, description=opened.description, dtype=dtype, vocabulary=vocabulary)
    _check_sizes(lengths, batch_size)  # Before values are read.
    self._set(model, loading.read(opened, dtype=dtype).params, lengths, batch_size, truncate)

  @classmethod
  def of(cls, model: CPolyModel, params: Mapping[str, Any], *, lengths: Mapping[str, int] | None = None,
         batch_size: int = BATCH_SIZE, truncate: bool = False) -> Predictor:
    """Returns a predictor with a model in memory.

    Args:
      model: it has vocabularies; its decoding function is not used.
      params: nested dict, as `model.module.init` makes it.
      lengths, batch_size, truncate: as of the class.
    """
    predictor = cls.__new__(cls)
    predictor._set(model, params, lengths, batch_size, truncate)  # pylint: disable=protected-access
    return predictor

  def _set(self, model, params, lengths, batch_size, truncate) -> None:
    self.model = model
    self.tasks = model.task_index.names
    self.compilations = 0
    self._lengths = _check_sizes(lengths, batch_size)
    self._batch_size = batch_size
    self._truncate = truncate
    self._params = jax.device_put(params)
    self._programs: dict[tuple[Any, ...], Any] = {}

  def predict(self, texts: Sequence[str], task: str | Sequence[str] | None = None, *, num_beams: int = 1,
              length_penalty: float = 1.0, early_stopping: bool | str = False, temperature: float | None = None,
              top_k: int = 0, top_p: float = 0.0, seed: int = 0, max_length: int | None = None, return_scores: bool = False
              ) -> list[str] | tuple[list[str], np.ndarray]:
    """Returns one predicted text for each of n texts; greedy unless options say otherwise.

    Args:
      texts: inputs as in training.
      task: whose skills and routing are used: one name, or one for each text; None where the model has a single task.
      num_beams: more than 1: beam search, with the results of Hugging Face's `generate`.
      length_penalty: beams are ranked by log-probability / length^length_penalty, their length in tokens.
      early_stopping: when a beam search ends: False, True or 'never', as of `generate` (`decoding.beam_search`).
      temperature: above 0: tokens are drawn; None: 1 if `top_k` or `top_p` is given.
      top_k: draw from this many most probable tokens.
      top_p: draw from the smallest set of tokens that has this probability.
      seed: of what is drawn; a text's tokens depend on seed, task, text, and how often the same text came before it.
      max_length: most tokens of a prediction, with the end of sequence; None: lengths['targets']. Each other value compiles.
      return_scores: return scores, too.

    Returns:
      n texts; or (them, float32 [n]): log-probabilities, divided by length^length_penalty unless tokens are drawn.

    Raises:
      ValueError: one line: an unknown task, a text that is too long, or an option that is wrong.
    """
    texts, rows, names = self._rows(texts, task)
    length = self._lengths['targets'] if max_length is None else max_length
    if int(length) != length or length < 1:
      raise ValueError(f'max_length={max_length}: give a whole number of 1 or more')
    program = self._predicting(num_beams, temperature, top_k, top_p, length_penalty, early_stopping)
    inputs = [self._tokens(text, f'text {i}', 'inputs') for i, text in enumerate(texts)]
    draws = _draws(texts, names)
    predictions, scores = [''] * len(texts), np.zeros(len(texts), np.float32)
    for chosen, size in self._batches([bucket(len(t), self._lengths['inputs']) for t in inputs]):
      batch = {'encoder_input_tokens': _padded([inputs[i] for i in chosen], size), TASK_ID: rows[chosen],
               'decoder_input_tokens': np.zeros((self._batch_size, length), np.int32)}
      tokens, values = jax.device_get(program(self._params, batch, draws[chosen], np.uint32(seed)))
      for i, row, value in zip(chosen, tokens, values):
        predictions[i], scores[i] = self.model.output_vocabulary.decode(row.tolist()), value
    return (predictions, scores) if return_scores else predictions

  def score(self, texts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]],
            task: str | Sequence[str] | None = None) -> np.ndarray:
    """Returns the log-probability of each of C choices as the target of each of n texts.

    Args:
      texts: inputs as in training.
      choices: C texts for all inputs, or C for each of them.
      task: as for `predict`.

    Returns:
      float32 [n, C]: sums over the tokens of a choice, its end of sequence among them.

    Raises:
      ValueError: one line: as for `predict`, or texts have different numbers of choices.
    """
    texts, rows, _ = self._rows(texts, task)
    choices, width = _choices(choices, len(texts))
    inputs = [self._tokens(text, f'text {i}', 'inputs') for i, text in enumerate(texts)]
    targets = [self._tokens(c, f'choice {j} of text {i}', 'targets') for i, of in enumerate(choices) for j, c in enumerate(of)]
    sizes = [(bucket(len(inputs[n // width]), self._lengths['inputs']), bucket(len(t), self._lengths['targets']))
             for n, t in enumerate(targets)]
    scores = np.zeros(len(targets), np.float32)
    program = self._program(('score',), lambda params, batch: self.model.score_batch(params, batch))
    for chosen, (input_size, target_size) in self._batches(sizes):
      padded = _padded([targets[n] for n in chosen], target_size)
      batch = {'encoder_input_tokens': _padded([inputs[n // width] for n in chosen], input_size),
               'decoder_target_tokens': padded, 'decoder_input_tokens': np.pad(padded, ((0, 0), (1, 0)))[:, :-1],
               'decoder_loss_weights': (padded != 0).astype(np.int32), TASK_ID: rows[[n // width for n in chosen]]}
      values = jax.device_get(program(self._params, batch))
      scores[chosen] = values[:len(chosen)]
    return scores.reshape(len(texts), width)

  def best(self, texts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]],
           task: str | Sequence[str] | None = None) -> list[str]:
    """Returns the choice of the highest score for each text, the first of equal ones; arguments as of `score`."""
    choices = choices if isinstance(choices, str) else list(choices)
    scores = self.score(texts, choices, task)
    return [of[i] for of, i in zip(_choices(choices, len(scores))[0], scores.argmax(axis=1))]

  def _rows(self, texts, task) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns the texts, their routing rows [n, 1] int32, and their tasks."""
    if isinstance(texts, str):
      raise ValueError('one text was given where a list of texts is wanted: write [text]')
    texts = list(texts)
    if task is None:
      if len(self.tasks) > 1:
        raise ValueError(f'the model has {len(self.tasks)} tasks: give task=, e.g. {self.tasks[0]!r}')
      task = self.tasks[0]
    names = [task] * len(texts) if isinstance(task, str) else list(task)
    if len(names) != len(texts):
      raise ValueError(f'{len(names)} tasks were given for {len(texts)} texts: give one name, or one for each text')
    rows = {name: self._row(name) for name in dict.fromkeys(names)}
    return texts, np.array([rows[name] for name in names], np.int32).reshape(-1, 1), names

  def _row(self, name: str) -> int:
    try:
      return self.model.task_index.row(routed_as(name))
    except ValueError:
      if self.model.unknown_task == routing.AVERAGE:
        return routing.UNKNOWN
      raise

  def _tokens(self, text: str, what: str, feature: str) -> list[int]:
    """Returns the tokens of a text and the end of sequence, as the tasks' pipeline makes them."""
    if not isinstance(text, str):
      raise ValueError(f'{what} is {text!r:.40}: wanted a str')
    vocabulary = self.model.input_vocabulary if feature == 'inputs' else self.model.output_vocabulary
    tokens, limit = list(vocabulary.encode(text)), self._lengths[feature]
    if len(tokens) >= limit and not self._truncate:
      raise ValueError(f'{what} has {len(tokens) + 1} tokens with its end, more than {limit}: shorten it, give lengths= with '
                       f'more {feature}, or truncate=True to cut it')
    return [*tokens[:limit - 1], vocabulary.eos_id]

  def _batches(self, sizes: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
    """Yields (positions of up to B rows of one size, the size), larger sizes first."""
    groups = collections.defaultdict(list)
    for i, size in enumerate(sizes):
      groups[size].append(i)
    for size in sorted(groups, reverse=True):
      for start in range(0, len(groups[size]), self._batch_size):
        yield groups[size][start:start + self._batch_size], size

  def _predicting(self, *options) -> Any:
    """Returns the program (params, batch, draws [B, 2], seed) -> (tokens [B, L], scores [B]) of some decoding options."""
    bound = copy.copy(self.model)
    bound._decode_fn = trained.decoder(*options)  # pylint: disable=protected-access
    num_beams = options[0]
    draws = num_beams == 1 and getattr(bound._decode_fn, 'keywords', {}).get('temperature')  # pylint: disable=protected-access

    def at_once(params, batch, drawn, seed):
      del drawn, seed
      tokens, told = bound.predict_batch_with_aux(params, batch, num_decodes=num_beams, return_all_decodes=False)
      return tokens, told['scores']

    def one_by_one(params, batch, drawn, seed):
      """Each text has random numbers of its own, which do not depend on its place in the batch."""
      def one(example, text):
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), text[0]), text[1])
        tokens, told = bound.predict_batch_with_aux(params, {k: v[None] for k, v in example.items()}, rng=rng, num_decodes=1,
                                                    return_all_decodes=False)
        return tokens[0], told['scores'][0]
      return jax.vmap(one)(batch, drawn)

    return self._program(('predict', *options), one_by_one if draws else at_once)

  def _program(self, key: tuple[Any, ...], function: Any) -> Any:
    """Returns a compiled function of full batches; arrays with fewer rows are filled up with copies of the last one."""
    if key not in self._programs:
      def counted(params, *args):
        self.compilations += 1  # Python runs only while a program is made.
        return function(params, *args)
      self._programs[key] = jax.jit(counted)
    compiled = self._programs[key]

    def fill(x):
      missing = self._batch_size - x.shape[0] if x.ndim else 0
      return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x

    return lambda params, *args: compiled(params, *jax.tree.map(fill, args))


def _check_sizes(lengths: Mapping[str, int] | None, batch_size: int) -> dict[str, int]:
  unknown = sorted(set(lengths or {}) - set(LENGTHS))
  if unknown:
    raise ValueError(f'lengths has {", ".join(map(repr, unknown))}: give {{"inputs": ..., "targets": ...}}')
  found = {**LENGTHS, **(lengths or {})}
  if batch_size < 1 or min(found.values()) < 2:
    raise ValueError(f'batch_size={batch_size}, lengths={found}: give a batch of 1 or more, and lengths of 2 or more')
  return found


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
  """Returns rows of tokens as int32 [n, length], 0 after their ends."""
  out = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out


def _draws(texts: Sequence[str], names: Sequence[str]) -> np.ndarray:
  """Returns uint32 [n, 2]: what tells a text from others, and how many equal ones come before it."""
  seen = collections.Counter()
  out = np.zeros((len(texts), 2), np.uint32)
  for i, pair in enumerate(zip(names, texts)):
    out[i] = zlib.crc32('\0'.join(map(str, pair)).encode('utf-8', 'replace')), seen[pair]
    seen[pair] += 1
  return out


def _choices(choices: Sequence[str] | Sequence[Sequence[str]], number: int) -> tuple[list[list[str]], int]:
  """Returns the choices of each of `number` texts, and C."""
  if isinstance(choices, str):
    raise ValueError('one text was given where a list of choices is wanted: write choices=[...]')
  choices = list(choices)
  shared = all(isinstance(choice, str) for choice in choices)
  if not shared and any(isinstance(choice, str) for choice in choices):
    raise ValueError('choices has texts beside lists of texts: give one list of texts, or one such list for each text')
  found = [choices] * number if shared else [list(of) for of in choices]
  if len(found) != number:
    raise ValueError(f'choices for {len(found)} texts were given for {number}: give one list of texts, or one for each text')
  widths = {len(choices)} if shared else {len(of) for of in found}
  if len(widths) != 1 or 0 in widths:
    raise ValueError('each text needs the same number of choices, at least one')
  return found, widths.pop()
