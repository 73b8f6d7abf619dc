"""All benchmarks, one after the other: a table of ratios beside their bars, in JSON and Markdown.

    python -m benchmarks.run --out=benchmark_results
    python -m benchmarks.run --only=adapters,t5x_way --rounds_of_each=3
    SUPERGLUE_DIR=... SUPERNI_DIR=... python -m benchmarks.run        # with packing on real data

Each benchmark is a process of its own, whose figures OUT/<name>.json keeps; `--reuse` takes those that are there. Every ratio
is of medians that were measured in turns in one process. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app
from absl import flags

_OUT = flags.DEFINE_string('out', 'benchmark_results', 'Folder for the figures, results.json and results.md.')
_ONLY = flags.DEFINE_list('only', None, 'Names of benchmarks; none: all.')
_REUSE = flags.DEFINE_bool('reuse', False, 'Take the figures of benchmarks that are in the folder already.')
_ROUNDS = flags.DEFINE_integer('rounds_of_each', None, 'Rounds of each; none: as each has it.', lower_bound=1)

_ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'torch', 'transformers', 'peft')


@dataclasses.dataclass(frozen=True)
class Row:
  """A ratio, and its bar: at most `bar`, or at least `bar` where more is better; None: no bar."""

  what: str
  value: float
  bar: float | None = None
  at_least: bool = False

  @property
  def verdict(self) -> str:
    """`met`, `missed`, or nothing where there is no bar."""
    if self.bar is None:
      return ''
    return 'met' if (self.value >= self.bar if self.at_least else self.value <= self.bar) else 'missed'


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark of this folder.

  Attributes:
    module: its name in `benchmarks`.
    rows: its ratios, out of its figures.
    arguments: flags that it is given.
    packages: what must be installed for it.
    variables: of the environment, of which it needs all: folders of data.
    counts_rounds: whether it has the flag `--rounds`.
  """

  module: str
  rows: Callable[[Any], Iterator[Row]]
  arguments: Sequence[str] = ()
  packages: Sequence[str] = ()
  variables: Sequence[str] = ()
  counts_rounds: bool = True

  def lacks(self) -> str:
    """Says what keeps it from running here; empty if nothing does."""
    missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
    unset = [name for name in self.variables if not os.environ.get(name)]
    return ', '.join([*(f'needs the package {name}' for name in missing), *(f'needs {name}' for name in unset)])


def _adapters(figures: Mapping[str, Any]) -> Iterator[Row]:
  bars = {'poly': 1.1, 'cpoly': 1.1, 'hyper': 1.15, 'task_moe': 1.15, 'moe_lora': 1.5, 'mmoe': 1.5, 'cgc': 1.5}
  for name, row in figures.items():
    if name in bars:
      yield Row(f'train step, {name} / a single LoRA', row['ratio'], bars[name])


