"""Recipes in FP8: by row and by tensor, which Hopper's and Ada's units take, MXFP8, and DeepSeek's tiles."""

from gaussq_jax.quantizer import Quantizer
from gaussq_jax.recipes.recipe import Recipe


def _scaled_by(block_size: str, **fields: str) -> Recipe:
    forward, gradients = (Quantizer(fmt, block_size=block_size) for fmt in ('float8_e4m3fn', 'float8_e5m2'))
    return Recipe(P1=forward, P2=forward, P3=gradients, P4=forward, P5=gradients, P6=forward, **fields)


FP8_TENSORWISE = _scaled_by(
    'tensor',
    name='fp8_tensorwise',
    about='E4M3 forward, E5M2 gradients; one scale a tensor',
    source='arXiv 2209.05433; torchao and Transformer Engine, current scaling',
)
FP8_ROWWISE = _scaled_by(
    'channel',
    name='fp8_rowwise',
    about='E4M3 forward, E5M2 gradients; one scale for all that a result sums',
    source='arXiv 2209.05433; rows as of torchao, whose gradients are E4M3',
)

_MXFP8 = Quantizer('float8_e4m3fn', scale='mx', scale_rounding='rceil')
MXFP8 = Recipe(
    name='mxfp8',
    **dict.fromkeys(('P1', 'P2', 'P3', 'P4', 'P5', 'P6'), _MXFP8),
    about='E4M3 by 32 everywhere, scales rounded up, so that nothing saturates',
    source='arXiv 2506.08027',
)

_VALUES, _WEIGHTS = (Quantizer('float8_e4m3fn', block_size=size) for size in (128, (128, 128)))
DEEPSEEK_FP8 = Recipe(
    name='deepseek_fp8',
    P1=_VALUES,
    P2=_WEIGHTS,
    P3=_VALUES,
    P4=_WEIGHTS,
    P5=_VALUES,
    P6=_VALUES,
    about='E4M3 everywhere: activations and gradients by 128, weights in tiles of 128 x 128',
    source='arXiv 2412.19437, section 3.3',
)
