"""A Llama of 0.7M parameters (3 layers of 128) that learns Python source text, byte by byte, on two CPU cores.

    python -m experiments.train --config=configs/tiny.py:method=gaussws

The sizes and the schedule are ours, chosen to reach 1.8 nats a byte with room to spare in the minutes that a newcomer
gives it. Two cores of an AMD EPYC, Python 3.11, jax 0.10.2: 66 seconds; validation loss 1.417 with bf16, 1.419 with
gaussws (1.469 with noise, 3.52 bits on average at the end). That is seed 0; with the seeds 1 and 2 bf16 gives 1.420 and
1.389, gaussws 1.423 and 1.409. `bitwidths=decay` is the way of arXiv 2505.11170: 1.425 (1.445 with noise, 4.25 bits).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    """The tiny Llama; `parts` are the linear layers that are sampled."""
    parsed = common.parse(argument, **common.ARGUMENTS)
    config = common.base_config(parsed)
    config.name = f'tiny-{parsed.method}'
    config.model = ConfigDict(dict(family='llama', num_layers=3, hidden_size=128, mlp_size=384, num_heads=4))
    config.dtype = 'float32'  # which CPUs multiply faster than bfloat16
    config.scan_unroll = config.model.num_layers
    config.batch_size = 16
    config.sequence_length = 128
    config.total_steps = 900
    config.optimizer.learning_rate = 3e-3
    config.optimizer.final_learning_rate = 1e-4
    if parsed.bitwidths == 'decay':
        config.quantization.learning_rate = 2e-3
        config.quantization.weight_decay = 2.25
    config.eval_every = config.checkpoint_every = 150
    return common.shrink(config) if parsed.smoke else config
