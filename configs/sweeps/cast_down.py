"""What training does for weights that are cast to few bits: six ways to train the tiny Llama, three seeds each.

    python -m experiments.sweep --config=configs/sweeps/cast_down.py --workdir=runs/cast-down --jobs=2
    python -m experiments.cast_down --workdir=runs/cast-down

Unquantized; Gaussian-sampled weights whose bitwidths go from two bits above to 3, 4 and 6; uniform noise at 4; and
straight-through training in FP6. The second command casts each of them to BF16, FP8, FP6, FP4 and what its blocks
learned.
"""

from ml_collections import ConfigDict

SEEDS = (0, 1, 2)


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    sampled = [
        {
            'method': [method],
            'quantization.b_init': [b_target + 2.0],
            'quantization.b_target': [b_target],
            'seed': SEEDS,
        }
        for method, b_target in (('gaussws', 3.0), ('gaussws', 4.0), ('gaussws', 6.0), ('diffq', 4.0))
    ]
    in_fp6 = {
        'method': ['qat'],
        'quantization.format': ['float6_e3m2fn'],
        'quantization.scale': ['mx'],
        'seed': SEEDS,
    }
    grids = [{'method': ['bf16'], 'seed': SEEDS}, *sampled, in_fp6]
    return ConfigDict(dict(name='cast_down', config='configs/tiny.py', grids=grids))
