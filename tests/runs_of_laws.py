"""Runs that lie on laws, with noise or without, and fits from the truth."""

import dataclasses

import numpy as np

from gaussq_jax.scaling_laws import PUBLISHED_CAPYBARA, fit

LAW = PUBLISHED_CAPYBARA
TENSOR = dataclasses.replace(LAW, tensor_scale=11.0, tensor_exponent=0.07)
FORMATS = [(0, 7), *((1, M) for M in range(1, 7)), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 5), (5, 1)]
FORMATS += [(5, 2), (6, 1)]
SIZES = (41e6, 85e6, 154e6, 679e6)
TOKENS = tuple(10485760000 * times for times in (1, 2, 5, 10))
LOW_BIT = [(8, 7, 1), (4, 3, 32), (3, 2, 32), (2, 1, 32), (1, 1, 32), (4, 3, 128), (2, 1, 128), (1, 2, 64)]
FEW = dict(num_starts=6)  # nine starts of ten find the least


def table(law=LAW, noise=0.0, seed=0, sizes=SIZES, tokens=TOKENS, formats=FORMATS, blocks=(32, 64, 128, 256, 512)):
    """The published grid: every format by channels, and E1M1 with each of `blocks`; or a part of it."""
    settings = [(E, M, 'channel') for E, M in formats] + [(1, 1, B) for B in blocks]
    rows = [(N, D, *setting) for N in sizes for D in tokens for setting in settings]
    N, D, E, M, B = zip(*rows)
    runs = dict(N=np.array(N), D=np.array(D), E=np.array(E), M=np.array(M), B=np.array(B, object))
    loss = law.loss(**runs)
    return runs | {'loss': loss + noise * np.random.default_rng(seed).standard_normal(len(loss))}


def rows(runs, keep):
    return {name: np.asarray(column, object)[keep] for name, column in runs.items()}


def relative(found, law, names=None):
    """Of each constant: found / true - 1."""
    return {name: getattr(found, name) / getattr(law, name) - 1 for name in names or law.constants()}


def largest(errors):
    return max(map(abs, errors.values()))


def refit(law, runs, **options):
    """A fit where only its least-squares answer matters, not the search: from the truth."""
    return fit(type(law), runs, start=law, num_starts=0, **options)


def grid_of(law, **axes):
    """Every combination of the axes, and the losses of the law."""
    columns = dict(zip(axes, (axis.ravel() for axis in np.meshgrid(*axes.values(), indexing='ij'))))
    return columns | {'loss': law.loss(**columns)}


def grid(num_sizes, num_tokens):
    N, D = np.meshgrid(np.geomspace(1e8, 1e10, num_sizes), np.geomspace(1e9, 1e12, num_tokens))
    return {'N': N.ravel(), 'D': D.ravel()}


def formats_grid(num_sizes, num_tokens):
    """Every format with each N and D."""
    columns = grid(num_sizes, num_tokens)
    E, M, B = np.tile(np.transpose(LOW_BIT), num_sizes * num_tokens).astype(float)
    return {name: column.repeat(len(LOW_BIT)) for name, column in columns.items()} | {'E': E, 'M': M, 'B': B}


def with_noise(law, columns, noise):
    return columns | {'loss': law.loss(**{name: columns[name] for name in law.COLUMNS}) + noise}


AXES = dict(N=np.geomspace(4e7, 7e8, 5), D=np.geomspace(1e10, 1e11, 4))
