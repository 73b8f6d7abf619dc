"""SuperGLUE: its eight tasks, its two diagnostic sets and DPR, as SeqIO tasks and mixtures.

Tasks are named `superglue_<task>`. Mixtures of the eight: `superglue` (proportional to the number of training examples),
`superglue_equal` and `superglue_temperature`; `superglue_with_dpr` adds Definite Pronoun Resolution to `superglue`, as more
training data of the kind of WSC. `superglue_diagnostics` has AX-b and AX-g, for evaluation only. Evaluations of the first four
give the benchmark's score besides the tasks' metrics.

AX-b and AX-g are written, and routed, as RTE, and DPR as WSC: a run on `superglue` evaluates them with the rows it has.

Data come from the folder that SUPERGLUE_DIR names, in the layout of the official release (`BoolQ/train.jsonl`,
`BoolQ/val.jsonl`, ...), or, where it is not set, from a `super_glue` that TFDS has prepared. Nothing is read before a dataset
is built. Test labels of the benchmark are hidden: evaluate on `validation`, infer on `test`.

Gin: `superglue.prompt.style` (see `superglue_prompts`), `superglue.few_shot.k` and `.seed` (see `superglue_sources`).
"""

from __future__ import annotations

from typing import Any
from collections.abc import Callable, Sequence

import seqio

from cpoly_jax import task_index
from tasks import features
from tasks import mixtures
from tasks import summaries
from tasks import superglue_formats
from tasks import superglue_metrics
from tasks import superglue_sources
from tasks.superglue_prompts import labels, prompt  # noqa: F401  (users and gin find them here)
from tasks.superglue_sources import few_shot, VARIABLE  # noqa: F401

TASKS = tuple(f'superglue_{task}' for task in superglue_formats.FORMATS)
DIAGNOSTICS = tuple(f'superglue_{task}' for task in superglue_formats.DIAGNOSTICS)
DPR = 'superglue_dpr'
benchmark_score = superglue_metrics.benchmark_score

_EVALUATIONS = {
    'multirc': (superglue_metrics.grouped('multirc', 'idx/paragraph', 'idx/question'),
                [superglue_metrics.multirc_f1, superglue_metrics.multirc_exact_match]),
    'record': (superglue_metrics.record_answer, [superglue_metrics.record_em_f1]),
    'wsc': (superglue_metrics.wsc_answer, [superglue_metrics.accuracy]),
    'cb': (superglue_metrics.class_index('cb'), [superglue_metrics.mean_3class_f1, superglue_metrics.accuracy]),
    'axb': (superglue_metrics.class_index('rte'), [superglue_metrics.matthews_correlation]),
    'axg': (superglue_metrics.grouped('rte', 'pair_id'), [superglue_metrics.accuracy_and_gender_parity]),
}


def _add(name: str, source: seqio.DataSource, postprocess: Callable[..., Any], metrics: Sequence[Callable[..., Any]]) -> None:
  seqio.TaskRegistry.add(
      name,
      source=source,
      output_features=features.output_features(),
      preprocessors=features.pipeline(),
      postprocess_fn=postprocess,
      metric_fns=metrics)


def register() -> None:
  """Registers tasks and mixtures; does nothing the second time."""
  if 'superglue' in seqio.MixtureRegistry.names():
    return
  for task, form in superglue_formats.FORMATS.items():
    name = f'superglue_{task}'
    evaluation = _EVALUATIONS.get(task, (superglue_metrics.class_index(task), [superglue_metrics.accuracy]))
    _add(name, superglue_sources.SuperGlueSource(name, task, form), *evaluation)
  for task, form in superglue_formats.DIAGNOSTICS.items():
    task_index.route_as(f'superglue_{task}', 'superglue_rte')
    _add(f'superglue_{task}', superglue_sources.DiagnosticSource('superglue_rte', 'rte', form), *_EVALUATIONS[task])
  task_index.route_as(DPR, 'superglue_wsc')
  _add(DPR, superglue_sources.PronounSource('superglue_wsc', 'wsc', superglue_formats.DPR), *_EVALUATIONS['wsc'])

  proportional = mixtures.proportional_rate
  seqio.MixtureRegistry.add('superglue_diagnostics', DIAGNOSTICS, default_rate=mixtures.equal_rate)
  for mixture, tasks, rate in (('superglue', TASKS, proportional), ('superglue_equal', TASKS, mixtures.equal_rate),
                               ('superglue_temperature', TASKS, mixtures.temperature_rate),
                               ('superglue_with_dpr', (*TASKS, DPR), proportional)):
    seqio.MixtureRegistry.add(mixture, tasks, default_rate=rate)
    summaries.register(mixture, lambda metrics: {'score': benchmark_score(metrics)})


register()
