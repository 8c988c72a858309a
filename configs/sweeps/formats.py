"""Formats, block sizes and operands in fully quantized training of the tiny Llama, three seeds each.

    python -m experiments.sweep --config=configs/sweeps/formats.py --workdir=runs/formats
    python -m experiments.compare --workdir=runs/formats

Unquantized; P2, P4 and P6 in formats of 8 to 3 bits, by blocks of 32 and by channel; P6 and P5 alone; and
Gaussian-sampled weights rounded to 6 bits.
"""

from ml_collections import ConfigDict

SEEDS = (0, 1, 2)


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    grids = [
        {'method': ['bf16'], 'seed': SEEDS},
        {
            'method': ['fqt'],
            'quantization.block_size': ['32', 'channel'],
            'quantization.format': ['e4m3', 'e3m2', 'e2m1', 'e1m1'],
            'seed': SEEDS,
        },
        {
            'method': ['fqt'],
            'quantization.block_size': ['channel'],
            'quantization.format': ['e2m1'],
            'quantization.targets': ['P6', 'P5'],
            'seed': SEEDS,
        },
        {
            'method': ['gaussws'],
            'quantization.format': ['e3m2'],
            'quantization.b_init': [4.0],
            'quantization.b_target': [4.0],
            'seed': SEEDS,
        },
    ]
    return ConfigDict(dict(name='formats', config='configs/capybara.py:size=tiny', grids=grids))
