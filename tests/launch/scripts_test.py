"""What all scripts of launch/ share: usage texts, one-line errors, quoting; and shellcheck."""

from __future__ import annotations

import ast
import subprocess

from absl.testing import absltest
from absl.testing import parameterized

from tests.launch import machines

SCRIPTS = ('background.sh', 'gke.sh', 'install.sh', 'local.sh', 'multiprocess.sh', 'slurm.sh', 'test.sh', 'tpu_vm.sh',
           'worker.sh')
TPU = {'TPU_NAME': 'cpoly', 'ZONE': 'us-east5-b'}
GKE = {'IMAGE': 'image', 'MODEL_DIR': 'gs://bucket/run'}


class UsageTest(machines.ScriptTestCase):

  def test_there_are_no_others(self):
    sourced = {'common.sh', 'environment.sh'}
    self.assertEqual({path.name for path in machines.LAUNCH.glob('*.sh')} - sourced, set(SCRIPTS))

  @parameterized.parameters(*SCRIPTS)
  def test_help(self, name):
    for flag in ('-h', '--help'):
      usage = self.succeeds(name, flag)
      self.assertIn(f'bash launch/{name}', usage)
      self.assertNotIn('#!', usage)
      self.assertNotRegex(usage, r'(?m)^(#|set |source )')

  @parameterized.parameters(
      ('tpu_vm.sh', (), {}, 'create|install|run|logs|status|stop|delete'),
      ('tpu_vm.sh', ('start',), {}, 'unknown command start: write one of create install run'),
      ('tpu_vm.sh', ('run', 'now'), {}, 'unexpected argument now'),
      ('tpu_vm.sh', ('run', '--gin.TRAIN_STEPS=1'), {}, 'unknown option --gin.TRAIN_STEPS=1: flags of t5x.train come after --'),
      ('tpu_vm.sh', ('run', '--env=1'), {}, '--env=NAME=VALUE'),
      ('tpu_vm.sh', ('run',), {}, 'TPU_NAME is not set'),
      ('tpu_vm.sh', ('run',), {'TPU_NAME': 'a'}, 'ZONE is not set'),
      ('tpu_vm.sh', ('run',), TPU, 'gcloud is not installed'),
      ('tpu_vm.sh', ('run', '--dry_run'), TPU, 'MODEL_DIR is not set'),
      ('tpu_vm.sh', ('run', '--dry_run'), {**TPU, 'MODEL_DIR': 'outputs/a'}, 'MODEL_DIR=outputs/a is a folder of one machine'),
      ('tpu_vm.sh', ('create', '--dry_run'), TPU, 'ACCELERATOR_TYPE is not set'),
      ('tpu_vm.sh', ('create', '--dry_run'), {**TPU, 'ACCELERATOR_TYPE': 'v9-8'}, 'set RUNTIME_VERSION too'),
      ('gke.sh', ('run',), GKE, 'kubectl is not installed'),
      ('gke.sh', ('manifest',), {}, 'IMAGE is not set'),
      ('gke.sh', ('manifest',), {'IMAGE': 'a'}, 'MODEL_DIR is not set'),
      ('gke.sh', ('manifest',), {**GKE, 'ACCELERATOR': 'cpu'}, 'ACCELERATOR=cpu: write tpu or gpu'),
      ('gke.sh', ('manifest',), {**GKE, 'TPU_TOPOLOGY': '16'}, 'TPU_TOPOLOGY=16: write e.g. 4x4'),
      ('gke.sh', ('manifest',), {**GKE, 'TPU_TOPOLOGY': '2x3'}, 'has 6 chips'),
      ('gke.sh', ('manifest',), {**GKE, 'ACCELERATOR': 'gpu', 'NODES': '0'}, 'NODES=0: give a whole number of 1 or more'),
      ('gke.sh', ('manifest',), {**GKE, 'MAX_RESTARTS': 'no'}, 'MAX_RESTARTS=no'),
      ('gke.sh', ('manifest',), {**GKE, 'JOB_NAME': 'C_Poly'}, 'JOB_NAME=C_Poly: write lower-case letters'),
      ('gke.sh', ('manifest', '--', '--gin.A=1\n2'), GKE, 'a line break or another control character is in'),
      ('slurm.sh', ('run',), {}, 'sbatch is not installed'),
      ('slurm.sh', ('logs',), {}, 'slurm.sh logs JOB_ID'),
      ('slurm.sh', ('run', '--dry_run'), {'GPUS_PER_NODE': 'all'}, 'GPUS_PER_NODE=all'),
      ('multiprocess.sh', ('--dry_run',), {'PROCESSES': 'two'}, 'PROCESSES=two'),
      ('multiprocess.sh', ('run',), {}, 'unexpected argument run'),
      ('install.sh', (), {}, 'cpu|tpu|gpu'),
      ('install.sh', ('--dry_run', 'npu'), {}, 'unknown command npu'),
      ('install.sh', ('--dry_run', 'tpu'), {'PYTHON': '/nowhere/python'}, 'PYTHON=/nowhere/python is not Python 3.11'),
      ('worker.sh', (), {}, 'given|jobset|gke_tpu|tpu_vm|slurm'),
      ('worker.sh', ('given',), {}, 'give the command to run'),
      ('background.sh', (), {}, 'start|logs|status|stop'),
      ('background.sh', ('logs',), {}, 'nothing was started here'),
  )
  def test_mistakes(self, name, arguments, variables, message):
    self.assertIn(message, self.fails(name, *arguments, **variables))


