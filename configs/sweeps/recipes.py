"""Every recipe beside BF16 and sampled weights, on two CPU cores: what each is worth in parameters and data.

    python -m experiments.sweep --config=configs/sweeps/recipes.py --workdir=runs/recipes --jobs=2
    python -m experiments.scaling_law fit runs/recipes/results.csv --law_name=effective

Llamas of four layers with 0.46 and 1.05 million weights on 0.15 to 0.61 million bytes, with three seeds; and NVFP4 with
one part left out at a time, on the most bytes. The learning rate is constant until it falls in the last fifth of the
steps, so that the two shorter runs are branches off the longest.
"""

from ml_collections import ConfigDict

WITHOUT = ('nvfp4-stochastic', 'nvfp4-tiles', 'nvfp4-hadamard')
SIZES = ('tiny-459k', 'tiny-1m')
STEPS = (150, 300, 600)  # of 1024 tokens; their decays begin after 120, 240 and 480
SEEDS = (0, 1, 2)
BITWIDTHS = (4.0, 6.0)
RECIPES = (
    'nvfp4',
    'fp4_all_the_way',
    'quartet',
    'quartet2',
    'mxfp8',
    'fp8_rowwise',
    'fp8_tensorwise',
    'deepseek_fp8',
)


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    wsd = {'optimizer.schedule': ['wsd'], 'checkpoint_every': [120], 'keep_period': [120], 'eval_every': [STEPS[-1]]}
    runs = {**wsd, ':size': SIZES, 'seed': SEEDS, 'total_steps': STEPS}
    constant = [{'quantization.b_init': [bits], 'quantization.b_target': [bits]} for bits in BITWIDTHS]
    grids = [
        {'method': ['bf16'], **runs},
        {'method': ['fqt'], 'quantization.recipe': RECIPES, **runs},
        *({'method': ['gaussws'], **bits, **runs} for bits in constant),
        {'method': ['fqt'], 'quantization.recipe': WITHOUT, **runs, 'total_steps': STEPS[-1:]},
    ]
    return ConfigDict(dict(name='recipes', config='configs/capybara.py', grids=grids, branches=True))
