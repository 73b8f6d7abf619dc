"""The model of a checkpoint, from its own description: no gin file of size, system or vocabulary is needed to use it.

    MODEL = @trained.model()
    trained.model.path = %CHECKPOINT_PATH

which gin_configs/runs/infer_jsonl.gin does; `cpoly_jax.Predictor` builds its model here, too.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any
from collections.abc import Callable, Mapping

from etils import epath
from t5x import decoding as t5x_decoding
from t5x import models

from cpoly_jax import decoding
from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import vocabularies
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel


def checkpoint(path: str | os.PathLike) -> str:
  """Returns the newest checkpoint of a MODEL_DIR; any other path is returned as it is."""
  from t5x import checkpoints
  path = os.fspath(path)
  try:
    step = checkpoints.latest_step(path)
  except (OSError, ValueError):  # Nothing there: reading it says so.
    step = None
  return path if step is None else checkpoints.get_checkpoint_dir(path, step)


def decoder(num_beams: int = 1, temperature: float | None = None, top_k: int = 0, top_p: float = 0.0,
            length_penalty: float = 1.0, early_stopping: bool | str = False) -> Callable[..., Any]:
  """Returns the decoding function of some options: greedy unless they say otherwise.

  Its scores are log-probabilities under the model, divided by length^length_penalty unless tokens are drawn.

  Args:
    num_beams: more than 1: beam search.
    temperature: above 0: tokens are drawn from the logits divided by it; None: 1 if `top_k` or `top_p` is given, else 0.
    top_k: draw from this many most probable tokens only; 0: from all.
    top_p: draw from the smallest set of tokens that has this probability; 0: from all.
    length_penalty: above 0 favours longer beams; a score that is not drawn is divided by length^length_penalty.
    early_stopping: when a beam search ends, see `decoding.beam_search`.

  Raises:
    ValueError: a value that makes no sense, or options that exclude each other.
  """
  if temperature is None:
    temperature = 1.0 if top_k or top_p else 0.0
  if num_beams < 1 or int(num_beams) != num_beams:
    raise ValueError(f'num_beams={num_beams}: give a whole number of 1 or more')
  if temperature < 0 or top_k < 0 or not 0 <= top_p <= 1:
    raise ValueError(f'temperature={temperature}, top_k={top_k}, top_p={top_p}: give temperature and top_k of 0 or more, top_p '
                     'from 0 to 1')
  if top_k and top_p:
    raise ValueError(f'top_k={top_k} and top_p={top_p} exclude each other: give one of them')
  if num_beams > 1 and (temperature or top_k or top_p):
    raise ValueError(f'num_beams={num_beams} is a search and draws nothing: leave out temperature, top_k and top_p')
  if not temperature and (top_k or top_p):
    raise ValueError(f'temperature=0 draws nothing: leave out top_k={top_k} and top_p={top_p}, or give another temperature')
  if not temperature:
    return functools.partial(decoding.beam_search, length_penalty=length_penalty, early_stopping=early_stopping)
  return functools.partial(t5x_decoding.temperature_sample, temperature=temperature, topk=top_k, topp=top_p,
                           rescale_log_probs=False)


def model(path: str | os.PathLike | None = None, *, description: Mapping[str, Any] | None = None, dtype: Any = None,
          vocabulary: Any = None, num_beams: int = 1, temperature: float | None = None, top_k: int = 0,
          top_p: float = 0.0, length_penalty: float = 1.0, early_stopping: bool | str = False) -> CPolyModel:
  """Returns the model of a checkpoint, for inference; no parameters are read.

  Args:
    path: a checkpoint_<step> folder of any t5x, a MODEL_DIR (its newest step), or a shared adapter's folder.
    description: in place of `path`, what `CPolyModel.checkpoint_metadata` tells.
    dtype: of activations; None for that of the training.
    vocabulary: of inputs and targets; None for the described ones.
    num_beams, temperature, top_k, top_p, length_penalty, early_stopping: see `decoder`.

  Raises:
    FileNotFoundError: there is no checkpoint, or no vocabulary.
    ValueError: it does not describe its network, its tasks or its vocabulary, or an option is wrong.
  """
  where = 'the description' if path is None else os.fspath(path)
  if description is None:
    description = _described(checkpoint(path))
  if not description.get('task_index'):
    raise ValueError(f'{where} tells of no tasks: give a checkpoint of a model of cpoly_jax.training.models')
  told = description.get('vocabularies') or {}
  known = {kind: vocabulary or (told.get(kind) and vocabularies.build(told[kind])) for kind in ('input', 'output')}
  for kind, found in known.items():
    if found is None:
      raise ValueError(f'{where} does not describe its {kind} vocabulary, which is of a kind of its own: give vocabulary=')
  router = (description.get('adapter') or {}).get('router', {})
  return CPolyModel(
      module=model_settings.build(description, dtype=dtype), input_vocabulary=known['input'],
      output_vocabulary=known['output'], optimizer_def=None, task_index=TaskIndex.from_json(description['task_index']),
      unknown_task=router.get('unknown_task', routing.ERROR),
      decode_fn=decoder(num_beams, temperature, top_k, top_p, length_penalty, early_stopping),
      default_decoder_params=models.DecoderParams(num_decodes=num_beams))


def _described(path: str) -> Mapping[str, Any]:
  """Returns the description of a checkpoint: `model.json` of its MODEL_DIR, which any t5x can read, else what it holds."""
  file = epath.Path(os.path.dirname(path.rstrip('/'))) / model_settings.FILE_NAME
  if file.exists():
    try:
      found = json.loads(file.read_text())
    except ValueError as e:
      raise ValueError(f'{file} is damaged: {e}') from None
    if isinstance(found, dict):
      return found
  from cpoly_jax.checkpoints import loading
  return loading.open_own(path).description
