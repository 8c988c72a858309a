"""What a page tells, of every law: JSON, charts whose axes can be read, bands only where intervals are."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments.laws import known_laws
from experiments.laws.law_choices import LAWS, LawChoice
from experiments.laws.page import law_page as law_page_module
from experiments.laws.page.law_page import law_page
from experiments.laws.page.rendering import FOLDER, render
from experiments.laws.page.settings import Setting
from experiments.laws.studies import Study
from experiments.laws.tables.run_tables import TEXTS, RunTable
from gaussq_jax import scaling_laws as laws


@dataclasses.dataclass(frozen=True)
class RepeatingLaw(laws.PowerLaw):
    """Chinchilla's, of data that is repeated."""

    worth: float
    COLUMNS = ('N', 'D', 'epochs')
    STARTS = {'worth': (1.0, 100.0)}  # noqa: RUF012

    def _loss(self, N, D, epochs):
        return self._unquantized(N, D / epochs * (1 + self.worth * (1 - np.exp((1 - epochs) / self.worth))))


TERMS = laws.CHINCHILLA_REFIT.constants()
RECIPES = [{'forward': name, 'backward': ''} for name in ('bf16', 'mxfp4', 'e4m3 128')]
OPERANDS = [dict(zip(('P_w', 'P_a', 'P_kv'), bits)) for bits in ((16, 16, 16), (4, 16, 16), (8, 4, 16), (4, 8, 4))]
EXAMPLES = {  # by name: a law, and settings
    'outer': (laws.PUBLISHED_OUTER_EXPONENT, [{}]),
    'kaplan': (laws.KaplanLaw(**laws.PUBLISHED_KAPLAN.constants() | {'epsilon': 0.5}), [{}]),
    'kumar': (laws.KumarLaw(**TERMS, gamma=2.0), [{'P': float(bits)} for bits in (3, 4, 8, 16)]),
    'kumar-operands': (laws.KumarOperandsLaw(**TERMS, gamma_w=2.7, gamma_a=2.2, gamma_kv=1.0), OPERANDS),
    'effective': (laws.EffectiveLaw(**TERMS, gamma=1.0, eff_N={'mxfp4': 0.65, 'e4m3 128': 0.9}), RECIPES),
    'qat': (laws.PUBLISHED_QAT['w4a4'], [{'B': B} for B in (1.0, 32.0, 64.0, 256.0)]),
    'own': (RepeatingLaw(**TERMS, worth=15.0), [{'epochs': epochs} for epochs in (1.0, 4.0, 40.0)]),
}


def table_of(law, settings):
    """Runs of a law in these settings."""
    rng = np.random.default_rng(0)
    rows = [{'N': N, 'D': D, **s} for N in (5e7, 2e8, 8e8, 2e9) for D in (2e9, 1e10, 4e10) for s in settings]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([row[name] for row in rows], object if name == 'B' else None) for name in names}
    columns['loss'] = law.loss(**columns) + rng.normal(0, 0.003, len(rows))
    empty = {name: np.full(len(rows), '', object) for name in TEXTS}
    numbers = {name: np.full(len(rows), np.nan) for name in ('E', 'M', 'b', 'P', 'P_w', 'P_a', 'P_kv', 'P_post')}
    origins = np.array([f'line {i}' for i in range(len(rows))])
    return RunTable('runs.csv', {**empty, **numbers, 'B': np.full(len(rows), None), **columns}, {}, (), (), origins)


def page_of(name, monkeypatch, draws=8, **how):
    monkeypatch.setattr(known_laws, 'NUM_STARTS', 6)
    monkeypatch.setattr(known_laws, 'NUM_DRAWS', draws)
    law, settings = EXAMPLES[name]
    choice = LAWS.get(name, LawChoice(type(law)))
    table = table_of(law, settings)
    study = Study.of(choice, table)
    return law_page(study, known_laws.fitted(study.result, table), None, **how)


def axes_in(data):
    """Every axis, wherever it is."""
    if isinstance(data, dict):
        found = [data] if 'ticks' in data else []
        return found + [axis for value in data.values() for axis in axes_in(value)]
    return [axis for value in data for axis in axes_in(value)] if isinstance(data, list) else []


