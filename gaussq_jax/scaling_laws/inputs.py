"""What laws take: arrays of numbers, block sizes, and names of recipes; what is impossible is refused."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

REFERENCE = 'bf16'  # the recipe that others are compared with


def at_least(name: str, values: ArrayLike, minimum: float) -> np.ndarray:
    """The values in float64; ValueError if one isn't a finite number of at least `minimum`."""
    array = _numbers(name, values)
    return _all(name, array, np.isfinite(array) & (array >= minimum), f'a finite number, at least {minimum:g}')


def positive(name: str, values: ArrayLike) -> np.ndarray:
    """The values in float64; ValueError if one isn't a finite number above 0."""
    array = _numbers(name, values)
    return _all(name, array, np.isfinite(array) & (array > 0), 'a finite number above 0')


def positive_or_infinite(name: str, values: ArrayLike) -> np.ndarray:
    """The values in float64; ValueError if one isn't a number above 0."""
    array = _numbers(name, values)
    return _all(name, array, array > 0, 'a number above 0')


def _numbers(name, values):
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{name}={values!r} must be numbers') from None


def _all(name, array, is_allowed, allowed):
    if wrong := array[~is_allowed].tolist():
        raise ValueError(f'{name}={wrong[0]:g} must be {allowed}')
    return array


class BlockSizes(NamedTuple):
    """Block sizes: their logarithms to base 2, 0 where a block is a channel or a tensor."""

    log2: np.ndarray
    is_channel: np.ndarray
    is_tensor: np.ndarray

    @classmethod
    def parse(cls, B: ArrayLike | str) -> 'BlockSizes':
        """From numbers of at least 1, 'channel' and 'tensor', in arrays of any shape; ValueError for others."""
        if isinstance(B, BlockSizes):
            return B
        sizes = np.asarray(B, object)
        is_channel, is_tensor = sizes == 'channel', sizes == 'tensor'
        try:
            numbers = np.where(is_channel | is_tensor, 1, sizes).astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"B={B!r} must be numbers, 'channel' or 'tensor'") from None
        return cls(np.log2(at_least('B', numbers, 1)), np.asarray(is_channel, bool), np.asarray(is_tensor, bool))


class Recipes(NamedTuple):
    """Names of recipes: the different ones, in lower case, and which of them stands where."""

    names: tuple[str, ...]
    index: np.ndarray

    @classmethod
    def parse(cls, name: str, values: ArrayLike | str) -> 'Recipes':
        """From texts, in arrays of any shape; '' is the reference. ValueError for what is no text."""
        if isinstance(values, Recipes):
            return values
        array = np.asarray(values, object)
        if wrong := [value for value in array.ravel() if not isinstance(value, str)]:
            raise ValueError(f'{name}={wrong[0]!r:.80} must be the name of a recipe, such as {REFERENCE!r}')
        texts = [text.strip().lower() or REFERENCE for text in array.ravel().tolist()]
        names = tuple(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(names)}
        return cls(names, np.array([places[text] for text in texts], int).reshape(array.shape))

    @property
    def others(self) -> tuple[str, ...]:
        """The different ones that aren't the reference."""
        return tuple(name for name in self.names if name != REFERENCE)

    def factors(self, of: Mapping[str, float]) -> np.ndarray:
        """Of the recipe that stands at each place, 1 for the reference; ValueError for one that has none."""
        if unknown := [name for name in self.others if name not in of]:
            raise ValueError(f'the law knows no recipe {unknown[0]!r:.80}, but {", ".join([REFERENCE, *of])}')
        return np.array([1.0 if name == REFERENCE else of[name] for name in self.names])[self.index]


def read_input(name: str, values: Any) -> Any:
    """An input of a law, by its name: float64, BlockSizes or Recipes; ValueError for impossible values."""
    reader = _READERS.get(name)
    return positive(name, values) if reader is None else reader(name, values)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    'E': lambda name, values: at_least(name, values, 0),
    'M': lambda name, values: at_least(name, values, 0),
    'B': lambda name, values: BlockSizes.parse(values),
    'forward': Recipes.parse,
    'backward': Recipes.parse,
} | dict.fromkeys(('b', 'P_w', 'P_a', 'P_kv', 'P_post'), positive_or_infinite)
