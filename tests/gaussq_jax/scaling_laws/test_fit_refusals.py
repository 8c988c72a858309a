"""What a fit can't use is one clear error: the column and its row, or the option, with what is allowed."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from gaussq_jax.scaling_laws import (
    CHINCHILLA_AS_FIRST_PUBLISHED,
    PUBLISHED_CAPYBARA,
    BitwidthLaw,
    CapybaraLaw,
    ChinchillaLaw,
    PowerLaw,
    QATLaw,
    compare,
    fit,
    fit_capybara,
)

ROWS = [
    (N, D, E, M, B)
    for N in (41e6, 85e6, 154e6, 679e6)
    for D in (1e10, 2e10, 5e10, 1e11)
    for E, M, B in [(0, 7, 'channel'), (1, 3, 'channel'), (1, 6, 'channel'), (2, 3, 'channel'), (4, 1, 'channel')]
    + [(4, 5, 'channel'), (1, 1, 32), (1, 1, 512)]
]
GOOD = {name: np.array(column, object if name == 'B' else float) for name, column in zip('NDEMB', zip(*ROWS))}
GOOD['loss'] = PUBLISHED_CAPYBARA.loss(**GOOD)


def changed(name, value, row=7):
    column = np.asarray(GOOD[name], object).copy()
    column[row] = value
    return GOOD | {name: column}


REFUSALS = {
    'no loss': ({k: v for k, v in GOOD.items() if k != 'loss'}, r"no column 'loss'.*there are N, D, E, M, B"),
    'no E': ({k: v for k, v in GOOD.items() if k != 'E'}, r"no column 'E'"),
    'nothing': ({}, r"no column '.'"),
    'text': (changed('D', 'abc'), r"row 7 .*D='abc'"),
    'text loss': (changed('loss', '2.3.4'), r"row 7 .*loss='2\.3\.4'"),
    'text block': (changed('B', 'row'), r"row 7 .*B='row'.*'channel' or 'tensor'"),
    'diverged': (changed('loss', np.nan), r'row 7 .*loss=nan'),
    'zero': (changed('N', 0), r'row 7 .*N=0 must be a finite number above 0'),
    'negative': (changed('M', -1), r'row 7 .*M=-1'),
    'small block': (changed('B', '0.5'), r'row 7 .*B=0\.5'),
    'hole': (changed('D', None), r'row 7 .*D='),
    'short': (GOOD | {'M': GOOD['M'][:-1]}, r"one length.*'M': 127"),
    'a number for a column': (GOOD | {'N': 1e9}, r'N'),
    'a word for a column': (GOOD | {'B': 'channel'}, r'B'),
    'none': ({name: column[:0] for name, column in GOOD.items()}, r'0 runs are too few'),
    'few': (
        {name: column[:9] for name, column in GOOD.items()},
        r'\d runs are too few for the \d constants of Capybara',
    ),
}


@pytest.mark.parametrize(('runs', 'message'), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize('include_e0', [True, False])
def test_impossible_runs_are_named(runs, message, include_e0):
    """By column and by row of the table that was given, also where rows of it are left out."""
    with pytest.raises(ValueError, match=message):
        fit_capybara(runs, include_e0=include_e0, num_starts=1)


@pytest.mark.parametrize(
    ('runs', 'message'),
    [REFUSALS[name] for name in ('no loss', 'nothing', 'text', 'diverged', 'short', 'none')],
)
def test_impossible_runs_are_named_by_comparisons(runs, message):
    with pytest.raises(ValueError, match=f'{message}|groups'):
        compare([CapybaraLaw, ChinchillaLaw], runs, num_starts=1)


def test_text_in_bitwidths_is_named():
    runs = dict(N=[1e8] * 10, D=[1e10] * 10, b=[4.0] * 9 + ['four'], loss=[2.5] * 10)
    with pytest.raises(ValueError, match=r"row 9 .*b='four' must be"):
        fit(BitwidthLaw, runs)


def test_columns_of_several_dimensions_are_named():
    runs = {name: np.reshape(column, (2, -1)) for name, column in GOOD.items()}
    with pytest.raises(ValueError, match=r'dimension|shape'):
        fit_capybara(runs | {name: column.T for name, column in runs.items()}, num_starts=1)


OPTIONS = {
    'fixed unknown': (dict(fixed={'x': 1.0}), r"fixed\['x'\].*n, alpha, d, beta"),
    'fixed negative': (dict(fixed={'alpha': -1.0}), r"fixed\['alpha'\]=-1"),
    'fixed text': (dict(fixed={'alpha': 'a'}), r"fixed\['alpha'\]='a'"),
    'all fixed': (dict(fixed=PUBLISHED_CAPYBARA.constants()), 'fixed'),
    'bounds unknown': (dict(bounds={'x': (1, 2)}), r"bounds\['x'\].*n, alpha, d, beta"),
    'bounds in the wrong order': (dict(bounds={'alpha': (0.5, 0.2)}), r"bounds\['alpha'\]=\(0\.5, 0\.2\)"),
    'bounds of text': (dict(bounds={'alpha': ('a', 2)}), r"bounds\['alpha'\]"),
    'one bound': (dict(bounds={'alpha': 0.3}), r"bounds\['alpha'\]"),
    'bound of no number': (dict(bounds={'alpha': (0.1, np.nan)}), r"bounds\['alpha'\]"),
    'bound below zero': (dict(bounds={'alpha': (-1, 2)}), r"bounds\['alpha'\]=\(-1, 2\)"),
    'few weights': (dict(weights=[1.0, 2.0]), r'weights has shape \(2,\).*128 runs'),
    'zero weight': (dict(weights=np.arange(128)), r'weights=0 must be a finite number above 0'),
    'negative weight': (dict(weights=np.arange(128) - 5.0), r'weights=-5'),
    'text weight': (dict(weights=['a'] * 128), r'weights='),
    'no start': (dict(num_starts=0), r'num_starts=0'),
    'start of another law': (dict(start=CHINCHILLA_AS_FIRST_PUBLISHED), r'start='),
}


@pytest.mark.parametrize(('options', 'message'), OPTIONS.values(), ids=OPTIONS)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit_capybara(GOOD, **dict(num_starts=1) | options)


@pytest.mark.parametrize('level', [0, 1, -0.5, 95, np.nan])
def test_impossible_levels_are_named(level):
    result = fit_capybara(GOOD, start=PUBLISHED_CAPYBARA, num_starts=0)
    for ask in (
        result.confidence_intervals,
        lambda level: result.interval(lambda law: law.alpha, [result.law], level=level),
    ):
        with pytest.raises(ValueError, match='level='):
            ask(level=level)


@pytest.mark.parametrize('groups', [np.ones(128), ['a'] * 128, [1, 2]])
def test_impossible_groups_are_named(groups):
    with pytest.raises(ValueError, match='groups'):
        compare([ChinchillaLaw], GOOD, groups=groups, num_starts=1)


@dataclasses.dataclass(frozen=True)
class OwnLaw(PowerLaw):
    worth: float
    COLUMNS = ('N', 'D')
    STARTS: ClassVar = {'worth': (0.5, 2.0)}

    def _loss(self, N, D):
        return self._unquantized(N, self.worth * D)


def test_why_a_law_has_no_loss_is_told():
    """Of blocks that it doesn't know, and of arrays of another shape, in the law's own words."""
    with pytest.raises(ValueError, match=r"^B='channel' or 'tensor': this law takes the number"):
        fit(QATLaw, GOOD, num_starts=1)
    for loss, told in ((lambda law, N, D: 3.0, 'but 3.0$'), (lambda law, N, D: N * np.nan, 'nan nan')):
        law = type('OwnLaw', (OwnLaw,), {'_loss': loss})
        with pytest.raises(ValueError, match=rf'(?s)has no finite loss for each of the 128 runs, .*{told}'):
            fit(law, GOOD, num_starts=1)


@pytest.mark.parametrize('ends', [(0, 1), (-1, 1), (2, 1), 5, (1, 2, 3), (1, np.inf)])
def test_starts_that_can_not_be_are_named(ends):
    law = type('OwnLaw', (OwnLaw,), {'STARTS': {'worth': ends}})
    with pytest.raises(ValueError, match=r"^OwnLaw\.STARTS\['worth'\]=.* must be two numbers, 0 < least <= greatest"):
        fit(law, GOOD, num_starts=1)
