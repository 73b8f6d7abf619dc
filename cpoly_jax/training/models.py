"""The C-Poly model: T5X's encoder-decoder model whose network is told each example's task.

T5X's methods call `module.apply` and know nothing of tasks. Rather than repeat them, `CPolyModel` runs them on a copy of
itself whose module is a `TaskBound` one, which adds the routing rows of the batch to every call, and the rng of the
routing noise while training.
"""

from __future__ import annotations

import copy
from typing import Any
from collections.abc import Callable, Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp
import seqio
from t5x import metrics
from t5x import models

from cpoly_jax import model_settings
from cpoly_jax import routing
from cpoly_jax import vocabularies
from cpoly_jax.routing import priors
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.features import ROUTED_TASK_ID, TASK_ID, converter_for


class TaskBound:
  """A linen module together with the routing rows of a batch.

  Args:
    module: a network whose methods take `task_ids`.
    task_ids: [B, G] int32, the rows of the up to G examples of a row of the batch (G = 1 without packing).
  """

  def __init__(self, module: nn.Module, task_ids: jax.Array):
    self._module = module
    self._task_ids = task_ids

  def __getattr__(self, name: str):
    return getattr(self._module, name)

  def apply(self, variables, *args, rngs: Mapping[str, jax.Array] | None = None, **kwargs):
    """As `module.apply`; the tokens' batch is B, or B*n with each example repeated n times in place."""
    batch = (args[0] if args else kwargs['encoder_input_tokens']).shape[0]
    if batch % self._task_ids.shape[0]:
      raise ValueError(f'a batch of {batch} cannot hold {self._task_ids.shape[0]} examples, each equally often')
    if rngs and 'dropout' in rngs and routing.RNG not in rngs:
      # A stream of its own, so that dropout masks are those of a run without routing.
      rngs = {**rngs, routing.RNG: jax.random.fold_in(rngs['dropout'], 1)}
    return self._module.apply(variables, *args, rngs=rngs, task_ids=self._task_ids, **kwargs)


