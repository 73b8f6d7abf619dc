"""A byte-level task for the tests: write a word backwards. And a tiny model that can learn it."""

from __future__ import annotations

import functools
import random

import seqio
from t5x import adafactor
from t5x import gin_utils
from t5x import models
from t5x import partitioning
from t5x import train as train_lib
from t5x import trainer as trainer_lib
from t5x import utils
from t5x.examples.t5 import network
import tensorflow as tf

LENGTHS = {'inputs': 12, 'targets': 12}
VALIDATION_SIZE = 8


def _words(split: str) -> list[str]:
  rng = random.Random(split)
  number = 64 if split == 'train' else VALIDATION_SIZE
  return [''.join(rng.choices('abcdef', k=rng.randint(3, 7))) for _ in range(number)]


def _dataset_fn(split, shuffle_files, seed=None):
  del shuffle_files, seed
  words = _words(split)
  return tf.data.Dataset.from_tensor_slices({'inputs': words, 'targets': [w[::-1] for w in words]})


def exact_match(targets, predictions):
  return {'em': 100.0 * sum(t == p for t, p in zip(targets, predictions)) / len(targets)}


def mean_score(targets, scores):
  del targets
  return {'log_likelihood': sum(scores) / len(scores)}


_FEATURES = {k: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for k in ('inputs', 'targets')}


def _add(name, splits=('train', 'validation'), metric_fns=(exact_match,)):
  seqio.TaskRegistry.add(
      name, source=seqio.FunctionDataSource(_dataset_fn, splits=splits),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
      output_features=_FEATURES, metric_fns=list(metric_fns))


if 'rev' not in seqio.TaskRegistry.names():
  _add('rev')
  _add('rev_train_only', splits=('train',))
  _add('rev_scored', metric_fns=(exact_match, mean_score))
  _add('rev_no_metrics', metric_fns=())
  seqio.MixtureRegistry.add('rev_mix', [('rev', 1), ('rev_train_only', 1)])


def transformer(dropout_rate: float = 0.1) -> network.Transformer:
  return network.Transformer(network.T5Config(
      vocab_size=384, dtype='float32', emb_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, head_dim=8,
      mlp_dim=32, mlp_activations=('gelu', 'linear'), dropout_rate=dropout_rate))


def model(optimizer_def=None, dropout_rate: float = 0.1) -> models.EncoderDecoderModel:
  vocabulary = seqio.ByteVocabulary()
  return models.EncoderDecoderModel(transformer(dropout_rate), vocabulary, vocabulary,
                                    optimizer_def or adafactor.Adafactor(), z_loss=1e-4)


def partitioner() -> partitioning.PjitPartitioner:
  return partitioning.PjitPartitioner(num_partitions=1)


def config(split: str, batch_size: int = 8, name: str = 'rev', **overrides) -> utils.DatasetConfig:
  values = dict(mixture_or_task_name=name, task_feature_lengths=LENGTHS, split=split, batch_size=batch_size,
                shuffle=split == 'train', seed=None if split == 'train' else 42, pack=split == 'train')
  return utils.DatasetConfig(**{**values, **overrides})


def train(model_dir: str, total_steps: int = 6, **overrides):
  """Runs `train.train` on the task: every 3 steps a checkpoint and an evaluation."""
  arguments = dict(
      model=model(), model_dir=model_dir, total_steps=total_steps, eval_steps=2, eval_period=3, random_seed=0,
      train_dataset_cfg=config('train'), train_eval_dataset_cfg=config('validation', pack=True),
      infer_eval_dataset_cfg=config('validation', task_feature_lengths=None),
      checkpoint_cfg=utils.CheckpointConfig(save=utils.SaveCheckpointConfig(dtype='float32', period=3)),
      partitioner=partitioner(), summarize_config_fn=gin_utils.summarize_gin_config, trainer_cls=trainer(),
      inference_evaluator_cls=functools.partial(
          seqio.Evaluator, logger_cls=[seqio.PyLoggingLogger, seqio.TensorBoardLogger, seqio.JSONLogger]))
  return train_lib.train(**{**arguments, **overrides})


def train_without_evaluation(model_dir: str, total_steps: int = 6, **overrides):
  """As `train`, quicker."""
  return train(model_dir, total_steps, **{
      'train_eval_dataset_cfg': None, 'infer_eval_dataset_cfg': None, 'eval_period': 0, **overrides})


def trainer(cls=trainer_lib.Trainer):
  return functools.partial(cls, learning_rate_fn=utils.create_learning_rate_scheduler('constant', 1e-3),
                           num_microbatches=None)
