"""Equal budgets of an experiment's arms: for each, the value of a macro whose parameters are nearest to the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from cpoly_jax.experiments import arms as arms_lib
from cpoly_jax.experiments import configuring
from cpoly_jax.experiments import values
from cpoly_jax.experiments.arms import Arm
from cpoly_jax.experiments.spec import Spec
from cpoly_jax.systems import matching


def match(spec: Spec, arms: list[Arm], count: configuring.Counter) -> tuple[list[Arm], dict[str, tuple[str, matching.Match]]]:
  """Gives all arms the budget that the file asks for.

  Args:
    spec: the file.
    arms: its arms.
    count: counts parameters.

  Returns:
    The arms, with a binding more where a macro was chosen, and by label (macro, what was found).

  Raises:
    SpecError: an arm cannot have that budget.
  """
  if spec.budget is None:
    return arms, {}
  found, result = {}, []
  for arm in arms:
    macro = spec.budget.vary.get(arm.system)
    if macro is None or macro in arm.bindings:
      if macro is not None:
        raise spec.error(f'budget.vary.{arm.system}', f'{macro} is set by {arm.label}: vary another macro')
      result.append(arm)
      continue
    to = arms_lib.reference(spec, arm, arms, spec.budget.to)
    try:
      one = _match(arm, spec.budget.equal, macro, getattr(count(to.gin_files, to.bindings), spec.budget.equal), count)
    except ValueError as e:
      raise spec.error(f'budget.vary.{arm.system}', f'{arm.label}: {e}') from None
    if abs(one.difference) > spec.budget.tolerance:
      raise spec.error(f'budget.vary.{arm.system}', f'{arm.label} comes no nearer than {100 * one.difference:+.1f} %, with '
                       f'{macro} = {one.value}: vary another macro, or raise budget.tolerance')
    found[arm.label] = macro, one
    result.append(dataclasses.replace(arm, bindings=values.merged(arm.bindings, {macro: str(one.value)})))
  return result, found


def _match(arm: Arm, of: str, macro: str, reference: int, count: Callable[..., object]) -> matching.Match:
  before = configuring.whole_number(arm.gin_files, arm.bindings, macro)
  with_value: Callable[[int], Mapping[str, str]] = lambda value: values.merged(arm.bindings, {macro: str(value)})
  first = getattr(count(arm.gin_files, arm.bindings), of)
  known: dict[int, int | None] = {before: first}

  def parameters(value: int) -> int | None:
    if value not in known:
      try:
        known[value] = getattr(count(arm.gin_files, with_value(value)), of)
      except ValueError:
        known[value] = None
    return known[value]

  if all(parameters(value) in (None, first) for value in (2 * before + 2, before // 2)):
    raise ValueError(f'has the same {of} parameters whatever {macro} is')
  value = matching.nearest(parameters, reference, before)
  return matching.Match(before, value, parameters(value), (parameters(value) - reference) / reference)