class CPolyModel(models.EncoderDecoderModel):
  """T5X's `EncoderDecoderModel` with routing by task; its batch has `task_id` [B, 1] besides, or [B, G] if packed.

  Args:
    task_index: the run's tasks, in the order of the routing's rows.
    num_tasks: rows of the routing; None for as many as there are tasks. More leave room for later tasks.
    unknown_task: `error`, or `average` to give examples of other tasks the average of all rows; the routers have the
      same setting.
    other_tasks: the checkpoint to start from may have been trained on other tasks; its routing must then not be
      restored (RestoreCheckpointConfig.assignment_map).
    prior: penalty of each table of routing logits (`routing.priors`), added to the training loss; None for none.
    prior_weight: factor of the penalty.
    nonfinite: what t5x_lite does with a step whose loss or gradient is not finite: `stop`, `skip` or `ignore` it
      (docs/robustness.md). google-research/t5x does not look at it.
    **kwargs: as of `t5x.models.EncoderDecoderModel`; its module must take `task_ids`.

  Raises:
    ValueError: more tasks than rows, or more pieces in a vocabulary than rows in the embedding.
  """

  def __init__(self, *args, task_index: TaskIndex, num_tasks: int | None = None, unknown_task: str = routing.ERROR,
               other_tasks: bool = False, prior: Callable[[jax.Array], jax.Array] | None = None, prior_weight: float = 1.0,
               nonfinite: str = 'stop', **kwargs):
    super().__init__(*args, feature_converter_cls=converter_for(task_index, unknown_task), **kwargs)
    if num_tasks is not None and len(task_index) > num_tasks:
      raise ValueError(f'{len(task_index)} tasks do not fit {num_tasks} routing rows: raise NUM_TASKS to {len(task_index)}')
    embedded = getattr(getattr(self.module, 'config', None), 'vocab_size', None)
    for kind, vocabulary in (('input', self.input_vocabulary), ('output', self.output_vocabulary)):
      if embedded is not None and vocabulary is not None and vocabulary.vocab_size > embedded:
        raise ValueError(f'the {kind} vocabulary has {vocabulary.vocab_size} pieces but the embedding {embedded} rows: raise '
                         f'VOCABULARY_SIZE to {vocabulary.vocab_size} or more, or set another VOCABULARY_PATH')
    self.task_index = task_index
    self.unknown_task = unknown_task
    self._other_tasks = other_tasks
    self._prior = prior
    self._prior_weight = prior_weight
    self.nonfinite = nonfinite

  def _bound(self, batch: Mapping[str, jax.Array]) -> CPolyModel:
    """A copy whose module knows the tasks of `batch`."""
    if TASK_ID not in batch:
      raise ValueError(f'the batch has no {TASK_ID!r} [B, 1]: read it through this model\'s FEATURE_CONVERTER_CLS')
    bound = copy.copy(self)
    bound.module = TaskBound(self.module, batch[TASK_ID])
    return bound

  def get_initial_variables(self, rng: jax.Array, input_shapes: Mapping[str, Any],
                            input_types: Mapping[str, Any] | None = None):
    """As T5X's. Parameters do not depend on the tasks of the batch, so row 0 stands for all."""
    bound = copy.copy(self)
    bound.module = _Initializing(self.module)
    return super(CPolyModel, bound).get_initial_variables(rng, input_shapes, input_types)

  def _compute_logits(self, params, batch, dropout_rng=None, mutable=False, other_variables=None):
    return super(CPolyModel, self._bound(batch))._compute_logits(params, batch, dropout_rng, mutable, other_variables)

  def loss_fn(self, params, batch, dropout_rng, *args):
    """As T5X's, plus the prior of the routing while training, which is told as `routing_prior`."""
    loss, aux = super().loss_fn(params, batch, dropout_rng, *args)
    if self._prior is None or dropout_rng is None:
      return loss, aux
    penalty = priors.total(params, self._prior)
    told = {'routing_prior': metrics.AveragePerStep.from_model_output(penalty, steps=1)}
    aux = aux | told if isinstance(aux, Mapping) else (aux[0] | told, *aux[1:])
    return loss + self._prior_weight * penalty, aux

  def predict_batch_with_aux(self, params, batch, *args, **kwargs):
    """As T5X's; tasks may be mixed in the batch."""
    return super(CPolyModel, self._bound(batch)).predict_batch_with_aux(params, batch, *args, **kwargs)

  def _compute_kv_cache(self, params, encoded_inputs, *args, **kwargs):
    """As T5X's, and the encoder's keys and values are computed once, not in each decoding step."""
    cache, initial_index = super()._compute_kv_cache(params, encoded_inputs, *args, **kwargs)
    _, kept = self.module.apply({'params': params, 'cache': cache}, encoded_inputs, mutable=['cache'],
                                method=self.module.keep_encoded)
    return kept['cache'], initial_index

  def tasks_of(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The routing rows of a batch's examples, int32 [B, G], for t5x_lite's messages; negative where there is none."""
    rows = batch.get(ROUTED_TASK_ID, batch[TASK_ID])
    if 'decoder_segment_ids' not in batch:
      return rows
    # Packed: what follows the last example of a row is padding.
    examples = jnp.max(batch['decoder_segment_ids'], axis=1, keepdims=True)
    return jnp.where(jnp.arange(rows.shape[1]) < examples, rows, routing.UNKNOWN)

  def task_name(self, row: int) -> str:
    """The name of the task with a routing row, or the row's number where it is kept for later tasks."""
    return self.task_index.names[row] if row < len(self.task_index) else f'row {row}'

  def check_mixture(self, mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Raises ValueError unless every task of a SeqIO mixture has a routing row, or unknown tasks get the average."""
    if self.unknown_task == routing.AVERAGE:
      return
    # A source of examples of several tasks says so.
    self.task_index.check_covers([name for task in seqio.get_subtasks(mixture_or_task)
                                  for name in getattr(task.source, 'routed_tasks', (task.name,))])

  def checkpoint_metadata(self) -> dict[str, Any]:
    """What a checkpoint has to tell of this model besides its parameters: all that rebuilds it (`cpoly_jax.model_settings`)."""
    return {'task_index': self.task_index.to_json(), **model_settings.describe(self.module),
            'vocabularies': {'input': vocabularies.describe(self.input_vocabulary),
                             'output': vocabularies.describe(self.output_vocabulary)}}

  def check_checkpoint_metadata(self, metadata: Mapping[str, Any], where: str = 'the checkpoint') -> None:
    """Raises ValueError for a checkpoint of other skills, or of other tasks, unless `other_tasks` allows these."""
    there, here = metadata.get('adapter'), model_settings.describe(self.module)['adapter']
    if there and here:
      _check_same(there['inventory'], here['inventory'], f'{where} has skills',
                  'the system, INVENTORY, RANK, ALPHA and MIXING')
      # How the routing is sampled, and for how many tasks, may change from run to run; what its parameters mean may not.
      meaning = lambda router: {k: v for k, v in router.items() if k not in ('sampling', 'unknown_task', 'num_tasks')}
      if not self._other_tasks:
        _check_same(meaning(there['router']), meaning(here['router']), f'{where} has a router', 'the system and its settings')
    # A plain T5, such as a base that was pretrained here, has no rows of tasks.
    is_plain = 'adapter' in metadata and there is None
    if 'task_index' in metadata and not is_plain and not self._other_tasks:
      self.task_index.check_same(TaskIndex.from_json(metadata['task_index']), where)


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], what: str, settings: str) -> None:
  """Raises ValueError, naming what differs, unless the settings of a checkpoint are those of the run."""
  differ = [k for k in {**there, **here} if there.get(k) != here.get(k)]
  if differ:
    told = lambda side: ', '.join(f'{k} = {side[k]!r}' for k in differ if k in side)
    raise ValueError(f'{what} with {told(there)}, and this run {told(here)}: use {settings} that it was trained with')


class _Initializing:
  """A module whose `init` is given row 0 for every example."""

  def __init__(self, module: nn.Module):
    self._module = module

  def __getattr__(self, name: str):
    return getattr(self._module, name)

  def init(self, rng, *args, **kwargs):
    return self._module.init(rng, *args, task_ids=jnp.zeros(args[0].shape[0], jnp.int32), **kwargs)


def summarize_run(model_dir: str, summary_writer, step: int, *, model: CPolyModel) -> None:
  """T5X's `summarize_config_fn` for routed runs: writes config.gin, `task_index.json` and `model.json`.

  `model.json` is what rebuilds the network without gin; checkpoints of t5x_lite have it, too, those of google-research/t5x not.

  Args:
    model_dir: the folder of the run.
    summary_writer: as T5X passes it, or None.
    step: the step that starts.
    model: the run's; its tasks are compared with those that `model_dir` has.

  Raises:
    ValueError: `model_dir` belongs to a run with other tasks.
  """
  from t5x import gin_utils  # Here: models are used without gin, too.
  there = TaskIndex.load(model_dir)
  if there is not None:
    model.task_index.check_same(there, model_dir)
  gin_utils.summarize_gin_config(model_dir, summary_writer, step)
  model.task_index.save(model_dir)
  model_settings.save(model.checkpoint_metadata(), model_dir)
