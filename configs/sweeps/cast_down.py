"""What learned bitwidths are worth: Llamas of two sizes trained in four ways, five seeds each, then cast to few bits.

    python -m experiments.sweep --config=configs/sweeps/cast_down.py --workdir=runs/cast-down --jobs=2
    python -m experiments.cast_down --workdir=runs/cast-down --eval_batches=60 --output=docs/cast_down.png

Unquantized; Gaussian-sampled weights whose bitwidths are learned by price, and by the decay of arXiv 2505.11170; and
straight-through training in MXFP4. The second command casts each of them to one format for all weights, to formats
chosen by squared error and by squared gradients, and to what was learned.
"""

from ml_collections import ConfigDict

SEEDS = (0, 1, 2, 3, 4)
SIZES = ({}, {'model.hidden_size': [64], 'model.mlp_size': [192], 'model.num_heads': [2]})  # tiny's, and half as wide


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    ways = [
        {'method': ['bf16']},
        {'method': ['gaussws']},
        {'method': ['gaussws'], ':bitwidths': ['decay']},
        {'method': ['qat'], 'quantization.format': ['float4_e2m1fn'], 'quantization.scale': ['mx']},
    ]
    grids = [{**way, **size, 'seed': SEEDS} for size in SIZES for way in ways]
    return ConfigDict(dict(name='cast_down', config='configs/tiny.py', grids=grids))
