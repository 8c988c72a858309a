"""The Llamas of the paper on scaling laws for floating-point quantized training (arXiv 2501.02423, section 3).

    python -m experiments.train --config=configs/capybara.py:size=41m,method=fqt,format=e4m3,block_size=128

The operands P2, P4 and P6 of the linear layers' GEMMs are quantized, as in the paper, unless `targets` says otherwise;
the attention products and the head never are. N counts the weights of the linear layers, layers (4 h^2 + 3 h f); D the
tokens seen, 2,097,152 a step. By default D is the least of the paper's grid, 5,000 steps; the others are 10,000, 25,000
and 50,000. The tokenizer and the text are yours to give, by `--config.tokenizer` and `--config.dataset`; by default
they are what every machine has, bytes of the Python standard library, for trying out.

The sizes from 41m to 70b have not been run: neither the time nor the loss to expect is known. The tiny ones are of the
same family, for two CPU cores: tiny to try things out, the others, named by their N, for `configs/sweeps/tiny.py` and
`configs/sweeps/recipes.py`.
"""

from ml_collections import ConfigDict

from configs import common

SIZES = {  # layers, hidden, FFN, heads
    'tiny': (2, 128, 384, 2),
    'tiny-27k': (2, 32, 96, 1),
    'tiny-60k': (2, 48, 144, 1),
    'tiny-106k': (2, 64, 192, 1),
    'tiny-240k': (2, 96, 288, 1),
    'tiny-459k': (4, 128, 128, 2),  # the last two of widths that all recipes divide
    'tiny-1m': (4, 128, 512, 2),
    '41m': (12, 512, 1536, 8),
    '85m': (12, 768, 2048, 12),
    '154m': (12, 1024, 2816, 16),
    '679m': (24, 1536, 4096, 24),
    '1.2b': (24, 2048, 5632, 32),
    '7b': (35, 4096, 10752, 32),
    '70b': (88, 8192, 22016, 64),
}


def get_config(argument: str | None = None) -> ConfigDict:
    """The Llama of this size, with the paper's optimizer."""
    arguments = {**common.ARGUMENTS, 'method': ('fqt', *(m for m in common.ARGUMENTS['method'] if m != 'fqt'))}
    parsed = common.parse(argument, size=tuple(SIZES), **arguments)
    config = common.base_config(parsed)
    config.name = f'capybara-{parsed.size}-{parsed.method}'
    num_layers, hidden_size, mlp_size, num_heads = SIZES[parsed.size]
    config.model = ConfigDict(
        dict(family='llama', num_layers=num_layers, hidden_size=hidden_size, mlp_size=mlp_size, num_heads=num_heads)
    )
    config.batch_size = 1024
    config.microbatches = 64
    config.sequence_length = 2048
    config.total_steps = 5000
    config.remat_policy = 'full'
    config.optimizer.learning_rate = 3e-4
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.warmup_steps = 500
    config.eval_every = config.checkpoint_every = 1000
    if parsed.size.startswith('tiny'):
        _for_two_cores(config)
    if parsed.size.startswith('tiny-'):  # a few hundred thousand tokens and more: a point of a scaling law
        config.sequence_length = 64
        config.optimizer.learning_rate = round(0.128 / hidden_size, 5)
        config.eval_batches = 100
    return common.shrink(config) if parsed.smoke else config


def _for_two_cores(config: ConfigDict):
    config.dtype = 'float32'  # which CPUs multiply faster than bfloat16
    config.scan_unroll = config.model.num_layers
    config.batch_size = 16
    config.microbatches = 1
    config.sequence_length = 128
    config.total_steps = 400
    config.remat_policy = ''
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 40
    config.eval_every = config.checkpoint_every = 200
    config.eval_batches = 60
