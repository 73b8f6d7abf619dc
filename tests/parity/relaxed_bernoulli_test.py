"""The noise of training against torch's relaxed Bernoulli: the same distribution, by two-sample Kolmogorov-Smirnov tests.

Seeds are fixed, so a p-value is always the same; that of equal distributions is uniform on [0, 1].
"""

import os
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from cpoly_jax import routing

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers

SAMPLES = 20_000
DIFFERENT = 1e-6
EQUAL = 1e-2


def setUpModule():
  peers.require()


def _theirs(logit: float, temperature: float, seed: int = 0) -> np.ndarray:
  with peers.torch.random.fork_rng():
    peers.torch.manual_seed(seed)
    relaxed = peers.torch.distributions.RelaxedBernoulli(peers.torch.tensor(temperature), logits=peers.torch.tensor(logit))
    return relaxed.sample((SAMPLES,)).numpy()


def _ours(logit: float, temperature: float, seed: int = 0) -> np.ndarray:
  noise = jax.random.logistic(jax.random.PRNGKey(seed), (SAMPLES,))
  return np.asarray(routing.gumbel_sigmoid(jnp.full((SAMPLES,), logit), noise, temperature))


def _p_value(ours: np.ndarray, theirs: np.ndarray) -> float:
  # torch keeps its values one rounding away from 0 and 1, which cold ones of ours reach: no tie of one with the other there.
  return stats.ks_2samp(*(np.clip(v, 1e-6, 1 - 1e-6) for v in (ours, theirs))).pvalue


class RelaxedBernoulliTest(parameterized.TestCase):

  @parameterized.product(logit=(-2.5, 0., 0.7, 4.), temperature=(0.3, 1., 2.5))
  def test_same_distribution(self, logit, temperature):
    self.assertGreater(_p_value(_ours(logit, temperature), _theirs(logit, temperature)), EQUAL)

  @parameterized.parameters((0.15, 1.), (0., 1.15), (0., 0.85))
  def test_small_differences_would_be_found(self, logit, temperature):
    self.assertLess(_p_value(_ours(logit, temperature), _theirs(0., 1.)), DIFFERENT)

  def test_weights_of_a_task_in_training(self):
    """Sampled and normalised, by PEFT's router and by ours, each with its own random numbers."""
    tasks, logits = 2, np.random.default_rng(6).normal(size=(2, 3)).astype(np.float32)
    router = peers.peft.tuners.poly.router.PolyRouter(peers.peft.PolyConfig(r=1, n_tasks=tasks, n_skills=3))
    router.module_logits.data = peers.torch.tensor(logits)
    ids = np.ones(SAMPLES, np.int64)
    with peers.torch.random.fork_rng():
      peers.torch.manual_seed(1)
      theirs = peers.array(router.train()(peers.torch.tensor(ids), None))[:, 0]
    ours, = routing.PolyRouter(num_tasks=tasks, num_skills=3).apply(
        {'params': {'common': logits}}, jnp.asarray(ids), deterministic=False, rngs={routing.RNG: jax.random.PRNGKey(1)})
    for skill in range(3):
      self.assertGreater(_p_value(np.asarray(ours.weights)[:, 0, skill], theirs[:, skill]), EQUAL)


if __name__ == '__main__':
  absltest.main()
