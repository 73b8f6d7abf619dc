"""Tests of EXPERT: the files that people write, and the fixed weights."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from cpoly_jax import routing
from cpoly_jax import testing
from cpoly_jax.task_index import TaskIndex

setUpModule, tearDownModule = testing.quick_compilation()
INDEX = TaskIndex(('b', 'a', 'c'))
MATRIX = ((0., 1., 0.), (1., 0., 1.), (1., 1., 1.))
CSV = 'task,find,put,see\na,1,0,1\n\nb,0,1,0\nunused,0,0,1\n c , 1 ,1, 1\n'
JSON = {'a': ['find', 'see'], 'b': ['put'], 'c': ['find', 'put', 'see'], 'unused': []}


class ExpertMatrixTest(parameterized.TestCase):

  def _file(self, content, suffix='.csv'):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    path = pathlib.Path(folder.name, f'matrix{suffix}')
    path.write_bytes(content.encode())
    return str(path)

  def test_csv_in_the_order_of_the_index(self):
    self.assertEqual(routing.expert_matrix(self._file(CSV), INDEX), MATRIX)

  def test_csv_of_a_spreadsheet(self):
    self.assertEqual(routing.expert_matrix(self._file('\ufeff' + CSV.replace('\n', '\r\n')), INDEX), MATRIX)

  def test_json_has_the_skills_by_name(self):
    self.assertEqual(routing.expert_matrix(self._file(json.dumps(JSON), '.json'), INDEX), MATRIX)

  @parameterized.parameters(
      ('', r'matrix.csv:1: the header is task,<skill>,<skill>,\.\.\.'),
      ('name,x\na,1\n', 'matrix.csv:1: the header is task'),
      ('task\na\n', 'matrix.csv:1: the header is task'),
      ('task,x,y\na,1,0\nb,1\n', 'matrix.csv:3: write the task and 2 times 0 or 1'),
      ('task,x,y\na,1,0\n\nb,1,0,1\n', 'matrix.csv:4: write the task and 2 times 0 or 1'),
      ('task,x,y\na,1,2\n', 'matrix.csv:2: write the task and 2 times 0 or 1'),
      ('task,x,y\na,1,\n', 'matrix.csv:2: write the task and 2 times 0 or 1'),
      ('task,x\na,1\nb,1\na,1\n', "matrix.csv:4: task 'a' is there twice"),
      ('task,x\na,1\nd,1\n', 'matrix.csv has no row for b, c; it has a, d$'),
      ('task,x\na,1\nb,0\nc,0\n', 'matrix.csv gives b, c no skill: each task needs one'))
  def test_malformed_csv(self, content, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      routing.expert_matrix(self._file(content), INDEX)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      ('{"a": ["x"],\n "b": [}', 'matrix.json:2: '),
      ('[1]', 'matrix.json: write {"<task>": '),
      ('{"a": "x"}', 'matrix.json: write {"<task>": '),
      ('{"a": [1, 0]}', 'matrix.json: write {"<task>": '),
      ('{"a": ["x"], "b": ["x"]}', 'matrix.json has no row for c; it has a, b$'),
      ('{"a": ["x"], "b": [], "c": ["x"]}', 'matrix.json gives b no skill'))
  def test_malformed_json(self, content, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      routing.expert_matrix(self._file(content, '.json'), INDEX)
    self.assertNotIn('\n', str(caught.exception))

  def test_many_missing_tasks_are_cut_short(self):
    index = TaskIndex(tuple(f't{i}' for i in range(9)))
    with self.assertRaisesRegex(ValueError, 'no row for t0, t1, t2, t3, t4, t5 and more; it has a$'):
      routing.expert_matrix(self._file('task,x\na,1\n'), index)

  def test_other_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no task x skill matrix /nowhere/m.csv: set EXPERT_MATRIX'):
      routing.expert_matrix('/nowhere/m.csv', INDEX)
    with self.assertRaisesRegex(ValueError, 'matrix.txt: a task x skill matrix is a .csv or a .json file'):
      routing.expert_matrix(self._file(CSV, '.txt'), INDEX)


class ExpertRouterTest(absltest.TestCase):

  def test_rows_are_divided_by_their_sums(self):
    router = routing.ExpertRouter(num_tasks=3, matrix=MATRIX)
    tasks = np.array([2, 0, 1, 1], np.int32)
    self.assertEqual(jax.tree.leaves(router.init(jax.random.PRNGKey(0), tasks, deterministic=True)), [])
    for deterministic in (True, False):
      (group,) = router.apply({}, tasks, deterministic=deterministic)
      np.testing.assert_allclose(group.weights[:, 0], [[1 / 3] * 3, [0, 1, 0], [.5, 0, .5], [.5, 0, .5]], rtol=1e-6)
    self.assertEqual((router.num_skills, router.active_skills), (3, 3))

  def test_rows_must_be_those_of_the_tasks(self):
    with self.assertRaisesRegex(ValueError, 'matrix has 3 rows for 4 tasks'):
      routing.ExpertRouter(num_tasks=4, matrix=MATRIX).apply({}, np.zeros(1, np.int32), deterministic=True)


if __name__ == '__main__':
  absltest.main()
