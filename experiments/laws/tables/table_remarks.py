"""What a reader of a table of runs must be told: numbers that look like other units, recipes unknown to a law."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from experiments.laws.law_choices import UNQUANTIZED
from experiments.laws.notation import human, recipe_name

MOST_SHOWN = 5


def of_units(columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Numbers that are not those of weights, tokens and nats a token.

    A loss above ln(vocabulary), at most 13, is worse than chance.
    """
    N, D, loss = (columns[name] for name in ('N', 'D', 'loss'))
    several = lambda mask: f'{np.sum(mask)} of {len(N)} runs'
    if np.any(small := N < 1e4):
        yield f'N is below 10,000 in {several(small)}, {np.min(N):g} the least: is it in millions or billions?'
    if np.any(large := N > 1e14):
        yield f'N is above 1e14 in {several(large)}, {np.max(N):g} the most: are these FLOPs?'
    if np.any(small := (D < 1e4) | (D < N / 10)):
        least = np.argmin(np.where(small, D / N, np.inf))
        told = f'D is less than a tenth of N, or 10,000, in {several(small)}, as {D[least]:g} for N = {human(N[least])}'
        yield f'{told}: is it in millions or billions, or steps?'
    if np.any(large := D > 1e16):
        yield f'D is above 1e16 in {several(large)}, {np.max(D):g} the most: are these FLOPs?'
    if np.any(large := loss > 13):
        yield (
            f'the loss is above 13, worse than chance for any vocabulary, in {several(large)}, {np.max(loss):g} the'
            ' most: is it a perplexity, or no mean over tokens?'
        )
    elif loss.size and np.max(loss) < 1:
        yield f'all losses are below 1, {np.max(loss):g} the most: are they bits per byte, or nats per byte?'


def of_recipes(columns: Mapping[str, np.ndarray], law_columns: Collection[str], title: str) -> Iterator[str]:
    """Recipes that a law which takes these columns does not tell apart, if there are such: BF16 and FP4, say."""
    known = [columns[name] for name in law_columns if name in UNQUANTIZED and name in columns]
    alike = {}
    recipes = map(recipe_name, columns['forward'], columns['backward'])
    for recipe, *inputs in zip(recipes, *known):
        alike.setdefault(tuple(map(str, inputs)), {}).setdefault(recipe or 'none told')
    names = list(max(alike.values(), key=len, default={}))
    if len(names) > 1:
        shown = ', '.join(names[:MOST_SHOWN]) + f' and {len(names) - MOST_SHOWN} more' * (len(names) > MOST_SHOWN)
        yield f'{title} does not tell apart runs of {shown}: what these cost is in its residuals'
