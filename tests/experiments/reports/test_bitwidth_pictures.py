"""The bitwidths in a run's report: what there is of them is drawn, and what isn't there is said."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from small_records import bits, record

import gaussq_jax as gq
from experiments.reports import bitwidth_pictures, stored_formats

BITWIDTHS = {
    'layers/query/kernel': np.array([[[4.0, 4.5], [4.0, 3.5]], [[5.0, 5.0], [5.0, 5.0]]]),
    'layers/up/kernel': np.full((2, 1, 1), 2.75),
}
MORE = {'bits/min': 2.0, 'bits/max': 8.0, 'bits/p10': 3.0, 'bits/p90': 7.0, 'bits/stored': 9.0}


def test_many_matrices_make_no_endless_picture():
    many = {f'up_{i}/kernel': np.full((1, 1, 1), 3.0) for i in range(1000)}
    figure = bitwidth_pictures.newest_figure(many)
    assert figure.get_figheight() < 15 and len(figure.axes[0].get_yticks()) < 100


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def drawn(lines, bitwidths):
    """The titles of the pictures, and what is said beside them."""
    found = bitwidth_pictures.parts(record('g', 'method=gaussws', lines=lines), bitwidths)
    told = [re.sub('<.*?>', '', part) for part in found if part.startswith('<p>')]
    return [re.match('<img alt="(.*?)"', part)[1] for part in found if part.startswith('<img')], told


def test_what_there_is_is_drawn():
    signal = [{'step': 1, 'bits/signal_to_noise': 0.5}]
    over_steps, of_blocks = 'bitwidths by layer and matrix, and over steps', 'bitwidths of blocks, and over steps'
    assert drawn(bits(3) + signal, BITWIDTHS) == ([over_steps, of_blocks], [])
    assert drawn(bits(3) + signal, {}) == ([over_steps, of_blocks], [])
    images, told = drawn([{'step': 1, 'bits/mean': 4.0}], BITWIDTHS)
    assert images == ['bitwidths by layer and matrix', of_blocks]
    assert ['its version did not write' in text.lower() for text in told] == [True, True]
    assert drawn([], {}) == ([], ['There are no bitwidths of its matrices over steps: it has yet to log a step.'])


def test_bitwidths_that_are_no_numbers_are_counted():
    """And drawn are the others, if there are such."""
    some = {'up/kernel': np.array([[[np.nan, 3.0, np.inf]]])}
    assert drawn(bits(1), some)[0][1] == 'bitwidths of blocks, and over steps'
    (warning, *_) = bitwidth_pictures.parts(record('g', 'method=gaussws', lines=bits(1)), some)
    assert warning.startswith('<p class="warning">2 of 3 blocks have a bitwidth that is NaN or infinite')
    of = record('g', 'method=gaussws', lines=bits(1))
    assert len(bitwidth_pictures.blocks_figure(of, some).axes) == 2
    assert len(bitwidth_pictures.blocks_figure(of, {'up/kernel': np.full((1, 1, 2), np.nan)}).axes) == 1


def test_those_of_a_checkpoint():
    """The mean over blocks, layers by matrices."""
    (axes, _) = bitwidth_pictures.newest_figure(BITWIDTHS).axes
    np.testing.assert_array_equal(axes.collections[0].get_array(), [[4, 5], [2.75, 2.75]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ['query', 'up']


def test_all_blocks_are_in_the_histogram():
    """With the limits between formats, each named where it has room."""
    _, axes = plt.subplots()
    bitwidth_pictures.histogram_panel(axes, BITWIDTHS)
    assert sum(bar.get_height() for bar in axes.patches) == 10
    heights = {round(max(of_bar(bar)), 2): bar.get_height() for bar in axes.patches if bar.get_height()}
    assert heights == {2.75: 2, 3.5: 1, 4.0: 2, 4.5: 1, 5.0: 4}
    assert [line.get_xdata()[0] for line in axes.lines] == [3, 4, 5]
    assert axes.get_xlim()[0] < 2.7
    assert [text.get_text() for text in axes.texts] == ['e2m1', 'e3m2', 'e3m3']


@pytest.mark.parametrize(
    'levels',
    [
        [3.0, 3.0, 3.0, 8.0],
        [2.0, 3.0, 3.0004, 3.001, 4.0, 4.02],
        [3.0, 3.01, 5.0, 6.5, 8.0, 9.0],
        [3.0] * 4,
        [8.9, 9.001, 10.0, 40.0],
    ],
)
def test_blocks_stand_under_the_format_that_they_are_stored_in(levels):
    """Each format that has some is named; a block at a limit itself, and one that acts as such, is left of it."""
    bitwidths = {'up/kernel': np.array(levels, np.float32)[None, :]}
    params = {'up': {'kernel': np.zeros((32, 32 * len(levels)), np.float32)}}
    layout = gq.learned_layout(params, bitwidths)
    stored = stored_formats.stored_in(gq.leaves_by_path(params), layout, bitwidths)
    _, axes = plt.subplots()
    bitwidth_pictures.histogram_panel(axes, bitwidths)
    low, high = axes.get_xlim()
    limits = [low, *(line.get_xdata()[0] for line in axes.lines), high]
    assert low < min(min(of_bar(bar)) for bar in axes.patches)
    found = {}
    for begin, end in itertools.pairwise(limits):
        names = [text.get_text() for text in axes.texts if begin < text.xy[0] < end]
        bars = [bar for bar in axes.patches if begin - 1e-9 < min(of_bar(bar)) and max(of_bar(bar)) < end + 1e-9]
        if number := sum(bar.get_height() for bar in bars):
            found[names[0]] = number
    assert found == {of_format.fmt.name: round(of_format.share * len(levels)) for of_format in stored}


def of_bar(bar):
    return bar.get_x(), bar.get_x() + bar.get_width()


@pytest.mark.parametrize('value', [2.0, 4.0, 12.0, 1e9])
def test_blocks_that_are_alike(value):
    _, axes = plt.subplots()
    bitwidth_pictures.histogram_panel(axes, {'up': np.full((1, 2, 2), value)})
    assert sum(bar.get_height() for bar in axes.patches) == 4
    low, high = axes.get_xlim()
    assert high - low > 0.499 and low <= min(value, bitwidth_pictures.LARGEST) <= high


def test_percentiles_over_steps():
    """Bands where they were written: of earlier versions, the one from the least to the largest."""
    lines = [{**line, **MORE} for line in bits(2)]
    for missing, bands, curves in (((), 2, 2), (('bits/p10', 'bits/stored'), 1, 1)):
        kept = [{name: value for name, value in line.items() if name not in missing} for line in lines]
        _, axes = plt.subplots()
        bitwidth_pictures.over_steps_panel(axes, record('g', 'method=gaussws', lines=kept))
        assert (len(axes.collections), len(axes.lines)) == (bands, curves)
