"""Logical axes of skills and routing: `skill`, `rank`, `task`, `head`, `gated`, and those of task embeddings.

Banks are [skill, in, rank] and [skill, rank, out]; tables are [task, skill]. By default all of them are on every device;
their input and output axes follow the projection's kernel, so a sharded kernel has sharded skills.
"""

from __future__ import annotations

from collections.abc import Sequence

from t5x import partitioning

DEFAULT_RULES = (('skill', None), ('rank', None), ('task', None), ('head', None), ('gated', None), ('task_embed', None),
                 ('task_hidden', None))


def logical_axis_rules(activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1,
                       additional_rules: Sequence[tuple[str, str | None]] = ()):
  """T5X's standard rules and those of skills.

  Args:
    activation_partitioning_dims: as of `t5x.partitioning.standard_logical_axis_rules`.
    parameter_partitioning_dims: the same; 2 shards the base over the data axis, too.
    additional_rules: (logical axis, mesh axis or None) pairs that replace those of skills or add to all,
      e.g. (('skill', 'model'),).

  Returns:
    Rules for `PjitPartitioner.logical_axis_rules`.
  """
  mine = tuple(rule for rule in DEFAULT_RULES if rule[0] not in {name for name, _ in additional_rules})
  # A mesh axis goes to the first rule that wants it: a bank that is to be split by skill must not lose it to `embed` or
  # `joined_kv`, nor the routing's weights to `batch`.
  first = [tuple(rule) for rule in additional_rules if rule[0] == 'skill']
  rest = [tuple(rule) for rule in additional_rules if rule[0] != 'skill']
  standard = partitioning.standard_logical_axis_rules(
      activation_partitioning_dims=activation_partitioning_dims,
      parameter_partitioning_dims=parameter_partitioning_dims, additional_rules=[*rest, *mine])
  return [*first, *standard]
