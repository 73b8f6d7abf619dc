"""launch/tpu_vm.sh: what it gives gcloud, what that gives the workers' shells, and queued resources as they come and go."""

from __future__ import annotations

import shlex
import tarfile

from absl.testing import absltest
from absl.testing import parameterized

from tests.launch import machines

SETTINGS = {'TPU_NAME': 'cpoly', 'ZONE': 'us-east5-b', 'ACCELERATOR_TYPE': 'v6e-16', 'MODEL_DIR': "gs://bucket/it's",
            'POLL_SECONDS': '0'}
# The states that gcloud tells one after the other; absent: there is no such resource.
_DESCRIBE = '''
if [ "$4" = describe ]; then
  state=$(sed -n 1p "$CALLS/../states")
  sed -i 1d "$CALLS/../states"
  [ "$state" != absent ] || exit 1
  echo "$state"
fi
'''


class TpuVmTest(machines.ScriptTestCase):

  def setUp(self):
    super().setUp()
    self.imitate('gcloud', _DESCRIBE)

  def states(self, *states):
    (self.folder / 'states').write_text('\n'.join(states) + '\n', encoding='utf-8')

  def verbs(self):
    """Returns what gcloud was asked for: (group, verb)."""
    self.assertTrue(all(call[:3] == ['gcloud', 'compute', 'tpus'] for call in self.calls()))
    return [tuple(call[3:5]) for call in self.calls()]

  @parameterized.parameters('create', 'install', 'run', 'logs', 'status', 'stop', 'delete')
  def test_dry_run_runs_nothing(self, command):
    printed = machines.commands(self.succeeds('tpu_vm.sh', command, '--dry_run', **SETTINGS))
    self.assertEqual(self.calls(), [])
    self.assertNotEmpty(printed)
    for words in printed:
      if words[0] != 'tar':
        self.assertEqual(words[:3], ['gcloud', 'compute', 'tpus'])
        self.assertIn('--zone=us-east5-b', words)

  @parameterized.parameters('run', 'logs', 'stop', 'delete')
  def test_dry_run_prints_what_would_run(self, command):
    arguments = ('--', *machines.HARD_FLAGS) if command == 'run' else ()
    printed = machines.commands(self.succeeds('tpu_vm.sh', command, '--dry_run', *arguments, **SETTINGS, PROJECT='mine'))
    self.succeeds('tpu_vm.sh', command, *arguments, **SETTINGS, PROJECT='mine')
    self.assertEqual(self.calls(), printed)

  def test_run(self):
    """A worker's shell starts training, in the background, with exactly the given flags and variables."""
    self.succeeds('tpu_vm.sh', 'run', '--env=DATA=a "b"', '--', *machines.HARD_FLAGS, **SETTINGS)
    call, = self.calls()
    self.assertEqual(call[3:6], ['tpu-vm', 'ssh', 'cpoly'])
    self.assertEqual(machines.option(call, 'worker'), 'all')
    remote = machines.option(call, 'command')
    self.assertEqual(shlex.split(remote)[:3], ['cd', 'cpoly-jax', '&&'])
    self.assertEqual(shlex.split(remote)[3:], [
        'bash', 'launch/background.sh', 'start', 'env', 'DATA=a "b"', 'bash', 'launch/worker.sh', 'tpu_vm', '.venv/bin/python',
        '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', "--gin.MODEL_DIR='gs://bucket/it\\'s'",
        *machines.HARD_FLAGS])

  def test_creates_and_waits(self):
    self.states('absent', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')
    printed = self.succeeds('tpu_vm.sh', 'create', **SETTINGS, SPOT='1')
    self.assertEqual(printed.splitlines(), ['cpoly is WAITING_FOR_RESOURCES', 'cpoly is PROVISIONING', 'cpoly is ready'])
    self.assertEqual(self.verbs(), [('queued-resources', verb) for verb in ('describe', 'create', *['describe'] * 3)])
    create = self.calls()[1]
    self.assertEqual(create[5:], ['cpoly', '--node-id=cpoly', '--accelerator-type=v6e-16', '--runtime-version=v2-alpha-tpuv6e',
                                  '--spot', '--zone=us-east5-b'])

  def test_takes_what_is_there(self):
    self.states('ACTIVE', 'ACTIVE')
    self.succeeds('tpu_vm.sh', 'create', **SETTINGS)
    self.assertNotIn(('queued-resources', 'create'), self.verbs())

  @parameterized.parameters('FAILED', 'SUSPENDED')
  def test_tells_that_it_is_lost(self, state):
    self.states(state, state)
    self.assertIn(f'cpoly is {state}: delete it', self.fails('tpu_vm.sh', 'create', **SETTINGS))

  @parameterized.parameters(('v6e-8', 'v2-alpha-tpuv6e'), ('v5p-8', 'v2-alpha-tpuv5'), ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
                            ('v4-8', 'tpu-ubuntu2204-base'))
  def test_image(self, accelerator, image):
    settings = {**SETTINGS, 'ACCELERATOR_TYPE': accelerator}
    printed = machines.commands(self.succeeds('tpu_vm.sh', 'create', '--dry_run', **settings))
    self.assertEqual(machines.option(printed[0], 'runtime-version'), image)

  def test_install_copies_the_checkout(self):
    # What is copied is kept, since the script deletes its own.
    self.imitate('gcloud', 'for word in "$@"; do [ ! -f "$word" ] || cat "$word" > "$CALLS/../copied"; done')
    self.succeeds('tpu_vm.sh', 'install', **SETTINGS)
    self.assertEqual(self.verbs(), [('tpu-vm', 'scp'), ('tpu-vm', 'ssh')])
    copy, remote = self.calls()
    self.assertEqual(copy[6], 'cpoly:cpoly-jax.tar.gz')
    with tarfile.open(self.folder / 'copied') as archive:
      names = archive.getnames()
    for name in ('setup.py', 'launch/worker.sh', 't5x_lite/setup.py', 'gin_configs/cpoly_tiny.gin'):
      self.assertIn(f'./{name}', names)
    self.assertFalse([name for name in names if name.startswith(('./.git/', './.venv', './outputs')) or '__pycache__' in name])
    self.assertIn('bash cpoly-jax/launch/install.sh tpu', machines.option(remote, 'command'))
    self.assertFalse(list(self.folder.glob('tmp.*')))


if __name__ == '__main__':
  absltest.main()
