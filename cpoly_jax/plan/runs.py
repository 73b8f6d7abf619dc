"""A run as its gin files make it, as shapes: nothing is read but the gin files and the names of the tasks.

The arguments are those that gin would give to `t5x.train.train`. Only what a train step does not depend on has stand-ins: the
vocabulary, whose pieces the step never sees, and the paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import re
from typing import Any
from collections.abc import Iterator, Mapping, Sequence

import gin
import jax
import jax.numpy as jnp
import seqio
from t5x import gin_utils
from t5x import train
from t5x import utils
import tensorflow as tf

from cpoly_jax.systems.configured import ROOT, as_training, macro, used_macros
from cpoly_jax.task_index import TaskIndex

# What the train step does not depend on.
_STAND_INS = {'MODEL_DIR': '', 'INITIAL_CHECKPOINT_PATH': '', 'TRAIN_STEPS': 1000}


@dataclasses.dataclass(frozen=True)
class Run:
  """What gin made of a run. It is valid inside `configured` only: gin makes routers and skills when they are used.

  Attributes:
    model: the model, with its optimizer.
    partitioner: of the gin files; its mesh is not looked at.
    trainer_cls: the trainer, not yet made.
    batch: {feature: shape [B, L] and dtype}.
    frozen_dtype: dtype in which parameters that do not train are kept, None for the model's.
    saved_dtype: dtype of the parameters in a checkpoint, None for theirs.
    microbatches: parts of a batch whose gradients are computed one after another.
    hardware_rng: whether the step uses the device's random numbers.
    dims: PARAMETER_PARTITIONING_DIMS as the gin files have it, None if they have no such macro.
    axis_rules: ADDITIONAL_AXIS_RULES, in the same way.
  """

  model: Any
  partitioner: Any
  trainer_cls: Any
  batch: Mapping[str, jax.ShapeDtypeStruct]
  frozen_dtype: Any
  saved_dtype: Any
  microbatches: int
  hardware_rng: bool
  dims: int | None
  axis_rules: tuple[tuple[str, str | None], ...]

  @property
  def batch_size(self) -> int:
    """B."""
    return next(iter(self.batch.values())).shape[0]

  def length(self, feature: str) -> int:
    """Length of a feature of the batch."""
    return self.batch[feature].shape[1]


@contextlib.contextmanager
def configured(gin_files: Sequence[str], bindings: Sequence[str]) -> Iterator[Run]:
  """Gives a run. Replaces what gin had parsed before, and leaves it empty.

  Args:
    gin_files: of a training run; later ones win.
    bindings: `NAME = VALUE`; they win over the files.

  Raises:
    ValueError: a mistake in a binding, a macro that no file uses, or one that is needed and nobody gave.
    FileNotFoundError: no such gin file.
  """
  gin.clear_config()
  try:
    with as_training():
      gin_utils.parse_gin_flags(['.', str(ROOT)], gin_files, bindings, finalize_config=False)
    text = gin.config_str()
    _check_macros(text, bindings)
    _fill_in(text)
    yield _make()
  finally:
    gin.clear_config()


def _check_macros(text: str, bindings: Sequence[str]) -> None:
  """Raises ValueError for a macro of the command line that no gin file uses."""
  used = used_macros(text)
  for match in filter(None, (re.match(r'\s*(\w+)\s*=', binding) for binding in bindings)):
    if match[1] not in used:
      near = difflib.get_close_matches(match[1], sorted(used), n=1)
      raise ValueError(f'no gin file of this run uses the macro {match[1]}{f"; did you mean {near[0]}?" if near else ""}')


def _fill_in(text: str) -> None:
  """Sets what the step does not depend on, and raises ValueError for what is missing."""
  missing = set(re.findall(r'^(\w+) = %gin\.REQUIRED$', text, re.MULTILINE))
  for name in missing & set(_STAND_INS):
    gin.bind_parameter(f'%{name}', _STAND_INS[name])
  used = used_macros(text)
  if 'VOCABULARY' in used:
    gin.bind_parameter('%VOCABULARY', seqio.PassThroughVocabulary(1))
  told = isinstance(_query('NUM_TASKS'), int)
  if told and 'TASK_INDEX' in used:
    if 'MIXTURE_OR_TASK_NAME' in missing or not _can_look_up_tasks():
      gin.bind_parameter('%TASK_INDEX', TaskIndex(tuple(f'task{i}' for i in range(_query('NUM_TASKS')))))
    if 'MIXTURE_OR_TASK_NAME' in missing:
      gin.bind_parameter('%MIXTURE_OR_TASK_NAME', '')
      missing.remove('MIXTURE_OR_TASK_NAME')
  missing -= set(_STAND_INS)
  if missing:
    raise ValueError(f'give {" and ".join(f"--gin.{name}=..." for name in sorted(missing))}')


def _query(name: str) -> Any:
  """Returns a macro as it was written, None if there is none."""
  with contextlib.suppress(ValueError):
    return gin.query_parameter(f'%{name}')
  return None


def _can_look_up_tasks() -> bool:
  """Whether the tasks of the run are registered here; they may need files that another machine has."""
  try:
    macro('TASK_INDEX')
  except (ValueError, OSError, KeyError):
    return False
  return True


def _make() -> Run:
  given = gin.get_bindings(gin.get_configurable(train.train))
  needed = {'model', 'train_dataset_cfg', 'partitioner', 'trainer_cls', 'checkpoint_cfg'} - set(given)
  if needed:
    raise ValueError(f'these gin files give train no {" and no ".join(sorted(needed))}: give --gin_file of a training run, '
                     'e.g. gin_configs/cpoly_xxl.gin')
  defaults = {name: p.default for name, p in inspect.signature(train.train).parameters.items()}
  restore, save = given['checkpoint_cfg'].restore, given['checkpoint_cfg'].save
  # A written macro only: ADDITIONAL_AXIS_RULES is a tuple of pairs.
  dims, rules = _query('PARAMETER_PARTITIONING_DIMS'), _query('ADDITIONAL_AXIS_RULES')
  parts = _query('NUM_MICROBATCHES')
  return Run(
      model=given['model'], partitioner=given['partitioner'], trainer_cls=given['trainer_cls'],
      batch=_batch(given['model'], given['train_dataset_cfg']), frozen_dtype=restore and restore.dtype,
      saved_dtype=save and save.dtype, microbatches=parts if isinstance(parts, int) else 1,
      hardware_rng=bool(given.get('use_hardware_rng', defaults.get('use_hardware_rng')) or given.get('random_seed') is None),
      dims=dims if isinstance(dims, int) else None,
      axis_rules=tuple(map(tuple, rules)) if isinstance(rules, (tuple, list)) else ())


def _batch(model: Any, cfg: utils.DatasetConfig) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what the model's own feature converter makes of examples of the configured lengths."""
  lengths = cfg.task_feature_lengths
  if not isinstance(lengths, Mapping) or not {'inputs', 'targets'} <= set(lengths):
    raise ValueError(f"TASK_FEATURE_LENGTHS = {lengths}: write --gin.TASK_FEATURE_LENGTHS=\"{{'inputs': 512, 'targets': 62}}\"")
  for name, value in (('BATCH_SIZE', cfg.batch_size), *lengths.items()):
    if not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} = {value}: write a whole number above 0')
  converter = model.FEATURE_CONVERTER_CLS(pack=cfg.pack)
  example = {name: tf.ones([1], spec.dtype) for name, spec in converter.TASK_FEATURES.items()}
  spec = converter(tf.data.Dataset.from_tensors(example), dict(lengths)).element_spec
  dtype = lambda value: jax.dtypes.canonicalize_dtype(jnp.dtype(value.dtype.as_numpy_dtype))
  return {name: jax.ShapeDtypeStruct((cfg.batch_size, *value.shape), dtype(value)) for name, value in spec.items()}
