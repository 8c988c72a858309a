"""The program of scaling laws in this process, tables of runs for it, and what it prints."""

import contextlib
import csv
import io
import re

import numpy as np
import pytest
from absl import flags

from experiments import scaling_law
from experiments.laws import known_laws


def run(*arguments, num_starts=2, num_draws=40):
    """What the program prints with this command line; fits are quick ones."""
    args, printed = flags.FlagValues(), io.StringIO()
    scaling_law.define_flags(args)
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(known_laws, 'NUM_STARTS', num_starts)
        monkeypatch.setattr(known_laws, 'NUM_DRAWS', num_draws)
        scaling_law.main(args(['scaling_law', *arguments]), args)
    return printed.getvalue()


def grid(law, *, columns=('E', 'M', 'B'), seed=0, noise=0.002):
    """Runs of this law."""
    rng = np.random.default_rng(seed)
    settings = {
        ('E', 'M', 'B'): [(E, M, B) for E, M in ((0, 7), (1, 1), (2, 1), (1, 3)) for B in (32, 'channel')],
        ('b',): [(2,), (3,), (4,), (6,)],
    }[columns]
    rows = []
    for N in (40894464, 154140672, 679477248):
        for D in 10485760000 * np.array([1, 3, 10]):
            for setting in settings:
                row = {'N': N, 'D': float(D), **dict(zip(columns, setting))}
                rows.append({**row, 'loss': float(law.loss(**row)) + rng.normal(0, noise)})
    return rows


def write(path, rows):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def lines_of(printed):
    """Lines by their first word, cells split at two spaces or more."""
    return {line.split('  ')[0].strip(): re.split(r' {2,}', line.strip()) for line in printed.splitlines() if line}
