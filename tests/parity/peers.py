"""What the parity tests share: torch, transformers and PEFT if they are there, and the way between their parameters and ours.

Notation: T tasks, S skills, H heads (PEFT: n_splits), r rank, d inputs and o outputs of a projection.
"""

from __future__ import annotations

import contextlib
import functools
import os
import unittest
from unittest import mock
from collections.abc import Callable, Iterator, Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import testing
from cpoly_jax.adapters import Adapter, Routed
from cpoly_jax.t5 import layers, network

# transformers would import TensorFlow and Flax, which are there for us, only to offer models in them.
os.environ.setdefault('USE_TF', '0')
os.environ.setdefault('USE_FLAX', '0')

PEERS = ('torch', 'transformers', 'peft')
REQUIRED = 'CPOLY_PARITY'

try:
  import torch
  import transformers
  import peft
  absent = None
except ModuleNotFoundError as error:
  if error.name not in PEERS:
    raise
  absent = error.name

Arrays = Mapping[str, np.ndarray]


def require() -> None:
  """Call it in `setUpModule`.

  Raises:
    unittest.SkipTest: a peer is absent.
    ModuleNotFoundError: the same where CPOLY_PARITY=1 says that they have to be there.
  """
  if absent is None:
    return
  if os.environ.get(REQUIRED) == '1':
    raise ModuleNotFoundError(f'{REQUIRED}=1, but {absent} is absent: install the extra `parity` of setup.py')
  raise unittest.SkipTest(f'{absent} is absent; the parity tests run with: bash launch/test.sh --all')


def array(tensor) -> np.ndarray:
  """A copy of a tensor."""
  return tensor.detach().numpy().copy()


def randomize(module, seed: int = 0, scale: float = 0.5) -> None:
  """Moves every parameter that is learned by normal noise, so that nothing is zero by its start."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for parameter in module.parameters():
      if parameter.requires_grad:
        parameter += torch.tensor(rng.normal(scale=scale, size=tuple(parameter.shape)), dtype=parameter.dtype)


def assert_close(ours, theirs, tolerance: float) -> None:
  """Asserts that nested dicts of arrays are the same, leaf by leaf, to a relative and absolute tolerance."""
  jax.tree_util.tree_map_with_path(
      lambda path, a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path)),
      ours, theirs)


@contextlib.contextmanager
def same_noise(seed: int = 0) -> Iterator[list[np.ndarray]]:
  """Inside, the n-th draw of torch's relaxed Bernoulli and the n-th of ours have the same uniform variables.

  Both sides must draw in the same order and the same shapes, theirs first.

  Yields:
    The draws of torch.
  """
  rng = np.random.default_rng(seed)
  drawn: list[np.ndarray] = []
  left: list[np.ndarray] = []

  def rand(shape, **_):
    u = rng.uniform(0.02, 0.98, size=tuple(shape)).astype(np.float32)
    drawn.append(u)
    left.append(u)
    return torch.from_numpy(u)

  def logistic(key, shape, dtype):
    del key
    u = left.pop(0).astype(np.float64)
    if u.shape != tuple(shape):
      raise AssertionError(f'ours draws noise of shape {tuple(shape)} where PEFT drew {u.shape}')
    return jnp.asarray(np.log(u) - np.log1p(-u), dtype)

  with mock.patch.object(torch, 'rand', rand), mock.patch.object(jax.random, 'logistic', logistic):
    yield drawn
  if left:
    raise AssertionError(f'PEFT drew {len(drawn)} times, and ours {len(drawn) - len(left)} times')


# --- Parameters of PEFT in our shapes; gradients go the same way.


def poly_parameters(parameters: Arrays, heads: int) -> dict[str, np.ndarray]:
  """Returns our parameters of one projection for PEFT's Poly.

  Args:
    parameters: `poly_lora_A` [H, S, d/H, r], `poly_lora_B` [H, S, r, o/H], `poly_router` [T, H*S].
    heads: H.

  Returns:
    `skills/down` [S, d, r], `skills/up` [S, r, o] and `routing/common` [T, S] or [T, H, S].
  """
  a, b, logits = (parameters[name] for name in ('poly_lora_A', 'poly_lora_B', 'poly_router'))
  _, s, _, r = a.shape
  return {'skills/down': a.transpose(1, 0, 2, 3).reshape(s, -1, r),
          'skills/up': b.transpose(1, 2, 0, 3).reshape(s, r, -1),
          'routing/common': logits if heads == 1 else logits.reshape(-1, heads, s)}


def lora_parameters(parameters: Arrays) -> dict[str, np.ndarray]:
  """Returns `skills/down` [1, d, r] and `skills/up` [1, r, o] for PEFT's `lora_A` [r, d] and `lora_B` [o, r]."""
  return {'skills/down': parameters['lora_A'].T[None], 'skills/up': parameters['lora_B'].T[None]}