def _task_scaling(figures: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
  bars = {'rows': 1.05, 'learned_rows': 1.5}
  least = {name: min(row['tasks'] for row in figures if row['specific'] == name) for name in {r['specific'] for r in figures}}
  for row in figures:
    first = least[row['specific']]
    if row['tasks'] != first:
      yield Row(f'train step, T = {row["tasks"]} / T = {first}, {row["specific"]}', row['ratio'], bars.get(row['specific']))


def _peft(figures: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
  for name, row in figures.items():
    if 'flops' in row:
      yield Row(f'train step, {name} / the faster PEFT Poly', row['ratio'], .8)
      at_rate = row['seconds'] / row['seconds_at_matmul_rate']
      yield Row(f'train step, {name} / hand-counted FLOPs at the matmul rate', at_rate, 1.2)
      yield Row(f'FLOPs of XLA, {name} / by hand', row['flops'] / row['flops_by_hand'], 1.05)


def _t5x_way(figures: Mapping[str, Any]) -> Iterator[Row]:
  counts = figures['state_bytes']
  yield Row("train step / T5X's way (one-hot embedding)", figures['gathered']['ratio'], .8)
  yield Row("train state, bfloat16 base / T5X's, moments of what trains", counts['ours'] / counts['t5x'], .55)
  yield Row("train state, bfloat16 base / T5X's, moments of all", counts['ours'] / counts['t5x_all_moments'])


def _checkpoint(figures: Mapping[str, Any]) -> Iterator[Row]:
  yield Row('checkpoint bytes / whole model', figures['bytes_ratio'], .02)
  yield Row('seconds of saves / seconds of training', figures['beside steps']['share'], .03)


def _packing(figures: Mapping[str, Any]) -> Iterator[Row]:
  yield Row(f'useful tokens/s, packed / padded, {figures["mixture"]}', figures['gain'])
  yield Row(f'packing gain / ideal, {figures["mixture"]}', figures['reached'], .9, at_least=True)


def _peft_packing(figures: Mapping[str, Any]) -> Iterator[Row]:
  for name, ratio in figures['per_useful_token'].items():
    yield Row(f'seconds of a useful token, packed / {name}, {figures["mixture"]}', ratio, .4)


def _input(figures: Mapping[str, Any]) -> Iterator[Row]:
  for mixture, row in figures.items():
    for kind in ('padded', 'packed'):
      yield Row(f'rows/s read / trained, {mixture}, {kind}', row[kind]['times_the_train_step'], 5., at_least=True)


def _decode(figures: Mapping[str, Any]) -> Iterator[Row]:
  for row in figures['programs']:
    if 'times_generate' in row and row['program'] != 'generate':
      yield Row(f'tokens/s, {row["program"]}, {row["beams"]} beams / generate', row['times_generate'],
                {1: 1.15, 4: 1.5}.get(row['beams']), at_least=True)


def _startup(figures: Mapping[str, Any]) -> Iterator[Row]:
  if 'ratio' in figures:
    yield Row('start-up / google-research/t5x', figures['ratio'], 1.)


def _compile_time(figures: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
  first = figures['unrolled']
  for variant, row in figures.items():
    if row is not first:
      yield Row(f'seconds of compiling, {variant} / unrolled',
                (row['lowering'] + row['compiling']) / (first['lowering'] + first['compiling']), .2)


BENCHMARKS = {
    'adapters': Benchmark('adapters', _adapters, ['--rank=16']),
    'task_scaling': Benchmark('task_scaling', _task_scaling),
    'task_scaling_learned': Benchmark('task_scaling', _task_scaling, ['--specific=learned_rows', '--rank=1']),
    'peft_poly': Benchmark('peft_poly', _peft, packages=('torch', 'transformers', 'peft')),
    't5x_way': Benchmark('t5x_way', _t5x_way),
    'checkpoint': Benchmark('checkpoint', _checkpoint, ['--rank=1']),
    'superglue_packing': Benchmark('packing', _packing, ['--mixture=superglue'], variables=('SUPERGLUE_DIR',)),
    'superni_packing': Benchmark('packing', _packing, ['--mixture=superni'], variables=('SUPERNI_DIR',)),
    # As Tk-Instruct (arXiv 2204.07705) cuts its texts.
    'superni_peft': Benchmark('packing', _peft_packing, ['--mixture=superni', '--lengths=1024,128', '--rows=2', '--segments=10',
                                                         '--system=poly', '--rank=16', '--peft'],
                              packages=('torch', 'transformers', 'peft'), variables=('SUPERNI_DIR',)),
    'input': Benchmark('input', _input),
    'decode': Benchmark('decode', _decode, packages=('torch', 'transformers')),
    'compile_time': Benchmark('compile_time', _compile_time, ['--model=t5_1_1/xxl'], counts_rounds=False),
    'startup': Benchmark('startup', _startup, counts_rounds=False),
}


def machine() -> dict[str, Any]:
  """Names this machine and the versions of what ran."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  model = platform.processor()
  if os.path.exists('/proc/cpuinfo'):
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    model = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), model)
  return {'cpu': model, 'cores': os.cpu_count(), 'system': f'{platform.system()} {platform.machine()}',
          'python': platform.python_version(), 'versions': versions}


def measure(name: str, benchmark: Benchmark, out: pathlib.Path) -> Any:
  """Runs a benchmark, unless its figures may be reused, and returns them.

  Raises:
    RuntimeError: it failed; its last line, and where the rest is.
  """
  file, log = out / f'{name}.json', out / f'{name}.log'
  if not (_REUSE.value and file.exists()):
    file.unlink(missing_ok=True)
    command = [sys.executable, '-m', f'benchmarks.{benchmark.module}', *benchmark.arguments, f'--json={file.resolve()}']
    if _ROUNDS.value and benchmark.counts_rounds:
      command.append(f'--rounds={_ROUNDS.value}')
    with log.open('w', encoding='utf-8') as told:
      done = subprocess.run(command, cwd=_ROOT, stdout=told, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not file.exists():
      lines = log.read_text(encoding='utf-8').strip().splitlines() or ['it said nothing']
      raise RuntimeError(f'{name} failed with exit code {done.returncode}: {lines[-1][:200]} (all of it: {log})')
  return json.loads(file.read_text(encoding='utf-8'))


def markdown(rows: Mapping[str, Sequence[Row]], skipped: Mapping[str, str], where: Mapping[str, Any]) -> str:
  """Returns the table, and what was left out."""
  lines = ['| benchmark | ratio | value | bar | |', '| --- | --- | ---: | ---: | --- |']
  for name, of_name in rows.items():
    for row in of_name:
      bar = '' if row.bar is None else f'{"≥" if row.at_least else "≤"} {row.bar:g}'
      lines.append(f'| {name} | {row.what} | {row.value:.3g} | {bar} | {row.verdict} |')
  lines += ['', f'{where["cpu"]}, {where["cores"]} cores, {where["system"]}, Python {where["python"]}; '
            + ', '.join(f'{package} {version}' for package, version in where['versions'].items()) + '.']
  lines += [f'Left out: {name} ({why}).' for name, why in skipped.items()]
  return '\n'.join(lines) + '\n'


def main(argv) -> None:
  del argv
  unknown = sorted(set(_ONLY.value or ()) - set(BENCHMARKS))
  if unknown:
    raise app.UsageError(f'--only: no benchmark {", ".join(unknown)}; there are {", ".join(BENCHMARKS)}')
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  rows: dict[str, list[Row]] = {}
  skipped: dict[str, str] = {}
  failed = False
  for name in _ONLY.value or BENCHMARKS:
    lacks = BENCHMARKS[name].lacks()
    if lacks:
      skipped[name] = lacks
      continue
    start = time.monotonic()
    try:
      rows[name] = list(BENCHMARKS[name].rows(measure(name, BENCHMARKS[name], out)))
    except RuntimeError as e:
      skipped[name], failed = str(e), True
    print(f'{name}: {skipped.get(name, "done")} ({time.monotonic() - start:.0f} s)', flush=True)
  where = machine()
  table = markdown(rows, skipped, where)
  results = {'machine': where, 'skipped': skipped,
             'rows': {name: [dataclasses.asdict(row) | {'verdict': row.verdict} for row in of_name]
                      for name, of_name in rows.items()}}
  (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
  (out / 'results.md').write_text(table, encoding='utf-8')
  print(table)
  if failed:
    sys.exit(1)


if __name__ == '__main__':
  app.run(main)
