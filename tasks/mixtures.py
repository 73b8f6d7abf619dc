"""Rates of the tasks of a mixture, as functions of the task.

`seqio.MixtureRegistry` calls a rate when a dataset is built, so nothing is read at registration. The functions are gin
configurable: `mixtures.temperature_rate.temperature = 10` acts on every mixture that uses the function as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gin

if TYPE_CHECKING:
  import seqio


def equal_rate(task: seqio.Task) -> float:
  """Every task is drawn equally often, whatever its size."""
  del task
  return 1.0


@gin.configurable(module='tasks.mixtures')
def proportional_rate(task: seqio.Task, maximum: float | None = None,
                      split: str = 'train') -> float:
  """Every example is drawn equally often: the rate is the number of examples.

  Args:
    task: the task.
    maximum: examples beyond so many do not count, so that a huge task cannot drown the others.
    split: the split that is counted.

  Raises:
    ValueError: the task cannot tell how many examples it has, or `maximum` is not positive.
  """
  if maximum is not None and maximum <= 0:
    raise ValueError(f'maximum is {maximum}; set it above 0, or to None for no limit')
  if split not in task.splits:
    raise ValueError(f"task {task.name} has no split '{split}' to count (it has "
                     f"{', '.join(task.splits)}); name another split, or use equal_rate")
  count = task.num_input_examples(split)
  if not count:
    raise ValueError(f"task {task.name} does not know how many '{split}' examples it has; "
                     'use equal_rate or a number as its rate')
  return float(count if maximum is None else min(count, maximum))


@gin.configurable(module='tasks.mixtures')
def temperature_rate(task: seqio.Task, temperature: float = 2.0, maximum: float | None = None,
                     split: str = 'train') -> float:
  """Between proportional (temperature 1) and equal (towards infinity): count**(1/temperature).

  Args:
    task: the task.
    temperature: at least 1; T5's experiments favoured 2, HyperFormer's runs use 10.
    maximum: limit of the count, before the root.
    split: the split that is counted.

  Raises:
    ValueError: `temperature` is below 1; or as `proportional_rate`.
  """
  if temperature < 1:
    raise ValueError(f'temperature is {temperature}; set it to 1 (proportional) or above')
  return proportional_rate(task, maximum=maximum, split=split)**(1 / temperature)
