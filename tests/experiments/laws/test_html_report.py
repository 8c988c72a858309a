"""The report on a table of runs: one file that needs no other, with all it promises, for tables large and small."""

import csv
import html
import json
import os
import re

import numpy as np
import pytest

from experiments.laws import html_report, known_laws, notation
from experiments.laws.law_choices import LAWS
from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, BitwidthLaw

BITWIDTH = BitwidthLaw(n=69.2, alpha=0.237, d=68973.0, beta=0.516, epsilon=1.906, gamma=500.0, kappa=3.0)
SIZES, TOKENS = (40894464, 154140672, 679477248), (1.05e10, 3.15e10, 1.05e11)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u2028'


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch):
    monkeypatch.setattr(known_laws, 'NUM_STARTS', 3)
    monkeypatch.setattr(known_laws, 'NUM_DRAWS', 20)
    names = ('capybara', 'bitwidth', 'effective', 'chinchilla')
    monkeypatch.setattr(html_report, 'LAWS', {name: LAWS[name] for name in names})


@pytest.fixture
def without_others(monkeypatch):
    """Comparing laws is what takes long."""
    monkeypatch.setattr(html_report.comparisons, 'serves', lambda table, choice: False)
    monkeypatch.setattr(html_report.comparisons, 'usual_ways', lambda table: ())


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


