"""The report on a table of runs: one file that needs no other, with all it promises, for tables large and small."""

import base64
import csv
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from experiments.laws import html_report, known_laws, notation
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, BitwidthLaw

BITWIDTH = BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=500.0, kappa=3.0)
SIZES, TOKENS = (40894464, 154140672, 679477248), (1.05e10, 3.15e10, 1.05e11)


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch):
    monkeypatch.setattr(known_laws, 'NUM_STARTS', 4)
    monkeypatch.setattr(known_laws, 'NUM_DRAWS', 20)
    few = {'capybara': known_laws.LAWS['capybara'], 'chinchilla': known_laws.LAWS['chinchilla']}
    monkeypatch.setattr(known_laws, 'LAWS', {**few, 'bitwidth': known_laws.LAWS['bitwidth']})


def sweep(*, formats=('e1m1', 'e2m1', 'e1m3'), bits=(), seeds=(0,)):
    """The rows of a sweep's results.csv, with losses of the laws and a little noise."""
    rng, rows = np.random.default_rng(0), []
    settings = [('bf16', '', '32', '')]
    settings += [('fqt', fmt, size, '') for fmt in formats for size in ('32', 'channel')]
    settings += [('gaussws', '', '32', b) for b in bits]
    for N in SIZES:
        for D in TOKENS:
            for method, fmt, size, b in settings:
                for seed in seeds:
                    B = 'channel' if size == 'channel' else float(size)
                    if method == 'gaussws':
                        loss = BITWIDTH.loss(N, D, b)
                    else:
                        E, M = map(int, re.findall(r'\d', fmt or 'e8m7'))
                        loss = PUBLISHED_CAPYBARA.loss(N, D, E, M, 1 if method == 'bf16' else B)
                    row = {'status': 'done', 'method': method, 'quantization.format': fmt}
                    row |= {'quantization.block_size': size, 'seed': seed, 'N': N, 'D': D, 'bits/mean': b}
                    rows.append({**row, 'validation/loss': loss + rng.normal(0, 0.003)})
    return [*rows, {**rows[0], 'status': 'failed', 'validation/loss': ''}]


def report(tmp_path, rows, name='runs.csv', **how):
    """The page, and what `write` returns."""
    with open(tmp_path / name, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = html_report.write(str(tmp_path / name), tmp_path / 'report.html', **how)
    return (tmp_path / 'report.html').read_text(), data


def cells(page, first):
    """The cells of the table rows that begin so."""
    rows = [re.findall('<td>(.*?)</td>', row) for row in re.findall('<tr>(.*?)</tr>', page)]
    return [row for row in rows if row and row[0] == first]


def test_the_report_of_a_sweep(tmp_path):
    """Both laws, each with its constants, errors on runs held out and noise of the seeds; nothing is fetched."""
    page, data = report(tmp_path, sweep(bits=(2.0, 3.0, 5.0), seeds=(0, 1)))
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    assert len(images) == page.count('<img') == 7  # of formats: runs, two kinds of blocks, layout, budget; of bits: two
    for _, image in images:
        xml.etree.ElementTree.fromstring(base64.b64decode(image))
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script', page)

    assert data['capybara']['runs'] == 126 and data['bitwidth']['runs'] == 72
    assert '126 runs (108 fqt, 18 bf16); left out: 1 with status failed, 54 without E (gaussws)' in page
    for law, degrees in (('capybara', 63), ('bitwidth', 36)):
        noise = data[law]['seed_noise']
        assert noise['degrees_of_freedom'] == degrees and 0.002 < noise['standard_deviation'] < 0.004
        assert f'Seeds differ by {noise["standard_deviation"]:.3g} nats' in page
    assert [row[1] for row in cells(page, 'alpha')] == [
        f'{data[law]["constants"]["alpha"]["value"]:.6g}' for law in ('capybara', 'bitwidth')
    ]
    for name in ('Capybara', 'Bitwidth', 'Chinchilla'):
        assert all(row[3].endswith('%') and row[4].endswith('%') for row in cells(page, name))
    assert len(cells(page, 'Chinchilla')) == 2


def test_critical_tokens_are_those_of_the_law(tmp_path, no_comparison):
    page, data = report(tmp_path, sweep())
    assert '<p>No errors on runs held out: not now.</p>' in page
    law = known_laws.LAWS['capybara'](**{name: c['value'] for name, c in data['capybara']['constants'].items()})
    (row,) = cells(page, 'e2m1, channel')
    expected = [notation.human(size) for size in law.critical_data_size(np.array(SIZES), 2, 1, 'channel').tolist()]
    assert [cell.split(' ')[0] for cell in row[1:]] == expected
    (row,) = [row for row in cells(page, 'channel') if len(row) == 3]  # the budgets at which 4 and 8 bits are best
    for cell, bits in zip(row[1:], (4, 8)):
        best = float(law.compute_optimal(float(cell.split(' ')[0]), 'channel').P)
        assert best == pytest.approx(bits, rel=0.01)


def test_the_same_table_gives_the_same_file(tmp_path, no_comparison):
    first, _ = report(tmp_path, sweep(formats=('e1m1', 'e2m1')))
    assert report(tmp_path, sweep(formats=('e1m1', 'e2m1')))[0] == first


def test_a_table_that_determines_little_says_so(tmp_path):
    """One format, one model size, names that HTML would take for its own."""
    rows = [row for row in sweep(formats=('e2m1',), seeds=(0, 1)) if row['N'] == SIZES[0]]
    page, data = report(tmp_path, rows, name='a<b>&c.csv')
    assert '<title>Scaling laws of a&lt;b&gt;&amp;c.csv</title>' in page and '<b>' not in page
    assert {'gamma', 'delta', 'nu'} <= set(data['capybara']['undetermined'])
    assert re.search(r'<p class="warning">These runs do not determine .*gamma, delta, nu', page)
    assert cells(page, 'Capybara')[0][4] == 'unknown'  # with one N, none can be held out
    assert re.search(r'<p class="warning">The best format is unknown: .*gamma, delta, nu', page)
    assert 'alt="best exponent and mantissa bits"' not in page
    assert cells(page, 'channel')[0][1:] == ['unknown', 'unknown']  # the budgets at which 4 and 8 bits are best
    assert 'Sampled weights' not in page


def test_sampled_weights_alone_are_reported_alone(tmp_path, no_comparison):
    page, data = report(tmp_path, sweep(formats=(), bits=(2.0, 4.0)))
    assert set(data) == {'bitwidth'} and 'Floating-point quantized training' not in page


def test_runs_of_no_exponent_can_be_left_out(tmp_path, no_comparison):
    _, data = report(tmp_path, sweep(formats=('e0m7', 'e1m1', 'e2m1')), exclude_e0=True)
    assert data['capybara']['left_out'] == {'with status failed': 1, 'with E = 0': 18}


def test_a_table_that_no_law_can_be_fitted_to_is_one_error(tmp_path):
    with pytest.raises(ValueError, match='6 runs are too few for the 9 constants of CapybaraLaw'):
        report(tmp_path, sweep()[:6])
    assert not (tmp_path / 'report.html').exists()


def test_the_cost_at_which_bits_are_best():
    """At B = 128, 4 bits at 1.6e20 and 8 at 8.2e31, as published."""
    assert f'{html_report.crossing(PUBLISHED_CAPYBARA, 128, 4):.1e}' == '1.6e+20'
    assert f'{html_report.crossing(PUBLISHED_CAPYBARA, 128, 8):.1e}' == '8.2e+31'
