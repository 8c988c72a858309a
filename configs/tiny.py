"""A Llama of 1.1M parameters that learns Python source text on two CPU cores.

python -m experiments.train --config=configs/tiny.py:method=gaussws
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str | None = None) -> ConfigDict:
    parsed = common.parse(argument, **common.ARGUMENTS)
    config = common.base_config(parsed)
    config.name = f'tiny-{parsed.method}'
    config.model = ConfigDict(dict(family='llama', num_layers=3, hidden_size=128, mlp_size=384, num_heads=4))
    config.dtype = 'float32'
    config.batch_size = 16
    config.sequence_length = 128
    config.total_steps = 900
    config.optimizer.learning_rate = 3e-3
    config.optimizer.final_learning_rate = 1e-4
    config.quantization.learning_rate = 2e-3
    config.quantization.weight_decay = 2.25
    config.eval_every = config.checkpoint_every = 150
    return common.shrink(config) if parsed.smoke else config
