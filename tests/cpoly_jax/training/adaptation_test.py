"""Tests of adaptation: what trains and what keeps every bit, in steps of a real trainer on files of a real run."""

from __future__ import annotations

import functools
import os
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from t5x import decoding
from t5x import trainer as trainer_lib
from t5x import utils

from cpoly_jax import testing
from cpoly_jax.checkpoints import adapter_file
from cpoly_jax.checkpoints import loading
from cpoly_jax.growth import plans
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training import adaptation
from cpoly_jax.training import optimizers
from tests.cpoly_jax.checkpoints import small_runs
from tests.cpoly_jax.growth import sample_systems

quick, tearDownModule = testing.quick_compilation()
NEW = TaskIndex(('wic', 'wsc'))
SHAPES = {**small_runs.SHAPES, 'decoder_loss_weights': (2, 4)}
# Rows and skills of the small run, whose C-Poly has 3 common skills, 3 tasks and a skill of each.
ROWS, SKILLS = 3, 6


def setUpModule():
  quick()
  # The same few programs are compiled again and again.
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: jax.config.values[name] for name in names}
  unittest.addModuleCleanup(lambda: [jax.config.update(name, value) for name, value in before.items()])
  jax.config.update('jax_compilation_cache_dir', tempfile.mkdtemp())
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _run() -> str:
  return small_runs.files().run


def _batches(number: int):
  """Batches [2, ...] of the two new tasks."""
  rng = np.random.default_rng(3)
  for _ in range(number):
    tokens = {name: rng.integers(3, 200, shape, np.int32) for name, shape in SHAPES.items()}
    yield {**tokens, 'decoder_loss_weights': np.ones((2, 4), np.int32), 'task_id': np.array([[ROWS], [ROWS + 1]], np.int32)}


@functools.cache
def _adapted(tune: str, steps: int = 3):
  """Adapts the small run; returns (adaptation, parameters before and after the steps, optimizer state, MODEL_DIR)."""
  told = adaptation.adaptation(_run(), NEW, tune=tune)
  folder = tempfile.mkdtemp()
  state, manager, trainer_cls = _restored(told, folder)
  before = small_runs.flat(jax.device_get(state.params))
  trainer = trainer_cls(train_state=state)
  trainer.train(_batches(steps), steps, start_step=0)
  manager.save(trainer.train_state)
  manager.close()
  return told, before, small_runs.flat(jax.device_get(trainer.train_state.params)), trainer.train_state.param_states, folder


def _restored(told, folder, path=None, **restore):
  vocabulary = seqio.ByteVocabulary()
  optimizer = optimizers.GroupedAdamW(1e-2, 1e-1, weight_decay=0.5, routing_weight_decay=0.5, rows=adaptation.rows(told))
  model = adaptation.model(told, input_vocabulary=vocabulary, output_vocabulary=vocabulary, optimizer_def=optimizer,
                           decode_fn=decoding.temperature_sample)
  partitioner = small_runs.partitioner()
  initializer = utils.TrainStateInitializer(optimizer, model.get_initial_variables, SHAPES, partitioner)
  cfg = utils.RestoreCheckpointConfig(
      path=path or adaptation.checkpoint(told), mode='specific', fallback_to_scratch=True, assignment_map=[(r'state/.*', None)],
      state_transformation_fns=[adaptation.grow(told)], **restore)
  state, manager = utils.create_checkpoint_manager_and_restore(
      initializer, partitioner, cfg, cfg.path, jax.random.PRNGKey(0), model_dir=folder, use_orbax=True,
      save_checkpoint_cfg=utils.SaveCheckpointConfig(period=1))
  trainer = functools.partial(
      trainer_lib.Trainer, model=model, partitioner=partitioner, eval_names=[], summary_dir=None, rng=jax.random.PRNGKey(1),
      train_state_axes=initializer.train_state_axes, learning_rate_fn=lambda step: 0., num_microbatches=None)
  return state, manager, trainer


def _moved(before: np.ndarray, after: np.ndarray) -> list[int]:
  """Rows of which a bit changed."""
  return [i for i in range(len(after)) if before[i].tobytes() != after[i].tobytes()]


@functools.partial(jax.jit, static_argnums=0)
def _logits(transformer, params):
  """Logits [3, 4, 264] of the trained tasks for fixed tokens."""
  rng = np.random.default_rng(5)
  inputs, targets = rng.integers(3, 200, (3, 5), np.int32), rng.integers(3, 200, (3, 4), np.int32)
  return transformer.apply({'params': params}, inputs, targets, targets, task_ids=np.arange(3), enable_dropout=False)