def report(tmp_path, rows, name='runs.csv', *, exclude_e0=False, **how):
    """The page, the data in it, and what `write` returns."""
    with open(tmp_path / name, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    laws = html_report.laws_of(str(tmp_path / name), exclude_e0=exclude_e0)
    told = html_report.write(laws, tmp_path / 'report.html', **how)
    page = (tmp_path / 'report.html').read_text(encoding='utf-8')
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return page, json.loads(embedded), told


def cells(page, first):
    """The cells of the table rows that begin so."""
    rows = [re.findall('<td[^>]*>(.*?)</td>', row) for row in re.findall('<tr>(.*?)</tr>', page)]
    return [list(map(html.unescape, row)) for row in rows if row and html.unescape(row[0]) == first]


def test_the_report_of_a_sweep(tmp_path):
    """Both laws, each with its constants, errors on runs held out and noise of the seeds."""
    page, data, told = report(tmp_path, sweep(bits=(2.0, 3.0, 5.0), seeds=(0, 1)))
    charts = re.findall(r'<figure data-chart="(\w+)" data-law="(\d)"', page)
    of_both = ['tokens', 'costs', 'residuals', 'hardware']
    assert charts == [(kind, '0') for kind in (*of_both[:3], 'layout', 'precision', 'hardware')] + [
        (kind, '1') for kind in of_both
    ]

    assert told['capybara']['runs'] == 126 and told['bitwidth']['runs'] == 72
    assert '126 runs (108 fqt, 18 bf16); left out: 1 with status failed, 54 without E (gaussws)' in page
    for law, degrees, shown in (('capybara', 63, data['laws'][0]), ('bitwidth', 36, data['laws'][1])):
        noise = told[law]['seed_noise']
        assert noise['degrees_of_freedom'] == degrees and 0.002 < noise['standard_deviation'] < 0.004
        assert f'seeds differ by {noise["standard_deviation"]:.3g} nats' in page
        assert shown['residuals']['noise'] == noise['standard_deviation']
        assert len(shown['residuals']['points']) == told[law]['runs']
    assert [row[1] for row in cells(page, 'alpha')] == [
        f'{told[law]["constants"]["alpha"]["value"]:.6g}' for law in ('capybara', 'bitwidth')
    ]
    for name in ('Capybara', 'Bitwidth', 'Chinchilla'):
        assert all(row[3].endswith('%') and row[4].endswith('%') for row in cells(page, name))
    assert len(cells(page, 'Chinchilla')) == 2


def test_nothing_is_fetched_and_the_verdict_is_first(tmp_path, without_others):
    """The page may fetch nothing, and says what to train before all else, without a script too."""
    page, data, _ = report(tmp_path, sweep(), compute=1e22)
    markup = re.sub(r'<script.*?</script>', '', page, flags=re.DOTALL)
    assert not re.search(r'\b(src|href)=|url\(|@import|<link', markup)
    assert "content=\"default-src 'none'" in page
    verdict = data['laws'][0]['verdict']
    assert verdict['train'][0].startswith('For C = 1e22 operations (6 N D), train N = ')
    headings = re.findall('<h[34]>(.*?)</h[34]>', markup)
    assert headings[:3] == ['What to train', 'How sure that is', "What isn't known"]
    assert html.escape(verdict['train'][0], quote=False) in markup
    best = PUBLISHED_CAPYBARA.compute_optimal_for_format(1e22, 8, 7, 1)
    N, D = (
        notation.parse_amount('model', text)
        for text in re.findall(r'= ([\d.]+[A-Z]) (?:weights|tokens)', verdict['train'][0])
    )
    assert pytest.approx((float(best.N), float(best.D)), rel=0.2) == (N, D)
    assert any(text.startswith('95 % intervals: N ') for text in verdict['sure'])
    assert verdict['train'][-1] == 'At the prices of hardware bf16 is best on all of it.'  # one operand stays BF16
    (e2m1,) = [
        row for row in data['laws'][0]['hardware']['table']['rows'] if [c['text'] for c in row[:2]] == ['b200', 'e2m1']
    ]
    assert e2m1[2]['text'] == '1' and 'stays BF16' in e2m1[-1]['text']


def test_critical_tokens_are_those_of_the_law(tmp_path, without_others):
    page, _, told = report(tmp_path, sweep())
    assert '<li>no runs were held out</li>' in page
    law = PUBLISHED_CAPYBARA.replace(**{name: c['value'] for name, c in told['capybara']['constants'].items()})
    (row,) = [row for row in cells(page, 'e2m1, a scale a channel') if '(' in row[1]]
    expected = [notation.human(size) for size in law.critical_data_size(np.array(SIZES), 2, 1, 'channel').tolist()]
    assert [cell.split(' ')[0] for cell in row[1:]] == expected
    (row,) = cells(page, 'channel')  # the budgets at which 4 and 8 bits are best
    for cell, bits in zip(row[1:], (4, 8)):
        best = float(law.compute_optimal(float(cell.split(' ')[0]), 'channel').P)
        assert best == pytest.approx(bits, rel=0.01)


def test_the_same_table_gives_the_same_file(tmp_path, without_others):
    first, _, _ = report(tmp_path, sweep(formats=('e1m1', 'e2m1')))
    assert report(tmp_path, sweep(formats=('e1m1', 'e2m1')))[0] == first


def test_a_table_that_determines_little_says_so(tmp_path):
    """One format, one model size, names that HTML would take for its own."""
    rows = [row for row in sweep(formats=('e2m1',), seeds=(0, 1)) if row['N'] == SIZES[0]]
    page, data, told = report(tmp_path, rows, name='a<b>&c.csv')
    assert '<title>Scaling laws of a&lt;b&gt;&amp;c.csv</title>' in page and '<b>' not in page
    assert {'gamma', 'delta', 'nu'} <= set(told['capybara']['undetermined'])
    (law,) = data['laws']
    assert re.search('^These runs do not determine .*gamma, delta, nu', law['verdict']['unknown'][0])
    assert 'The runs have only 1 model size: little shows how the loss goes with N.' in law['verdict']['unknown']
    assert 'is unknown: the runs leave it open' in law['verdict']['train'][0]
    assert law['costs'].startswith('what is best is unknown') and 'data-chart="costs"' not in page
    assert re.search('^The best format is unknown: .*gamma, delta, nu', law['bits']['layout']['remark'])
    assert 'data-chart="layout"' not in page
    assert cells(page, 'channel')[0][1:] == ['unknown', 'unknown']  # the budgets at which 4 and 8 bits are best
    columns = law['comparison']['columns']
    assert any('N and D held out' in name for name in columns) and not any('N above' in name for name in columns)


def test_names_of_runs_stay_text(tmp_path, without_others):
    """What a run is called neither ends the data nor begins an element."""
    rows = [{**row, 'name': f'{HOSTILE} {i}'} for i, row in enumerate(sweep(formats=('e2m1',)))]
    page, data, _ = report(tmp_path, rows)
    assert page.count('<script') == page.count('</script>') == 3
    assert '<img' not in page and '\u2028' not in page and 'alert(1)' in page
    names = [point['text'].splitlines()[0] for point in data['laws'][0]['residuals']['points']]
    assert all(name.startswith('</script><script>alert(1)</script><img src=x onerror=alert(2)>&') for name in names)


def test_a_file_of_any_name(tmp_path, without_others):
    """Of bytes that are no text, and of letters that turn round what follows."""
    rows = [{key: row[key] for key in ('N', 'D', 'validation/loss')} for row in sweep(formats=())[:-1]]
    page, _, _ = report(tmp_path, rows, name=os.fsdecode(b'caf\xe9 \xe2\x80\xae.csv'))
    assert r'<title>Scaling laws of caf\udce9 \u202e.csv</title>' in page


def test_what_has_no_format_and_no_bits_is_for_chinchilla(tmp_path, without_others):
    """Then the loss itself is drawn, and a table of one method has nothing to compare with."""
    rows = [
        {key: row[key] for key in ('N', 'D', 'validation/loss')} for row in sweep(formats=()) if row['status'] == 'done'
    ]
    page, data, told = report(tmp_path, rows)
    assert set(told) == {'chinchilla'} and '<h3>Loss and tokens</h3>' in page
    (panel,) = data['laws'][0]['tokens']['panels']
    assert [curve['label'] for curve in panel['curves']] == [f'N = {notation.human(N)}' for N in SIZES]
    assert data['laws'][0]['verdict']['options'] is None and data['laws'][0]['critical'] is None


def test_sampled_weights_alone_are_reported_alone(tmp_path, without_others):
    page, _, told = report(tmp_path, sweep(formats=(), bits=(2.0, 4.0)))
    assert set(told) == {'bitwidth'} and 'Capybara' not in page


def test_runs_of_no_exponent_can_be_left_out(tmp_path, without_others):
    _, _, told = report(tmp_path, sweep(formats=('e0m7', 'e1m1', 'e2m1')), exclude_e0=True)
    assert told['capybara']['left_out'] == {'with status failed': 1, 'with E = 0': 18}


def test_a_table_that_no_law_can_be_fitted_to_is_one_error(tmp_path):
    with pytest.raises(ValueError, match='6 runs are too few for the 9 constants of CapybaraLaw'):
        report(tmp_path, sweep()[:6])
    assert not (tmp_path / 'report.html').exists()
