"""How much longer a training step with more layers takes to compile: not longer, if layers are scanned."""

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import timing
from experiments.cost import step_costs
from experiments.devices.compilation_cache import without_cache
from experiments.training.experiment import make_experiment
from gaussq_jax.text_table import text_table

DEPTHS = (4, 24)
DEFAULT_TURNS = 5


def benchmark(config: ConfigDict, turns: int | None, vocab_size: int) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_depths` and its table."""
    results = time_depths(config, turns or DEFAULT_TURNS, vocab_size=vocab_size)
    cells = [
        (layers, f'{row["seconds"]:.2f} s', f'{row["ratio"]:.2f}', timing.quartiles_text(row, 2))
        for layers, row in results['depths'].items()
    ]
    table = text_table([('layers', 'median', 'to the first', 'quartiles'), *cells])
    yield results, f'compiling the training step of {results["config"]}, {results["device"]}\n{table}'


def time_depths(config: ConfigDict, turns: int, *, vocab_size: int, depths: Sequence[int] = DEPTHS) -> dict[str, Any]:
    """Compiles the training step of the config with so many layers, in turns, from tracing to the program.

    Returns:
      What `timing.provenance` says, 'config', 'turns', and 'depths': for each depth a `timing.Timing`, whose ratios
      are to the first.

    Raises:
      ValueError: for a config that can't be trained.
    """
    experiments = {depth: make_experiment(_with_layers(config, depth), vocab_size) for depth in depths}
    with without_cache():
        functions = {
            str(depth): lambda experiment=experiment: step_costs.trace(experiment).lower().compile()
            for depth, experiment in experiments.items()
        }
        times = timing.take_turns(functions, turns)
    return {**timing.provenance(), 'config': config.name, 'turns': turns, 'depths': times}


def _with_layers(config: ConfigDict, layers: int) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.num_layers, config.scan_unroll = layers, 1  # unrolled, few layers would be another program
    return config