class QuotingTest(machines.ScriptTestCase):

  def test_a_printed_line_is_read_back(self):
    words = [*machines.HARD_FLAGS, '', "'", "''", '\\', "\\'", '-n', '%s', '~', '\n', 'a\nb']
    printed = self.bash(['-c', f'source {machines.LAUNCH}/common.sh; quoted "$@"', 'bash', *words])
    self.assertEqual(printed.stderr, '')
    self.imitate('record')
    self.bash(['-c', f'record {printed.stdout}'])
    self.assertEqual(self.calls(), [['record', *words]])

  @parameterized.parameters('gs://b/run', "it's", '\\', "a\\'b", 'a"b', 'ä b', "'")
  def test_gin_strings(self, text):
    printed = self.bash(['-c', f'source {machines.LAUNCH}/common.sh; gin_string "$1"', 'bash', text]).stdout
    self.assertEqual(ast.literal_eval(printed), text)


class DryRunTest(machines.ScriptTestCase):

  def test_processes_differ_in_their_index_alone(self):
    printed = machines.commands(self.succeeds(
        'multiprocess.sh', '--dry_run', '--env=A=b c', '--', *machines.HARD_FLAGS, PROCESSES='3', DEVICES_PER_PROCESS='2',
        COORDINATOR_PORT='1234', MODEL_DIR="outputs/it's", VENV='/venv'))
    self.assertLen(printed, 3)
    for index, words in enumerate(printed):
      self.assertEqual(words, [
          'env', 'JAX_PLATFORMS=cpu', 'XLA_FLAGS=--xla_force_host_platform_device_count=2', f'PROCESS_INDEX={index}',
          'PROCESS_COUNT=3', 'COORDINATOR_ADDRESS=localhost:1234', 'A=b c', 'bash', 'launch/worker.sh', 'given',
          '/venv/bin/python', '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', "--gin.MODEL_DIR='outputs/it\\'s'",
          *machines.HARD_FLAGS])

  @parameterized.parameters(('cpu', ''), ('tpu', 'tpu'), ('gpu', 'gpu'))
  def test_install(self, accelerator, extra):
    self.imitate('python3')  # Any version that it is asked about is right.
    self.assertEqual(self.succeeds('install.sh', '--dry_run', accelerator).strip(),
                     f'source launch/environment.sh && ensure_environment {extra}'.strip())

  def test_install_where_python_is_old(self):
    (self.bin / 'python3').unlink()
    printed = machines.commands(self.succeeds('install.sh', '--dry_run', 'tpu'))
    self.assertEqual([words[:5] for words in printed[:2]],
                     [['python3', '-m', 'pip', 'install', '--quiet'], ['python3', '-m', 'uv', 'python', 'install']])


class ShellcheckTest(absltest.TestCase):

  def test_scripts(self):
    shellcheck = machines.program('shellcheck')
    if shellcheck is None:
      self.skipTest('shellcheck is not installed: it is in the extra test')
    paths = [*sorted(machines.LAUNCH.glob('*.sh')), machines.ROOT / '.ci' / 'run']
    process = subprocess.run([shellcheck, '--external-sources', '--source-path=SCRIPTDIR:SCRIPTDIR/..', *paths],
                             capture_output=True, text=True, check=False)
    self.assertEqual((process.returncode, process.stdout), (0, ''), process.stderr)


if __name__ == '__main__':
  absltest.main()
