"""Recipes that are made of one Quantizer: some operands of the Capybara paper's six, or the weights alone."""

from gaussq_jax.formats import FloatFormat
from gaussq_jax.quantized_dot_general import TARGETS
from gaussq_jax.quantizer import Quantizer, check_quantizer
from gaussq_jax.recipes.recipe import Recipe


def capybara(E: int, M: int, B: int | str = 'channel', targets: str = 'P2+P4+P6') -> Recipe:
    """The operands that the paper quantizes: to ExMy, all of whose codes are numbers, with float32 scales of B values.

    Args:
      E, M: exponent and mantissa bits.
      B: how many consecutive values share a scale; or 'channel', or 'tensor'.
      targets: of P1 to P6, joined by '+'.

    Raises:
      ValueError: for a format or a block size that isn't there, and other targets.

    Example:
      >>> capybara(2, 1, 128).P4.summary
      'e2m1 by 128, absmax'

    Source: arXiv 2501.02423, section 3.
    """
    return of_targets(Quantizer(FloatFormat(E, M), block_size=B), targets)


def of_targets(quantizer: Quantizer, targets: str) -> Recipe:
    """One Quantizer for each of the operands that are named, as 'P2+P4+P6'."""
    check_quantizer(quantizer)
    names = targets.split('+')
    if len(set(names)) < len(names) or not set(names) <= set(TARGETS):
        raise ValueError(f'targets={targets!r}: allowed are {", ".join(TARGETS)}, joined by +')
    source = 'arXiv 2501.02423, section 3'
    about = f'{targets} to {quantizer.summary}'
    return Recipe(name='capybara', **dict.fromkeys(names, quantizer), about=about, source=source)


def qat(quantizer: Quantizer) -> Recipe:
    """The weights alone, straight through, in both passes: quantization-aware training.

    Example:
      >>> qat(Quantizer('e2m1')).transform().matrices
      'quantized'

    Source: arXiv 1308.3432, the estimator.
    """
    check_quantizer(quantizer)
    return Recipe(name='qat', weights=quantizer, about=f'weights to {quantizer.summary}', source='arXiv 1308.3432')
