"""launch/worker.sh and launch/background.sh: who a process is, and how it outlives its connection."""

from __future__ import annotations

import http.server
import shlex
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from tests.launch import machines

NEW_ENDPOINTS = 'host-0,host-1,host-2'
OLD_ENDPOINTS = 'unknown:0:10.0.0.5,unknown:1:10.0.0.6,unknown:2:10.0.0.7'


class MetadataServer:
  """The metadata server of worker 2 of a TPU VM, as a context; its value is host:port."""

  def __init__(self, endpoints: str):
    values = {'agent-worker-number': '2', 'worker-network-endpoints': endpoints}

    class Handler(http.server.BaseHTTPRequestHandler):

      def do_GET(self):
        value = values.get(self.path.rpartition('/')[2])
        known = self.path.startswith('/computeMetadata/v1/instance/attributes/') and self.headers['Metadata-Flavor'] == 'Google'
        self.send_response(200 if known and value else 403)
        self.end_headers()
        self.wfile.write((value or '').encode())

      def log_message(self, *args):
        del args

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)

  def __enter__(self) -> str:
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return f'127.0.0.1:{self._server.server_address[1]}'

  def __exit__(self, *exc):
    self._server.shutdown()
    self._server.server_close()


class WorkerTest(machines.ScriptTestCase):

  def added(self, where, **variables):
    """Returns the words that worker.sh adds to a command."""
    self.imitate('train')
    self.succeeds('worker.sh', where, 'train', *machines.HARD_FLAGS, **variables)
    call = self.calls()[-1]
    self.assertEqual(call[:1 + len(machines.HARD_FLAGS)], ['train', *machines.HARD_FLAGS])
    printed = self.succeeds('worker.sh', '--dry_run', where, 'train', *machines.HARD_FLAGS, **variables)
    self.assertEqual(shlex.split(printed), call)
    return call[1 + len(machines.HARD_FLAGS):]

  def flags(self, address, count, index):
    return ['--multiprocess_gpu', f'--coordinator_address={address}', f'--process_count={count}', f'--process_index={index}']

  def test_given(self):
    self.assertEqual(self.added('given', PROCESS_INDEX='1', PROCESS_COUNT='2', COORDINATOR_ADDRESS='host:99'),
                     self.flags('host:99', 2, 1))

  def test_jobset(self):
    self.assertEqual(self.added('jobset', JOB_COMPLETION_INDEX='3', PROCESS_COUNT='4', COORDINATOR_ADDRESS='pod:8476'),
                     self.flags('pod:8476', 4, 3))

  @parameterized.parameters(('host-0,host-1', '1', {}, 'host-0:8476', 2),
                            ('a,b,c,d', '0', {'COORDINATOR_PORT': '99'}, 'a:99', 4))
  def test_gke_tpu(self, hosts, index, variables, address, count):
    self.assertEqual(self.added('gke_tpu', TPU_WORKER_ID=index, TPU_WORKER_HOSTNAMES=hosts, **variables),
                     self.flags(address, count, index))

  @parameterized.parameters((NEW_ENDPOINTS, 'host-0:8476'), (OLD_ENDPOINTS, '10.0.0.5:8476'))
  def test_tpu_vm(self, endpoints, address):
    with MetadataServer(endpoints) as server:
      self.assertEqual(self.added('tpu_vm', GCE_METADATA_HOST=server), self.flags(address, 3, 2))

  def test_slurm(self):
    self.imitate('scontrol', "printf 'gpu-a\\ngpu-b\\n'")
    slurm = {'SLURM_PROCID': '5', 'SLURM_NTASKS': '16', 'SLURM_JOB_ID': '12', 'SLURM_JOB_NODELIST': 'gpu-[a-b]'}
    self.assertEqual(self.added('slurm', **slurm), self.flags('gpu-a:61452', 16, 5))
    self.assertEqual(self.added('slurm', COORDINATOR_PORT='99', **slurm), self.flags('gpu-a:99', 16, 5))

  def test_one_process_gets_no_flags(self):
    self.assertEqual(self.added('given', PROCESS_INDEX='0', PROCESS_COUNT='1', COORDINATOR_ADDRESS='host:99'), [])
    self.assertEqual(self.added('gke_tpu', TPU_WORKER_ID='0', TPU_WORKER_HOSTNAMES='localhost'), [])

  @parameterized.parameters(
      ('given', {}, 'PROCESS_INDEX is not set'),
      ('given', {'PROCESS_INDEX': '2', 'PROCESS_COUNT': '2', 'COORDINATOR_ADDRESS': 'a:1'}, 'process 2 of 2'),
      ('given', {'PROCESS_INDEX': 'x', 'PROCESS_COUNT': '2', 'COORDINATOR_ADDRESS': 'a:1'}, 'process x of 2'),
      ('jobset', {}, 'JOB_COMPLETION_INDEX is not set'),
      ('gke_tpu', {'TPU_WORKER_ID': '0'}, 'TPU_WORKER_HOSTNAMES is not set'),
      ('slurm', {'SLURM_PROCID': '0'}, 'SLURM_NTASKS is not set'),
  )
  def test_mistakes(self, where, variables, message):
    self.assertIn(message, self.fails('worker.sh', where, 'true', **variables))

  def test_no_metadata(self):
    with MetadataServer('') as server:
      message = self.fails('worker.sh', 'tpu_vm', 'true', GCE_METADATA_HOST=server)
    self.assertIn('does not tell worker-network-endpoints: is this a Cloud TPU VM?', message)

  def test_exit_code(self):
    self.imitate('train', 'exit 7')
    variables = {'PROCESS_INDEX': '0', 'PROCESS_COUNT': '1', 'COORDINATOR_ADDRESS': 'a:1'}
    self.assertEqual(self.script('worker.sh', 'given', 'train', **variables).returncode, 7)


class BackgroundTest(machines.ScriptTestCase):

  def wait_for(self, text):
    for _ in range(200):
      if text in self.log():
        return
      time.sleep(0.05)
    self.fail(f'{text} is not in the log: {self.log()}')

  def log(self):
    path = self.folder / 'run.log'
    return path.read_text(encoding='utf-8') if path.exists() else ''

  def test_runs_one_at_a_time(self):
    self.imitate('train', 'echo "got $1"; exec sleep 60')
    self.addCleanup(self.script, 'background.sh', 'stop', STOP_SECONDS='1')
    self.assertIn('started process', self.succeeds('background.sh', 'start', 'train', 'a b'))
    self.wait_for('got a b')
    self.assertRegex(self.succeeds('background.sh', 'status'), r'process \d+ runs')
    self.assertIn('still runs here', self.fails('background.sh', 'start', 'train'))
    self.assertIn('has ended', self.succeeds('background.sh', 'stop'))
    self.assertEqual(self.script('background.sh', 'status').returncode, 1)
    self.assertEqual(self.succeeds('background.sh', 'stop'), 'nothing runs\n')
    self.succeeds('background.sh', 'start', 'bash', '-c', 'echo again')
    self.wait_for('again')
    self.assertNotIn('got', self.log())

  def test_kills_what_does_not_stop(self):
    self.imitate('train', "trap '' TERM; echo deaf; while true; do sleep 0.1; done")
    self.succeeds('background.sh', 'start', 'train')
    self.wait_for('deaf')
    self.assertIn('killed process', self.succeeds('background.sh', 'stop', STOP_SECONDS='1'))


if __name__ == '__main__':
  absltest.main()
