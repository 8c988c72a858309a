"""Llama 2 with sampled weights, as in the paper on Gaussian weight sampling (arXiv 2505.11170, section 4).

    python -m experiments.train --config=configs/llama2.py:size=134m,method=gaussws --workdir=runs/llama2-134m

Bitwidths are learned as in the paper, by decay; `bitwidths=price` is the other way.
Sizes, with the vocabulary of 32,000: 134m (12 layers of 768, 12 heads) and 1b (20 layers of 2048, 16 heads). The batch
of 1M tokens, the learning rates and the length are common choices for these sizes, not the paper's.
The tokenizer is Llama 2's `tokenizer.model`, a SentencePiece file that Meta distributes: say where it lies by
`--config.tokenizer=…/tokenizer.model`; likewise the text, any TFDS dataset with a text feature, by
`--config.dataset`. By default both are what every machine has: bytes of the Python standard library, for trying out.

Not run yet at full size: neither the time nor the loss to expect is known. `smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs import common

SIZES = {
    '134m': dict(num_layers=12, hidden_size=768, mlp_size=2048, num_heads=12),
    '1b': dict(num_layers=20, hidden_size=2048, mlp_size=5632, num_heads=16),
}


def get_config(argument: str | None = None) -> ConfigDict:
    """A Llama 2 of this size; `parts` are the linear layers that are sampled."""
    parsed = common.parse(argument, size=tuple(SIZES), **{**common.ARGUMENTS, 'bitwidths': ('decay', 'price')})
    config = common.base_config(parsed)
    config.name = f'llama2-{parsed.size}-{parsed.method}'
    config.model = ConfigDict(dict(family='llama', **SIZES[parsed.size]))
    config.batch_size = 512
    config.microbatches = 32
    config.sequence_length = 2048
    config.total_steps = 50_000
    config.optimizer.learning_rate = {'134m': 6e-4, '1b': 3e-4}[parsed.size]
    config.optimizer.final_learning_rate = config.optimizer.learning_rate / 10
    config.optimizer.warmup_steps = 2000
    config.remat_policy = 'full'
    config.eval_every = config.checkpoint_every = 1000
    return common.shrink(config) if parsed.smoke else config
