"""Pictures of runs: what is drawn of which runs, whatever their names are."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from small_records import bits, record, training

from experiments.reports import run_pictures


@pytest.fixture
def figures():
    """Draws, and closes what was drawn."""
    drawn = []

    def draw(function, *records):
        drawn.append(function(records))
        drawn[-1].canvas.draw()
        return drawn[-1]

    yield draw
    for figure in drawn:
        plt.close(figure)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize('name', ['tiny', r'$\frac{$', '$x$', 'a_b^c', '100 %'])
def test_a_name_is_no_formula(figures, name):
    """It stands in the legend and the titles as it is."""
    figure = figures(run_pictures.runs_figure, record(name, 'method=gaussws', lines=training(3) + bits(3)))
    assert f'{name}: 0.667'.replace('$', r'\$') in labels(figure.axes[1])
    assert name.replace('$', r'\$') in figure.axes[0].get_title()
    figures(run_pictures.bitwidths_figure, record(name, 'method=gaussws', lines=bits(3)))


def test_long_names_leave_room(figures):
    """The first and the last letters of a name stand in legends and titles."""
    name = 'first' + 200 * 'x' + 'last'
    runs = [record('b', lines=training(2)), record(name, 'method=gaussws', lines=training(2, 1.1) + bits(2))]
    heat, loss, gap, _ = figures(run_pictures.runs_figure, *runs).axes
    of_bits = figures(run_pictures.bitwidths_figure, runs[1]).axes[0]
    for text in (heat.get_title(), labels(loss)[1], labels(gap)[0], of_bits.get_title()):
        assert len(text) < 70 and re.search('first.*….*last', text)


def test_one_run_of_each_method(figures):
    """Two panels where nothing was learned by matrix: loss, and the mean bitwidth; a third one for gaps to bf16."""
    learned = [{'step': 1, 'bits/mean': 5.0}, {'step': 3, 'bits/mean': 4.0}]
    runs = [record('b', lines=training(3)), record('g', 'method=gaussws', lines=training(3, 1.1) + learned)]
    loss, mean_bits, gap = figures(run_pictures.runs_figure, *runs).axes
    assert labels(loss) == ['b: 0.667', 'g: 0.733']
    np.testing.assert_array_equal(mean_bits.lines[1].get_xydata(), [[1, 5], [3, 4]])
    assert labels(gap) == ['g: +10.00 %'] and not gap.collections
    assert len(figures(run_pictures.runs_figure, runs[1]).axes) == 2
    assert len(figures(run_pictures.runs_figure, runs[0]).axes) == 1


def test_panels_that_are_asked_for():
    """In the order of all; one that can't be had is an error that says what there is."""
    runs = [record('b', lines=training(2)), record('g', 'method=gaussws', lines=training(2, 1.1) + bits(2))]
    heat, gap, _ = run_pictures.runs_figure(runs, ['gap', 'bits']).axes
    assert heat.get_title() == 'mean bits of g, step 2' and gap.get_title() == 'gap to bf16, one seed'
    with pytest.raises(ValueError, match="--panels=loss,gap: of 'gap' there is nothing; there is loss"):
        run_pictures.runs_figure(runs[:1], ['loss', 'gap'])
    plt.close('all')


def test_seeds_are_one_curve_and_a_band(figures):
    """The mean, on a band from the least to the largest; the gap is paired by seed, not that of the means."""
    runs = [record(f'b-{seed}', seed=seed, lines=training(2, factor)) for seed, factor in enumerate((1, 2, 3))]
    runs += [
        record(f'g-{seed}', 'method=gaussws', seed, training(2, factor) + bits(2))
        for seed, factor in enumerate((1.1, 2.0, 3.0))
    ]
    heat, loss, gap, _ = figures(run_pictures.runs_figure, *runs).axes
    assert heat.get_title() == 'mean bits of g-0, step 2'
    assert labels(loss) == ['b: 2.000 (mean of 3 seeds)', 'g: 2.033 (mean of 3 seeds)']
    validation = loss.lines[1]
    np.testing.assert_allclose(validation.get_ydata(), [4, 2])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1, 6)
    assert loss.get_title().endswith('on a band from the least to the largest of the seeds')
    assert labels(gap) == ['g: +3.33 % (+0.00 to +10.00, 3 seeds)']
    assert gap.get_title() == 'gap to bf16, mean and range of the seeds'


def test_seeds_that_stopped_early_are_told(figures):
    """The step of what is shown, where it isn't the last one; a seed without the curve doesn't count."""
    runs = [record(f'b-{seed}', seed=seed, lines=training(3)) for seed in range(3)]
    runs += [record(f'g-{seed}', 'method=gaussws', seed, training(3 - seed, 1.1)) for seed in range(2)]
    runs.append(record('g-2', 'method=gaussws', 2, [{'step': 1, 'train/loss': 3.0}]))
    runs.append(record('d', 'method=diffq', lines=training(3, 1.2)))
    loss, gap = figures(run_pictures.runs_figure, *runs).axes
    assert labels(loss) == ['b: 0.667 (mean of 3 seeds)', 'g: 1.100 at step 2 (mean of 2 seeds)', 'd: 0.800']
    assert labels(gap) == ['g: +10.00 % at step 2 (+10.00 to +10.00, 2 seeds)', 'd: +20.00 % (one seed)']


def test_bitwidths_of_several_runs_have_one_scale(figures):
    """Two panels a run, at the last step and over steps; a row a layer in these, grouped by matrix."""
    runs = [record('g', 'method=gaussws', lines=bits(3)), record('d', 'method=diffq', lines=bits(2, first=8.0))]
    now, over, other, _, bar = figures(run_pictures.bitwidths_figure, *runs).axes
    assert [axes.get_title() for axes in (now, other)] == ['g, step 3', 'd, step 2']
    assert {(axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) for axes in (now, over, other)} == {(2, 8)}
    assert bar.get_ylabel() == 'mean bitwidth (bits)'
    np.testing.assert_array_equal(now.collections[0].get_array(), [[4, 3], [3, 2]])
    np.testing.assert_array_equal(over.collections[0].get_array(), [[6, 5, 4], [5, 4, 3], [5, 4, 3], [4, 3, 2]])
    assert over.get_yticks().tolist() == [0.5, 2.5]
    assert [text.get_text() for text in over.get_yticklabels()] == ['query', 'up']


@pytest.mark.parametrize('num_steps', [1, 2])
def test_a_run_that_has_just_begun(figures, num_steps):
    figures(run_pictures.bitwidths_figure, record('g', 'method=gaussws', lines=bits(num_steps)))
    lines = [{'step': 1, 'train/loss': 3.0}]
    runs = [record('b', lines=training(1)), record('g', 'method=gaussws', lines=lines + bits(1))]
    assert labels(figures(run_pictures.runs_figure, *runs).axes[1]) == ['b: 2.000', 'g']


def test_a_run_without_a_loss_is_named():
    with pytest.raises(ValueError, match=r'^empty has no training loss in its metrics\.jsonl'):
        run_pictures.runs_figure([record('b', lines=training(1)), record('empty')])
