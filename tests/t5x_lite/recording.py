"""For runs of several processes: a task, a model that four devices can share, and a trainer that writes down what it reads."""

from __future__ import annotations

import json
import os
import signal
import time

import jax
import numpy as np
import seqio

from t5x import adafactor
from t5x import models
from t5x import trainer
from t5x.examples.t5 import network
from tests.t5x_lite import reversal

# The task of reversal.py with the number of its examples, so that its batches are the same for every number of processes.
if 'rev_counted' not in seqio.TaskRegistry.names():
  _task = seqio.get_mixture_or_task('rev')
  seqio.TaskRegistry.add(
      'rev_counted', source=seqio.FunctionDataSource(
          reversal._dataset_fn, splits=('train',), num_input_examples={'train': len(reversal._words('train'))}),
      preprocessors=_task.preprocessors, output_features=_task.output_features)


def model() -> models.EncoderDecoderModel:
  """That of reversal.py with four heads."""
  config = network.T5Config(
      vocab_size=384, dtype='float32', emb_dim=16, num_heads=4, num_encoder_layers=1, num_decoder_layers=1, head_dim=4,
      mlp_dim=32, mlp_activations=('gelu', 'linear'), dropout_rate=0.1)
  vocabulary = seqio.ByteVocabulary()
  return models.EncoderDecoderModel(network.Transformer(config), vocabulary, vocabulary, adafactor.Adafactor())


class Trainer(trainer.Trainer):
  """Writes the inputs of each step, as this process reads them, to read_<process>.jsonl in the folder of the run."""

  def __init__(self, *args, signal_name=None, signal_process=0, signal_step=0, pause=0.0, **kwargs):
    """As `trainer.Trainer`.

    Args:
      *args: of the trainer.
      signal_name: e.g. 'SIGKILL', sent after `signal_step`.
      signal_process: the process that gets it.
      signal_step: a step.
      pause: seconds to sleep after each step.
      **kwargs: of the trainer.
    """
    super().__init__(*args, **kwargs)
    self._folder = kwargs['summary_dir']
    self._signal = (signal_name, signal_process, signal_step)
    self._pause = pause

  def train(self, batch_iter, num_steps, start_step=None):
    shown = self.on_step

    def on_step(step, metrics):
      name, process, at = self._signal
      if name and step == at and jax.process_index() == process:
        jax.block_until_ready(metrics)
        os.kill(os.getpid(), getattr(signal, name))
      time.sleep(self._pause)
      shown(step, metrics)

    self.on_step = on_step
    try:
      return super().train(self._recorded(batch_iter), num_steps, start_step)
    finally:
      self.on_step = shown

  def _recorded(self, batch_iter):
    path = os.path.join(self._folder, f'read_{jax.process_index()}.jsonl')
    for batch in batch_iter:
      with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(np.asarray(batch['encoder_input_tokens']).tolist()) + '\n')
      yield batch