@pytest.mark.parametrize('name', EXAMPLES)
def test_every_law_has_its_page(name, monkeypatch):
    data = page_of(name, monkeypatch)
    json.dumps(data, allow_nan=False)
    assert data['verdict']['train'][0].startswith('For C = ')
    axes = axes_in(data)
    assert len(axes) >= 6 and all(len(axis['ticks']) >= 3 for axis in axes)
    assert data['tokens']['is_gap'] == (name not in ('outer', 'kaplan', 'own'))
    assert len(data['residuals']['points']) == len(table_of(*EXAMPLES[name]).origins)
    assert len(data['costs']['settings']) == (several := len(EXAMPLES[name][1]))
    assert all(('least loss in' in cost['label']) == (several > 1) for cost in data['costs']['costs'])
    assert (data['critical'] is not None) == (name == 'qat')  # by the others, more tokens never hurt
    page = render({'title': 't', 'remarks': [], 'laws': [data]})
    has_prices = name.startswith('kumar')  # of the others, BF16 is all that has a price
    assert page.count('<figure') == 3 + has_prices and data['title'] in page
    assert (data['hardware'] is not None) == has_prices


def test_the_gap_of_a_run_is_to_the_law_in_bf16(monkeypatch):
    """So a run of BF16 lies about 0, and MXFP4 where its weights that count less put it."""
    data = page_of('effective', monkeypatch)
    points = [point for panel in data['tokens']['panels'] for point in panel['points']]
    gaps = {label: [point['y'] for point in points if point['label'] == label] for label in ('bf16', 'mxfp4')}
    assert abs(np.mean(gaps['bf16'])) < 0.003
    law, _ = EXAMPLES['effective']
    of_law = lambda **recipe: np.mean([law.loss(p['N'], p['D'], **recipe) for p in points if p['label'] == 'mxfp4'])
    assert np.mean(gaps['mxfp4']) == pytest.approx(of_law(forward='mxfp4') - of_law(forward='bf16'), abs=0.003)


def test_bands_are_only_where_intervals_are_known(monkeypatch):
    """Without draws there are none, and the verdict says so."""
    assert page_of('outer', monkeypatch)['tokens']['has_bands']
    data = page_of('outer', monkeypatch, draws=0)
    assert not data['tokens']['has_bands'] and 'is not known' in data['verdict']['sure'][0]
    assert all(curve['band'] is None for panel in data['tokens']['panels'] for curve in panel['curves'])


def test_a_plan_far_beyond_the_runs_says_so_at_once(monkeypatch):
    near = page_of('outer', monkeypatch)['verdict']['train']
    assert len(near) == 1 and 'beyond' not in near[0]
    far = page_of('outer', monkeypatch, compute=1e28)['verdict']['train']
    assert re.fullmatch(r'That is [\d,]+ times beyond the runs behind the law: do not rely on it\.', far[1])


def test_the_plan_against_hardware_is_shown_and_told(monkeypatch):
    row = {'hardware': 'b200', 'option': 'mxfp4', 'price': 0.25, 'N': 2e9, 'D': 4e10, 'loss': 2.5, 'note': ''}
    unquantized = {**row, 'option': 'bf16', 'price': 1.0, 'loss': 2.6}
    unknown = {
        **row,
        'option': 'quest',
        'price': None,
        'N': None,
        'D': None,
        'loss': None,
        'note': 'quest is no format',
    }
    asked = []

    def give(known, compute, **inputs):
        asked.append((compute, inputs))
        return [row, unquantized, {**unquantized, 'hardware': 'a100'}, unknown]

    monkeypatch.setattr(law_page_module, 'hardware_rows', give)
    data = page_of('effective', monkeypatch, compute=3e21)
    assert asked == [(3e21, {'inputs': {}})]
    assert [point['hardware'] for point in data['hardware']['points']] == ['b200', 'b200', 'a100']
    cells = [[cell['text'] for cell in row] for row in data['hardware']['table']['rows']]
    assert cells[0] == ['b200', 'mxfp4', '0.25', '2B', '40B', '2.5000', ''] and len(cells) == 3
    assert data['verdict']['train'][-1] == 'At the prices of hardware, the best is mxfp4 on b200; bf16 on a100.'
    assert 'Not all has a price on hardware: quest is no format.' in data['verdict']['unknown']


def test_plans_of_a_page_are_of_the_blocks_of_its_runs():
    settings = [Setting('', '', {'E': 2.0, 'M': 1.0, 'B': B}, None, False) for B in ('channel', 1, 64, 32)]
    assert law_page_module.plan_inputs(settings) == {'inputs': {}, 'block_size': 32}
    assert law_page_module.plan_inputs(settings[:2])['block_size'] == 'channel'


def test_the_plotting_library_is_small_and_says_whose_it_is():
    plot, package = (FOLDER / name for name in ('plot.js', 'package.json'))
    text = plot.read_text(encoding='utf-8')
    assert plot.stat().st_size < 500_000 and '</script' not in text
    version = json.loads(package.read_text(encoding='utf-8'))['devDependencies']['@observablehq/plot']
    assert f'@observablehq/plot {version}' in text and 'Permission to use, copy, modify' in text
