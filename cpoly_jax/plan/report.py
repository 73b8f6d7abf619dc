"""The figures of a plan as text."""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping, Sequence

from cpoly_jax.plan import meshes, memory, roofline
from cpoly_jax.plan.devices import Device
from cpoly_jax.plan.runs import Run
from cpoly_jax.plan.train_step import CPU, Compiled, State
from cpoly_jax.systems import tables

_LISTED = 12  # Meshes of a table.


def size(number: float) -> str:
  """Returns bytes as text, in powers of 1000."""
  for unit, name in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
    if number >= unit:
      return f'{number / unit:.2f} {name}'
  return f'{number:.0f} B'


def seconds(number: float) -> str:
  """Returns seconds as text."""
  return f'{number:.2f} s' if number >= 1 else f'{1e3 * number:.3g} ms'


def flops(number: float) -> str:
  """Returns FLOPs as text."""
  return f'{number / 1e12:.4g} TFLOP' if number >= 1e11 else f'{number / 1e9:.4g} GFLOP'


def head(run: Run, state: State) -> list[str]:
  """Returns the lines on the run: parameters, batch, checkpoint."""
  counts = memory.parameter_counts(state, meshes.group_of)
  groups = [group for group in ('base', 'skills', 'routing') if group in counts]
  told = ', '.join(f'{group} {counts[group]:,}' for group in groups)
  changes, everything = memory.checkpoint_bytes(state, run.saved_dtype)
  lengths = f'{run.length("encoder_input_tokens")} inputs and {run.length("decoder_target_tokens")} targets'
  parts = f', in {run.microbatches} microbatches' if run.microbatches > 1 else ''
  kept = run.frozen_dtype or 'in the checkpoint (here float32)'
  return [f'parameters   {sum(counts.values()):,}: {told}; frozen ones kept as {kept}',
          f'step         batch of {run.batch_size} with {lengths}{parts}',
          f'checkpoint   {size(changes)}, or {size(everything)} with the frozen parameters, before compression']


def compiled(run: Run, found: Compiled, mesh: Mapping[str, int], device: Device, analysis: roofline.Analysis, by_hand: float,
             mfu: float) -> list[str]:
  """Returns the lines on a compiled step.

  Args:
    run: the run.
    found: the step.
    mesh: sizes of the mesh axes.
    device: what it would run on.
    analysis: of its program.
    by_hand: FLOPs of a step of all devices, 0 if unknown.
    mfu: share of the peak FLOP/s that is assumed.
  """
  number = mesh['data'] * mesh['model']
  held, needs = memory.state_bytes(found.state, mesh), found.executable.memory_analysis()
  total, temporaries = step_bytes(needs), needs.temp_size_in_bytes
  batch = sum(memory.leaf_bytes(leaf) for leaf in run.batch.values()) / mesh['data']
  other = total - held.kept - temporaries - batch
  where = 'virtual CPU devices' if found.compiler == CPU else f'{device.name} by its own compiler'
  rows = [('base and other frozen parameters', held.frozen), ('trainable parameters', held.trainable),
          ('optimizer state', held.optimizer), ('batch', batch), ('activations and other temporaries', temporaries)]
  # Outputs that are not given memory of the inputs; padding that a device's layout asks for; a TPU's program.
  rows += [('metrics, padding, program', other)] if abs(other) > 1e3 else []
  lines = [f'compiled     for data={mesh["data"]}, model={mesh["model"]} on {number} {where}, in {found.seconds:.0f} s', '',
           f'memory of a device: {size(total)}']
  lines += [f'  {name:<36}{size(value):>12}' for name, value in rows]
  lines += [f'  (of the temporaries {size(held.gradients)} are gradients of what trains)',
            f'  {"fits" if total <= device.memory else "DOES NOT FIT"} the {size(device.memory)} of {device.name}: '
            f'{100 * total / device.memory:.0f} %', '']
  told = 'as XLA counts'
  if analysis.has_loops:
    told = f'every round of loops counted; XLA counts {flops(analysis.flops_once * number)}, each loop once'
  told += f'; by hand {flops(by_hand)}' if by_hand else ''
  lines.append(f'FLOPs of a step: {flops(analysis.work.flops * number)}, {told}')
  lines += _times(analysis.work, device, mfu)
  lines += [f'  {each.kind:<20}{each.number:>6} times, {size(each.sent)} sent by a device' for each in analysis.collectives]
  return lines


def step_bytes(needs: Any) -> int:
  """Returns the bytes that a device needs for a step, of a `CompiledMemoryStats`."""
  return (needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
          + needs.generated_code_size_in_bytes)


def _times(work: roofline.Work, device: Device, mfu: float) -> list[str]:
  parts = work.seconds(device)
  slowest, least = work.least(device)
  amounts = {roofline.COMPUTE: flops(work.flops), roofline.MEMORY: size(work.moved), roofline.INTERCONNECT: size(work.sent)}
  told = ', '.join(f'{part} {seconds(parts[part])} ({amounts[part]})' for part in parts)
  return [f'time of a step on {device.name}: at least {seconds(least)}, for {slowest}; {told}',
          f'  {seconds(work.likely(device, mfu))} if computing reaches {100 * mfu:.0f} % of the peak (assumed)']


def table(estimates: Sequence[meshes.Estimate], device: Device, mfu: float) -> list[str]:
  """Returns the table of estimates, best first."""
  header = ('data', 'model', 'parameter dims', 'skills', 'GB a device', 'fits', 'state', 'activations', 'ms a step', 'slowest')
  rows = []
  for found in estimates[:_LISTED]:
    layout = found.layout
    skills = 'split' if layout.axis_rules == meshes.SHARDED_SKILLS else 'as set' if layout.axis_rules else 'whole'
    fits = 'yes' if found.bytes <= device.memory else 'no'
    rows.append((layout.data, layout.model, layout.dims, skills, found.bytes / 1e9, fits, found.state.kept / 1e9,
                 found.activations / 1e9, 1e3 * found.work.likely(device, mfu), found.work.least(device)[0]))
  more = [f'and {len(estimates) - _LISTED} more'] if len(estimates) > _LISTED else []
  return [f'estimates for {len(estimates)} layouts of {device.name}, best first (computing at {100 * mfu:.0f} % of the peak):',
          tables.render(header, rows, tables.TABLE), *more]
