"""launch/gke.sh: its manifests are YAML with the values that the settings say, and are what kubectl gets."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import yaml

from tests.launch import machines

SETTINGS = {'IMAGE': 'registry/cpoly-jax:tpu', 'MODEL_DIR': "gs://bucket/it's"}


def expanded(text):
  """Returns what Kubernetes makes of a word of a container's command that refers to no variable."""
  return text.replace('$$', '$')


class ManifestTest(machines.ScriptTestCase):

  def manifest(self, *arguments, **settings):
    """Returns the JobSet, its only job's spec, and its pod's spec."""
    jobset = yaml.safe_load(self.succeeds('gke.sh', 'manifest', *arguments, **SETTINGS, **settings))
    job, = jobset['spec']['replicatedJobs']
    return jobset, job['template']['spec'], job['template']['spec']['template']['spec']

  def test_tpu(self):
    jobset, job, pod = self.manifest()
    self.assertEqual((jobset['apiVersion'], jobset['kind']), ('jobset.x-k8s.io/v1alpha2', 'JobSet'))
    self.assertEqual(jobset['metadata'], {'name': 'cpoly', 'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}})
    self.assertEqual(jobset['spec']['failurePolicy'], {'maxRestarts': 3})
    self.assertEqual((job['parallelism'], job['completions'], job['backoffLimit']), (4, 4, 0))
    self.assertEqual(pod['nodeSelector'], {'cloud.google.com/gke-tpu-accelerator': 'tpu-v6e-slice',
                                           'cloud.google.com/gke-tpu-topology': '4x4'})
    container, = pod['containers']
    self.assertEqual(container['image'], 'registry/cpoly-jax:tpu')
    self.assertEqual(container['resources'], {'limits': {'google.com/tpu': 4}})
    self.assertEqual(container['command'], ['bash', 'launch/worker.sh', 'gke_tpu', 'python'])
    self.assertEqual(pod['restartPolicy'], 'Never')
    self.assertNotIn('serviceAccountName', pod)

  @parameterized.parameters(('2x2x2', '4', 2, 'gke_tpu'), ('4x4x4', '4', 16, 'gke_tpu'), ('2x4', '8', 1, 'jobset'),
                            ('2x4', '4', 2, 'gke_tpu'))
  def test_topologies(self, topology, per_node, nodes, where):
    _, job, pod = self.manifest(TPU_TOPOLOGY=topology, CHIPS_PER_NODE=per_node, TPU_TYPE='tpu-v5p-slice')
    self.assertEqual((job['parallelism'], job['completions']), (nodes, nodes))
    self.assertEqual(pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator'], 'tpu-v5p-slice')
    self.assertEqual(pod['containers'][0]['command'][2], where)
    self.assertEqual(pod['containers'][0]['resources']['limits'], {'google.com/tpu': int(per_node)})

  def test_gpu(self):
    jobset, job, pod = self.manifest(ACCELERATOR='gpu', NODES='2', GPUS_PER_NODE='4', GPU_TYPE='nvidia-l4', SPOT='1',
                                     JOB_NAME='my-run', NAMESPACE='team', SERVICE_ACCOUNT='writer', MAX_RESTARTS='0')
    self.assertEqual(jobset['metadata'], {'name': 'my-run', 'namespace': 'team'})
    self.assertEqual(jobset['spec']['failurePolicy'], {'maxRestarts': 0})
    self.assertEqual((job['parallelism'], job['completions']), (2, 2))
    self.assertEqual(pod['nodeSelector'], {'cloud.google.com/gke-accelerator': 'nvidia-l4',
                                           'cloud.google.com/gke-spot': 'true'})
    self.assertEqual(pod['tolerations'], [{'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true',
                                           'effect': 'NoSchedule'}])
    self.assertEqual(pod['serviceAccountName'], 'writer')
    container, = pod['containers']
    self.assertEqual(container['resources'], {'limits': {'nvidia.com/gpu': 4}})
    self.assertNotIn('privileged', container['securityContext'])
    variables = {entry['name']: entry['value'] for entry in container['env']}
    # JobSet's names of pods: <jobset>-<job>-<index>-<pod>.<jobset>.
    self.assertEqual(variables['COORDINATOR_ADDRESS'], 'my-run-workers-0-0.my-run:8476')
    self.assertEqual(variables['PROCESS_COUNT'], '2')
    self.assertEqual(variables['LD_LIBRARY_PATH'], '/usr/local/nvidia/lib64')

  def test_pods_find_each_other(self):
    """With these variables and the index of Kubernetes, a pod's command adds the flags of its process."""
    _, _, pod = self.manifest('--', '--gin.A=1', ACCELERATOR='gpu', NODES='2')
    container, = pod['containers']
    self.imitate('python')
    process = self.bash([machines.LAUNCH / 'worker.sh', *container['command'][2:], *container['args']],
                        JOB_COMPLETION_INDEX='1', **{entry['name']: entry['value'] for entry in container['env']})
    self.assertEqual(process.stderr, '')
    call, = self.calls()
    self.assertEqual(call[-5:], ['--gin.A=1', '--multiprocess_gpu', '--coordinator_address=cpoly-workers-0-0.cpoly:8476',
                                 '--process_count=2', '--process_index=1'])

  def test_flags_and_variables_arrive(self):
    _, _, pod = self.manifest('--env=DATA=a "b" $(HOME) $$', '--env=EMPTY=', '--', *machines.HARD_FLAGS)
    container, = pod['containers']
    self.assertEqual([expanded(text) for text in container['args']], [
        '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', "--gin.MODEL_DIR='gs://bucket/it\\'s'",
        *machines.HARD_FLAGS])
    for text in container['args']:
      self.assertNotRegex(text.replace('$$', ''), r'\$\(')
    variables = {entry['name']: expanded(entry['value']) for entry in container['env']}
    self.assertEqual((variables['DATA'], variables['EMPTY']), ('a "b" $(HOME) $$', ''))
    self.assertTrue(all(isinstance(entry['value'], str) for entry in container['env']))


class CommandsTest(machines.ScriptTestCase):

  def setUp(self):
    super().setUp()
    self.imitate('kubectl', 'cat > "$CALLS/../stdin"')

  def test_run_applies_the_manifest(self):
    arguments = ('--', *machines.HARD_FLAGS)
    manifest = self.succeeds('gke.sh', 'manifest', *arguments, **SETTINGS)
    printed = self.succeeds('gke.sh', 'run', '--dry_run', *arguments, **SETTINGS)
    self.assertEqual(self.calls(), [])
    self.assertEqual(printed, f"kubectl apply --filename=- <<'EOF'\n{manifest}EOF\n")
    self.succeeds('gke.sh', 'run', *arguments, **SETTINGS)
    self.assertEqual((self.folder / 'stdin').read_text(encoding='utf-8'), manifest)
    # What was printed does the same.
    self.bash(['-c', printed])
    self.assertEqual((self.folder / 'stdin').read_text(encoding='utf-8'), manifest)
    self.assertEqual(self.calls(), [['kubectl', 'apply', '--filename=-']] * 2)

  @parameterized.parameters('logs', 'status', 'delete')
  def test_others(self, command):
    printed = machines.commands(self.succeeds('gke.sh', command, '--dry_run', JOB_NAME='my-run', NAMESPACE='team'))
    self.assertEqual(self.calls(), [])
    self.succeeds('gke.sh', command, JOB_NAME='my-run', NAMESPACE='team')
    self.assertEqual(self.calls(), printed)
    for words in printed:
      self.assertIn('--namespace=team', words)
      self.assertIn('my-run', ' '.join(words))


if __name__ == '__main__':
  absltest.main()
