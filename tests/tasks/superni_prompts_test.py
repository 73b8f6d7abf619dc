"""Tests of Super-NI's prompts, to the byte, and of what fits into them."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import gin
import seqio

from tasks import superni_prompts
from tests.tasks import superni_case

DEFAULT_PROMPT = (
    'Definition: Say the opposite.\n\n'
    ' Positive Example 1 -\nInput: hot.\n Output: cold.\n\n'
    ' Positive Example 2 -\nInput: up?\n Output: down.\n\n'
    'Now complete the following example -\nInput: word 0.\nOutput: ')
# With explanations, all three positive examples and the negative one.
FULL_PROMPT = (
    'Definition: Say the opposite.\n\n'
    ' Positive Example 1 -\nInput: hot.\n Output: cold.\n Explanation: They differ.\n\n'
    ' Positive Example 2 -\nInput: up?\n Output: down.\n Explanation: So do they!\n\n'
    ' Positive Example 3 -\nInput: in.\n Output: out.\n\n'
    ' Negative Example 1 -\nInput: wet.\n Output: damp.\n Explanation: Alike.\n\n'
    'Now complete the following example -\nInput: word 0.\nOutput: ')


class PromptTest(superni_case.SuperNiTestCase):

  def setUp(self):
    super().setUp()
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': superni_case.task(), 'task2_b': superni_case.task()})

  def prompt(self, lengths=None):
    """The first validation prompt of `task1_a`."""
    return self.examples('superni_task1_a', 'validation', lengths)[0]['inputs_pretokenized'].decode()

  def options(self, **options):
    gin.clear_config()
    gin.parse_config([f'superni_prompts.prompt_options.{name} = {value!r}' for name, value in options.items()])

  def test_default(self):
    self.assertEqual(self.prompt(), DEFAULT_PROMPT)

  def test_all_options(self):
    self.options(task_name=True, num_positive=5, num_negative=2, explanation=True)
    self.assertEqual(self.prompt(), 'task1_a. ' + FULL_PROMPT)

  def test_bare(self):
    self.options(definition=False, num_positive=0)
    self.assertEqual(self.prompt(), 'Now complete the following example -\nInput: word 0.\nOutput: ')

  def test_missing_explanation_and_empty_texts(self):
    pieces = superni_prompts.prompt_pieces('t', 'Do.', [{'input': 'a', 'output': ''}], [], ' ',
                                           superni_prompts.PromptOptions(explanation=True))
    self.assertEqual(pieces, {
        'name': '', 'head': 'Definition: Do.\n\n', 'positive': [' Positive Example 1 -\nInput: a.\n Output: .\n\n', ''],
        'negative': [], 'tail': 'Now complete the following example -\nInput: .\nOutput: '})

  def test_an_example_is_added_only_where_the_whole_fits(self):
    # In bytes; the end of sequence is one more token.
    whole = len(DEFAULT_PROMPT) + 1
    second = DEFAULT_PROMPT.index(' Positive Example 2')
    first = DEFAULT_PROMPT.index(' Positive Example 1')
    tail = DEFAULT_PROMPT.index('Now complete')
    one = DEFAULT_PROMPT[:second] + DEFAULT_PROMPT[tail:]
    none = DEFAULT_PROMPT[:first] + DEFAULT_PROMPT[tail:]
    for limit, expected in ((whole, DEFAULT_PROMPT), (whole - 1, one), (len(one) + 1, one), (len(one), none)):
      self.options()
      self.assertEqual(self.prompt({'inputs': limit, 'targets': 8}), expected)
      self.options(max_source_length=limit)
      self.assertEqual(self.prompt(), expected)

  def test_what_fits_is_measured_with_a_space_between_earlier_examples(self):
    """As Tk-Instruct measures: `definition + " ".join(kept) + new + input`."""
    third, negative, tail = (FULL_PROMPT.index(text) for text in (' Positive Example 3', ' Negative', 'Now complete'))
    without_negative = FULL_PROMPT[:negative] + FULL_PROMPT[tail:]
    two = FULL_PROMPT[:third] + FULL_PROMPT[tail:]
    # One space between the two earlier ones when the third is tried, two between all three when the negative one is.
    for limit, expected in ((len(FULL_PROMPT) + 3, FULL_PROMPT), (len(FULL_PROMPT) + 2, without_negative),
                            (len(without_negative) + 2, without_negative), (len(without_negative) + 1, two)):
      self.options(num_positive=3, num_negative=1, explanation=True, max_source_length=limit)
      self.assertEqual(self.prompt(), expected)

  def test_the_name_of_the_task_is_not_measured(self):
    length = len(DEFAULT_PROMPT) + 1
    self.options(task_name=True, max_source_length=length)
    example = self.examples('superni_task1_a', 'validation')[0]
    self.assertEqual(example['inputs_pretokenized'].decode(), 'task1_a. ' + DEFAULT_PROMPT)
    # So the whole is too long, and is cut.
    self.assertLen(example['inputs'], length)
    text = seqio.ByteVocabulary().decode(example['inputs'][:-1].tolist())
    self.assertEqual(text, ('task1_a. ' + DEFAULT_PROMPT)[:length - 1])

  def test_a_long_example_stops_its_kind_but_not_the_other(self):
    task = superni_case.task()
    task['Positive Examples'][0]['input'] = 'long ' * 500
    self.register(['task1_a'], ['task2_b'], tasks={'task1_a': task})
    self.options(num_negative=1)
    prompt = self.prompt()
    self.assertNotIn('Positive Example', prompt)
    self.assertIn(' Negative Example 1 -\nInput: wet.\n', prompt)

  def test_what_is_still_too_long_is_cut_and_ended(self):
    example = self.examples('superni_task1_a', 'validation', {'inputs': 20, 'targets': 2})[0]
    self.assertEqual(seqio.ByteVocabulary().decode(example['inputs'][:-1].tolist()), 'Definition: Say the')
    self.assertLen(example['inputs'], 20)
    self.assertEqual(example['inputs'][-1], 1)
    self.assertLen(example['targets'], 2)

  @parameterized.parameters({'num_positive': -1}, {'max_source_length': 1}, {'max_target_length': 0})
  def test_bad_options(self, **options):
    with self.assertRaisesRegex(ValueError, f'{next(iter(options))}='):
      superni_prompts.prompt_options(**options)


if __name__ == '__main__':
  absltest.main()
