"""The grid of the paper on scaling laws for floating-point quantized training (arXiv 2501.02423): 368 trainings.

    python -m experiments.sweep --config=configs/sweeps/capybara.py --workdir=runs/capybara --ray=auto
    python -m experiments.scaling_law fit runs/capybara/results.csv

Four sizes of Llama on 10, 21, 52 and 105 billion tokens; P2, P4 and P6 in seventeen formats by channel, and in E1M1 by
blocks of 32 to 512 and by tensor. (The paper counts 366, and doesn't say which two it left out.)

The text and the tokenizer are yours to give, in a base config of your own, which calls that of `configs/capybara.py`
and sets them: `--config.config=my_capybara.py`. The whole grid takes 2.5e22 FLOPs by 6 N D. It has not been run.
"""

from ml_collections import ConfigDict

SIZES = ('41m', '85m', '154m', '679m')
STEPS = (5_000, 10_000, 25_000, 50_000)  # of 2,097,152 tokens
FORMATS = (
    *('e0m7', 'e1m1', 'e1m2', 'e1m3', 'e1m4', 'e1m5', 'e1m6', 'e2m1', 'e2m3'),
    *('e3m1', 'e3m2', 'e4m1', 'e4m3', 'e4m5', 'e5m1', 'e5m2', 'e6m1'),
)
BLOCK_SIZES = ('32', '64', '128', '256', '512', 'tensor')  # of E1M1, beside channel


def get_config() -> ConfigDict:
    """The sweep: its base config, and grids of fields to set."""
    everywhere = {'method': ['fqt'], ':size': SIZES, 'total_steps': STEPS}
    grids = [
        {**everywhere, 'quantization.block_size': ['channel'], 'quantization.format': FORMATS},
        {**everywhere, 'quantization.block_size': BLOCK_SIZES, 'quantization.format': ['e1m1']},
    ]
    return ConfigDict(dict(name='capybara', config='configs/capybara.py', grids=grids))
