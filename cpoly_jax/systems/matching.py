"""Equal budgets: the whole-number value of a macro that gives a system the parameters of another."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

from cpoly_jax.systems import counts
from cpoly_jax.systems.configured import Request, configured, macro

TRAINABLE = 'trainable'
ACTIVE = 'active'
BUDGETS = (TRAINABLE, ACTIVE)
LARGEST = 1 << 16


@dataclasses.dataclass(frozen=True)
class Match:
  """The value whose budget is nearest.

  Attributes:
    before: the value in the system's gin file.
    value: the nearest.
    count: parameters with it.
    difference: (count - reference) / reference.
  """

  before: int
  value: int
  count: int
  difference: float


def nearest(count: Callable[[int], int | None], target: int, start: int, largest: int = LARGEST) -> int:
  """Finds the whole number whose count is nearest to a target, by doubling or halving from `start`, then bisection.

  Every other step of the bisection interpolates, as most counts are straight lines.

  Args:
    count: a function that does not fall; None where a value is refused.
    target: the count that is wanted.
    start: a value that is not refused, 0 or more.
    largest: highest value tried.

  Returns:
    The value; of two equally near ones that with the smaller count.

  Raises:
    ValueError: `start` is refused.
  """
  known = {start: count(start)}
  if known[start] is None:
    raise ValueError(f'{start} is no value to start from')

  def at(value: int) -> int | None:
    if value not in known:
      known[value] = count(value)
    return known[value]

  low = high = start  # count(low) <= target <= count(high), or what lies beyond is refused.
  if at(start) < target:
    while at(high) is not None and at(high) < target and high < largest:
      low, high = high, min(max(1, 2 * high), largest)
  else:
    while at(low) is not None and at(low) > target and low > 0:
      low, high = low // 2, low
  upwards = start <= low
  for interpolate in itertools.cycle((True, False)):
    if high - low <= 1:
      break
    middle = (low + high) // 2
    if interpolate and at(low) is not None and at(high) is not None:
      share = (target - at(low)) / max(1, at(high) - at(low))
      middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
    if at(middle) is None:  # Refused: too large on the way up, too small on the way down.
      low, high = (low, middle) if upwards else (middle, high)
    elif at(middle) < target:
      low = middle
    else:
      high = middle
  allowed = [(abs(n - target), n, value) for value, n in known.items() if n is not None]
  return min(allowed)[-1]


def budget(system: str, request: Request, of: str, **macros: int) -> int:
  """Returns the parameters of a system that train, or that are active for one task.

  Args:
    system: its name.
    request: the model, T and overrides.
    of: one of BUDGETS.
    **macros: values that win over all others.
  """
  with configured(system, request, **macros) as made:
    return getattr(counts.count(made), of)


def match(system: str, request: Request, of: str, name: str, reference: int) -> Match:
  """Finds the value of a macro with which a system has a reference's budget.

  Args:
    system: its name.
    request: the model, T and overrides.
    of: one of BUDGETS.
    name: the macro to vary.
    reference: parameters to come near to.

  Raises:
    ValueError: the system does not use the macro, its value is no whole number, or it does not change the budget.
  """
  with configured(system, request) as made:
    if name not in made.macros:
      raise ValueError(f'does not use {name}')
    before = macro(name)
  if type(before) is not int:
    raise ValueError(f'has {name} = {before!r}, which is no whole number')

  @functools.cache
  def count(value: int) -> int | None:
    try:
      return budget(system, request, of, **{name: value})
    except ValueError:
      return None

  if count(before) is None:
    budget(system, request, of, **{name: before})  # Raises what is wrong.
  others = [value for value in (2 * before + 2, before // 2) if count(value) is not None]
  if not any(count(value) != count(before) for value in others):
    raise ValueError(f'has the same {of} parameters whatever {name} is')
  value = nearest(count, reference, before)
  return Match(before, value, count(value), (count(value) - reference) / reference)
