"""Decoding beside Hugging Face's `generate`: tokens per second of the same T5 on the same machine, greedy and with beams.

    pip install -e '.[parity]'
    python -m benchmarks.decode --rounds=7

T5 1.1 small by default, float32, random weights, the same number of threads, no end of sequence, so that all tokens are made.
The base alone and with systems of skills, a task for each example. Programs run in turns. What limits greedy search is that
each step reads the decoder's weights: the table has the share of this machine's reading rate that a step attains.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence

from absl import app
from absl import flags
import gin
import jax
import jax.numpy as jnp
import numpy as np
import seqio

from benchmarks import train_step
from cpoly_jax import decoding
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex
from cpoly_jax.training.models import CPolyModel

_SIZE = flags.DEFINE_string('size', 't5_1_1/small', 'Model file below gin_configs/models.')
_BEAMS = flags.DEFINE_list('beams', ['1', '4'], 'Numbers of beams; 1 is greedy.')
_SYSTEMS = flags.DEFINE_list('systems', ['', 'cpoly'], 'System files of gin_configs/systems; an empty one is the base alone.')
_TASKS = flags.DEFINE_integer('num_tasks', 8, 'T.')
_PEER = flags.DEFINE_bool('peer', True, 'Also measure transformers.')
flags.set_default(train_step.TARGETS, 64)  # All of them are made.

NO_EOS = 2 ** 30


@dataclasses.dataclass
class Program:
  """Something that makes `tokens` tokens, and the seconds of its runs."""

  name: str
  beams: int
  tokens: int
  call: Callable[[], object]
  seconds: list[float] = dataclasses.field(default_factory=list)

  def run(self, times: int) -> None:
    """Makes all tokens, some times, and notes the seconds of each."""
    for _ in range(times):
      start = time.perf_counter()
      self.call()
      self.seconds.append(time.perf_counter() - start)

  @property
  def median(self) -> float:
    """Median seconds."""
    return statistics.median(self.seconds)


class Endless(seqio.ByteVocabulary):
  """A vocabulary whose end of sequence no model generates."""

  @property
  def eos_id(self) -> int:
    """Beyond every vocabulary."""
    return NO_EOS


@dataclasses.dataclass
class Decoder:
  """A model with its parameters and a batch.

  Attributes:
    model: the model; its decoding function is beam search.
    params: random parameters.
    batch: as T5X's models take it.
  """

  model: CPolyModel
  params: dict
  batch: dict

  @property
  def bytes_per_step(self) -> int:
    """Bytes of the base that every step reads: the decoder's, without what makes the inputs' keys and values."""
    once = ('encoder_decoder_attention/key/', 'encoder_decoder_attention/value/', 'skills', 'routing', 'relpos_bias')
    tied = self.model.module.config.logits_via_embedding

    def is_read(path: str) -> bool:
      if path == 'token_embedder/embedding':
        return tied  # As the logits' matrix; of the tokens' own rows there are few.
      return path.startswith('decoder/') and not any(part in path for part in once)

    paths = jax.tree_util.tree_leaves_with_path(self.params)
    return sum(leaf.nbytes for path, leaf in paths if is_read(jax.tree_util.keystr(path, simple=True, separator='/')))

  def program(self, name: str, beams: int) -> Program:
    """Compiles the search with some beams."""
    predict = jax.jit(functools.partial(self.model.predict_batch_with_aux, num_decodes=beams))
    predict = predict.lower(self.params, self.batch).compile()
    tokens = self.batch['decoder_target_tokens'].size
    return Program(name, beams, tokens, lambda: jax.block_until_ready(predict(self.params, self.batch)))

  def encoding(self) -> Program:
    """Compiles the encoder alone."""
    module = self.model._bound(self.batch).module  # pylint: disable=protected-access
    run = jax.jit(lambda params, tokens: module.apply({'params': params}, tokens, enable_dropout=False, method=module.encode))
    inputs = self.batch['encoder_input_tokens']
    program = run.lower(self.params, inputs).compile()
    return Program('encoder', 0, inputs.size, lambda: jax.block_until_ready(program(self.params, inputs)))


def decoder(size: str, system: str, shape: Sequence[int], num_tasks: int) -> Decoder:
  """Builds a model from gin files.

  Args:
    size: model file below gin_configs/models.
    system: name of a system file, or '' for the base.
    shape: B, Li and the number of new tokens.
    num_tasks: T.
  """
  files = [f'gin_configs/models/{size}.gin', *([f'gin_configs/systems/{system}.gin'] if system else [])]
  gin.clear_config()
  files.append('benchmarks/train_step.gin')
  gin.parse_config_files_and_bindings(files, [f'NUM_TASKS = {num_tasks}'], finalize_config=False)
  module = gin.get_configurable(network.Transformer)()
  model = CPolyModel(module, seqio.ByteVocabulary(), Endless(), None, decode_fn=decoding.beam_search,
                     task_index=TaskIndex(tuple(f'task{i}' for i in range(num_tasks))))
  batch = train_step.batch_of(*shape, num_tasks, module.config.vocab_size)
  shapes = {key: value.shape for key, value in batch.items()}
  params = jax.jit(lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)['params'])()
  return Decoder(model, params, {key: jnp.asarray(value) for key, value in batch.items()})


def transformers_model(config: network.T5Config):
  """Returns transformers' T5 of the same sizes, with random weights, for inference."""
  os.environ.setdefault('USE_TF', '0')
  import torch
  import transformers
  torch.manual_seed(0)
  torch.set_num_threads(os.cpu_count())
  gated = len(config.mlp_activations) > 1
  return transformers.T5ForConditionalGeneration(transformers.T5Config(
      vocab_size=config.vocab_size, d_model=config.emb_dim, d_kv=config.head_dim, d_ff=config.mlp_dim,
      num_layers=config.num_encoder_layers, num_decoder_layers=config.num_decoder_layers, num_heads=config.num_heads,
      dropout_rate=0., feed_forward_proj='gated-gelu' if gated else 'relu', tie_word_embeddings=config.logits_via_embedding,
      decoder_start_token_id=0, eos_token_id=None)).eval()


