"""The sections that compare a run: with known skills, and with another run."""

from __future__ import annotations

import functools

import numpy as np

from cpoly_jax.analysis import figures, hierarchy, parts, statistics, texts, transfer, truth
from cpoly_jax.analysis.findings import Findings


def truth_section(found: Findings) -> parts.Section | None:
  """Says how well the routing agrees with known skills; None where none are given."""
  compared, run = found.compared, found.run
  if compared is None:
    return None
  rand = compared.mean_rand
  agreement = [('adjusted Rand index, mean', rand), ('correlation of similarities', compared.correlation)]
  sentences = [f'Adjusted Rand index of the two trees, cut into 2 to T - 1 clusters: {texts.shown(rand)} on average. '
               f'Correlation of the two similarities of tasks: {texts.shown(compared.correlation)}.']
  drawings = []
  if found.measured is not None and len(routed := [name for name in found.measured.tasks if name in run.tasks]) > 1:
    place = [found.measured.tasks.index(name) for name in routed]
    known = hierarchy.cosines(compared.known.matrix[[run.tasks.index(name) for name in routed]])
    served = truth.correlation(transfer.similarity(found.measured.losses)[np.ix_(place, place)], known)
    agreement.append(('correlation of transfer', served))
    sentences.append(f'Correlation with how well tasks serve each other (Whose routing serves whom): {texts.shown(served)}.')
  if compared.best is not None:
    (path, head), best = compared.best
    f1 = statistics.mean(match.f1 for match in compared.matches.values())
    where = (path or 'the whole model') + ('' if head is None else f', head {head + 1}')
    agreement += [('F1, best router', best.f1), ('F1, mean over routers', f1)]
    sentences.insert(0, f'F1 of the matched skills: {texts.shown(best.f1)} in the best router ({where}), {texts.shown(f1)} on '
                        'average.')
    active = np.concatenate([table.active for table in run.tables if (table.path, table.head) == (path, head)], axis=1)
    matched = np.zeros(compared.known.matrix.shape)
    for true, column in best.pairs:
      matched[:, true] = active[:, column]
    drawings.append(parts.Drawing(
        'truth', 'Known skills, and those of the best router',
        'Columns of the routing are matched one to one with the known skills; a known skill without a partner is empty on the '
        'right.',
        functools.partial(figures.pair, compared.known.matrix[found.order].astype(float), matched[found.order],
                          [run.tasks[t] for t in found.order], compared.known.skills, ('known', 'best router'))))
  return parts.Section('truth', 'Compared with the known skills', sentences, drawings, [
      parts.Grid('truth_summary', 'Agreement', ('measure', 'value'), agreement),
      parts.Grid('truth_clusters', 'Adjusted Rand index by the number of clusters', ('clusters', 'adjusted Rand index'),
                 list(compared.rand.items())),
      parts.Grid('truth_routers', 'Each router', ('router', 'head', 'precision', 'recall', 'F1'),
                 [(router or 'model', parts.counted(one), match.precision, match.recall, match.f1)
                  for (router, one), match in compared.matches.items()])])


def gains_section(found: Findings) -> parts.Section | None:
  """Says what the run gained over another one on each task; None where no other is given."""
  if not found.gains:
    return None
  mean = statistics.mean(gain.gain for gain in found.gains)
  better = sum(gain.gain > 0 for gain in found.gains)
  sentence = (f'Scores of this run less those of {texts.shorten(str(found.against), 80)}: {mean:+.3f} on average, better on '
              f"{better} of {len(found.gains)} tasks. A score is the mean of a task's metrics.")
  drawing = parts.Drawing('gains', 'Gain on each task', 'Below zero the other run is better.', functools.partial(
      figures.bars, [gain.task for gain in found.gains], [gain.gain for gain in found.gains], 'gain in score'))
  return parts.Section('gains', 'Compared with another run', [sentence], [drawing], [
      parts.Grid('gains', 'Each task', ('task', 'this run', 'other run', 'gain'),
                 [(gain.task, gain.score, gain.other, gain.gain) for gain in found.gains])])
