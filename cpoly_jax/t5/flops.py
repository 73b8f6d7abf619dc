"""FLOPs of a forward pass and of a train step of T5 with a frozen base, counted by hand: what XLA's own count is compared with.

Notation: B batch, Li / Lt input and target length, D width, F MLP width, H heads of width K, V vocabulary, S skills,
r rank. A product of [m, k] and [k, n] counts 2mkn. Softmax, activations, norms and the loss are left out.
"""

from __future__ import annotations

import re

from cpoly_jax.t5.network import T5Config, projection_paths


def projection_shapes(config: T5Config) -> dict[str, tuple[int, int]]:
  """Returns {path: (inputs, outputs)} of the projections inside the layers."""
  inner = config.num_heads * config.head_dim
  shapes = {'query': (config.emb_dim, inner), 'key': (config.emb_dim, inner), 'value': (config.emb_dim, inner),
            'out': (inner, config.emb_dim), 'wo': (config.mlp_dim, config.emb_dim)}
  return {path: shapes.get(path.split('/')[-1], (config.emb_dim, config.mlp_dim)) for path in projection_paths(config)}


def projection_axes(path: str) -> tuple[str, str]:
  """Returns the logical names of the two axes of the kernel at `path`."""
  axes = {'query': ('embed', 'joined_kv'), 'key': ('embed', 'joined_kv'), 'value': ('embed', 'joined_kv'),
          'out': ('joined_kv', 'embed'), 'wo': ('mlp', 'embed')}
  return axes.get(path.split('/')[-1], ('embed', 'mlp'))


def positions(path: str, inputs: int, targets: int) -> int:
  """Returns how many positions of an example the projection at `path` sees."""
  reads_encoder = path.startswith('encoder/') or re.search(r'encoder_decoder_attention/(key|value)$', path)
  return inputs if reads_encoder else targets


def _products(config: T5Config, batch: int, inputs: int, targets: int) -> tuple[float, float]:
  """FLOPs of a forward pass: products with kernels, and products of two activations in attention."""
  kernels = sum(2 * batch * positions(path, inputs, targets) * d * o
                for path, (d, o) in projection_shapes(config).items())
  kernels += 2 * batch * targets * config.emb_dim * config.vocab_size
  inner = config.num_heads * config.head_dim
  pairs = (config.num_encoder_layers * inputs * inputs + config.num_decoder_layers * targets * (targets + inputs))
  return kernels, 2 * 2 * batch * pairs * inner


def forward(config: T5Config, batch: int, inputs: int, targets: int) -> float:
  """Forward pass of the base.

  Args:
    config: sizes.
    batch: B.
    inputs: Li.
    targets: Lt.

  Returns:
    FLOPs.
  """
  return sum(_products(config, batch, inputs, targets))


def frozen_step(config: T5Config, batch: int, inputs: int, targets: int) -> float:
  """Forward pass and backward pass to the activations, without the kernels' gradients.

  Args:
    config: sizes.
    batch: B.
    inputs: Li.
    targets: Lt.

  Returns:
    FLOPs. A product with a frozen kernel costs as much backward as forward; one of two activations twice as much.
  """
  kernels, attention = _products(config, batch, inputs, targets)
  return 2 * kernels + 3 * attention


def adapters(config: T5Config, batch: int, inputs: int, targets: int, *, rank: int, group_sizes: tuple[int, ...],
             targets_pattern: str) -> float:
  """Forward and backward pass of mixed LoRA skills (`factors` for one group, `group_factors` for several).

  Args:
    config: sizes.
    batch: B.
    inputs: Li.
    targets: Lt.
    rank: r.
    group_sizes: skills in each group, e.g. (A, T*b) for C-Poly.
    targets_pattern: the adapter's regular expression.

  Returns:
    FLOPs: per group and projection three times (forward, gradient of both operands) the low-rank products and the mixing.
  """
  total = 0
  for path, (d, o) in projection_shapes(config).items():
    if re.fullmatch(targets_pattern, path):
      low_rank = 2 * batch * positions(path, inputs, targets) * rank * (d + o)
      total += sum(3 * (low_rank + 2 * batch * size * rank * (d + o)) for size in group_sizes)
  return total
