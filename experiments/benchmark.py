"""Measure what weight sampling costs, as ratios within one process.

    python -m experiments.benchmark step                                   # training steps of configs/tiny.py
    python -m experiments.benchmark step --config=configs/llama2.py:size=134m --output=benchmarks/step.json

The methods take turns, one step each, so that whatever else the machine does falls on all of them alike; the
overhead is the median over the turns of the ratio to bf16's step in the same turn.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import partitioning, runs, training
from gaussq_jax.param_rules import leaf_path
from gaussq_jax.param_transforms import path_hash

DEFAULT_CONFIG = 'configs/tiny.py'
CONFIG = config_flags.DEFINE_config_file('config', None, f'Whose step: file.py:name=value,…; else {DEFAULT_CONFIG}')
TURNS = flags.DEFINE_integer('turns', 40, 'Steps of each method that are timed.', lower_bound=1)
METHODS = flags.DEFINE_list('methods', ['bf16', 'gaussws', 'diffq', 'naive'], 'What takes turns; bf16 is the base.')
OUTPUT = flags.DEFINE_string('output', None, 'A JSON file for the results.')

VOCABULARY = 257  # of bytes


def main(argv):
    if argv[1:] != ['step']:
        sys.exit(f'error: say what to measure: step (not {" ".join(argv[1:])!r})')
    with runs.user_errors():
        results = time_steps(CONFIG.value, ['bf16', *(name for name in METHODS.value if name != 'bf16')], TURNS.value)
    print(f'training step of {CONFIG.value.model.family}, {results["parameters"]:,} parameters, {results["device"]}')
    print(f'{"method":<10}{"median step":>14}{"to bf16, median of turns":>28}{"quartiles":>18}')
    for name, row in results['methods'].items():
        low, high = row['ratio_quartiles']
        print(f'{name:<10}{row["seconds"] * 1e3:>11.1f} ms{row["ratio"]:>28.3f}{f"{low:.3f} .. {high:.3f}":>18}')
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(results, indent=2) + '\n')


def time_steps(config: ConfigDict, methods: list[str], turns: int) -> dict:
    """Times `turns` training steps of each method, which take turns, on one random batch.

    Raises:
      ValueError: for a method or a config that isn't allowed.
    """
    config = config.copy_and_resolve_references()
    config.optimizer.warmup_steps, config.total_steps = 1, turns + 3
    steps = {}
    for method in methods:
        config.method = 'gaussws' if method == 'naive' else method
        experiment = training.make_experiment(config, VOCABULARY)
        if method == 'naive':
            experiment = naive(experiment)
        steps[method] = [training.make_train_step(experiment), training.init_state(experiment)]
    shape = (config.batch_size, config.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, 256, shape, dtype=np.int32)
    batch = partitioning.to_devices({'tokens': tokens}, experiment.mesh)

    seconds = {method: [] for method in methods}
    for turn in range(turns + 2):  # the first compiles, the second warms up
        for method in methods if turn % 2 else reversed(methods):
            train_step, state = steps[method]
            start = time.perf_counter()
            steps[method][1], metrics = train_step(state, batch)
            jax.block_until_ready((steps[method][1], metrics))
            if turn > 1:
                seconds[method].append(time.perf_counter() - start)
    rows = {}
    for method, times in seconds.items():
        ratios = np.array(times) / np.array(seconds['bf16'])
        rows[method] = {
            'seconds': float(np.median(times)),
            'ratio': float(np.median(ratios)),
            'ratio_quartiles': [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
        }
    return {**environment(), 'parameters': experiment.num_params, 'turns': turns, 'methods': rows}


def naive(experiment: training.Experiment) -> training.Experiment:
    """The same experiment with Gaussian sampling as one writes it first: jax.random.normal, round, add, autodiff.

    It knows scanned matrices of whole blocks only, as those of our models are.
    """
    transform, size = experiment.transform, experiment.config.quantization.block_size

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


def environment() -> dict[str, str]:
    """On what, with what and when something was measured."""
    device = jax.devices()[0]
    git = shutil.which('git')
    commit = git and subprocess.run([git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False).stdout
    return {
        'device': f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores',
        'jax': jax.__version__,
        'flax': flax.__version__,
        'date': datetime.date.today().isoformat(),
        'commit': (commit or 'unknown').strip(),
    }


if __name__ == '__main__':
    runs.start(main, default_config=DEFAULT_CONFIG, takes_arguments=True)
