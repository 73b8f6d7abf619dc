"""Nested state dictionaries seen as flat maps of names: compare, merge, rename and split them.

A name is the path of a leaf joined by '/', e.g. `target/encoder/layers_0/mlp/wi/kernel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import re
from typing import Any

from flax import traverse_util

StateDict = Mapping[str, Any]


def flatten_state_dict(state_dict: StateDict, keep_empty_nodes: bool = False) -> dict[str, Any]:
  """Returns {'a/b': leaf}; None counts as a leaf, empty dictionaries only if asked for."""
  return traverse_util.flatten_dict(state_dict, keep_empty_nodes=keep_empty_nodes, sep='/')


def unflatten_state_dict(flat: StateDict) -> dict[str, Any]:
  """Inverse of `flatten_state_dict`."""
  return traverse_util.unflatten_dict(flat, sep='/')


def get_name_tree(state_dict: StateDict, keep_empty_nodes: bool = False) -> dict[str, Any]:
  """Returns the same tree with every leaf replaced by its name."""
  return unflatten_state_dict({k: k for k in flatten_state_dict(state_dict, keep_empty_nodes)})


def intersect_state(state_dict: StateDict, intersect_state_dict: StateDict) -> dict[str, Any]:
  """Returns the leaves of `state_dict` whose names exist in `intersect_state_dict`."""
  wanted = flatten_state_dict(intersect_state_dict)
  flat = flatten_state_dict(state_dict)
  return unflatten_state_dict({k: v for k, v in flat.items() if k in wanted})


def merge_state(
    state_dict: StateDict, from_scratch_state: StateDict, overwrite: bool = False
) -> dict[str, Any]:
  """Returns the union of two states.

  Args:
    state_dict: the state that wins where both have a name.
    from_scratch_state: fills what is missing in `state_dict`.
    overwrite: lets `from_scratch_state` win instead.
  """
  first, second = flatten_state_dict(state_dict), flatten_state_dict(from_scratch_state)
  return unflatten_state_dict({**first, **second} if overwrite else {**second, **first})


def apply_assignment_map(
    ckpt_optimizer_state: StateDict,
    optimizer_state: StateDict,
    assignment_map: Sequence[tuple[str, str | None]],
    require_all_rules_match: bool = True,
    *,
    is_resuming: bool = False,
) -> dict[str, Any]:
  """Renames the leaves of a checkpoint after the model's names.

  For each name of the model the first rule whose pattern matches all of it decides: its replacement
  (which may use the pattern's groups) names the leaf of the checkpoint to take, None leaves the
  name out. Names without a rule, and leaves of the checkpoint that no rule has read, keep their
  place.

  Args:
    ckpt_optimizer_state: the checkpoint, {'target': ..., 'state': ...}.
    optimizer_state: the model's state with the same two entries.
    assignment_map: [(regular expression on the model's name, replacement or None)].
    require_all_rules_match: whether a rule that matches no name of the model is an error.
    is_resuming: a run that continues reads its own names, so that the map does nothing.

  Returns:
    A nested dictionary with the model's names.

  Raises:
    ValueError: for a rule that matches nothing, or a replacement that the checkpoint does not have.
  """
  if is_resuming:
    return dict(ckpt_optimizer_state)
  source = flatten_state_dict(ckpt_optimizer_state)
  rules = [(re.compile(pattern), pattern, replacement) for pattern, replacement in assignment_map]
  unused = {pattern for _, pattern, _ in rules}
  mapped: dict[str, Any] = {}
  ruled, read = set(), set()
  for name in flatten_state_dict(optimizer_state):
    for regex, pattern, replacement in rules:
      match = regex.fullmatch(name)
      if match is None:
        continue
      unused.discard(pattern)
      ruled.add(name)
      if replacement is not None:
        wanted = match.expand(replacement)
        if wanted not in source:
          raise ValueError(
              f'assignment_map: the checkpoint has no {wanted!r} (asked for by {name!r}, rule '
              f'{pattern!r}); it has {sorted(source)}.')
        mapped[name] = source[wanted]
        read.add(wanted)
      break
  if unused and require_all_rules_match:
    raise ValueError(
        f'assignment_map: unused patterns {sorted(unused)} match no name of the model; patterns '
        'must match the whole '
        "name, e.g. r'target/decoder/(.*)', and an earlier rule must not take all of it.")
  kept = {k: v for k, v in source.items() if k not in ruled and k not in read}
  return unflatten_state_dict({**kept, **mapped})


def partition_params(params: StateDict, mask: StateDict) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters in two.

  Args:
    params: nested dictionary of leaves.
    mask: the same dictionary with a bool for each leaf.

  Returns:
    (trainable, frozen): nested dictionaries with the leaves where the mask is True or False;
      neither has
    a trace of the other's leaves.

  Raises:
    ValueError: where the names of `mask` differ from those of `params`.
  """
  flat, flat_mask = traverse_util.flatten_dict(params), traverse_util.flatten_dict(mask)
  if flat.keys() != flat_mask.keys():
    odd = sorted('/'.join(k) for k in flat.keys() ^ flat_mask.keys())
    raise ValueError(
        f"The trainable mask must have the parameters' names; these are in only one: {odd}.")
  trainable = {k: v for k, v in flat.items() if flat_mask[k]}
  frozen = {k: v for k, v in flat.items() if not flat_mask[k]}
  return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def merge_params(trainable: StateDict, frozen: StateDict) -> dict[str, Any]:
  """Inverse of `partition_params`: the nested dictionary that has the leaves of both."""
  return traverse_util.unflatten_dict(
      {**traverse_util.flatten_dict(trainable), **traverse_util.flatten_dict(frozen)})