class StepsTest(parameterized.TestCase):

  def test_only_what_is_tuned_moves_a_bit(self):
    self._moves('routing_and_new_skills', 2, (6, 7))
    self._gives_what_it_gave('routing_and_new_skills')

  @pytest.mark.slow
  def test_routing_alone(self):
    self._moves('routing', 0, ())
    self._gives_what_it_gave('routing')
    leaves = [leaf for leaf in jax.tree.leaves(_adapted('routing')[3]) if leaf.ndim]
    self.assertEqual({leaf.shape for leaf in leaves}, {(2, 3)})

  @pytest.mark.slow
  def test_all_skills_move_on_request(self):
    self._moves('all_skills', 2, tuple(range(8)))
    loaded, adapted = loading.load(_run()), loading.load(_adapted('all_skills')[-1])
    logits = [np.asarray(_logits(found.transformer, found.params)) for found in (loaded, adapted)]
    self.assertGreater(np.abs(logits[1] - logits[0]).max(), 1e-4)

  def _moves(self, tune, new_skills, moving):
    told, before, after, _, _ = _adapted(tune)
    self.assertLen(before, len(loading.shapes(small_runs.model().module)))
    for path, value in before.items():
      if small_runs.is_base(path):
        self.assertEqual(value.tobytes(), after[path].tobytes(), path)
      elif '/routing/' in path:
        self.assertEqual(_moved(value, after[path]), [3, 4], path)
      else:
        self.assertLen(value, SKILLS + new_skills)
        self.assertEqual(_moved(value, after[path]), list(moving), path)
    self.assertEqual(told.own_skills, tuple(range(SKILLS, SKILLS + new_skills)))

  def test_what_was_trained_is_where_it_was(self):
    trained = small_runs.flat(loading.load(_run()).params)
    _, before, _, _, _ = _adapted('routing_and_new_skills')
    for path, value in trained.items():
      part = tuple(map(slice, value.shape))
      self.assertEqual(before[path][part].astype(value.dtype).tobytes(), value.tobytes(), path)

  def _gives_what_it_gave(self, tune):
    """Bit by bit, for the trained tasks."""
    loaded, adapted = loading.load(_run()), loading.load(_adapted(tune)[-1])
    self.assertEqual(adapted.task_index.names, ('cb', 'copa', 'rte', 'wic', 'wsc'))
    logits = [np.asarray(_logits(found.transformer, found.params)).tobytes() for found in (loaded, adapted)]
    self.assertEqual(*logits)

  def test_the_optimizer_remembers_what_trains_alone(self):
    _, before, _, state, _ = _adapted('routing_and_new_skills')
    sizes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
      names = [getattr(key, 'key', None) for key in path]
      if 'skills' in names[-2:] or 'routing' in names[-2:]:
        sizes.setdefault('/'.join(map(str, names[-2:])), set()).add(leaf.shape[0])
    self.assertEqual(sizes, {'skills/down': {2}, 'skills/up': {2}, 'routing/common': {2}, 'routing/specific': {2}})

  def test_goes_on_from_its_own_checkpoint(self):
    told, _, after, _, folder = _adapted('routing_and_new_skills')
    state, manager, _ = _restored(told, folder, os.path.join(folder, 'checkpoint_3'))
    manager.close()
    for path, value in small_runs.flat(jax.device_get(state.params)).items():
      self.assertEqual(value.tobytes(), after[path].tobytes(), path)
    self.assertTrue(any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.param_states) if leaf.ndim))

  def test_adapted_again(self):
    _, _, after, _, folder = _adapted('routing_and_new_skills')
    told = adaptation.adaptation(folder, TaskIndex(('axb',)), tune='routing')
    self.assertEqual((told.task_rows, told.plan.router['num_specific']), ((5,), [1, 1, 1, 1, 1, 0]))
    nested = lambda leaves: {'target': traverse_util.unflatten_dict(leaves, sep='/')}
    state = adaptation.grow(told)(nested(after), nested(after))
    common = 'encoder/layers_0/attention/query/routing/common'
    self.assertEqual(small_runs.flat(state['target'])[common].tolist(), [*after[common].tolist(), [0.] * 3])

  @pytest.mark.slow
  def test_skills_are_no_part_of_the_base_and_keep_its_dtype(self):
    told = adaptation.adaptation(_run(), NEW, tune='routing')
    state, manager, _ = _restored(told, tempfile.mkdtemp(), dtype='bfloat16')
    manager.close()
    for path, value in small_runs.flat(state.params).items():
      self.assertEqual(value.dtype, jnp.bfloat16 if small_runs.is_base(path) else jnp.float32, path)

  @pytest.mark.slow
  def test_from_a_shared_adapter(self):
    folder = os.path.join(tempfile.mkdtemp(), 'shared')
    adapter_file.save(_run(), folder)
    state, manager, _ = _restored(adaptation.adaptation(folder, NEW), tempfile.mkdtemp())
    manager.close()
    for path, value in small_runs.flat(jax.device_get(state.params)).items():
      self.assertEqual(value.tobytes(), _adapted('routing_and_new_skills')[1][path].tobytes(), path)


