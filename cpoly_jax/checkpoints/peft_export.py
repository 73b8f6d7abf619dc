"""One task as an adapter of Hugging Face PEFT: a plain LoRA, or (IA)^3.

A task's skills, mixed, are one change of each kernel. Mixed LoRA skills are a product of two thin factors again, and written
as they are:

    factors             rank r, whatever the number of skills and heads
    group_factors       rank r for each group: 2 r for C-Poly
    products            rank r for each skill whose weight is not zero

Other skills (SFT, dense) change a kernel in all of its directions: the best approximation of a given rank is written, by the
singular value decomposition, and how much it leaves out is told. The same makes a LoRA smaller than its exact rank.

Notation: d inputs and o outputs of a projection, S skills, r rank of the skills, R rank of what is written.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cpoly_jax import skills
from cpoly_jax.checkpoints import folders
from cpoly_jax.checkpoints import merging
from cpoly_jax.checkpoints import names
from cpoly_jax.checkpoints import peft
from cpoly_jax.checkpoints import peft_targets
from cpoly_jax.t5 import flops
from cpoly_jax.t5 import network

Factors = tuple[np.ndarray, np.ndarray]
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written.

  Attributes:
    kind: `LORA` or `IA3`.
    rank: R; 0 for (IA)^3.
    errors: by path, the share of the kernel's change that is left out: the norm of the difference by that of the change
      (Frobenius); empty if the export is exact.
    bytes: of the tensors.
  """

  kind: str
  rank: int
  errors: Mapping[str, float]
  bytes: int


def export(folder: str, transformer: network.Transformer, params: Mapping[str, Any], row: int, *, rank: int | None = None,
           base_name: str | None = None, progress: Progress = lambda done, total: None) -> Exported:
  """Writes one task as an adapter folder of PEFT, LoRA or (IA)^3.

  Args:
    folder: a new one.
    transformer: a network routed by task.
    params: its skills and routing, flat by name.
    row: the task's routing row.
    rank: R, the most that is written; None: as much as is exact.
    base_name: the base's name or path at Hugging Face, for PEFT's configuration.
    progress: called with projections done, and all of them.

  Raises:
    FileExistsError: the folder is there.
    ValueError: nothing is adapted, the weights are by token, skills of an unknown kind, or such that need a rank and none is
      given.
  """
  merging.check(transformer)
  folders.check_new(folder)
  paths, task = merging.targets(transformer), merging.Task(transformer, params, row)
  inventory = peft.inventory_of(transformer)
  if rank is not None and rank < 1:
    raise ValueError(f'rank {rank}: write 1 or more')
  if isinstance(inventory, skills.IA3):
    if rank is not None:
      raise ValueError('(IA)^3 scales activations and has no rank: leave --rank out')
    return _export_ia3(folder, task, paths, inventory, base_name, progress)
  if not isinstance(inventory, (skills.LoRA, skills.SFT, skills.Dense)):
    raise ValueError(f'{type(inventory).__name__} skills have no counterpart in PEFT: merge them into the base (python -m '
                     'cpoly_jax.merge)')
  if rank is None and not isinstance(inventory, skills.LoRA):
    raise ValueError(f'{type(inventory).__name__} skills change whole kernels, which no LoRA is equal to: give a rank '
                     '(--rank=16) for the nearest one of that rank, or merge them into the base (python -m cpoly_jax.merge)')
  return _export_lora(folder, task, paths, inventory, rank, base_name, progress)


def lora_factors(task: merging.Task, path: str, lora: skills.LoRA) -> Factors:
  """Returns A [d, R] and B [R, o], float32: the task's change of the kernel at `path` is alpha / r * A @ B."""
  groups = task.groups(path)
  down, up = (jnp.asarray(task.params[f'{path}/skills/{bank}'], jnp.float32) for bank in ('down', 'up'))
  with jax.default_matmul_precision('float32'):
    if lora.mixing == skills.PRODUCTS:
      pairs = [_products(group, down, up) for group in groups]
    else:
      pairs = [(group.mix(down, axis=1)[0], group.mix(up, axis=2)[0]) for group in groups]
  if lora.mixing == skills.FACTORS:
    a, b = (sum(factors) for factors in zip(*pairs))
  else:
    a, b = (jnp.concatenate(factors, axis=axis) for factors, axis in zip(zip(*pairs), (1, 0)))
  a, b = np.asarray(a), np.asarray(b)
  if not (np.isfinite(a).all() and np.isfinite(b).all()):
    raise ValueError(f'{path}: the skills of routing row {task.row} are not finite: the run has no such row, or it diverged')
  return a, b


