"""Measure what weight sampling and simulated casts cost, as ratios within one process.

    python -m experiments.benchmark step                                   # training steps of configs/tiny.py
    python -m experiments.benchmark step --config=configs/llama2.py:size=134m --output=benchmarks/step.json
    python -m experiments.benchmark cast                                   # casts to float8_e4m3fn, ours and others'
    python -m experiments.benchmark cast --shape=1024x1024 --output=benchmarks/cast.json

What is compared takes turns, one call each, so that whatever else the machine does falls on all alike; a ratio is
the median over the turns of the ratio to the base (bf16's step; a float32 copy) in the same turn. Of the others, qwix
and PyTorch come with the extras `peers` and `parity`; what isn't installed is listed as such.
"""

import dataclasses
import functools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import cast_benchmark, partitioning, runs, timing, training
from experiments.methods import with_method
from gaussq_jax.param_rules import leaf_path
from gaussq_jax.param_transforms import path_hash

DEFAULT_CONFIG = 'configs/tiny.py'
CONFIG = config_flags.DEFINE_config_file('config', None, f'Whose step: file.py:name=value,…; else {DEFAULT_CONFIG}')
TURNS = flags.DEFINE_integer('turns', 40, 'Calls of each that are timed.', lower_bound=1)
METHODS = flags.DEFINE_list('methods', ['bf16', 'gaussws', 'diffq', 'naive'], 'Whose steps; bf16 is the base.')
SHAPE = flags.DEFINE_string('shape', '4096x4096', 'The matrix that is cast: ROWSxCOLUMNS.')
OUTPUT = flags.DEFINE_string('output', None, 'A JSON file for the results.')

VOCABULARY = 257  # of bytes


def main(argv):
    measure = {'step': step, 'cast': cast}.get(' '.join(argv[1:]))
    if measure is None:
        sys.exit(f'error: say what to measure: step or cast (not {" ".join(argv[1:])!r})')
    with runs.user_errors():
        results = measure()
        if OUTPUT.value:
            pathlib.Path(OUTPUT.value).write_text(json.dumps(results, indent=2) + '\n')


def step() -> dict:
    """Times the training steps that the flags say, and prints them."""
    methods = ['bf16', *(name for name in METHODS.value if name != 'bf16')]
    results = time_steps(CONFIG.value, methods, TURNS.value)
    print(f'training step of {CONFIG.value.model.family}, {results["parameters"]:,} parameters, {results["device"]}')
    print(f'{"method":<10}{"median step":>14}{"to bf16, median of turns":>28}{"quartiles":>18}')
    for name, row in results['methods'].items():
        low, high = row['ratio_quartiles']
        print(f'{name:<10}{row["seconds"] * 1e3:>11.1f} ms{row["ratio"]:>28.3f}{f"{low:.3f} .. {high:.3f}":>18}')
    return results


def cast() -> dict:
    """Times casts and fake quantization, and prints them."""
    if not (match := re.fullmatch(r'(\d+)x(\d+)', SHAPE.value)):
        raise ValueError(f'shape={SHAPE.value!r} is not ROWSxCOLUMNS, such as 4096x4096')
    results = cast_benchmark.time_casts((int(match[1]), int(match[2])), TURNS.value)
    print(f'float32 {SHAPE.value} to float8_e4m3fn and back, {results["device"]}')
    print(f'{"":<25}{"":<29}{"median, a value":>16}{"to a copy":>12}{"quartiles":>16}')
    for operation, rows in results['operations'].items():
        for name, row in rows.items():
            if row == 'not installed':
                print(f'{operation:<25}{name:<29}{row:>16}')
                continue
            low, high = row['ratio_quartiles']
            per_value = f'{row["nanoseconds_per_value"]:.3f} ns'
            print(f'{operation:<25}{name:<29}{per_value:>16}{row["ratio"]:>12.2f}{f"{low:.2f} .. {high:.2f}":>16}')
    return results


def time_steps(config: ConfigDict, methods: list[str], turns: int) -> dict:
    """Times `turns` training steps of each method, which take turns, on one random batch.

    Raises:
      ValueError: for a method or a config that isn't allowed.
    """
    config = config.copy_and_resolve_references()
    config.optimizer.warmup_steps, config.total_steps = 1, turns + 3
    train_steps, states = {}, {}
    for method in methods:
        of_method = with_method(config, 'gaussws' if method == 'naive' else method)
        experiment = training.make_experiment(of_method, VOCABULARY)
        if method == 'naive':
            experiment = naive(experiment)
        train_steps[method], states[method] = training.make_train_step(experiment), training.init_state(experiment)
    shape = (config.batch_size, config.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, 256, shape, dtype=np.int32)
    batch = partitioning.to_devices({'tokens': tokens}, experiment.mesh)

    def train(method):
        states[method], metrics = train_steps[method](states[method], batch)
        return states[method], metrics

    rows = timing.take_turns({method: functools.partial(train, method) for method in methods}, turns)
    return {**timing.environment(), 'parameters': experiment.num_params, 'turns': turns, 'methods': rows}


def naive(experiment: training.Experiment) -> training.Experiment:
    """The same experiment with Gaussian sampling as one writes it first: jax.random.normal, round, add, autodiff.

    It knows scanned matrices of whole blocks only, as those of our models are.
    """
    transform, size = experiment.transform, int(experiment.config.quantization.block_size)

    def apply(key, params, state):
        bitwidths = transform.bitwidths(state)

        def sample(path, w):
            if (name := leaf_path(path)) not in bitwidths:
                return w.astype(jnp.bfloat16)
            layers, m, n = w.shape
            blocks = jax.lax.stop_gradient(w).reshape(layers, m // size, size, n // size, size)
            step = jnp.max(jnp.abs(blocks), axis=(2, 4)) * 2 ** (1 - bitwidths[name])
            leaf_key = jax.random.fold_in(key, path_hash(name))
            noise = jnp.round(jax.random.normal(leaf_key, blocks.shape) / 2) * step[:, :, None, :, None]
            return (w + noise.reshape(w.shape)).astype(jnp.bfloat16)

        return jax.tree_util.tree_map_with_path(sample, params)

    return dataclasses.replace(experiment, transform=transform._replace(apply=apply))


if __name__ == '__main__':
    runs.start(main, default_config=DEFAULT_CONFIG, takes_arguments=True)
