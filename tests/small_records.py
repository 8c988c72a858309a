"""Records of runs as the training program writes them, of a few numbers."""

from configs import stored as stored_configs
from configs import tiny
from experiments.reports.run_records import RunRecord


def config_of(argument, seed=0, **changes):
    """The config of tiny, as a run stores it."""
    return stored_configs.read({'config_version': 2, **tiny.get_config(argument).to_dict(), 'seed': seed, **changes})


def record(name, argument='method=bf16', seed=0, lines=(), **changes):
    return RunRecord(name, list(lines), config_of(argument, seed, **changes))


def training(num_steps, factor=1.0):
    """Losses of 2 / step, times the factor."""
    names = ('train/loss', 'validation/loss')
    return [{'step': step, **dict.fromkeys(names, factor * 2.0 / step)} for step in range(1, num_steps + 1)]


def bits(num_steps, first=6.0):
    """Bitwidths of two matrices of two layers, a bit less at each step, and for each layer and matrix."""
    of_step = lambda step: {
        'bits/mean': first - step,
        'bits/matrix/query': [first + 1 - step, first - step],
        'bits/matrix/up': [first - step, first - 1 - step],
    }
    return [{'step': step, **of_step(step)} for step in range(1, num_steps + 1)]
