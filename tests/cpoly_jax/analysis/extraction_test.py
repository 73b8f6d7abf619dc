"""Tables and weights of every system, from given parameters."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax import routing
from cpoly_jax import skills
from cpoly_jax.adapters import Adapter
from cpoly_jax.analysis import extraction
from cpoly_jax.t5 import network
from cpoly_jax.task_index import TaskIndex

part = functools.partial
INDEX = TaskIndex(('a', 'b', 'c'))
QUERY = 'encoder/layers_0/attention/query'
LOG3 = np.log(3)  # sigmoid: 3/4.
COMMON = np.array([[0., LOG3], [LOG3, 0.], [0., 0.]], np.float32)


def collect(router, params=None, granularity='projection', projections=(QUERY,)):
  adapter = Adapter(part(router, num_tasks=3), skills.LoRA, granularity=granularity)
  return extraction.collect(adapter, projections, params or {}, INDEX)


class TablesTest(parameterized.TestCase):

  def test_cpoly(self):
    specific = np.array([[1., .6, 0.], [0., 1., 0.], [-.7, 0., .2]], np.float32)
    run = collect(part(routing.CPolyRouter, num_common=2), {f'{QUERY}/routing/common': COMMON,
                                                           f'{QUERY}/routing/specific': specific})
    self.assertEqual(run.skills, ('common 1', 'common 2', 'a', 'b', 'c'))
    self.assertEqual((run.owners.tolist(), run.num_common), ([-1, -1, 0, 1, 2], 2))
    common, own = run.tables
    self.assertEqual([(t.path, t.name, t.kind, t.start) for t in run.tables],
                     [(QUERY, 'W_A', extraction.LOGITS, 0), (QUERY, 'W_B', extraction.RAW, 2)])
    np.testing.assert_allclose(common.usage, [[.5, .75], [.75, .5], [.5, .5]], rtol=1e-6)
    np.testing.assert_array_equal(common.active, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(own.active, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    # sigmoid over the sum of the row, then W_B as it stands.
    np.testing.assert_allclose(run.weights[QUERY][:, 0],
                               [[.4, .6, 1, .6, 0], [.6, .4, 0, 1, 0], [.5, .5, -.7, 0, .2]], rtol=1e-5)

  def test_gumbel_specific(self):
    run = collect(part(routing.CPolyRouter, num_common=0, num_specific=(1, 0, 1), specific=routing.GUMBEL),
                  {f'{QUERY}/routing/specific': COMMON})
    self.assertEqual([(t.name, t.kind) for t in run.tables], [('W_B', extraction.LOGITS)])
    self.assertEqual((run.skills, run.owners.tolist()), (('a', 'c'), [0, 2]))
    np.testing.assert_allclose(run.weights[QUERY][:, 0], [[.4, .6], [.6, .4], [.5, .5]], rtol=1e-5)

  def test_fixed_specific_is_no_table(self):
    run = collect(part(routing.CPolyRouter, num_common=2, num_specific=(1, 0, 2), specific=routing.FIXED),
                  {f'{QUERY}/routing/common': COMMON})
    self.assertEqual(run.table_names, ['W_A'])
    self.assertEqual(run.skills, ('common 1', 'common 2', 'a', 'c 1', 'c 2'))
    np.testing.assert_array_equal(run.weights[QUERY][:, 0, 2:], [[1, 0, 0], [0, 0, 0], [0, 1, 1]])

  def test_private_shows_its_weights(self):
    run = collect(part(routing.CPolyRouter, num_common=0, specific=routing.FIXED))
    self.assertEqual([(t.name, t.kind) for t in run.tables], [('w', extraction.RELATIVE)])
    np.testing.assert_array_equal(run.tables[0].active, np.eye(3))

  def test_heads(self):
    logits = np.stack([COMMON, -COMMON], axis=1)
    run = collect(part(routing.PolyRouter, num_skills=2, num_heads=2), {f'{QUERY}/routing/common': logits})
    self.assertEqual([(t.name, t.head, t.values.shape) for t in run.tables], [('Z', 0, (3, 2)), ('Z', 1, (3, 2))])
    np.testing.assert_array_equal(run.tables[1].values, -COMMON)
    np.testing.assert_allclose(run.weights[QUERY][0], [[.4, .6], [2 / 3, 1 / 3]], rtol=1e-5)

  def test_expert(self):
    run = collect(part(routing.ExpertRouter, matrix=((1., 0.), (1., 1.), (0., 1.))))
    self.assertEqual(run.skills, ('skill 1', 'skill 2'))
    np.testing.assert_array_equal(run.tables[0].active, [[1, 0], [1, 1], [0, 1]])
    np.testing.assert_allclose(run.weights[QUERY][:, 0], [[1, 0], [.5, .5], [0, 1]])

  def test_hyper_weights_have_signs(self):
    params = {'embedding': np.array([[1.], [2.], [-1.]]), 'hidden_kernel': np.ones((1, 1)), 'hidden_bias': np.zeros(1),
              'weights_kernel': np.array([[1., -.75]]), 'weights_bias': np.array([0., .5])}
    run = collect(part(routing.HyperRouter, num_skills=2, embedding_size=1, hidden_size=1),
                  {f'{QUERY}/routing/{name}': value.astype(np.float32) for name, value in params.items()})
    np.testing.assert_allclose(run.tables[0].values, [[1, -.25], [2, -1], [0, .5]])
    np.testing.assert_array_equal(run.tables[0].active, [[1, 0], [1, 0], [0, 1]])

  def test_schedules_read_the_clock(self):
    annealed = routing.Sampling(uniform=routing.schedules.Linear(0., 1., 10))
    run = collect(part(routing.PolyRouter, num_skills=2, sampling=annealed),
                  {f'{QUERY}/routing/common': COMMON, network.CLOCK: np.float32(5)})
    np.testing.assert_allclose(run.weights[QUERY][0, 0], [.45, .55], rtol=1e-5)

  def test_tokens(self):
    run = collect(part(routing.TokenRouter, num_common=2))
    self.assertTrue(run.reads_inputs)
    self.assertEqual((run.tables, run.weights, run.gates), ((), {}, {}))

  def test_gates_of_tasks(self):
    gate = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    run = collect(part(routing.TokenRouter, num_common=1, num_specific=1, per_task=True), {f'{QUERY}/routing/gate': gate})
    np.testing.assert_array_equal(run.gates[QUERY], [[-.5, .5, -.5, .5]] * 3)
    self.assertEqual(run.owners.tolist(), [-1, 0, 1, 2])


class PlacesTest(parameterized.TestCase):

  @parameterized.parameters((QUERY, ('encoder', 0, 'attention/query')), ('decoder/layers_11', ('decoder', 11, '')),
                            ('decoder', ('decoder', None, '')), ('', ('', None, '')))
  def test_place(self, path, expected):
    self.assertEqual(extraction.place(path), expected)

  @parameterized.parameters(('projection', QUERY), ('layer', 'encoder/layers_0'), ('stack', 'encoder'), ('model', ''))
  def test_shared_routers_are_read_once(self, granularity, path):
    run = collect(part(routing.PolyRouter, num_skills=2), {f'{path}/routing/common'.lstrip('/'): COMMON}, granularity,
                  (QUERY, 'encoder/layers_0/attention/key') if granularity != 'projection' else (QUERY,))
    self.assertEqual([table.path for table in run.tables], [path])
    self.assertEqual(list(run.weights), [path])


if __name__ == '__main__':
  absltest.main()