def truncated(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[Factors, float]:
  """Returns the best approximation of A @ B of a lower rank, and the share that it leaves out.

  Args:
    a: [d, n].
    b: [n, o].
    rank: R.

  Returns:
    ([d, R], [R, o]) float32, with the singular values shared equally; and the norm of the difference by that of A @ B, 0 if
    this is zero. Never needs the product itself: A and B are brought to triangles first.
  """
  (left, small), (right, other) = np.linalg.qr(a.astype(np.float64)), np.linalg.qr(b.T.astype(np.float64))
  u, values, v = np.linalg.svd(small @ other.T)
  u, v = u[:, :len(values)], v[:len(values)]
  roots = np.sqrt(values[:rank])
  whole = np.linalg.norm(values)
  error = float(np.linalg.norm(values[rank:]) / whole) if whole else 0.
  factors = left @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ right.T
  return tuple(factor.astype(np.float32) for factor in factors), error


def _products(group: skills.SkillGroup, down: Any, up: Any) -> tuple[Any, Any]:
  """Returns the skills of a group side by side, weighted: [d, k * r] and [k * r, o]; those of weight zero are left out."""
  weights = np.asarray(group.weights[0, 0])
  active = np.flatnonzero(weights)
  bank = lambda whole: group.select(whole)[0] if group.ids is not None else group.select(whole)
  chosen_down, chosen_up = bank(down)[active], bank(up)[active]
  chosen_down *= weights[active][:, None, None]
  return chosen_down.swapaxes(0, 1).reshape(down.shape[1], -1), chosen_up.reshape(-1, up.shape[-1])


def _export_lora(folder: str, task: merging.Task, paths: Sequence[str], inventory: Any, rank: int | None,
                 base_name: str | None, progress: Progress) -> Exported:
  is_lora, shapes = isinstance(inventory, skills.LoRA), flops.projection_shapes(task.transformer.config)
  found, errors = {}, {}
  for done, path in enumerate(paths):
    progress(done, len(paths))
    if is_lora:
      a, b = lora_factors(task, path, inventory)
    else:
      # What is added to a kernel of zeros.
      a = task.kernel(path, np.zeros(shapes[path], np.float32))
      b = np.eye(a.shape[1], dtype=np.float32)
    if rank is not None and rank < a.shape[1]:
      (a, b), errors[path] = truncated(a, b, rank)
    found[path] = a, b
  # PEFT scales by lora_alpha / R.
  most = max(1, *(a.shape[1] for a, _ in found.values()))
  alpha = inventory.alpha * most / inventory.rank if is_lora else most
  tensors = {}
  for path, (a, b) in found.items():
    module = peft.PREFIX + names.module_to_huggingface(path)
    left = most - a.shape[1]  # All projections have one rank; zeros fill up what some have not.
    tensors[f'{module}.lora_A.weight'] = np.pad(a.T, ((0, left), (0, 0)))
    tensors[f'{module}.lora_B.weight'] = np.pad(b.T, ((0, 0), (0, left)))
  config = {'peft_type': 'LORA', 'r': most, 'lora_alpha': int(alpha) if float(alpha).is_integer() else alpha,
            'lora_dropout': 0.0, 'bias': 'none', 'fan_in_fan_out': False, 'init_lora_weights': True, 'use_rslora': False,
            'use_dora': False, 'target_modules': _modules(task, paths)}
  return Exported('LORA', most, errors, peft.write_folder(folder, config, tensors, base_name))


def _export_ia3(folder: str, task: merging.Task, paths: Sequence[str], inventory: skills.IA3, base_name: str | None,
                progress: Progress) -> Exported:
  tensors = {}
  of_inputs = [path for path in paths if re.fullmatch(inventory.input_targets, path)]
  for done, path in enumerate(paths):
    progress(done, len(paths))
    bank = jnp.asarray(task.params[f'{path}/skills/scale'], jnp.float32)
    scale = np.asarray(1 + sum(group.mix_vectors(bank) for group in task.groups(path))).reshape(-1)
    module = peft.PREFIX + names.module_to_huggingface(path)
    tensors[f'{module}.ia3_l'] = scale[None] if path in of_inputs else scale[:, None]
  modules, feedforward = _modules(task, paths), _modules(task, of_inputs)
  others = [names.module_to_huggingface(path) for path in paths if path not in of_inputs]
  if any(module.endswith(end) for module in others for end in feedforward) or not set(feedforward) <= set(modules):
    # PEFT would take `wo` for what ends in `o`, and asks that the one list is part of the other.
    modules, feedforward = ([names.module_to_huggingface(path) for path in some] for some in (paths, of_inputs))
  config = {'peft_type': 'IA3', 'fan_in_fan_out': False, 'init_ia3_weights': True, 'target_modules': modules,
            'feedforward_modules': feedforward}
  return Exported('IA3', 0, {}, peft.write_folder(folder, config, tensors, base_name))


def _modules(task: merging.Task, paths: Sequence[str]) -> list[str]:
  return peft_targets.to_modules(paths, network.projection_paths(task.transformer.config))