def ia3_gradients(gradients: Arrays) -> dict[str, np.ndarray]:
  """Returns the gradient of `skills/scale` [1, n] for that of PEFT's `ia3_l` [n, 1] or [1, n]."""
  return {'skills/scale': gradients['ia3_l'].reshape(1, -1)}


def ia3_parameters(parameters: Arrays) -> dict[str, np.ndarray]:
  """Returns `skills/scale` [1, n] for PEFT's `ia3_l`: theirs is the factor itself, and ours is added to 1."""
  return {'skills/scale': parameters['ia3_l'].reshape(1, -1) - 1}


def adapted(module, value: Callable[..., np.ndarray], convert: Callable[[Arrays], Arrays]) -> dict[str, np.ndarray]:
  """Collects what PEFT added to a model.

  Args:
    module: a model of PEFT.
    value: what to take of a parameter: its values or its gradient.
    convert: to our parameters of one projection.

  Returns:
    Ours by path, e.g. `encoder/layers_0/attention/query/skills/down`.
  """
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, parameter in module.named_parameters():
    if not parameter.requires_grad:
      continue
    # base_model.model.<projection>.poly_lora_A.default, or .poly_router.default.module_logits
    kind = next(part for part in name.split('.') if part.startswith(('poly_', 'lora_', 'ia3_')))
    projection = our_path(name.removeprefix('base_model.model.').split(f'.{kind}')[0])
    found.setdefault(projection, {})[kind] = value(parameter)
  return {f'{path}/{name}'.lstrip('/'): leaf for path, parts in found.items() for name, leaf in convert(parts).items()}


def values_and_gradients(module, convert_values, convert_gradients=None) -> tuple[dict, dict]:
  """Returns what PEFT added to a model, and its gradients after a backward pass, as ours, by path."""
  return (adapted(module, array, convert_values),
          adapted(module, lambda p: array(p.grad), convert_gradients or convert_values))


# --- One adapted linear projection.


def adapted_linear(config, d: int, o: int):
  """Returns PEFT's model of one linear projection without bias, adapted with everything moved off its start."""
  with torch.random.fork_rng():
    torch.manual_seed(0)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(d, o, bias=False)), config)
  randomize(model)
  return model


def run_linear(model, x: np.ndarray, cotangent: np.ndarray, **inputs) -> tuple[np.ndarray, np.ndarray]:
  """Returns PEFT's output [B, L, o] for x [B, L, d], and the gradient of sum(output * cotangent) by x."""
  x = torch.tensor(x, requires_grad=True)
  y = model.base_model(x, **inputs)
  (y * torch.tensor(cotangent)).sum().backward()
  return array(y), array(x.grad)


