"""Figures: labels, numbers, colours, and SVG inside of a page."""

from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from cpoly_jax.analysis import figures, hierarchy, svg, texts

NAMES = ('<script>alert(1)</script>', '$\\frac{1}{2}', 'a"b\'&', 'x' * 90)


def _labels(axis):
  return [label.get_text() for label in axis.get_ticklabels()]


class FiguresTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(svg.style())

  def _heat_map(self, size, columns=3, **settings):
    values = np.arange(size * columns).reshape(size, columns) / 10
    return figures.heat_map(values, [f'row {i}' for i in range(size)], [str(i) for i in range(columns)], row_title='task',
                            column_title='skill', scale='weight', **settings)

  @parameterized.parameters((2, 2, 6), (40, 40, 120), (210, 53, 0))
  def test_labels_and_numbers_as_many_as_can_be_read(self, size, labels, numbers):
    axes = self._heat_map(size).axes[0]
    self.assertLen(_labels(axes.yaxis), labels)
    self.assertLen(axes.texts, numbers)
    self.assertEqual((axes.get_xlabel(), axes.get_ylabel()), ('skill', 'task'))

  def test_numbers_stand_out(self):
    axes = self._heat_map(2, centre=0.).axes[0]
    self.assertEqual([text.get_text() for text in axes.texts], ['.00', '.10', '.20', '.30', '.40', '.50'])
    self.assertEqual([axes.texts[0].get_color(), axes.texts[-1].get_color()], ['#000000', '#ffffff'])

  @parameterized.parameters(([[0., 2.]], None, (0., 2.)), ([[-1., .5]], None, (-1., 1.)), ([[.4, .9]], .5, (.1, .9)),
                            ([[.5, .5]], .5, (.45, .55)), ([[np.nan, 0.]], None, (0., 1.)))
  def test_limits_of_colours(self, values, centre, expected):
    figure = figures.heat_map(np.array(values), ['a'], ['b', 'c'], row_title='', column_title='', scale='', centre=centre)
    np.testing.assert_allclose(figure.axes[0].images[0].get_clim(), expected)

  def test_tree_and_similarities_are_in_one_order(self):
    alike = np.array([[1., 0., .9], [0., 1., .1], [.9, .1, 1.]])
    linkage = hierarchy.tree(alike)
    order = hierarchy.order(linkage)
    left, right = figures.tree(linkage, alike, order, ['a', 'b', 'c']).axes[:2]
    self.assertEqual(_labels(right.yaxis), [['a', 'b', 'c'][i] for i in order])
    self.assertGreater(left.get_ylim()[0], left.get_ylim()[1])  # The first leaf is at the top, as the first row.
    self.assertLen(left.collections[0].get_paths(), 2)

  def test_mosaic(self):
    tables = {'encoder': {(0, 'attention/query'): np.zeros((3, 2)), (1, 'attention/query'): np.ones((3, 2))},
              'decoder': {(0, 'mlp/wo'): np.full((3, 2), .5)}}
    encoder, decoder = figures.mosaic(tables, 'weight').axes[:2]
    self.assertEqual((_labels(encoder.yaxis), _labels(decoder.xaxis)), (['0', '1'], ['mlp/wo']))
    self.assertEqual([len(axes.images) for axes in (encoder, decoder)], [2, 1])
    self.assertEqual(encoder.images[1].get_extent()[3], 4)  # Below the first block and a gap of one row.

  def test_curves_keep_within_bounds(self):
    axes = figures.curves({'usage': {'one': ([0, 1], [1., 1.])}, 'sparsity': {'one': ([0, 1], [.2, .7])}}, 'layer').axes
    np.testing.assert_allclose(axes[0].get_ylim(), (.952, 1.002))
    self.assertEqual([line.get_ydata().tolist() for line in axes[1].lines], [[.2, .7]])

  def test_bars(self):
    axes = figures.bars(['a', 'b'], [1., -2.], 'gain').axes[0]
    self.assertEqual([bar.get_width() for bar in axes.patches], [1., -2.])
    self.assertLen({bar.get_facecolor() for bar in axes.patches}, 2)


class InlineTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with svg.style():
      cls.file = svg.render(figures.bars(NAMES, [1., 2., -1., 0.], 'gain'), 'svg')
    cls.page = svg.inline(cls.file, 'gains', 'Gain <b>"of"</b> tasks')

  def test_names_are_text(self):
    for content in (self.file, self.page):
      root = ElementTree.fromstring(content)
      found = {element.text for element in root.iter('{http://www.w3.org/2000/svg}text')}
      self.assertContainsSubset({texts.shorten(name, 28) for name in NAMES}, found)
      self.assertEmpty([element for element in root.iter() if element.tag.endswith('script')])

  def test_colours_are_the_pages(self):
    self.assertIn(svg.INK.encode(), self.file)
    for colour in (svg.INK, svg.PAPER):
      self.assertNotIn(colour, self.page)
    self.assertIn('currentColor', self.page)

  def test_nothing_is_shared_with_other_figures(self):
    root = ElementTree.fromstring(self.page)
    ids = [element.get('id') for element in root.iter() if element.get('id')]
    self.assertNotEmpty(ids)
    self.assertEqual({name.partition('-')[0] for name in ids}, {'gains'})
    links = [value[1:] for element in root.iter() for key, value in element.attrib.items() if key.endswith('href')]
    self.assertContainsSubset(links, ids)
    self.assertNotIn('<style', self.page)
    self.assertNotIn('font-family', self.page)
    self.assertEqual(root.get('aria-label'), 'Gain <b>"of"</b> tasks')

  def test_the_same_figure_gives_the_same_file(self):
    with svg.style():
      again = svg.render(figures.bars(NAMES, [1., 2., -1., 0.], 'gain'), 'svg')
    self.assertEqual(self.file, again)


if __name__ == '__main__':
  absltest.main()
