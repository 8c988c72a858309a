"""Mixtures of several datasets, by weights: what a config says of them, and which of them each sequence comes from."""

import heapq
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

MOST_PARTS = 2**16
ITEM = re.compile(r'(?P<weight>[^\s=]+)\s+(?P<name>[A-Za-z0-9_.-]+)\s*=\s*(?P<dataset>.+)')


class Item(NamedTuple):
    """One dataset of a mixture; name '' and weight 1 for a dataset alone."""

    name: str
    weight: Fraction
    dataset: str


def parse(text: str) -> tuple[Item, ...]:
    """The datasets that `config.dataset` names: one, or several as '0.7 web=DATASET; 0.3 code=DATASET'.

    Weights are divided by their sum. If they are then no multiples of 1/D for any D up to 2^16, they are rounded to
    multiples of 1/2^16, the sum kept.

    Args:
      text: a dataset; or items of weight, name, '=', dataset, with a ';' between two. Names are of letters, digits,
        '_', '-' and '.'.

    Returns:
      The items, in the order of their names.

    Raises:
      ValueError: an item that isn't of that form, a weight that is no positive number or is below 2^-17 of the sum, a
        name twice.

    Example:
      >>> [(item.name, str(item.weight)) for item in parse('3 web=c4; 1 code=code/*.jsonl')]
      [('code', '1/4'), ('web', '3/4')]
    """
    if ';' not in text and not re.match(r'\s*[\d.][^\s=/]*\s+[^\s=/]+\s*=', text):
        return (Item('', Fraction(1), text),)
    items = [_item(part.strip(), text) for part in text.split(';') if part.strip()]
    names = [item.name for item in items]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f'dataset={text!r}: the name {min(twice)!r} is given twice')
    items.sort()
    parts = _parts([item.weight for item in items])
    for item, count in zip(items, parts):
        if not count:
            raise ValueError(f'dataset={text!r}: the weight of {item.name} is less than 1/{MOST_PARTS} of the sum')
    return tuple(item._replace(weight=Fraction(count, sum(parts))) for item, count in zip(items, parts))


class Mixture:
    """An endless sequence of sources, in which each has its share of every beginning.

    Among the first p positions, those of source i are fewer than one from p times its weight. The sequence repeats
    after D positions, D the common denominator of the weights, and depends on the weights and names only: of one
    period it is kept whose each position is. In it, item j of source i is at D j / m_i - 1 < t < D (j + 1) / m_i, where
    m_i = D times its weight; of those that can come next, the one comes that must first.

    Args:
      weights: of each source, by name: fractions whose sum is 1.

    Example:
      >>> mixture = Mixture({'web': Fraction(3, 4), 'code': Fraction(1, 4)})
      >>> [array.tolist() for array in mixture.places(np.arange(6))]
      [[1, 1, 0, 1, 1, 1], [0, 1, 0, 2, 3, 4]]

    Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980; G. Steiner and S. Yeomans,
      Level schedules for mixed-model, just-in-time processes, Management Science 39, 1993, for its existence.
    """

    def __init__(self, weights: Mapping[str, Fraction]):
        self.names = tuple(sorted(weights))
        parts = _parts([weights[name] for name in self.names])
        self._period, self._counts = sum(parts), np.array(parts)
        self._sources = _order(parts)
        self._ranks = np.empty(self._period, np.int64)
        for source, count in enumerate(parts):
            self._ranks[self._sources == source] = np.arange(count)

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each position (int64) the source, a place in `names`, and how many of that source come before it."""
        cycles, places = np.divmod(positions, self._period)
        sources = self._sources[places]
        return sources, cycles * self._counts[sources] + self._ranks[places]


def _item(part: str, text: str) -> Item:
    found = ITEM.fullmatch(part)
    if not found:
        raise ValueError(
            f'dataset={text!r}: {part!r} is no item of a mixture; allowed: a weight, a name of letters, digits, '
            "'_', '-' and '.', then '=' and a dataset, as in '0.7 web=DATASET; 0.3 code=DATASET'"
        )
    try:
        weight = Fraction(found['weight']) if len(found['weight']) <= 30 and 'e' not in found['weight'].lower() else 0
    except (ValueError, ZeroDivisionError):
        weight = 0
    if weight <= 0:
        raise ValueError(
            f'dataset={text!r}: the weight of {found["name"]} is {found["weight"]!r}, no positive number'
            ' such as 0.7, 70 or 7/10'
        )
    return Item(found['name'], weight, found['dataset'].strip())


def _parts(weights: list[Fraction]) -> list[int]:
    """Integers in the ratio of the weights, with a sum of at most MOST_PARTS; rounded if that can't be."""
    shares = [Fraction(weight) / sum(weights) for weight in weights]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MOST_PARTS:
        return [int(share * period) for share in shares]
    exact = [share * MOST_PARTS for share in shares]
    parts = [math.floor(of) for of in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_rest[: MOST_PARTS - sum(parts)]:
        parts[i] += 1
    return parts


def _order(parts: list[int]) -> np.ndarray:
    """Which source each position of a period is of: of those that may come, the one with the earliest deadline."""
    period, placed = sum(parts), [0] * len(parts)
    waiting, ready = [(0, source) for source, count in enumerate(parts)], []
    order = np.empty(period, np.int32)
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            source = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (-(-(placed[source] + 1) * period // parts[source]), source))
        source = heapq.heappop(ready)[1]
        order[position] = source
        placed[source] += 1
        if placed[source] < parts[source]:
            heapq.heappush(waiting, (placed[source] * period // parts[source], source))
    return order
