"""What is wrong with the arms of an experiment, found before anything runs, as gin and the network will read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpoly_jax.experiments import arms as arms_lib
from cpoly_jax.experiments import configuring
from cpoly_jax.experiments.arms import Arm
from cpoly_jax.experiments.spec import After, Spec


def check_arms(spec: Spec, arms: Sequence[Arm], count: configuring.Counter) -> None:
  """Checks each arm as gin and the network will read it, and that all settings of the file are used.

  Raises:
    SpecError: one line, with the key.
  """
  used, texts = frozenset(), {}
  for arm in arms:
    try:
      config = configuring.read(arm.gin_files, arm.bindings)
      needed = {'grid': [name for name in arm.point if name != arms_lib.SIZE], 'ablate': arm.ablated,
                f'variants.{arm.system}.bindings': spec.variants[arm.system].bindings if arm.system in spec.variants else (),
                'tune.grid': spec.tune.grid if spec.tune else ()}
      used |= config.macros
      for key, names in needed.items():
        for name in names:
          if wrong := configuring.unused(config, [name]):
            raise spec.error(f'{key}.{name}', f'{arm.label}: {wrong}')
      if config.text in texts:
        raise spec.error('grid', f'{arm.label} is the same as {texts[config.text]}: leave one of them out')
      texts[config.text] = arm.label
      count(arm.gin_files, arm.bindings)
    except ValueError as e:
      raise e if str(e).startswith(f'{spec.path}: ') else spec.error(arm.label, str(e)) from None
  for key, names in {'bindings': spec.bindings, 'tune.bindings': spec.tune.bindings if spec.tune else ()}.items():
    for name in names:
      if wrong := configuring.unused(configuring.Config('', used, None, None), [name]):
        raise spec.error(f'{key}.{name}', wrong)


def check_stage(spec: Spec, stage: After, runs: Sequence[tuple[str, Sequence[str], Mapping[str, str]]]) -> None:
  """As `check_arms`, for runs after others, which are not counted: what they are made of need not be there yet.

  Args:
    spec: the file.
    stage: the stage.
    runs: (label, gin files, bindings) of one run of each arm.
  """
  used = frozenset()
  for label, files, bindings in runs:
    try:
      used |= configuring.read(files, bindings).macros
    except ValueError as e:
      raise spec.error(f'after {stage.name}', f'{label}: {e}') from None
  for name in stage.bindings:
    if wrong := configuring.unused(configuring.Config('', used, None, None), [name]):
      raise spec.error(f'after {stage.name}.bindings.{name}', wrong)