class SettingsTest(parameterized.TestCase):

  @parameterized.product(name=tuple(sample_systems.ROUTERS), tune=adaptation.TUNES)
  def test_every_system_trains_or_says_what_does(self, name, tune):
    plan = plans.add(sample_systems.describe(name), ['wic'], num_specific=2 if name == 'several' else None,
                     matrix=sample_systems.GROWN_MATRIX[:4] if name == 'expert' else None)
    told = adaptation.Adaptation('trained', plan, ('wic',), tune)
    rows = {path: told.rows(path) for path in sample_systems.leaves(plan.after)}
    trains = [path for path, at in rows.items() if at is None or len(at)]
    learns = name not in ('private', 'fixed', 'expert', 'shared', 'uniform', 'moe_lora')
    own = name in ('learned', 'several', 'gumbel', 'fixed', 'private', 'cgc')
    wanted = {'routing': learns or name == 'fixed', 'routing_and_new_skills': own, 'all_skills': True}[tune]
    if wanted:
      adaptation._check_trains(told)
      self.assertNotEmpty(trains)
    else:
      with self.assertRaisesRegex(ValueError, f"TUNE = '{tune}', but {plan.router['kind']} .*: set TUNE = '"):
        adaptation._check_trains(told)
    for path in rows:
      # What all tasks use, such as the layers of a hyper-network, does not learn.
      if path.split('/')[-1] in ('hidden_kernel', 'hidden_bias', 'weights_kernel', 'weights_bias') or (
          name in ('task_moe', 'moe_lora') and path.endswith('/gate')):
        self.assertEqual(rows[path], ())
    self.assertEqual(told.rows('encoder/layers_0/attention/query/kernel'), ())
    self.assertIsNone(told.rows('clock'))

  @parameterized.parameters(
      (dict(tune='skills'), "TUNE = 'skills': write one of routing, routing_and_new_skills, all_skills"),
      (dict(trained='/no/such/run'), '/no/such/run'),
      (dict(tasks=TaskIndex(('rte', 'wic'))), 'has rte already: adapt to other tasks, or set TRAIN_KNOWN_TASKS = True'),
      (dict(num_specific={'wik': 1}), 'numbers of skills were given for wik, which are no new tasks'),
      (dict(num_specific=0), "gives the new tasks no skills of their own: set TUNE = 'routing' or 'all_skills'"))
  def test_refused(self, changed, message):
    with self.assertRaisesRegex((ValueError, OSError), message):
      adaptation.adaptation(**{'trained': _run(), 'tasks': NEW, **changed})

  def test_not_into_the_folder_of_the_training(self):
    for folder in (_run(), _run() + '/'):
      with self.assertRaisesRegex(ValueError, 'MODEL_DIR is the folder of TRAINED'):
        adaptation.adaptation(_run(), NEW, model_dir=folder)

  def test_known_tasks_on_request(self):
    told = adaptation.adaptation(_run(), TaskIndex(('copa', 'wic')), train_known_tasks=True)
    self.assertEqual((told.task_rows, told.own_skills), ((1, 3), (4, 6)))
    told = adaptation.adaptation(_run(), TaskIndex(('copa',)), train_known_tasks=True)
    self.assertFalse(told.plan.changes)
    self.assertEqual((told.task_rows, told.own_skills), ((1,), (4,)))

  def test_another_base(self):
    told = adaptation.adaptation(_run(), NEW)
    with self.assertRaisesRegex(ValueError, 'base'):
      _restored(told, tempfile.mkdtemp(), base_path=small_runs.files().other)

  def test_a_checkpoint_of_another_run_or_without_a_parameter(self):
    told = adaptation.adaptation(_run(), NEW)
    with self.assertRaisesRegex(ValueError, 'has no encoder/layers_0/attention/query/skills/down and 1 more'):
      wanted = {'encoder': {'layers_0': {'attention': {'query': {'skills': {'down': 0, 'up': 0}}}}}}
      adaptation.grow(told)({'target': {'encoder': {}}}, {'target': wanted})
    # As google-research/t5x shows a checkpoint: where the values are.
    shapes = loading.shapes(small_runs.model().module)
    nested = traverse_util.unflatten_dict(dict.fromkeys(shapes, {'driver': 'zarr'}), sep='/')
    with self.assertRaisesRegex(ValueError, 'the installed t5x does not show the values .* python -m cpoly_jax.growth'):
      adaptation.grow(told)({'target': nested}, {'target': traverse_util.unflatten_dict(shapes, sep='/')})
    state = {'target': {}}
    self.assertIs(adaptation.grow(told)(state, {}, is_resuming=True), state)
    model = adaptation.model(told, input_vocabulary=None, output_vocabulary=None, optimizer_def=None)
    model.check_checkpoint_metadata(told.plan.before)
    model.check_checkpoint_metadata(told.plan.after)
    with self.assertRaisesRegex(ValueError, 'was trained with another TaskIndex'):
      model.check_checkpoint_metadata({**told.plan.after, 'task_index': {'tasks': ['cb', 'copa', 'rte', 'wsc', 'wic']}})

  def test_vocabulary(self):
    self.assertEqual((adaptation.vocabulary_path(_run()), adaptation.extra_ids(_run())), ('bytes', 0))


if __name__ == '__main__':
  absltest.main()
