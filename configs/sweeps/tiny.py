"""A sweep for a scaling law on two CPU cores: formats, block sizes and bitwidths over model sizes and tokens.

    python -m experiments.sweep --config=configs/sweeps/tiny.py --workdir=runs/tiny-law --jobs=2
    python -m experiments.scaling_law report runs/tiny-law/results.csv

Llamas of 27 to 240 thousand weights on 0.3 to 2 million bytes: unquantized; P2, P4 and P6 in four formats of 3 to 6
bits, by blocks of 16 and by channel; and Gaussian-sampled weights at four constant bitwidths. Three seeds where model
size and tokens are least or most, for the formats with the fewest and the most bits, and for bitwidths likewise.
"""

from ml_collections import ConfigDict

SIZES = ('tiny-27k', 'tiny-60k', 'tiny-106k', 'tiny-240k')
STEPS = (300, 775, 2000)  # of 1024 tokens
FORMATS = ('e1m1', 'e2m1', 'e1m2', 'e3m2')
BLOCK_SIZES = ('16', 'channel')
BITWIDTHS = (2.0, 3.0, 4.0, 5.0)


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    everywhere = {':size': SIZES, 'total_steps': STEPS, 'seed': [0]}
    corners = {':size': [SIZES[0], SIZES[-1]], 'total_steps': [STEPS[0], STEPS[-1]], 'seed': [1, 2]}
    formats = {'quantization.block_size': BLOCK_SIZES, 'quantization.format': FORMATS}
    extremes = {'quantization.block_size': BLOCK_SIZES, 'quantization.format': [FORMATS[0], FORMATS[-1]]}
    constant = [{'quantization.b_init': [bits], 'quantization.b_target': [bits]} for bits in BITWIDTHS]
    grids = [
        {'method': ['bf16'], **everywhere},
        {'method': ['fqt'], **formats, **everywhere},
        {'method': ['bf16'], **corners},
        {'method': ['fqt'], **extremes, **corners},
        *({'method': ['gaussws'], **bits, **everywhere} for bits in constant),
        *({'method': ['gaussws'], **bits, **corners} for bits in (constant[0], constant[-1])),
    ]
    return ConfigDict(dict(name='tiny-law', config='configs/capybara.py', grids=grids))
