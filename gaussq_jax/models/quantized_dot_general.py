"""Quantized matmuls in linen layers: a `dot_general` that knows its path and layer, and takes keys from a stream."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from gaussq_jax.quantized_dot_general import TARGETS, quantized_dot_general
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.recipes import Recipe
from gaussq_jax.three_gemms import Flag


class QuantizedDotGeneral(nn.Module):
    """`quantized_dot_general` as a linen module, for `dot_general_cls=` of linen's layers.

    Each use in each module draws a key of its own from the rng stream; without randomness no stream is needed.
    Under `nn.scan` and `nn.vmap` the stream must be split (`split_rngs`) where layers are to differ. A recipe whose
    rules tell the layers of a stack apart needs to be told which one it is in: `telling_layer` does that.

    Attributes:
      P1, P2, P3, P4, P5, P6, weight_gradient_dtype: as for `quantized_dot_general`.
      rng: name of the rng stream.
      recipe: in the place of P1 to P6. Its rules speak of the path of the module that has this one, 'layers/mlp/up'.
      when: as for what `quantized_dot_general` returns.

    Raises:
      ValueError: for a recipe and operands beside it.

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
    recipe: Recipe | None = None
    when: Flag | tuple[Flag, Flag] = True

    @nn.compact
    def __call__(
        self,
        lhs,
        rhs,
        dimension_numbers,
        precision=None,
        preferred_element_type=None,
        *,
        out_sharding=None,
        layer=None,
        num_layers=None,
    ):
        """As `jax.lax.dot_general`; layer and num_layers: as for `Recipe.dot_general`."""
        operands = {name: quantizer for name in TARGETS if (quantizer := getattr(self, name)) is not None}
        if self.recipe is not None and operands:
            raise ValueError(f'recipe={self.recipe.name} and {", ".join(operands)} are both given')
        recipe = self.recipe or (Recipe(name='own', **operands) if operands else None)
        settings = {'weight_gradient_dtype': self.weight_gradient_dtype}
        if recipe is None:
            return quantized_dot_general(**settings)(
                lhs, rhs, dimension_numbers, precision, preferred_element_type, out_sharding=out_sharding
            )
        path = '/'.join(self.path[:-1])
        return recipe.dot_general(path, layer, num_layers=num_layers, when=self.when, **settings)(
            lhs,
            rhs,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
            key=self.make_rng(self.rng) if recipe.needs_key else None,
        )


def telling_layer(layer: jax.Array | int, num_layers: int):
    """A context in which each QuantizedDotGeneral that is called knows that it is in this layer of a stack.

    For the body of a scan over layers, whose parameters are stacked; our models' scans do it.

    Example:
      >>> import functools
      >>> from gaussq_jax.recipes import NVFP4
      >>> dense = nn.Dense(16, dot_general_cls=functools.partial(QuantizedDotGeneral, recipe=NVFP4))
      >>> with telling_layer(9, num_layers=10):
      ...     y, _ = dense.init_with_output(jax.random.key(0), jnp.ones((1, 16)))
      >>> y.shape
      (1, 16)
    """

    def tell(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, QuantizedDotGeneral) and context.method_name == '__call__':
            kwargs = {**kwargs, 'layer': layer, 'num_layers': num_layers}
        return call(*args, **kwargs)

    return nn.intercept_methods(tell)
