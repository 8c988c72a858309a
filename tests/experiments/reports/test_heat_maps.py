"""Heat maps: what is where, in which colour, and which digits can be read on it."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments.reports import heat_maps, palette


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize(
    ('values', 'how', 'expected'),
    [
        ([4.0, 6.0], {}, (4, 6)),
        ([4.0, 4.2], {}, (3.6, 4.6)),
        ([0.2, math.nan, math.inf], {'from_zero': True}, (0, 1)),
        ([3.0, 5.0], {'from_zero': True}, (0, 5)),
        ([], {}, (-0.5, 0.5)),
    ],
)
def test_trifles_look_like_trifles(values, how, expected):
    norm = heat_maps.scale(values, least_span=1.0, **how)
    assert (norm.vmin, norm.vmax) == pytest.approx(expected)


def test_layers_and_matrices_are_where_their_labels_are(axes):
    values = np.array([[4.0, 5.0, math.nan], [math.inf, 6.0, 4.5]])
    mesh = heat_maps.draw_layers(axes, values, ['query', r'a$b$'], heat_maps.scale(values.flat, least_span=1.0))
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): '4.00', (1, 0): '5.00', (0, 1): '∞', (1, 1): '6.00', (2, 1): '4.50'}
    assert axes.get_ylim() == (1.5, -0.5) and axes.get_xlim() == (-0.5, 2.5)  # the first matrix is at the top
    assert [text.get_text() for text in axes.get_yticklabels()] == ['query', r'a\$b\$']
    assert mesh.get_array().mask.tolist() == [[False, False, True], [True, False, False]]


def test_no_digits_where_there_is_no_room(axes):
    heat_maps.draw_layers(axes, np.ones((2, 13)), ['up', 'down'], heat_maps.scale([1.0], least_span=1.0))
    assert not axes.texts


@pytest.mark.parametrize(
    ('rows', 'every', 'has_digits'), [(20, 1, True), (30, 2, True), (60, 3, False), (1000, 42, False)]
)
def test_names_and_digits_that_would_lie_on_each_other_are_left_out(axes, rows, every, has_digits):
    """In the order of the rows, from the first on; each beside its own."""
    names = [f'matrix_{row}' for row in range(rows)]
    heat_maps.draw_layers(axes, np.ones((rows, 2)), names, heat_maps.scale([1.0], least_span=1.0))
    axes.figure.canvas.draw()
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == names[::every]
    assert axes.get_yticks().tolist() == [*range(0, rows, every)]
    boxes = [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes))
    assert bool(axes.texts) == has_digits
    heat_maps.name_rows(axes, names, rows_of_each=3)
    assert axes.get_yticks().tolist() == [1 + 3 * row for row in range(0, rows, every)]


def test_digits_can_be_read_on_every_color(axes):
    """A ratio of luminances of at least 4, as of large text in WCAG 2.1; by whose formula it is."""

    def luminance(color):
        channels = np.array(to_rgb(color))
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    values = np.array([np.linspace(0, 1, 101)]).T  # one layer of many matrices
    axes.figure.set_figheight(20)
    mesh = heat_maps.draw_layers(axes, values, [''] * 101, heat_maps.scale(values.flat, least_span=1.0))
    colors = [*mesh.to_rgba(values[:, 0])[:, :3], palette.PALE]
    for color, digits in zip(colors, [*(text.get_color() for text in axes.texts), 'black'], strict=True):
        dark, light = sorted([luminance(color), luminance(digits)])
        assert (light + 0.05) / (dark + 0.05) > 4, color


def test_columns_meet_halfway():
    edges = heat_maps.edges_between(np.array([10.0, 20.0, 40.0]))
    assert edges.tolist() == [5, 15, 30, 50]
    assert heat_maps.edges_between(np.array([7.0])).tolist() == [6.5, 7.5]
