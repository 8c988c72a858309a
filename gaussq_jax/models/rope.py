"""The frequencies of rotary position embeddings, and how Llama 3 scales them for longer sequences."""

import math
from typing import NamedTuple

import jax.numpy as jnp


class RopeScaling(NamedTuple):
    """Llama 3's scaling: frequencies that turn seldom within the original length are divided by a factor.

    Attributes:
      factor: by which those are divided that turn `low_freq_factor` times or less within the original length.
      low_freq_factor, high_freq_factor: from `high_freq_factor` turns on a frequency stays what it is; between the two
        it is interpolated.
      original_length: the longest sequence before the scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


def rope_frequencies(head_dim, theta, scaling=None):
    """The angle, in radians, by which each pair of a head's numbers turns from one position to the next.

        f_i = theta^(-2i / head_dim),    0 <= i < head_dim/2

    and with a scaling, for t = original_length f_i / (2 pi) turns within the original length,

        f_i (k + (1 - k) / factor),    k = clip((t - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)

    Args:
      head_dim: numbers of a head, even.
      theta: base of the frequencies, 10000 in the paper.
      scaling: a `RopeScaling`, or None.

    Returns:
      A float32 array (head_dim / 2,).

    Source: Su et al., RoFormer (arXiv 2104.09864), section 3.2.2; the scaling is Llama 3.1's, the `rope_type` llama3 of
    `modeling_rope_utils.py` in transformers 5.

    Example:
      >>> rope_frequencies(4, 100.0)
      Array([1. , 0.1], dtype=float32)
      >>> rope_frequencies(4, 100.0, RopeScaling(8.0, 1.0, 4.0, original_length=32))    # 5.1 turns, and 0.5
      Array([1.    , 0.0125], dtype=float32)
    """
    half = head_dim // 2
    frequencies = 1.0 / theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequencies
    turns = scaling.original_length / (2 * math.pi) * frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
