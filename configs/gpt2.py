"""GPT-2 with sampled weights, as in the paper on Gaussian weight sampling (arXiv 2505.11170, section 4).

    python -m experiments.train --config=configs/gpt2.py:size=124m,method=gaussws --workdir=runs/gpt2-124m

Bitwidths are learned as in the paper, by decay; `bitwidths=price` is the other way.
The recipe is nanoGPT's: batches of 491,520 tokens, learning rate 6e-4 to 6e-5, 2,000 steps of warm-up, here over
49B tokens. The tokenizer is GPT-2's `tokenizer.json` in the format of Hugging Face `tokenizers`: say where it
lies by `--config.tokenizer=…/tokenizer.json`, and which TFDS text dataset by `--config.dataset`. By default both are
what every machine has: bytes of the Python standard library, for trying out.

Not run yet at full size: neither the time nor the loss to expect is known. `smoke` runs in seconds.
"""

from ml_collections import ConfigDict

from configs import common

SIZES = {'124m': dict(num_layers=12, hidden_size=768, mlp_size=3072, num_heads=12, max_length=1024)}


def get_config(argument: str | None = None) -> ConfigDict:
    """A GPT-2 of this size; `parts` are the linear layers that are sampled."""
    parsed = common.parse(argument, size=tuple(SIZES), **{**common.ARGUMENTS, 'bitwidths': ('decay', 'price')})
    config = common.base_config(parsed)
    config.name = f'gpt2-{parsed.size}-{parsed.method}'
    config.model = ConfigDict(dict(family='gpt2', **SIZES[parsed.size]))
    config.batch_size = 480
    config.microbatches = 30
    config.sequence_length = 1024
    config.total_steps = 100_000
    config.optimizer.warmup_steps = 2000
    config.eval_every = config.checkpoint_every = 1000
    return common.shrink(config) if parsed.smoke else config
