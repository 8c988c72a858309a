"""How people write amounts, bits, formats and intervals, and what is read of it: 1.5T, e4m3, '2.07 to 2.11'."""

import math
import re
from collections.abc import Callable, Sequence

from configs import capybara
from gaussq_jax.formats import parse_format

UNKNOWN = 'unknown'
UNITS = {'T': 1e12, 'B': 1e9, 'M': 1e6, 'K': 1e3}
BF16 = 8, 7  # E and M


def human(value: float) -> str:
    """Three digits and K, M, B or T: 1732e12 -> '1730T'."""
    if not math.isfinite(value):
        return 'infinite' if value > 0 else UNKNOWN
    for letter, unit in UNITS.items():
        if 0.9995 * unit <= value < 1e18:
            return f'{float(f"{value / unit:.3g}"):g}{letter}'
    return f'{value:.3g}'


def format_name(E: int, M: int) -> str:
    """'e4m3'; 'bf16' for E8M7."""
    return 'bf16' if (E, M) == BF16 else f'e{E}m{M}'


def block_name(block: float | str) -> str:
    """'128', 'channel' or 'tensor'."""
    return block if isinstance(block, str) else f'{block:g}'


def recipe_name(forward: str, backward: str) -> str:
    """Of both passes, '' for one that isn't told: 'quest and mxfp8'; 'nvfp4' if it is in both."""
    return ' and '.join(dict.fromkeys(filter(None, (forward, backward))))


def interval_text(ends: Sequence[float], write: Callable[[float], str]) -> str:
    """Both ends; 'unknown' if the runs leave it open."""
    return UNKNOWN if math.isnan(ends[0]) else f'{write(ends[0])} to {write(ends[1])}'


def value_text(value: float, ends: Sequence[float] | None, write: Callable[[float], str], about: str = '') -> str:
    """A number and its interval; the first alone if there is none, and 'unknown' if the runs leave it open."""
    if ends is None:
        return write(value)
    return UNKNOWN if math.isnan(ends[0]) else f'{write(value)} ({about}{interval_text(ends, write)})'


def model_sizes() -> dict[str, int]:
    """N, the weights of the linear layers, of each size of configs/capybara.py."""
    return {
        size: layers * (4 * hidden**2 + 3 * hidden * mlp) for size, (layers, hidden, mlp, _) in capybara.SIZES.items()
    }


# What is read of a flag; each raises a ValueError that names it.


def parse_amount(flag: str, text: str) -> float:
    """A positive number such as 1e9, 1.5T or 300M."""
    match = re.fullmatch(r'(\d+\.?\d*|\.\d+)(e[+-]?\d+)?([KMBT]?)', text, re.IGNORECASE)
    value = float(match[1] + (match[2] or '')) * UNITS.get(match[3].upper(), 1) if match else 0
    if not 0 < value < math.inf:
        raise ValueError(f'--{flag}={text!r} must be a number above 0, such as 1e9, 300M or 1.5T')
    return value


def parse_model(flag: str, text: str) -> float:
    """N, of a size of configs/capybara.py or as a number."""
    sizes = model_sizes()
    try:
        return float(sizes[text] if text in sizes else parse_amount(flag, text))
    except ValueError as error:
        raise ValueError(f'{error}, or one of {", ".join(sizes)}') from None


def parse_layout(flag: str, text: str) -> tuple[int, int]:
    """E and M of a format."""
    del flag  # the error shows the format's name, and all others
    fmt = parse_format({'bf16': 'bfloat16', 'e8m7': 'bfloat16'}.get(text.lower(), text.lower()))
    return fmt.exponent_bits, fmt.mantissa_bits


def parse_block(flag: str, text: str) -> int | str:
    """A block size."""
    if text in ('channel', 'tensor'):
        return text
    if not re.fullmatch(r'\d+', text) or int(text) < 1:
        raise ValueError(f'--{flag}={text!r} must be a whole number above 0, channel or tensor')
    return int(text)


def parse_recipe(flag: str, text: str) -> str:
    """The name of a recipe."""
    if not text:
        raise ValueError(f'--{flag} must name a recipe, such as bf16 or mxfp4')
    return text.lower()


def parse_bitwidth(flag: str, text: str) -> float:
    """b, of weights that are sampled; inf of those that aren't."""
    return math.inf if text == 'inf' else parse_amount(flag, text)


def parse_bits(flag: str, text: str) -> float:
    """Those of a floating-point number."""
    value = parse_amount(flag, text)
    if value < 2:
        raise ValueError(f'--{flag}={text!r} must be at least 2: a sign, and exponent or mantissa')
    return value
