"""How long a model takes to write a token with its cache of keys and values, and by seeing all of its window anew."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.benchmarks import timing
from experiments.training.experiment import init_state, make_experiment
from experiments.training.token_choice import Sampling
from experiments.training.token_writer import TokenWriter
from gaussq_jax.text_table import text_table


class WithoutCache(NamedTuple):
    """A model of which nobody knows that it keeps a cache."""

    model: Any

    def apply(self, variables: Any, tokens: jax.Array) -> jax.Array:
        return self.model.apply(variables, tokens)


def benchmark(config: ConfigDict, turns: int | None, vocab_size: int) -> Iterator[tuple[dict[str, Any], str]]:
    """`time_tokens` and its table."""
    results = time_tokens(config, turns or timing.DEFAULT_TURNS, vocab_size=vocab_size)
    cells = [
        (name, f'{row["seconds"] * 1e3:.2f} ms', f'{row["ratio"]:.3f}', timing.quartiles_text(row, 3))
        for name, row in results['ways'].items()
    ]
    title = f'{results["config"]}, {results["parameters"]:,} parameters, window {results["window"]:,}'
    table = text_table([('a token', 'median', 'to the first', 'quartiles'), *cells])
    yield results, f'{title}, {results["device"]}\n{table}'


def time_tokens(config: ConfigDict, turns: int, *, vocab_size: int) -> dict[str, Any]:
    """Writes a text after a prompt that fills half of the window, in both ways, which take turns, a token each.

    Returns:
      What `timing.provenance` says, 'config', 'parameters', 'window', 'turns', and 'ways': of each a `timing.Timing`,
      whose ratios are to seeing the window anew.

    Raises:
      ValueError: for a config that can't be trained, or with a window that has no room for that many turns.
    """
    experiment = make_experiment(config, vocab_size)
    state = init_state(experiment)
    weights = experiment.transform.apply(None, state.params, state.transform_state)
    window = config.sequence_length
    num_tokens = turns + 2  # two turns warm up
    prompt = [1] * (window // 2 + 1)  # padded to the window
    if num_tokens > window - len(prompt):
        raise ValueError(f'turns={turns}: allowed are 1 to {window - len(prompt) - 2} with a window of {window}')

    def write(model):
        writer = TokenWriter(model, weights, window=window, mesh=experiment.mesh)
        return writer.write([prompt], num_tokens=num_tokens, sampling=Sampling(0), key=jax.random.key(0))

    ways = {'all of the window anew': WithoutCache(experiment.model), 'with the cache': experiment.model}
    functions = {name: write(model).__next__ for name, model in ways.items()}
    return {
        **timing.provenance(),
        'config': config.name,
        'parameters': experiment.num_params,
        'window': window,
        'turns': turns,
        'ways': timing.take_turns(functions, turns),
    }
