"""Decoding functions for `t5x.models`, beside T5X's own: they are bound as `CPolyModel.decode_fn`.

    beam.py    beam search, and greedy search as that of one beam, with the results of Hugging Face's `generate`
    caches.py  the decoder's cache under several beams
    top.py     the best entries of long rows, in blocks
"""

from cpoly_jax.decoding.beam import beam_search
from cpoly_jax.decoding.top import top_k

__all__ = ['beam_search', 'top_k']
