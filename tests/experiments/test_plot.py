"""Pictures of runs, whatever their names are."""

import pytest
from programs import import_program

plot = import_program('plot')
LINES = [{'step': step, 'train/loss': 2.0 / step, 'validation/loss': 2.0 / step} for step in (1, 2, 3)]


@pytest.mark.parametrize('name', ['tiny', r'$\frac{$', '$x$', 'a_b^c', '100 %'])
def test_a_name_is_no_formula(tmp_path, monkeypatch, name):
    """It stands in the legend as it is."""
    labels = []
    close = plot.plt.close
    monkeypatch.setattr(plot.plt, 'close', lambda figure: (labels.extend(texts(figure)), close(figure)))
    plot.draw({name: LINES}, tmp_path / 'picture.svg')
    assert f'{name}: 0.667'.replace('$', r'\$') in labels
    assert (tmp_path / 'picture.svg').stat().st_size > 1000


def texts(figure):
    return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
