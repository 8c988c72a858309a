"""Which linear layers stay in full precision: by their path, and by where they are among a model's layers."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class KeptLayers:
    """Linear layers that are not quantized.

    Attributes:
      path: a regular expression of the whole path of a linear layer, such as 'layers/mlp/down'.
      first, last: of a stack of layers, how many at its beginning and at its end; a number, or as a float below 1 a
        share of them, rounded to the nearest number. If both are 0, all.

    Raises:
      ValueError: naming the argument, for a value that can't be.

    Example:
      >>> KeptLayers(first=1, last=0.2).mask('layers/mlp/down', 10).astype(int).tolist()
      [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    """

    path: str = '.*'
    _: dataclasses.KW_ONLY
    first: int | float = 0
    last: int | float = 0

    def __post_init__(self):
        try:
            re.compile(self.path)
        except (re.error, TypeError) as error:
            raise ValueError(f'path={self.path!r} is no regular expression: {error}') from None
        for name in ('first', 'last'):
            value = getattr(self, name)
            is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not is_number and not (isinstance(value, float) and 0 <= value < 1):
                raise ValueError(f'{name}={value!r} must be a number of layers, or a share of them, less than 1')

    def __str__(self) -> str:
        as_text = lambda n: f'{100 * n:.6g}%' if isinstance(n, float) else f'{n}'
        ends = [f'{name}={as_text(value)}' for name in ('first', 'last') if (value := getattr(self, name))]
        return '@'.join(filter(None, (self.path * (self.path != '.*' or not ends), '+'.join(ends))))

    def matches(self, path: str) -> bool:
        """Whether it says anything of the linear layer of this path."""
        return re.fullmatch(self.path, path) is not None

    def counts(self, num_layers: int) -> tuple[int, int]:
        """How many of the stack's layers `first` and `last` are."""
        first, last = (round(n * num_layers) if isinstance(n, float) else n for n in (self.first, self.last))
        return first, last

    def mask(self, path: str, num_layers: int | None) -> np.ndarray:
        """Which of the stack's layers are kept, bool (num_layers,); of a layer that is in no stack, with None, bool ().

        Raises:
          ValueError: a rule by `first` or `last`, of a layer that is in no stack.
        """
        if not self.matches(path):
            return np.zeros(() if num_layers is None else num_layers, bool)
        if not self.first and not self.last:
            return np.ones(() if num_layers is None else num_layers, bool)
        if num_layers is None:
            raise ValueError(f'{self}: {path!r} is in no stack of layers, of which there were first and last ones')
        first, last = self.counts(num_layers)
        index = np.arange(num_layers)
        return (index < first) | (index >= num_layers - last)


def parse_kept_layers(text: str) -> tuple[KeptLayers, ...]:
    """'.*/down; first=1+last=15%; attention/out@last=2' -> the rules; '' is none.

    Rules are joined by ';'. Each is a regular expression of paths, 'first=N+last=N' of layers, numbers or percentages,
    or both, 'PATH@LAYERS'.

    Raises:
      ValueError: for other text; says what is allowed.

    Example:
      >>> [str(rule) for rule in parse_kept_layers('.*/down; first=1+last=15%')]
      ['.*/down', 'first=1+last=15%']
    """
    return tuple(_parse_rule(part.strip()) for part in text.split(';') if part.strip())


def _parse_rule(text: str) -> KeptLayers:
    path, at, layers = text.rpartition('@')
    if not at and not re.match(r'(first|last)\b', text):
        return KeptLayers(text)
    ends = {}
    for part in layers.split('+'):
        match = re.fullmatch(r'(first|last)=(?:(\d+)|(\d+(?:\.\d+)?)%)', part)
        n = match and (int(match[2]) if match[2] else float(match[3]) / 100)
        if not n or match[1] in ends:
            raise ValueError(
                f'{text!r} is no rule for layers in full precision: allowed are PATH, first=N+last=N and PATH@last=N;'
                ' N is a number, or a percentage, and more than 0'
            )
        ends[match[1]] = n
    return KeptLayers(path or '.*', **ends)


def check_kept_layers(rules: Sequence[KeptLayers]) -> tuple[KeptLayers, ...]:
    """The rules as a tuple; ValueError for what are none."""
    if not isinstance(rules, Sequence) or not all(isinstance(rule, KeptLayers) for rule in rules):
        raise ValueError(
            f'full_precision={rules!r}: it must be a sequence of KeptLayers, such as parse_kept_layers makes of text'
        )
    return tuple(rules)


def kept(rules: Sequence[KeptLayers], path: str, num_layers: int | None) -> np.ndarray:
    """Which layers any of the rules keeps, as `KeptLayers.mask`."""
    none = np.zeros(() if num_layers is None else num_layers, bool)
    return np.logical_or.reduce([none, *(rule.mask(path, num_layers) for rule in rules)])