def run_our_linear(adapter: Adapter, parameters: Arrays, kernel: np.ndarray, x: np.ndarray, cotangent: np.ndarray,
                   task_ids: np.ndarray, deterministic: bool):
  """Runs our adapted projection.

  Args:
    adapter: one whose targets match the empty path, which the projection has as it stands alone.
    parameters: ours, by path.
    kernel: [d, o].
    x: [B, L, d].
    cotangent: [B, L, o].
    task_ids: [B].
    deterministic: evaluation.

  Returns:
    The output [B, L, o], the gradients of sum(output * cotangent) by the parameters, and by x.
  """
  layer = layers.Projection(kernel.shape[1], ('embed', 'joined_kv'))
  routed = Routed(jnp.asarray(task_ids), deterministic, adapter)

  def loss(parameters, x):
    params = flax.traverse_util.unflatten_dict({'kernel': kernel, **parameters}, sep='/')
    y = layer.apply({'params': params}, x, routed, rngs={'routing': jax.random.PRNGKey(0)})
    return jnp.sum(y * cotangent), y

  (_, y), (by_parameters, by_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(parameters, jnp.asarray(x))
  return y, by_parameters, by_x


# --- A whole small T5 1.1.

_BLOCKS = {'SelfAttention': {'encoder': 'attention', 'decoder': 'self_attention'},
           'EncDecAttention': {'decoder': 'encoder_decoder_attention'},
           'DenseReluDense': {'encoder': 'mlp', 'decoder': 'mlp'}}
_NORMS = {('encoder', 0): 'pre_attention_layer_norm', ('encoder', 1): 'pre_mlp_layer_norm',
          ('decoder', 0): 'pre_self_attention_layer_norm', ('decoder', 1): 'pre_cross_attention_layer_norm',
          ('decoder', 2): 'pre_mlp_layer_norm'}
_PROJECTIONS = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out', 'wi_0': 'wi_0', 'wi_1': 'wi_1', 'wo': 'wo'}
_TOP = {'shared': 'token_embedder/embedding', 'lm_head': 'decoder/logits_dense/kernel',
        'encoder.final_layer_norm': 'encoder/encoder_norm/scale', 'decoder.final_layer_norm': 'decoder/decoder_norm/scale'}


def our_path(name: str) -> str:
  """Returns our path of a module of transformers' T5, e.g. decoder.block.1.layer.2.DenseReluDense.wi_0; '' for `0`."""
  if name in _TOP:
    return _TOP[name]
  if name == '0':
    return ''
  stack, _, block, _, position, *rest = name.split('.')
  layer = f'{stack}/layers_{block}'
  match rest:
    case ['layer_norm']:
      return f'{layer}/{_NORMS[stack, int(position)]}/scale'
    case [_, 'relative_attention_bias']:
      return f'{stack}/relpos_bias/rel_embedding'
    case [kind, projection]:
      return f'{layer}/{_BLOCKS[kind][stack]}/{_PROJECTIONS[projection]}'
  raise ValueError(f'no parameter of ours for {name}')


@functools.cache
def _base_t5():
  """transformers' T5 1.1 with the sizes of `testing.small_config`, two layers each, and random weights."""
  ours = our_config()
  config = transformers.T5Config(
      vocab_size=ours.vocab_size, d_model=ours.emb_dim, d_kv=ours.head_dim, num_heads=ours.num_heads, d_ff=ours.mlp_dim,
      num_layers=ours.num_encoder_layers, num_decoder_layers=ours.num_decoder_layers, feed_forward_proj='gated-gelu',
      dropout_rate=0., tie_word_embeddings=False, decoder_start_token_id=0)
  with torch.random.fork_rng():
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(config)


def our_config() -> network.T5Config:
  """The sizes of the small T5."""
  return testing.small_config(num_encoder_layers=2, num_decoder_layers=2)


def base_parameters() -> dict[str, np.ndarray]:
  """Returns the weights of the small T5 as ours, by path."""
  result = {}
  for name, parameter in _base_t5().named_parameters():
    path, value = our_path(name.removesuffix('.weight')), array(parameter)
    turned = value.ndim == 2 and not path.endswith('embedding') or path.endswith('rel_embedding')
    whole = path.endswith(('embedding', 'kernel', 'scale'))
    result[path if whole else f'{path}/kernel'] = value.T if turned else value
  return result


def adapted_t5(config):
  """Returns PEFT's model of the small T5, with everything that it adds moved off its start."""
  base = transformers.T5ForConditionalGeneration(_base_t5().config)
  base.load_state_dict(_base_t5().state_dict())
  model = peft.get_peft_model(base, config)
  randomize(model, scale=0.3)
  return model


def batch() -> dict[str, np.ndarray]:
  """Returns inputs and targets [4, L] with padding, and a cotangent of the logits, zero at padding."""
  rng = np.random.default_rng(5)
  inputs, targets = (rng.integers(2, 32, size=(4, length), dtype=np.int32) for length in (7, 5))
  inputs[1, 4:], targets[0, 3:], targets[3, 4:] = 0, 0, 0
  cotangent = rng.normal(size=(4, 5, 32)).astype(np.float32) * (targets > 0)[..., None]
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return {'inputs': inputs, 'decoder_inputs': shifted, 'targets': targets, 'cotangent': cotangent}


def run_t5(model, **kwargs) -> np.ndarray:
  """Returns PEFT's logits of the batch [4, Lt, V], zero at padding, after a backward pass from the cotangent."""
  b = {name: torch.tensor(value) for name, value in batch().items()}
  logits = model(
      input_ids=b['inputs'].long(), attention_mask=(b['inputs'] > 0).long(), decoder_input_ids=b['decoder_inputs'].long(),
      decoder_attention_mask=(b['targets'] > 0).long(), **kwargs).logits
  (logits * b['cotangent']).sum().backward()
  return array(logits * (b['targets'] > 0)[..., None])


def run_our_t5(adapter: Adapter, parameters: Arrays, task_ids: np.ndarray, deterministic: bool):
  """Returns our logits of the batch, zero at padding, and the gradients by the adapter's parameters."""
  b = batch()
  net = network.Transformer(our_config(), adapter)

  def loss(parameters):
    params = flax.traverse_util.unflatten_dict({**base_parameters(), **parameters}, sep='/')
    logits = net.apply({'params': params}, b['inputs'], b['decoder_inputs'], b['targets'], enable_dropout=not deterministic,
                       task_ids=jnp.asarray(task_ids), rngs={'routing': jax.random.PRNGKey(0)})
    return jnp.sum(logits * b['cotangent']), logits * (b['targets'] > 0)[..., None]

  # Compiling is nearly all of the time.
  run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options={'xla_backend_optimization_level': 0})
  (_, logits), gradients = run(parameters)
  return logits, gradients
