"""A group of skills with the weights that a router gave them: what goes from routing to skills.

Notation: B batch, L length, S skills, k skills in a group, H heads, G examples packed in a row, N = B * G of them in the batch
(N = B without packing).
"""

from __future__ import annotations

from flax import struct
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp


def _skill_shards() -> int:
  """Returns over how many devices the present mesh and axis rules split banks by skill; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  axis = next((axis for name, axis in nn_partitioning.get_axis_rules() if name == 'skill'), None)
  return 1 if axis is None or mesh.empty else mesh.shape[axis]


@struct.dataclass
class SkillGroup:
  """Weights of k skills.

  Attributes:
    weights: float32 [N, H, k], one row for each example and head (H = 1 but for multi-head routing), or [N, L, k]
      for each token if `per_token`; packed rows whose tokens' weights do not depend on the example may have [B, L, k].
    ids: [N, k] int32, the skills that the weights belong to, or None for the k skills from `start` on.
    start: first skill of the group if `ids` is None.
    per_token: the second axis of `weights` is the length.
    segment_ids: [B, L] int32, which of the row's G examples a token is of, from 1, and 0 for padding; None if each row is
      one example.
  """

  weights: jax.Array
  ids: jax.Array | None = None
  start: int = struct.field(pytree_node=False, default=0)
  per_token: bool = struct.field(pytree_node=False, default=False)
  segment_ids: jax.Array | None = None

  @property
  def heads(self) -> int:
    """H."""
    return 1 if self.per_token else self.weights.shape[1]

  def select(self, bank: jax.Array) -> jax.Array:
    """Returns the group's part of a bank [S, ...]: [k, ...], or [N, k, ...] if chosen by `ids`."""
    if self.ids is not None:
      return jnp.take(bank, self.ids, axis=0)
    return jax.lax.slice_in_dim(bank, self.start, self.start + self.weights.shape[-1], axis=0)

  def members(self, dtype: jnp.dtype) -> jax.Array | None:
    """Returns 1 where a token is of an example and 0 elsewhere, [B, L, G]; None if rows are not packed."""
    if self.segment_ids is None:
      return None
    per_row = max(1, self.weights.shape[0] // self.segment_ids.shape[0])
    return jax.nn.one_hot(self.segment_ids - 1, per_row, dtype=dtype)

  def by_token(self) -> SkillGroup:
    """Returns the same weights by token if rows are packed; unchanged if they are not.

    Without `ids` they become [B, L, k]. With them a row's group has the G * k skills of all of its examples, of which a
    token has those of its own: weights [B, L, G * k], ids [B, G * k].
    """
    members = self.members(self.weights.dtype)
    if members is None or self.weights.shape[0] == members.shape[0]:
      return self.replace(segment_ids=None)
    batch, length, per_row = members.shape
    # [B, L, G, k]: the second axis of the weights is the length, or one head.
    weights = self.weights.reshape(batch, per_row, *self.weights.shape[1:]).swapaxes(1, 2) * members[..., None]
    if self.ids is None:
      return SkillGroup(jnp.sum(weights, axis=2), None, self.start, per_token=True)
    return SkillGroup(weights.reshape(batch, length, -1), self.ids.reshape(batch, -1), self.start, per_token=True)

  def mix(self, bank: jax.Array, axis: int, swapped: bool = False) -> jax.Array:
    """Returns sum_k weights[n, h, k] * bank[k] for weights by example, each head in its own block of an axis.

    Args:
      bank: [S, ...].
      axis: axis of the bank, from 1, that the H heads split into blocks of equal size (arXiv 2211.03831).
      swapped: for a bank [S, m, n], return [N, n, m].

    Returns:
      [N, ...].

    Raises:
      ValueError: weights by token, or heads that do not divide the axis.
    """
    if self.per_token:
      raise ValueError('weights by token mix outputs, not parameters')
    size = bank.shape[axis]
    if size % self.heads:
      raise ValueError(f'{self.heads} heads do not divide an axis of {size}: choose a number of heads that divides the '
                       'inputs and outputs of each adapted projection')
    if self.ids is None and self.weights.shape[-1] * _skill_shards() > bank.shape[0]:
      return self._mix_split(bank, axis, swapped)
    chosen, weights = self.select(bank), self.weights.astype(bank.dtype)
    return self._mix_chosen(bank, chosen, weights, axis, swapped)

  def _mix_split(self, bank: jax.Array, axis: int, swapped: bool) -> jax.Array:
    """`mix` for a bank that is split by skill over devices, none of which could hold the group's part of it.

    A slice of the bank would move nearly all of it, and so may a product with weights that are split by example. Here each
    device mixes the skills that it holds, for all examples if skills and examples share a mesh axis, and the results are added:
    what crosses the network are weights [N, H, S] and results, of the size of N skills, and no bank.
    """
    before = self.start
    after = bank.shape[0] - before - self.weights.shape[-1]
    weights = jnp.pad(self.weights.astype(bank.dtype), ((0, 0), (0, 0), (before, after)))
    weights = nn_partitioning.with_sharding_constraint(weights, ('batch', None, 'skill'))
    mixed = self._mix_chosen(bank, bank, weights, axis, swapped)
    free = jax.sharding.PartitionSpec.UNCONSTRAINED
    return nn_partitioning.with_sharding_constraint(mixed, ('batch', *[free] * (mixed.ndim - 1)))

  def _mix_chosen(self, bank: jax.Array, chosen: jax.Array, weights: jax.Array, axis: int, swapped: bool) -> jax.Array:
    """`mix` for the chosen part of the bank, [k, ...] or [N, k, ...], and its weights [N, H, k]."""
    size = bank.shape[axis]
    if self.heads == 1:
      # One product with everything else flat: its result needs no transposition, which would cost more than the product.
      flat = chosen.swapaxes(-1, -2) if swapped else chosen
      shape = flat.shape[chosen.ndim - bank.ndim + 1:]
      flat = flat.reshape(*flat.shape[:flat.ndim - len(shape)], -1)
      mixed = weights[:, 0] @ flat if self.ids is None else jnp.einsum('bk,bkm->bm', weights[:, 0], flat)
      return mixed.reshape(-1, *shape)
    letters = list('ijlm'[:bank.ndim - 1])
    shape = list(bank.shape[1:])
    letters[axis - 1] = 'h' + letters[axis - 1]
    shape[axis - 1:axis] = [self.heads, size // self.heads]
    blocks = chosen.reshape(*chosen.shape[:chosen.ndim - bank.ndim + 1], *shape)
    by_id, rest, order = '' if self.ids is None else 'b', ''.join(letters), -1 if swapped else 1
    mixed = jnp.einsum(f'bhk,{by_id}k{rest}->b{"".join(letters[::order])}', weights, blocks)
    return mixed.reshape(-1, *bank.shape[1:][::order])

  def mix_vectors(self, bank: jax.Array) -> jax.Array:
    """Returns the mix of a bank of vectors [S, n], by example or by token: [B, 1 or L, n]."""
    if self.per_token:
      group = self.by_token()
      by_id = '' if group.ids is None else 'b'
      return jnp.einsum(f'blk,{by_id}kn->bln', group.weights.astype(bank.dtype), group.select(bank))
    mixed = self.mix(bank, axis=1)
    members = self.members(bank.dtype)
    if members is None:
      return mixed[:, None]
    return members @ mixed.reshape(*members.shape[::2], -1)
