"""Rotary frequencies, against their definitions in float64."""

import math

import numpy as np
import pytest

from gaussq_jax.models.rope import RopeScaling, rope_frequencies


def definition(head_dim, theta, scaling):
    """By wavelengths, case by case, as Meta's Llama 3.1 has them."""
    frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if scaling is None:
        return frequencies
    factor, low, high, original = scaling
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            scaled.append(frequency)
        elif wavelength > original / low:
            scaled.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled


@pytest.mark.parametrize('head_dim', [2, 6, 128])
@pytest.mark.parametrize('theta', [50.0, 10_000.0, 500_000.0])
@pytest.mark.parametrize(
    'scaling', [None, RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 64), RopeScaling(2.0, 0.5, 0.6, 8)]
)
def test_definition(head_dim, theta, scaling):
    frequencies = rope_frequencies(head_dim, theta, scaling)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, definition(head_dim, theta, scaling), rtol=3e-6)


def test_llama_3_1_has_frequencies_of_each_kind():
    plain, scaled = (np.asarray(rope_frequencies(128, 5e5, s)) for s in (None, RopeScaling(8.0, 1.0, 4.0, 8192)))
    ratios = plain / scaled
    assert np.sum(ratios == 1) == 29 and np.sum(ratios == 8) == 29 and np.sum((ratios > 1) & (ratios < 8)) == 6
