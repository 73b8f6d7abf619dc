"""launch/slurm.sh: what it gives sbatch, and what each process of srun then runs."""

from __future__ import annotations

from absl.testing import absltest

from tests.launch import machines

# Two nodes of two processes each, of which srun starts all: its own flags begin with --.
_SRUN = '''
while [[ "$1" == --* ]]; do shift; done
for rank in 0 1 2 3; do
  SLURM_PROCID=$rank SLURM_NTASKS=4 SLURM_JOB_ID=5000 SLURM_JOB_NODELIST='node[7-8]' "$@"
done
'''


class SlurmTest(machines.ScriptTestCase):

  def setUp(self):
    super().setUp()
    self.imitate('sbatch')
    self.imitate('squeue')
    self.imitate('scancel')
    self.imitate('python', folder=self.folder / 'venv' / 'bin')
    self.settings = {'VENV': str(self.folder / 'venv'), 'LOG_DIR': str(self.folder / 'logs of it'), 'NODES': '2',
                     'GPUS_PER_NODE': '2'}

  def run_script(self, *arguments, **settings):
    return self.succeeds('slurm.sh', 'run', *arguments, '--', *machines.HARD_FLAGS, **self.settings, **settings)

  def test_dry_run_prints_what_would_run(self):
    printed = machines.commands(self.run_script('--dry_run'))
    self.assertEqual(self.calls(), [])
    self.run_script()
    self.assertEqual(printed, [['mkdir', '-p', self.settings['LOG_DIR']], *self.calls()])

  def test_sbatch(self):
    self.run_script(PARTITION='gpu', ACCOUNT='us', TIME='1:00:00', JOB_NAME='my run', SBATCH_FLAGS='--mem=0 --exclusive')
    call, = self.calls()
    self.assertEqual(call[:-1], [
        'sbatch', '--job-name=my run', '--nodes=2', '--ntasks-per-node=2', '--gpus-per-node=2',
        f'--output={self.settings["LOG_DIR"]}/%j.log', '--open-mode=append', '--requeue', '--partition=gpu', '--account=us',
        '--time=1:00:00', '--mem=0', '--exclusive'])

  def test_processes(self):
    """The script that sbatch gets starts each process with the given flags and variables, and those of its rank."""
    self.imitate('python', 'printf %s "$DATA" > "$CALLS/../data"', folder=self.folder / 'venv' / 'bin')
    self.run_script('--env=DATA=a "b" $c')
    wrapped = machines.option(self.calls()[0], 'wrap')
    self.imitate('srun', _SRUN)
    self.imitate('scontrol', "printf 'node7\\nnode8\\n'")
    process = self.bash(['-c', wrapped])
    self.assertEqual((process.returncode, process.stderr), (0, ''))
    calls = [call for call in self.calls() if call[0] == 'python']
    self.assertLen(calls, 4)
    for rank, call in enumerate(calls):
      self.assertEqual(call, [
          'python', '-m', 't5x.train', '--gin_file=gin_configs/cpoly_tiny.gin', *machines.HARD_FLAGS, '--multiprocess_gpu',
          f'--coordinator_address=node7:{5000 % 4096 + 61440}', '--process_count=4', f'--process_index={rank}'])
    self.assertIn(['scontrol', 'show', 'hostnames', 'node[7-8]'], self.calls())
    self.assertEqual((self.folder / 'data').read_text(encoding='utf-8'), 'a "b" $c')

  def test_needs_an_environment(self):
    self.assertIn('launch/install.sh gpu', self.fails('slurm.sh', 'run', VENV=str(self.folder / 'nothing')))

  def test_jobs(self):
    self.succeeds('slurm.sh', 'status', '4711')
    self.succeeds('slurm.sh', 'cancel', '4711')
    self.assertEqual(self.calls(), [['squeue', '--jobs=4711', '--long'], ['scancel', '4711']])
    self.assertEqual(self.succeeds('slurm.sh', 'logs', '--dry_run', '4711', LOG_DIR='a'), 'tail -n 100 -F a/4711.log\n')


if __name__ == '__main__':
  absltest.main()
