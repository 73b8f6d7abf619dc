"""A network's settings as JSON, and the network of such JSON.

A checkpoint that keeps only skills and routing says little without the network around them. So `describe` writes down the
sizes, the targets, and the settings of router and inventory, and `build` makes the same network from files alone, without
gin: merging, export and prediction need no more. Classes are looked up among those of this package, and those that `register`
was told of: nothing of a file is imported or run.

    {"network": {"emb_dim": 512, ...},
     "adapter": {"targets": "...", "granularity": "projection",
                 "router": {"kind": "CPolyRouter", "num_tasks": 8, ...}, "inventory": {"kind": "LoRA", "rank": 4, ...}}}
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any
from collections.abc import Mapping

from flax import linen as nn
import jax.numpy as jnp

from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax.adapters import Adapter
from cpoly_jax.routing import schedules
from cpoly_jax.t5.network import T5Config, Transformer

KIND = 'kind'
FILE_NAME = 'model.json'

_CLASSES: dict[str, type] = {}


def register(cls: type) -> type:
  """Makes `build` know a router, an inventory, or a dataclass among their settings, by the class's name; returns it.

  Raises:
    ValueError: another class has the name.
  """
  if _CLASSES.setdefault(cls.__name__, cls) is not cls:
    raise ValueError(f'a class named {cls.__name__} is registered already: rename this one')
  return cls


for _cls in (routing.CPolyRouter, routing.ExpertRouter, routing.HyperRouter, routing.PolyRouter, routing.SharedRouter,
             routing.TaskMoERouter, routing.TokenRouter, routing.UniformRouter, routing.Sampling, schedules.Linear,
             schedules.Cosine, skills.LoRA, skills.SFT, skills.Dense, skills.IA3):
  register(_cls)


def describe(transformer: Transformer) -> dict[str, Any]:
  """Returns the settings of a network for JSON: `network`, and `adapter` or None.

  Initializers, which matter to a new network only, are left out.
  """
  adapter = transformer.adapter
  network = {k: v for k, v in _settings(transformer.config).items() if k != KIND}
  if adapter is None:
    return {'network': network, 'adapter': None}
  # What depends on the projection is given by the network again.
  inventory = {k: v for k, v in _settings(adapter.inventory(num_skills=1, features=1, parent=None)).items()
               if k not in ('num_skills', 'features', 'axes')}
  return {'network': network, 'adapter': {'targets': adapter.targets, 'granularity': adapter.granularity,
                                          'router': _settings(adapter.describe()), 'inventory': inventory}}


def build(description: Mapping[str, Any], *, dtype: Any = None) -> Transformer:
  """Returns the network that `describe` described.

  Args:
    description: JSON of `describe`; other keys are ignored.
    dtype: of activations; None for the described one.

  Raises:
    ValueError: a class that is not known, or settings that it does not have.
  """
  try:
    network = dict(description['network'])
    if dtype is not None:
      network['dtype'] = dtype
    config = T5Config(**{k: _value(v) for k, v in network.items()} | {'dtype': jnp.dtype(network['dtype']).type})
    adapter = description['adapter']
    if adapter is not None:
      adapter = Adapter(router=_factory(adapter['router']), inventory=_factory(adapter['inventory']),
                        targets=adapter['targets'], granularity=adapter['granularity'])
  except (KeyError, TypeError) as e:
    raise ValueError(f'these are not the settings of a network: {e}') from None
  return Transformer(config=config, adapter=adapter)


def save(description: Mapping[str, Any], folder: str) -> None:
  """Writes `model.json` into `folder` (local or a bucket)."""
  from etils import epath  # Here: only runs that save need it.
  path = epath.Path(folder)
  temporary = path / f'{FILE_NAME}.tmp'
  temporary.write_text(json.dumps(description, indent=1) + '\n')
  temporary.replace(path / FILE_NAME)


def _settings(owner: Any) -> dict[str, Any]:
  """Returns the JSON of a dataclass, linen modules among them: its kind and its fields."""
  found = {KIND: type(owner).__name__}
  for field in dataclasses.fields(owner):
    value = getattr(owner, field.name)
    if isinstance(owner, nn.Module) and field.name in ('parent', 'name') or _is_function(value):
      continue
    found[field.name] = _plain(value)
  return found


def _is_function(value: Any) -> bool:
  """Whether a value is an initializer or the like: called, but neither a dtype nor a dataclass such as a schedule."""
  return callable(value) and not dataclasses.is_dataclass(value) and not isinstance(value, type)


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, (tuple, list)):
    return [_plain(v) for v in value]
  if dataclasses.is_dataclass(value):
    return _settings(value)
  return jnp.dtype(value).name


def _value(plain: Any) -> Any:
  """Inverse of `_plain`, but for dtypes, which stay names."""
  if isinstance(plain, list):
    return tuple(map(_value, plain))
  if isinstance(plain, Mapping):
    return _factory(plain)()
  return plain


def _factory(settings: Mapping[str, Any]) -> functools.partial:
  """Returns the class of some settings with them bound."""
  kind = settings[KIND]
  if kind not in _CLASSES:
    raise ValueError(f'{kind!r} is no class of this project ({", ".join(sorted(_CLASSES))}): import yours and pass it to '
                     'cpoly_jax.model_settings.register first')
  given = {k: _value(v) for k, v in settings.items() if k != KIND}
  unknown = sorted(set(given) - {field.name for field in dataclasses.fields(_CLASSES[kind])})
  if unknown:
    raise ValueError(f'{kind} has no setting {", ".join(unknown)}: the file is of another version of this project, or damaged')
  return functools.partial(_CLASSES[kind], **given)
