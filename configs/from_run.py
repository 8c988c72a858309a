"""Training on from the weights of a run, imported ones too, by any method: its bitwidths are learned in 1,000 steps.

    python -m experiments.import_hf --checkpoint=DIR --workdir=runs/imported
    python -m experiments.train --config=configs/from_run.py:run=runs/imported,method=gaussws

Model, tokenizer, text and sequence length are that run's, as its config.json says (for chats there is
configs/chats.py, whose text is none of that run's); method and schedule are not:
batches of 32 sequences, AdamW, and a learning rate of 1e-4 that falls to 1e-5 after 50 steps of warm-up: common choices
for fine-tuning, ours. With `bitwidths=decay`, b_i = exp(-0.004 step), of which 2 % are left at the end. The text of an
imported model is by default that of every machine, the Python standard library: say by `--config.dataset` what it shall
learn, and by --config.train_split and its like how that is read, where the run's own text was read in another way.
With `--config.teacher=runs/imported` it is the predictions of that run, in its own precision, that are learned.
For less memory there are `--config.microbatches=32`, `--config.remat_policy=full` and a shorter
`--config.sequence_length`.
"""

from ml_collections import ConfigDict

from configs import common, stored
from experiments.data import tokenizer_files
from experiments.files import json_files, paths

ARGUMENTS = {name: default for name, default in common.ARGUMENTS.items() if name != 'smoke'}
# What is that run's.
MODEL = ('model', 'dtype', 'tokenizer', 'special_tokens', 'vocab_size', 'sequence_length')
TEXT = (
    *('dataset', 'train_split', 'validation_split', 'held_out', 'text_feature', 'invalid_text', 'packing'),
    *('data_dir', 'cache_dir'),
)


def get_config(argument: str | None = None) -> ConfigDict:
    """The model of the run in the workdir `run`, and its newest weights to start from."""
    parsed = common.parse(argument, run='', **ARGUMENTS)
    run = _read(parsed.run)
    workdir = paths.parse(parsed.run, 'run')
    config = common.base_config(parsed)
    config.name = f'{workdir.resolve().name}-{parsed.method}'
    config.update({name: run[name] for name in TEXT + MODEL if name != 'model'})
    config.model = ConfigDict(run['model'])
    config.init_from = str(workdir)
    config.tokenizer = tokenizer_files.copy_of(config.tokenizer, workdir.absolute()) or config.tokenizer
    config.microbatches = 4
    config.total_steps = 1000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 50
    if parsed.bitwidths == 'decay':
        config.quantization.learning_rate = 2e-3
        config.quantization.weight_decay = 2.0
    return config


def _read(run):
    if not run:
        raise ValueError('config argument run is missing: the workdir of the run to train on from, run=runs/imported')
    try:
        path = paths.parse(run, 'run') / 'config.json'
        contents = stored.read(json_files.read(path, model=dict), path)
        lacking = [name for name in TEXT + MODEL if name not in contents]
    except ValueError as error:
        raise ValueError(f'config argument run={run!r}: no config.json of a run can be read there: {error}') from None
    if lacking:
        raise ValueError(f'config argument run={run!r}: its config.json lacks {", ".join(lacking)}')
    return contents
