"""docs/launch.md: its commands are understood, its settings exist, and all of them are in it."""

from __future__ import annotations

import re
import shlex

from absl.testing import absltest
from absl.testing import parameterized

from tests.launch import machines

PAGE = (machines.ROOT / 'docs' / 'launch.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```bash\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
# The scripts that start something on another machine, which a dry run shows.
DRY = ('gke.sh', 'install.sh', 'multiprocess.sh', 'slurm.sh', 'tpu_vm.sh', 'worker.sh')
# Settings that are documented once for all scripts, or are those of launch/environment.sh.
COMMON = {'GIN_FILE', 'MODEL_DIR', 'PYTHON', 'VENV'}
# Words in capitals that are none: variables that others set, and parts of the explanation.
NOT_SETTINGS = {'JSON', 'NAME', 'VALUE', 'JOB_ID', 'WHERE', 'COMMAND', 'SIGTERM', 'SIGKILL', 'COORDINATOR_ADDRESS'}


class LaunchDocsTest(machines.ScriptTestCase):

  @parameterized.parameters(*range(len(BLOCKS)))
  def test_commands(self, number):
    variables, understood = {}, 0
    for line in BLOCKS[number].splitlines():
      words = shlex.split(line)
      own = {}
      if words[0] == 'export':
        variables.update(word.split('=', 1) for word in words[1:])
        continue
      while '=' in words[0]:
        name, value = words.pop(0).split('=', 1)
        own[name] = value
      if words[:1] == ['docker']:
        continue
      self.assertEqual(words[0], 'bash', line)
      folder, _, script = words[1].partition('/')
      self.assertEqual(folder, 'launch')
      self.assertIn(script, DRY)
      self.succeeds(script, '--dry_run', *words[2:], **{**variables, **own})
      understood += 1
    self.assertGreater(understood, 0)

  @parameterized.parameters(('Cloud TPU VM', 'tpu_vm.sh'), ('Google Kubernetes Engine', 'gke.sh'), ('Slurm', 'slurm.sh'),
                            ('Several processes on this machine', 'multiprocess.sh'))
  def test_settings(self, heading, script):
    section = re.search(rf'^## {heading}\n(.*?)(?=^## )', PAGE, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r'^\| (`.*?) \|', section, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
    settings = machines.script_settings(script) - NOT_SETTINGS
    self.assertEqual(documented - COMMON, settings - COMMON)
    text = (machines.LAUNCH / script).read_text(encoding='utf-8') + (machines.LAUNCH / 'common.sh').read_text(encoding='utf-8')
    body = '\n'.join(line for line in text.splitlines() if not line.startswith('#'))
    for name in documented:
      self.assertRegex(body, rf'\$\{{?{name}\b|need {name}\b', f'{name} does nothing')

  def test_files_exist(self):
    for name in re.findall(r'^\| [^|]* \| (`.*?`) \| .* \|$', PAGE.split('## Settings')[0], re.MULTILINE):
      for file in re.findall(r'`(.*?)`', name):
        self.assertTrue((machines.LAUNCH / file).exists() or (machines.ROOT / file).exists(), file)

  def test_names_each_script(self):
    table = PAGE.split('## Settings')[0]
    for path in machines.LAUNCH.iterdir():
      if path.suffix in ('.sh', '.ipynb') and path.name not in ('common.sh', 'environment.sh', 'background.sh', 'test.sh'):
        self.assertIn(f'`{path.name}`', table)


if __name__ == '__main__':
  absltest.main()
