"""Quartet, in MXFP4, and Quartet II, in NVFP4: unbiased gradients of what the forward pass multiplied."""

from gaussq_jax.hadamard import Hadamard
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.recipes.recipe import Recipe

_FORWARD = Quantizer(
    'float4_e2m1fn',
    scale='mx',
    scale_rounding='nearest',
    fit='rms',
    hadamard=Hadamard(32),
    clips_gradient=True,
)
_BACKWARD = Quantizer(
    'float4_e2m1fn',
    scale='mx',
    rounding='stochastic',
    prescale=0.75,  # nothing saturates: an MX block's largest magnitude is below 8, and 6 holds it
    hadamard=Hadamard(32, 'random'),
)

QUARTET = Recipe(
    name='quartet',
    P1=_FORWARD,
    P2=_FORWARD,
    **dict.fromkeys(('P3', 'P4', 'P5', 'P6'), _BACKWARD),
    backward_from='quantized',
    about='forward: scales that err least, clipped gradients; backward: unbiased, of what the forward pass multiplied',
    source='arXiv 2505.14669, algorithm 1',
)

_BLOCKS = Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', fit='four_over_six')
_EDEN = Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', fit='eden', hadamard=Hadamard(128, 'random'))

QUARTET2 = Recipe(
    name='quartet2',
    P1=_BLOCKS,
    P2=_BLOCKS,
    **dict.fromkeys(('P3', 'P4', 'P5', 'P6'), _EDEN),
    backward_from='quantized',
    about='forward: the better of two scales; backward: MS-EDEN, unbiased, of what the forward pass multiplied',
    source='arXiv 2601.22813',
)
