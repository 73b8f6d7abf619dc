"""A group of skills with the weights that a router gave them: what goes from routing to skills.

Notation: B batch, L length, S skills, k skills in a group, H heads.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class SkillGroup:
  """Weights of k skills.

  Attributes:
    weights: float32 [B, H, k], one row for each example and head (H = 1 but for multi-head routing), or [B, L, k]
      for each token if `per_token`.
    ids: [B, k] int32, the skills that the weights belong to, or None for the k skills from `start` on.
    start: first skill of the group if `ids` is None.
    per_token: the second axis of `weights` is the length.
  """

  weights: jax.Array
  ids: jax.Array | None = None
  start: int = struct.field(pytree_node=False, default=0)
  per_token: bool = struct.field(pytree_node=False, default=False)

  @property
  def heads(self) -> int:
    """H."""
    return 1 if self.per_token else self.weights.shape[1]

  def select(self, bank: jax.Array) -> jax.Array:
    """Returns the group's part of a bank [S, ...]: [k, ...], or [B, k, ...] if chosen by `ids`."""
    if self.ids is not None:
      return jnp.take(bank, self.ids, axis=0)
    return jax.lax.slice_in_dim(bank, self.start, self.start + self.weights.shape[-1], axis=0)

  def mix(self, bank: jax.Array, axis: int) -> jax.Array:
    """Returns sum_k weights[b, h, k] * bank[k] for weights by example, each head in its own block of an axis.

    Args:
      bank: [S, ...].
      axis: axis of the bank, from 1, that the H heads split into blocks of equal size (arXiv 2211.03831).

    Returns:
      [B, ...].

    Raises:
      ValueError: weights by token, or heads that do not divide the axis.
    """
    if self.per_token:
      raise ValueError('weights by token mix outputs, not parameters')
    size = bank.shape[axis]
    if size % self.heads:
      raise ValueError(f'{self.heads} heads do not divide an axis of {size}: choose a number of heads that divides the '
                       'inputs and outputs of each adapted projection')
    letters = list('ijlm'[:bank.ndim - 1])
    shape = list(bank.shape[1:])
    letters[axis - 1] = 'h' + letters[axis - 1]
    shape[axis - 1:axis] = [self.heads, size // self.heads]
    chosen = self.select(bank)
    blocks = chosen.reshape(*chosen.shape[:chosen.ndim - bank.ndim + 1], *shape)
    by_id, rest = '' if self.ids is None else 'b', ''.join(letters)
    mixed = jnp.einsum(f'bhk,{by_id}k{rest}->b{rest}', self.weights.astype(bank.dtype), blocks)
    return mixed.reshape(-1, *bank.shape[1:])

  def mix_vectors(self, bank: jax.Array) -> jax.Array:
    """Returns the mix of a bank of vectors [S, n], by example or by token: [B, 1 or L, n]."""
    if not self.per_token:
      return self.mix(bank, axis=1)[:, None]
    by_id = '' if self.ids is None else 'b'
    return jnp.einsum(f'blk,{by_id}kn->bln', self.weights.astype(bank.dtype), self.select(bank))
