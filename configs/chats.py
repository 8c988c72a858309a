"""Fine-tuning of a run's model, an imported one too, on chats, of which it learns the answers.

    python -m experiments.import_hf --checkpoint=DIR --workdir=runs/imported
    python -m experiments.train --config=configs/chats.py:run=runs/imported,method=gaussws --config.dataset=chats.jsonl
    python -m experiments.generate --workdir=runs/imported-gaussws-chats --chat --prompt='What is JAX?'

Each line of chats.jsonl is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]};
with --config.text_feature=prompt+completion it is {"prompt": ..., "completion": ...}. docs/training.md says more.

Model, tokenizer and sequence length are that run's; of how its own text was read nothing is taken over. A document in
twenty is for validation, chosen by its contents. Batches are of 32 rows, and the learning rate is 2e-5, which falls to
2e-6 after 50 steps of warm-up, and there is no weight decay: common choices for fine-tuning, ours. How many rows there
are is printed at the start: --config.total_steps times 32, divided by them, are the epochs.
"""

from ml_collections import ConfigDict

from configs import common, from_run
from experiments.data import chats


def get_config(argument: str | None = None) -> ConfigDict:
    """The model of the run in the workdir `run`, and its newest weights to start from."""
    config = from_run.get_config(argument)
    defaults = common.base_config(common.parse('', **from_run.ARGUMENTS))
    config.update({name: defaults[name] for name in from_run.TEXT})
    config.name += '-chats'
    config.dataset = 'chats.jsonl'
    config.text_feature, config.held_out = chats.FEATURES[0], 0.05
    config.optimizer.learning_rate, config.optimizer.final_learning_rate = 2e-5, 2e-6
    config.optimizer.weight_decay = 0.0
    return config