def peer_program(model, inputs: np.ndarray, new_tokens: int, beams: int) -> Program:
  """`generate` of transformers on inputs [B, Li]."""
  import torch
  inputs = torch.tensor(np.asarray(inputs), dtype=torch.long)
  mask = torch.ones_like(inputs)

  def call():
    with torch.inference_mode():
      made = model.generate(input_ids=inputs, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=new_tokens)
    if made.shape[1] != new_tokens + 1:
      raise RuntimeError(f'generate made {made.shape[1] - 1} tokens instead of {new_tokens}')

  return Program('generate', beams, inputs.shape[0] * new_tokens, call)


def reading_rate(num_bytes: int, repeats: int = 10) -> float:
  """Returns the bytes per second at which this machine sums a float32 array of that many bytes, the best of some."""
  x = jnp.ones(num_bytes // 4, jnp.float32)
  total = jax.jit(jnp.sum)
  jax.block_until_ready(total(x))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(total(x))
    times.append(time.perf_counter() - start)
  return num_bytes / min(times)


def main(argv) -> None:
  del argv
  shape = train_step.shape()
  beams = [int(n) for n in _BEAMS.value]
  decoders = {system or 'base': decoder(_SIZE.value, system, shape, _TASKS.value) for system in _SYSTEMS.value}
  programs = [made.program(name, n) for name, made in decoders.items() for n in beams]
  encoding = next(iter(decoders.values())).encoding()
  if _PEER.value:
    made = next(iter(decoders.values()))
    peer = transformers_model(made.model.module.config)
    programs += [peer_program(peer, made.batch['encoder_input_tokens'], shape[-1], n) for n in beams]
  train_step.alternate([*programs, encoding], train_step.ROUNDS.value)
  by_generate = {program.beams: program.median for program in programs if program.name == 'generate'}
  weights = next(iter(decoders.values())).bytes_per_step
  rate = reading_rate(weights)
  print(f'a step reads {weights / 1e6:.1f} MB of weights, at {rate / 1e9:.1f} GB/s in {1e3 * weights / rate:.1f} ms; '
        f'the encoder takes {1e3 * encoding.median:.0f} ms')
  print(f'{"program":12} {"beams":>5} {"ms":>9} {"tokens/s":>9} {"x generate":>10} {"ms a step":>9} {"reading/step":>12}')
  rows = []
  for program in programs:
    step = (program.median - encoding.median) / shape[-1]
    row = {'program': program.name, 'beams': program.beams, 'seconds': program.median,
           'tokens_per_second': program.tokens / program.median, 'step_seconds': step, 'reading_share': weights / rate / step}
    told = ''
    if program.beams in by_generate:
      row['times_generate'] = by_generate[program.beams] / program.median
      told = f'{row["times_generate"]:.2f}'
    rows.append(row)
    print(f'{program.name:12} {program.beams:5} {1e3 * program.median:9.1f} {row["tokens_per_second"]:9.0f} {told:>10} '
          f'{1e3 * step:9.1f} {row["reading_share"]:12.2f}')
  train_step.write_json({'bytes_per_step': weights, 'reading_bytes_per_second': rate, 'encoder_seconds': encoding.median,
                         'programs': rows})


if __name__ == '__main__':
  app.run(main)
