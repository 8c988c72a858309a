"""The shapes of real weights: tests, benchmarks and tuning all read this one list.

A leaf's layers are stacked: (layers, in, out). Matrices of one shape within a model are listed once: `attention` is
query, key, value and out, `mlp/gate` is also up.
"""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class ArgSpec:
    """The weights of one leaf.

    Attributes:
      name: model/matrix, such as 'llama2-1b/mlp/gate'.
      shape: (..., m, n).
    """

    name: str
    shape: tuple[int, ...]

    @property
    def model(self) -> str:
        return self.name.partition('/')[0]

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    def blocks(self, block_size: int = 32) -> tuple[int, ...]:
        """The shape of one number a block, (..., ceil(m / B), ceil(n / B))."""
        *leading, m, n = self.shape
        return (*leading, -(-m // block_size), -(-n // block_size))


def _llama(model: str, layers: int, hidden: int, mlp: int) -> tuple[ArgSpec, ...]:
    return (
        ArgSpec(f'{model}/attention', (layers, hidden, hidden)),
        ArgSpec(f'{model}/mlp/gate', (layers, hidden, mlp)),
        ArgSpec(f'{model}/mlp/down', (layers, mlp, hidden)),
    )


ARG_SPECS = (
    # Odd ones: a single weight, less than a block, one more than a block, an odd length in each place.
    ArgSpec('ragged/one', (1, 1)),
    ArgSpec('ragged/row', (1, 700)),
    ArgSpec('ragged/column', (700, 1)),
    ArgSpec('ragged/block and one', (33, 33)),
    ArgSpec('ragged/wide', (100, 1000)),
    ArgSpec('ragged/experts', (2, 3, 40, 100)),
    ArgSpec('ragged/gpt2 embedding', (50257, 768)),
    *_llama('tiny', 3, 128, 384),
    *_llama('capybara-tiny', 2, 128, 384),
    *_llama('capybara-41m', 12, 512, 1536),
    *_llama('capybara-85m', 12, 768, 2048),
    *_llama('capybara-154m', 12, 1024, 2816),
    *_llama('capybara-679m', 24, 1536, 4096),
    *_llama('capybara-1.2b', 24, 2048, 5632),
    *_llama('capybara-7b', 35, 4096, 10752),
    *_llama('capybara-70b', 88, 8192, 22016),
    ArgSpec('gpt2-124m/attention', (12, 768, 768)),
    ArgSpec('gpt2-124m/mlp/up', (12, 768, 3072)),
    ArgSpec('gpt2-124m/mlp/down', (12, 3072, 768)),
    *_llama('llama2-134m', 12, 768, 2048),
    *_llama('llama2-1b', 20, 2048, 5632),
    # Single matrices, as in models that keep their layers apart.
    ArgSpec('llama-7b/attention', (4096, 4096)),
    ArgSpec('llama-7b/mlp/gate', (4096, 11008)),
    ArgSpec('llama-7b/mlp/down', (11008, 4096)),
)


def matching(regex: str) -> tuple[ArgSpec, ...]:
    """The specs in whose names the regular expression is found.

    Raises:
      ValueError: if it is in none, or no regular expression.

    Example:
      >>> [spec.shape for spec in matching('llama2-1b/mlp')]
      [(20, 2048, 5632), (20, 5632, 2048)]
    """
    try:
        found = tuple(spec for spec in ARG_SPECS if re.search(regex, spec.name))
    except re.error as error:
        raise ValueError(f'{regex!r} is no regular expression: {error}') from None
    if not found:
        raise ValueError(f'{regex!r} is in the name of no shape; there are {", ".join(s.name for s in ARG_SPECS)}')
    return found
