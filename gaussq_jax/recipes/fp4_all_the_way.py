"""FP4 All the Way: NVFP4 rounded to nearest in the forward pass, and stochastically in the backward pass."""

from gaussq_jax.quantizer import Quantizer
from gaussq_jax.recipes.recipe import Recipe

_NEAREST, _STOCHASTIC = (
    Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', rounding=rounding)
    for rounding in ('nearest_even', 'stochastic')
)

FP4_ALL_THE_WAY = Recipe(
    name='fp4_all_the_way',
    P1=_NEAREST,
    P2=_NEAREST,
    P3=_STOCHASTIC,
    P4=_NEAREST,
    P5=_STOCHASTIC,
    P6=_STOCHASTIC,
    about='NVFP4 by 16 everywhere; gradients, and the activations that they multiply, stochastic',
    source='arXiv 2505.19115',
)
