"""Names as others wrote them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax.analysis import texts


class TextsTest(parameterized.TestCase):

  @parameterized.parameters(('a\tb\nc', 'a b c'), ('x\x00y', 'x\ufffdy'), ('\u202eabc', '\ufffdabc'), ('\ud800', '\ufffd'),
                            ('日本 é', '日本 é'))
  def test_printable(self, text, expected):
    self.assertEqual(texts.printable(text), expected)

  def test_shorten(self):
    self.assertEqual(texts.shorten('abcdefghij', 10), 'abcdefghij')
    self.assertEqual(texts.shorten('abcdefghijk', 10), 'abcd…ghijk')

  def test_escape(self):
    self.assertEqual(texts.escape('<a href="x">\'&'), '&lt;a href=&quot;x&quot;&gt;&#x27;&amp;')

  def test_thin(self):
    self.assertEqual(texts.thin(['a', 'b', 'c', 'd', 'e'], 2), ([0, 3], ['a', 'd']))
    self.assertEqual(texts.thin(['a', 'b'], 2), ([0, 1], ['a', 'b']))

  @parameterized.parameters((np.float32(.1), .1), (np.int64(3), 3), (float('nan'), None), (float('inf'), None), (None, None),
                            ('a', 'a'))
  def test_plain(self, value, expected):
    self.assertEqual(texts.plain(value), expected)
    self.assertIs(type(texts.plain(value)), type(expected))

  @parameterized.parameters(('=1+2', "'=1+2"), ('+1', "'+1"), ('-x', "'-x"), ('@sum', "'@sum"), ('\t=1', "' =1"),
                            (' =1', "' =1"), ('a=1', 'a=1'), (-1.5, -1.5))
  def test_csv_cells_are_no_formulas(self, value, expected):
    self.assertEqual(texts.csv_cell(value), expected)

  @parameterized.parameters((.12345, '0.123'), (12345.6, '12,346'), (1234, '1,234'), (None, '-'), (float('nan'), '-'),
                            ('x', 'x'))
  def test_shown(self, value, expected):
    self.assertEqual(texts.shown(value), expected)

  def test_listed(self):
    self.assertEqual(texts.listed(['a', 'b', 'c'], 2), 'a, b and 1 more')
    self.assertEqual(texts.listed(['a', 'b' * 50], None), 'a, ' + 'b' * 50)


if __name__ == '__main__':
  absltest.main()
