"""Tests of `python -m tasks.show`: what it counts and measures, its drawing, and its one-line errors."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import gin
import numpy as np
import seqio

from tasks import own_data
from tasks import samples
from tasks import show
from tasks import show_report
from tests.tasks import command_case


def run(*arguments):
  return command_case.run(show.main, *arguments)


class ShowTest(command_case.FolderTestCase):

  def setUp(self):
    super().setUp()
    self.addCleanup(own_data.unregister)

  def write_two_tasks(self):
    # Inputs of 2, 4, 6 and 8 bytes, and with the end of sequence one token more.
    self.write('qa/train.jsonl', [('x' * length, f'{length}\nand {length}') for length in (2, 4, 6, 8)])
    self.write('qa/validation.jsonl', [('v', 'w')])
    self.write('label/train.jsonl', [('one', 'yes')] * 9 + [('three', 'no')] * 3)
    self.write('label/validation.jsonl', [('v', 'yes')] * 2)
    return self.folder

  def test_a_folder(self):
    drawn = self.folder.parent / f'{self.folder.name}.png'
    self.addCleanup(drawn.unlink, missing_ok=True)
    code, out, err = run(self.write_two_tasks(), '--lengths=inputs=5,targets=60', '--n=3', f'--plot={drawn}')
    self.assertEqual((code, err), (0, ''))
    lines = out.splitlines()
    self.assertEqual(lines[0], "own_data: 2 tasks, lengths of 16 examples of 'train' in pieces of ByteVocabulary (259)")
    cells = {line.split()[1]: line.split() for line in lines[4:7]}
    self.assertEqual(cells['own_data_label'],
                     ['0', 'own_data_label', '12', '2', '75.00', '4', '6', '4', '4', '25.00', '0.00'])
    self.assertEqual(cells['own_data_qa'], ['1', 'own_data_qa', '4', '1', '25.00', '5', '9', '8', '8', '50.00', '0.00'])
    self.assertEqual(cells['all'], ['-', 'all', '16', '3', '100.00', '4', '9', '4', '8', '31.25', '0.00'])
    self.assertIn('inputs: mean 4.9, 50 % 4, 90 % 7, 99 % 9, longest 9; 31.25 % longer than 5', out)
    self.assertIn('\nlabels\n  own_data_label: yes 75.0 %, no 25.0 %\n', out)
    # One example of each task in turn, cut as the model gets them.
    self.assertIn('own_data_label, train, example 1, row 0\n  inputs (4 tokens): one\n  targets (4 tokens): yes\n', out)
    self.assertIn('own_data_qa, train, example 1, row 1\n  inputs (3 tokens): xx\n  targets (8 tokens): 2\\nand 2\n', out)
    self.assertIn('own_data_label, train, example 2, row 0\n', out)
    self.assertNotIn('own_data_qa, train, example 2', out)
    self.assertEqual(drawn.read_bytes()[:8], b'\x89PNG\r\n\x1a\n')

  def test_what_is_cut(self):
    code, out, _ = run(self.write_two_tasks(), '--lengths=inputs=5', '--n=4', '--task=qa')
    self.assertEqual(code, 0)
    self.assertNotIn('own_data_label', out)
    self.assertIn('example 3, row 1\n  inputs (5 of 7 tokens): xxxx\n', out)

  def test_a_sample_is_spread_over_the_split(self):
    self.write('a/train.jsonl', [(f'{i:03}', 'x') for i in range(100)])
    self.write('a/validation.jsonl', [('v', 'x')])
    task, = seqio.get_mixture_or_task(own_data.mixture(self.folder)).tasks
    found = samples.read([task], 'train', 3)['own_data_a']
    self.assertEqual([bytes((example.inputs[:-1] - 3).tolist()) for example in found], [b'000', b'049', b'099'])
    self.assertEqual(samples.read([task], 'test', 3), {'own_data_a': []})

  def test_tasks_of_one_format_share_a_pipeline(self):
    name = own_data.mixture(self.write_two_tasks())
    tasks = [*seqio.get_mixture_or_task(name).tasks, *seqio.get_mixture_or_task('latent_skills').tasks[:2]]
    self.assertEqual([[task.name for task in group] for group in samples._groups(tasks, 'train', 5)],
                     [['own_data_label', 'own_data_qa'], [tasks[2].name], [tasks[3].name]])

  def test_a_registered_mixture(self):
    code, out, err = run('latent_skills', '--sample=4', '--split=validation', '--n=1', '--lengths=inputs=24,targets=28')
    self.assertEqual((code, err), (0, ''))
    self.assertStartsWith(out, "latent_skills: 16 tasks, lengths of 64 examples of 'validation'")
    self.assertEqual(out.count(', example '), 1)
    _, out, _ = run('latent_skills', '--sample=4', '--n=0')
    self.assertEqual(out.count(', example '), 0)

  def test_the_settings_of_a_run(self):
    folder = self.write_two_tasks()
    file = folder.parent / f'{folder.name}.gin'
    self.addCleanup(file.unlink, missing_ok=True)
    file.write_text(f"""
        from __gin__ import dynamic_registration
        from tasks import features
        from tasks import own_data
        MIXTURE_OR_TASK_NAME = @own_data.mixture()
        own_data.mixture.folder = {str(folder)!r}
        TASK_FEATURE_LENGTHS = {{'inputs': 512, 'targets': 3}}
        VOCABULARY = @features.vocabulary()
        features.vocabulary.path = 'bytes'
        features.vocabulary.extra_ids = 5
    """)
    code, out, err = run(f'--gin_file={file}', "--gin.TASK_FEATURE_LENGTHS={'inputs': 5, 'targets': 3}", '--n=0')
    self.assertEqual((code, err), (0, ''))
    self.assertIn('ByteVocabulary (264)', out)
    self.assertIn('31.25 % longer than 5', out)
    self.assertEqual(gin.config_str(), '')

  def test_bad_lines(self):
    self.write('a/train.jsonl', [('a', 'b'), ('c', '')])
    self.write('a/validation.jsonl', [('v', 'x')])
    code, out, err = run(self.folder)
    self.assertEqual((code, out), (1, ''))
    self.assertRegex(err, r'^error: .*a/train.jsonl:2: the target is empty; fill it in or remove the record\n$')
    own_data.unregister()
    code, out, err = run(self.folder, '--skip_bad_lines=1')
    self.assertEqual(code, 0)
    self.assertIn('lengths of 1 examples', out)

  @parameterized.parameters(
      ((), 'error: give a mixture, a task or a folder: python -m tasks.show latent_skills'),
      (('latent_skill',), "error: there is neither a mixture, a task nor a folder 'latent_skill'; did you mean latent_skills"),
      (('absent/folder',), "error: there is neither a mixture, a task nor a folder 'absent/folder'"),
      (('latent_skills', '--task=lower'), 'error: latent_skills has no task lower; '),
      (('latent_skills', '--split=dev'), "error: no task of latent_skills has a split 'dev'; write one of train, validation"),
      (('latent_skills', '--lengths=512'), 'error: --lengths=512: write --lengths=inputs=512,targets=128'),
      (('latent_skills', '--lengths=inputs=0'), 'error: --lengths=inputs=0: write'),
      (('latent_skills', '--sample=0'), 'error: --sample=0 --n=3: write whole numbers'),
      (('latent_skills', '--vocabulary_path=absent.model'), 'error: no SentencePiece model at absent.model'),
      (('latent_skills', '--skip_bad_lines=x'), 'error: argument --skip_bad_lines: invalid int value'),
      (('latent_skills', '--sample=1', '--plot=x.nothing'), 'error: cannot draw into x.nothing: '),
      (('latent_skills', '--gin.X'), 'error: --gin.X has no value: write --gin.X=VALUE'),
      (('latent_skills', '--gin_file=absent.gin'), 'error: '),
      (('--nonsense',), 'error: unrecognized arguments: --nonsense'),
  )
  def test_mistakes(self, arguments, message):
    code, out, err = run(*arguments)
    self.assertEqual((code, out), (1, ''))
    self.assertStartsWith(err, message)
    self.assertEqual(err.count('\n'), 1)

  def test_histogram(self):
    text = show_report.histogram(np.array([1] * 50 + [2] * 25 + [3]), 'inputs', limit=2)
    self.assertEqual(text.splitlines(), [
        'inputs: mean 1.4, 50 % 1, 90 % 2, 99 % 3, longest 3; 1.32 % longer than 2',
        f'  1 to 1 | {"#" * 50} 50', f'  2 to 2 | {"#" * 25} 25', '  3 to 3 | # 1'])
    wide = show_report.histogram(np.arange(1000), 'inputs').splitlines()
    self.assertEqual([line.split('#')[0] for line in wide[1:3]], ['    0 to  99 | ', '  100 to 199 | '])
    self.assertLen(wide, 11)

  def test_labels_are_cut_to_a_line(self):
    examples = [samples.Example(np.zeros(1), np.zeros(1), 'x' * 99 if i % 10 == 0 else f'a\n{i % 10}') for i in range(20)]
    line, = show_report.label_lines([show_report.Shown('t', 0, {}, None, examples)])
    self.assertStartsWith(line, f"  t: {'x' * 27}... 10.0 %, a\\n1 10.0 %, ")
    self.assertEndsWith(line, ' and 2 more')


if __name__ == '__main__':
  absltest.main()
