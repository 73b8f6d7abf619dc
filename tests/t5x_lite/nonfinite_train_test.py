"""A whole run of `train.train` in which a loss, or an update, is not finite: which checkpoints and records are left."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import reversal  # pylint: disable=g-import-not-at-top
from t5x import nonfinite
from t5x import trainer as trainer_lib
from t5x import utils

STEPS, BAD = 9, 5
POISON = 383  # A token that no word has.


class _PoisonedTrainer(trainer_lib.Trainer):
  """Puts the poison into the batch of step `at`."""

  at = BAD

  def train(self, batch_iter, num_steps, start_step=None):

    def poisoned():
      for i in range(num_steps):
        batch = dict(next(batch_iter))
        if start_step + i + 1 == self.at:
          batch['decoder_target_tokens'] = np.full_like(batch['decoder_target_tokens'], POISON)
        yield batch

    return super().train(poisoned(), num_steps, start_step)


def _model(policy):
  """The model of the task; its loss is not a number where there is poison."""
  model = reversal.model()
  loss_fn = model.loss_fn

  def poisoned(params, batch, dropout_rng):
    loss, metrics = loss_fn(params, batch, dropout_rng)
    return jnp.where(jnp.any(batch['decoder_target_tokens'] == POISON), jnp.nan, 1.0) * loss, metrics

  model.loss_fn, model.nonfinite = poisoned, policy
  return model


def _record(folder):
  return [json.loads(line) for line in pathlib.Path(folder, 'train/metrics.jsonl').read_text().splitlines()]


def _checkpoints(folder):
  return sorted(int(p.name.split('_')[1]) for p in pathlib.Path(folder).glob('checkpoint_*'))


class NonfiniteTrainTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tempfile.mkdtemp()

  def _train(self, policy='stop', cls=_PoisonedTrainer, folder=None, learning_rate_fn=None, **overrides):
    """Trains; returns (error or None, state or None, what was printed)."""
    out = io.StringIO()
    trainer = functools.partial(cls, num_microbatches=None, learning_rate_fn=learning_rate_fn or (lambda step: 1e-3))
    with contextlib.redirect_stdout(out):
      try:
        _, state = reversal.train_without_evaluation(folder or self.folder, STEPS, model=_model(policy), trainer_cls=trainer,
                                                     **overrides)
      except nonfinite.NonfiniteError as error:
        return str(error), None, out.getvalue()
    return None, state, out.getvalue()

  def test_stop_saves_the_last_good_state_from_which_a_mended_run_goes_on(self):
    error, _, _ = self._train()
    self.assertStartsWith(error, f'The loss of step {BAD} is not finite')
    self.assertEndsWith(error, f'checkpoint_{BAD - 1} is the last good state.')
    self.assertNotIn('\n', error)
    self.assertEqual(_checkpoints(self.folder), [0, 3, BAD - 1])
    record = _record(self.folder)
    self.assertEqual([line['step'] for line in record], [1, 2, 3, 4, 5])
    self.assertEqual(record[-1], {'step': BAD, 'loss': None})
    # As it was: the same command ends the same way, and leaves the same behind.
    again, _, _ = self._train()
    self.assertEqual((again, _checkpoints(self.folder), _record(self.folder)), (error, [0, 3, BAD - 1], record))
    # Mended.
    _, state, _ = self._train(cls=trainer_lib.Trainer)
    whole = tempfile.mkdtemp()
    _, expected, _ = self._train(cls=trainer_lib.Trainer, folder=whole)
    self.assertEqual(_record(self.folder), _record(whole))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.state_dict()), jax.device_get(expected.state_dict()))

  @pytest.mark.slow
  def test_skip_goes_on(self):
    error, state, out = self._train('skip')
    self.assertIsNone(error)
    self.assertIn(f'The loss of step {BAD} is not finite, in this batch: skipped (1 so far)', out)
    self.assertEqual(int(state.step), STEPS)
    self.assertEqual([line['step'] for line in _record(self.folder) if line['loss'] is None], [BAD])
    self.assertLen(_record(self.folder), STEPS)

  @pytest.mark.slow
  def test_a_position_in_the_data_beyond_the_step_is_not_saved(self):
    cfg = utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=3, save_dataset=True))
    error, _, _ = self._train(checkpoint_cfg=cfg)
    self.assertNotIn('checkpoint_', error)
    self.assertEqual(_checkpoints(self.folder), [0, 3])

  @pytest.mark.slow
  def test_an_update_that_spoils_the_parameters_is_not_saved(self):
    for step, reason in ((4, 'The loss of step 6 is not finite'), (5, r'\w.* is not finite at step 6, which is not saved')):
      folder = tempfile.mkdtemp()
      # The update from this step, at which the loss and the gradient are finite.
      error, _, _ = self._train(cls=trainer_lib.Trainer, folder=folder,
                                learning_rate_fn=lambda at, step=step: jnp.where(at == step, jnp.nan, 1e-3))
      self.assertRegex(error, reason)
      self.assertEqual(_checkpoints(folder), [0, 3])


if __name__ == '__main__':
  absltest.main()
