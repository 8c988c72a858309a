"""Stochastic rounding in linen layers: a `dot_general` that takes its keys from an rng stream."""

from typing import Any

from flax import linen as nn

from gaussq_jax.block_scaling import Quantizer
from gaussq_jax.quantized_dot_general import TARGETS, quantized_dot_general


class QuantizedDotGeneral(nn.Module):
    """`quantized_dot_general` as a linen module, for `dot_general_cls=` of linen's layers.

    Each use in each module draws a key of its own from the rng stream; without stochastic rounding no stream is needed.
    Under `nn.scan` and `nn.vmap` the stream must be split (`split_rngs`) where layers are to differ.

    Attributes:
      P1, P2, P3, P4, P5, P6, weight_gradient_dtype: as for `quantized_dot_general`.
      rng: name of the rng stream.

    Example:
      >>> import functools
      >>> gradients = Quantizer('e2m1', rounding='stochastic')
      >>> layer = nn.Dense(8, dot_general_cls=functools.partial(QuantizedDotGeneral, P3=gradients, P5=gradients))
      >>> x = jnp.ones((4, 32))
      >>> params = layer.init(jax.random.key(0), x)
      >>> layer.apply(params, x, rngs={'quantization': jax.random.key(1)}).shape
      (4, 8)

    Source: arXiv 2501.02423, section 3.1.
    """

    P1: Quantizer | None = None
    P2: Quantizer | None = None
    P3: Quantizer | None = None
    P4: Quantizer | None = None
    P5: Quantizer | None = None
    P6: Quantizer | None = None
    weight_gradient_dtype: Any = None
    rng: str = 'quantization'

    @nn.compact
    def __call__(self, lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None, *, out_sharding=None):
        """As `jax.lax.dot_general`."""
        quantizers = {name: getattr(self, name) for name in TARGETS}
        is_stochastic = any(quantizer and quantizer.rounding == 'stochastic' for quantizer in quantizers.values())
        return quantized_dot_general(**quantizers, weight_gradient_dtype=self.weight_gradient_dtype)(
            lhs,
            rhs,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
            key=self.make_rng(self.rng) if is_stochastic else None,
        )
