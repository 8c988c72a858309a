"""What learning bitwidths by price depends on, and what else was tried: a small Llama, three seeds each.

    python -m experiments.sweep --config=configs/sweeps/bitwidths.py --workdir=runs/bitwidths --jobs=2
    python -m experiments.compare --workdir=runs/bitwidths --metric=validation/loss,bits/stored,bits/p10,bits/p90

The default of `configs/tiny.py`, at half its width; without the late start; at other prices; with blocks of other
sizes; with AdamW: the decay of arXiv 2505.11170, the same from 8 bits and as late, and a penalty on the mean bitwidth.
"""

from ml_collections import ConfigDict

SEEDS = (0, 1, 2)
SIZE = {'model.hidden_size': [64], 'model.mlp_size': [192], 'model.num_heads': [2]}
LATE = {'quantization.b_init': [8.0], 'quantization.b_target': [3.0], 'quantization.start': [0.7]}


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    adamw = {':bitwidths': ['decay']}
    ways = [
        {},
        {'quantization.start': [0.0]},
        {'quantization.price': [0.02, 0.08]},
        {'quantization.block_size': ['16', '64']},
        adamw,
        {**adamw, **LATE, 'quantization.weight_decay': [3.8]},
        {**adamw, **LATE, 'quantization.weight_decay': [0.0], 'quantization.penalty': [3.0]},
    ]
    grids = [{'method': ['gaussws'], **way, **SIZE, 'seed': SEEDS} for way in ways]
    return ConfigDict(dict(name='bitwidths', config='configs/tiny.py', grids=grids))
