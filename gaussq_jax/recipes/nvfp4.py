"""NVIDIA's recipe for pre-training in NVFP4."""

from gaussq_jax.hadamard import Hadamard
from gaussq_jax.kept_layers import KeptLayers
from gaussq_jax.quantizer import Quantizer
from gaussq_jax.recipes.recipe import Recipe

SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)  # those of Transformer Engine

ACTIVATIONS = Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4')
WEIGHTS = Quantizer('float4_e2m1fn', block_size=(16, 16), scale='nvfp4')  # the same numbers in both passes
GRADIENTS = Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', rounding='stochastic')
TRANSFORM = Hadamard(16, SIGNS)

NVFP4 = Recipe(
    name='nvfp4',
    P1=ACTIVATIONS,
    P2=WEIGHTS,
    P3=GRADIENTS,
    P4=WEIGHTS,
    P5=Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', rounding='stochastic', hadamard=TRANSFORM),
    P6=Quantizer('float4_e2m1fn', block_size=16, scale='nvfp4', hadamard=TRANSFORM),
    full_precision=(KeptLayers(first=2 / 62, last=8 / 62),),  # as the 12B model's
    ends='forward',
    about='weights in tiles; dW of transformed operands; stochastic gradients; about 15 % of the layers kept',
    source='arXiv 2509.25149',
)
