"""A vocabulary as JSON, and the vocabulary of such JSON: UTF-8 bytes, or a SentencePiece model.

    {"kind": "bytes", "extra_ids": 0}
    {"kind": "sentencepiece", "path": "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model", "extra_ids": 100}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from collections.abc import Mapping

if TYPE_CHECKING:
  import seqio

BYTES = 'bytes'
SENTENCE_PIECE = 'sentencepiece'


def describe(vocabulary: seqio.Vocabulary | None) -> dict[str, Any] | None:
  """Returns the JSON of a vocabulary; None for one of another kind, which then has to be given by hand."""
  import seqio  # Here: it brings TensorFlow.
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return {'kind': BYTES, 'extra_ids': vocabulary.extra_ids}
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return {'kind': SENTENCE_PIECE, 'path': vocabulary.sentencepiece_model_file, 'extra_ids': vocabulary.extra_ids}
  return None


def build(description: Mapping[str, Any]) -> seqio.Vocabulary:
  """Returns the vocabulary that `describe` described.

  Raises:
    ValueError: JSON of something else.
    FileNotFoundError: there is no SentencePiece model at its path.
  """
  import seqio
  kind, extra_ids = description.get('kind'), description.get('extra_ids')
  if kind == BYTES:
    return seqio.ByteVocabulary(extra_ids=extra_ids or 0)
  if kind != SENTENCE_PIECE:
    raise ValueError(f'{description!r} describes no vocabulary: its kind is {BYTES} or {SENTENCE_PIECE}')
  return sentence_pieces(description['path'], extra_ids)


def sentence_pieces(path: str, extra_ids: int | None = None) -> seqio.SentencePieceVocabulary:
  """Returns the vocabulary of a SentencePiece model, local or in a bucket; FileNotFoundError if there is none."""
  import seqio
  import tensorflow as tf
  try:
    exists = tf.io.gfile.exists(path)
  except (tf.errors.OpError, OSError) as e:
    raise FileNotFoundError(f'cannot reach the vocabulary {path}: {str(e).splitlines()[0]}') from None
  if not exists:
    raise FileNotFoundError(f'no SentencePiece model at {path}: set VOCABULARY_PATH to one, or to {BYTES!r}')
  return seqio.SentencePieceVocabulary(path, extra_ids)
